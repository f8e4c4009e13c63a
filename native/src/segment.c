/* segment: what ring and star share: which route an op takes, who owns a segment, its steps to
 * final and marked, and the order in which ops start theirs. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "internal.h"
#include "mean.h"
#include "reduce.h"

int pc_route(const pc_core *core, const struct pc_op *op) {
    if (pc_is_exchange(op->desc.kind))
        return PCCL_ROUTE_DIRECT;
    if (core->cut_count && op->context->whole_ring)
        return PCCL_ROUTE_RING;
    if (core->cut_count)
        return PCCL_ROUTE_DIRECT; /* over relays */
    if (op->desc.route != PCCL_ROUTE_AUTO)
        return op->desc.route;
    /* Of other kinds the owners are given by root and blocks: a hub would change nothing. */
    if (op->desc.kind == PCCL_ALL_REDUCE && core->hub != PC_NO_INDEX &&
        pc_place(op->context, core->hub) != PC_NO_INDEX) {
        if (op->small)
            return PCCL_ROUTE_STAR;
        if (core->large != PCCL_ROUTE_AUTO)
            return core->large;
    }
    return pc_size(op) <= PC_DIRECT_WORLD_MAX ? PCCL_ROUTE_DIRECT : PCCL_ROUTE_RING;
}

uint32_t pc_hub(const pc_core *core, const struct pc_op *op) {
    uint32_t place = core->hub == PC_NO_INDEX ? PC_NO_INDEX : pc_place(op->context, core->hub);
    return place == PC_NO_INDEX ? 0 : place;
}

bool pc_goes_by_hub(const pc_core *core, const struct pc_op *op) {
    return op->desc.kind == PCCL_ALL_REDUCE && op->small && pc_route(core, op) == PCCL_ROUTE_STAR;
}

uint32_t pc_ring_index(const pc_core *core, uint64_t peer) {
    for (uint32_t i = 0; core->epoch && i < core->world; i++)
        if (core->peers[i] == peer)
            return i;
    return PC_NO_INDEX;
}

/* Where the rotation of owners begins. It depends on the tensor's size alone, so that equal inputs
 * in one view give equal bits each time, and yet not all small ops have one owner. */
uint32_t pc_turn(const struct pc_op *op) {
    return (uint32_t)(op->desc.count * UINT64_C(0x9E3779B97F4A7C15) >> 40) % pc_size(op);
}

/* A large broadcast on the direct route: its source gives each segment to one of the others in
 * turn, who copies it on, so that nobody sends more than the tensor once. */
static bool spreads_in_turn(const pc_core *core, const struct pc_op *op) {
    return op->desc.kind == PCCL_BROADCAST && pc_size(op) > 2 && !op->small &&
           pc_route(core, op) == PCCL_ROUTE_DIRECT;
}

uint32_t pc_owner(const pc_core *core, const struct pc_op *op, uint32_t i) {
    const struct pc_segment *segment = &op->segments[i];
    if (segment->holder >= 0)
        return (uint32_t)segment->holder;
    if (op->desc.kind == PCCL_ALL_REDUCE)
        return pc_route(core, op) == PCCL_ROUTE_STAR ? pc_hub(core, op)
                                                     : (i + pc_turn(op)) % pc_size(op);
    if (spreads_in_turn(core, op)) {
        uint32_t source = pc_place_of_peer(core, op->context, op->desc.root_peer);
        if (source == PC_NO_INDEX)
            return PC_NO_INDEX;
        return (source + 1 + (i + pc_turn(op)) % (pc_size(op) - 1)) % pc_size(op);
    }
    uint64_t block_of = op->blocks[segment->block].peer;
    return pc_place_of_peer(core, op->context, block_of ? block_of : op->desc.root_peer);
}

bool pc_copy_only(const pc_core *core, const struct pc_op *op, uint32_t i) {
    if (pc_reduces(op->desc.kind) || spreads_in_turn(core, op))
        return op->segments[i].holder >= 0 || pc_is_source(core, op, pc_owner(core, op, i));
    return true;
}

bool pc_is_source(const pc_core *core, const struct pc_op *op, uint32_t place) {
    return op->desc.kind == PCCL_BROADCAST && place != PC_NO_INDEX &&
           core->peers[op->context->at[place]] == op->desc.root_peer;
}

/* ---- the steps of a segment --------------------------------------------------------------------
 */

void pc_check_end(pc_core *core, struct pc_op *op) {
    /* A member that lies about what it holds must not end an op whose memory is still to be sent.
     */
    if (op->state != PC_RUNNING || op->streams || op->values_queued)
        return;
    if (op->marked_count == op->segment_count)
        pc_op_end(core, op, PCCL_OK, "");
    else if (op->final_count == op->segment_count && pc_returns_early(core, op))
        pc_op_return(core, op);
}

/* The value is in the destination, whole, if there is one here. */
void pc_now_final(pc_core *core, struct pc_op *op, uint32_t i, uint16_t contributors) {
    struct pc_segment *segment = &op->segments[i];
    PC_ASSERT(segment->state == PC_INTACT);
    segment->state = PC_FINAL;
    segment->contributors = contributors;
    segment->told = true;
    op->final_count++;
    if (segment->holder >= 0 && op->plan_left) {
        op->plan_left--;
        core->plan_left--;
        pc_view_check_repaired(core);
    }
}

void pc_now_marked(pc_core *core, struct pc_op *op, uint32_t i) {
    struct pc_segment *segment = &op->segments[i];
    PC_ASSERT(segment->state == PC_FINAL);
    segment->state = PC_MARKED;
    op->marked_count++;
    if (!segment->counted)
        return;
    PC_ASSERT(pc_route(core, op) != PCCL_ROUTE_RING || core->in_flight);
    segment->counted = false;
    if (pc_route(core, op) != PCCL_ROUTE_RING) {
        core->copies_in_flight--; /* parts are released by their copy */
        return;
    }
    core->in_flight--;
    if (segment->eager)
        core->eager_in_flight--;
    segment->eager = false;
}

void pc_keep_undo(struct pc_op *op, uint32_t segment) {
    if (!op->undo)
        return;
    const uint8_t *from = pc_op_out(op, segment);
    memcpy(op->undo + (from - op->blocks[0].out), from, pc_op_bytes(op, segment));
}

bool pc_holds_all(const struct pc_op *op) {
    for (uint32_t i = 0; i < op->segment_count; i++)
        if (pc_op_out(op, i) && op->segments[i].state == PC_INTACT)
            return false;
    return !op->own_left;
}

void pc_sources_final(struct pc_op *op, uint64_t self) {
    for (uint32_t i = 0; i < op->segment_count; i++) {
        uint64_t owner = op->blocks[op->segments[i].block].peer;
        if ((owner ? owner : op->desc.root_peer) != self)
            continue;
        op->segments[i].state = PC_FINAL;
        op->segments[i].contributors = 1;
        op->segments[i].told = true;
        op->final_count++;
    }
}

/* No other participant is left: the inputs are the result, the average of one included. */
void pc_alone(pc_core *core, struct pc_op *op) {
    for (uint32_t i = 0; i < op->segment_count; i++) {
        struct pc_segment *segment = &op->segments[i];
        if (segment->state == PC_INTACT) {
            const uint8_t *in = pc_op_in(op, i);
            uint8_t *out = pc_op_out(op, i);
            if (in && out && in != out)
                memcpy(out, in, pc_op_bytes(op, i));
            segment->contributors = op->desc.weight > 0;
            segment->weight = op->desc.weight;
            if (out && !segment->contributors)
                pc_finish(op, i, out);
            pc_now_final(core, op, i, segment->contributors);
        }
        if (segment->state == PC_FINAL)
            pc_now_marked(core, op, i);
    }
    if (op->streams)
        pc_exchange_check(core, op);
    else
        pc_check_end(core, op);
}

const char *pc_land(pc_core *core, struct pc_op *op, const struct pc_header *header,
                    const struct pc_buffer *buffer) {
    uint32_t i = header->segment;
    struct pc_segment *segment = &op->segments[i];
    size_t bytes = pc_op_bytes(op, i);
    uint8_t *out = pc_op_out(op, i);
    segment->copied = true;
    if (segment->state == PC_FINAL)
        return bytes && buffer && memcmp(out, buffer->data, bytes) != 0
                   ? "a copy that differs from the final value"
                   : NULL;
    if (buffer && bytes) {
        pc_keep_undo(op, i);
        memcpy(out, buffer->data, bytes);
    }
    pc_now_final(core, op, i, header->contributors);
    return NULL;
}

/* ---- the value of a segment, input by input ----------------------------------------------------
 */

void pc_add_input(struct pc_op *op, uint32_t i, uint8_t *to, uint8_t *so_far, const uint8_t *input,
                  double weight) {
    struct pc_segment *segment = &op->segments[i];
    uint64_t n = pc_op_elements(op, i);
    int dtype = op->desc.dtype;
    bool average = op->desc.reduce == PCCL_AVG;
    const uint8_t *only = NULL; /* the other counts for nothing */
    if (!so_far || (average && segment->weight <= 0 && weight > 0))
        only = input;
    else if (average && weight <= 0)
        only = so_far;
    if (only) {
        if (only != to && n)
            memcpy(to, only, n * op->element_bytes);
        if (only == input) {
            segment->weight = weight;
            segment->contributors = weight > 0;
            segment->mean = weight < 1 || weight > 1;
        }
        return;
    }
    segment->contributors++;
    if (average && (segment->mean || weight < 1 || weight > 1)) {
        if (!segment->mean && segment->contributors > 2)
            pc_finalize_avg(dtype, so_far, n, segment->contributors - 1u);
        double total = segment->weight + weight;
        pc_mean_into(dtype, to, so_far, input, n, segment->weight / total, weight / total);
        segment->mean = true;
        segment->weight = total;
        return;
    }
    segment->weight += weight;
    pc_reduce_into(dtype, op->desc.reduce, to, so_far, input, n);
}

void pc_finish(struct pc_op *op, uint32_t i, uint8_t *data) {
    const struct pc_segment *segment = &op->segments[i];
    uint64_t n = pc_op_elements(op, i);
    if (op->desc.reduce != PCCL_AVG)
        return;
    if (!segment->contributors && segment->weight <= 0) { /* the mean of nothing is not a number */
        pc_mean_into(op->desc.dtype, data, data, data, n, NAN, NAN);
    } else if (!segment->mean) {
        pc_finalize_avg(op->desc.dtype, data, n, segment->contributors);
    }
}

/* ---- starting ----------------------------------------------------------------------------------
 */

void pc_startable(pc_core *core, struct pc_op *op) {
    op->cursor = 0;
    if (op->starting)
        return;
    op->starting = true;
    op->start_next = NULL;
    *core->start_tail = op;
    core->start_tail = &op->start_next;
}

static int start_one(pc_core *core, struct pc_op *op) {
    if (op->streams)
        return pc_exchange_start_one(core, op);
    return pc_route(core, op) == PCCL_ROUTE_RING ? pc_ring_start_one(core, op)
                                                 : pc_star_start_one(core, op);
}

void pc_start(pc_core *core) {
    if (core->stopped || core->world < 2)
        return;
    bool progress = true;
    while (progress && core->start_head) {
        progress = false;
        struct pc_op **at = &core->start_head;
        while (*at) {
            struct pc_op *op = *at;
            int outcome = 0;
            if (!op->mismatched)
                outcome = start_one(core, op);
            if (*at != op) { /* it has ended, and left the list */
                progress = true;
                continue;
            }
            if (outcome < 0) {
                *at = op->start_next;
                if (core->start_tail == &op->start_next)
                    core->start_tail = at;
                op->starting = false;
                continue;
            }
            progress |= outcome > 0;
            at = &op->start_next;
        }
    }
}
