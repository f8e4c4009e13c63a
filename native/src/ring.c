/* ring: the rules by which one segment of one op moves round the ring (PROTOCOL.md, DESIGN §3.2).
 *
 *   owner+1 ... owner     SUM: each adds its intact input to the partial and passes it on
 *   owner ... owner-1     COPY: the owner's final value, landed in scratch, moved whole, passed on
 *   owner-1 ... owner-2   MARK: the last to get the copy knows that all hold it, and says so
 *
 * A segment counts against its starter's window from the start until its mark comes back, so that
 * no peer ever needs more scratch than world x window buffers, whatever the tensor: a link never
 * has to wait for memory. Ops not yet known to be submitted by all may use half of the window at
 * most.
 *
 * In a repaired view the member named as holder is the owner and only COPY and MARK run again. */
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "internal.h"
#include "reduce.h"

uint32_t pc_ring_index(const pc_core *core, uint64_t peer) {
    for (uint32_t i = 0; i < core->world; i++)
        if (core->peers[i] == peer)
            return i;
    return PC_NO_INDEX;
}

uint32_t pc_ring_owner(const pc_core *core, const struct pc_op *op, uint32_t segment) {
    int32_t holder = op->segments[segment].holder;
    if (holder >= 0)
        return (uint32_t)holder;
    if (op->desc.kind == PCCL_BROADCAST)
        return pc_ring_index(core, op->desc.root_peer);
    return (uint32_t)(((uint64_t)segment + pc_number(op->id)) % core->world);
}

static uint32_t after(const pc_core *core, uint32_t index) {
    return (index + 1) % core->world;
}

static uint32_t before(const pc_core *core, uint32_t index) {
    return (index + core->world - 1) % core->world;
}

/* Which peer puts the segment on its way: the holder of a final value, else the owner's successor.
 */
static uint32_t starter(const pc_core *core, const struct pc_op *op, uint32_t segment) {
    uint32_t owner = pc_ring_owner(core, op, segment);
    if (owner == PC_NO_INDEX)
        return PC_NO_INDEX;
    bool copy_only = op->desc.kind == PCCL_BROADCAST || op->segments[segment].holder >= 0;
    return copy_only ? owner : after(core, owner);
}

/* ---- the end of a segment ---------------------------------------------------------------------
 */

void pc_ring_check_end(pc_core *core, struct pc_op *op) {
    if (op->state == PC_RUNNING && op->marked_count == op->segment_count)
        pc_op_end(core, op, PCCL_OK, "");
}

/* The value is in the destination, whole. */
static void now_final(pc_core *core, struct pc_op *op, uint32_t i, uint16_t contributors) {
    struct pc_segment *segment = &op->segments[i];
    PC_ASSERT(segment->state == PC_INTACT);
    segment->state = PC_FINAL;
    segment->contributors = contributors;
    op->final_count++;
    if (segment->holder >= 0 && op->plan_left) {
        op->plan_left--;
        core->plan_left--;
        pc_view_check_repaired(core);
    }
}

static void keep_undo(struct pc_op *op, uint32_t segment) {
    if (!op->undo)
        return;
    const uint8_t *from = pc_op_address(op, segment);
    memcpy(op->undo + (from - op->data), from, pc_op_bytes(op, segment));
}

static void now_marked(pc_core *core, struct pc_op *op, uint32_t i) {
    struct pc_segment *segment = &op->segments[i];
    PC_ASSERT(segment->state == PC_FINAL);
    segment->state = PC_MARKED;
    op->marked_count++;
    if (segment->counted) {
        segment->counted = false;
        core->in_flight--;
        if (segment->eager)
            core->eager_in_flight--;
        segment->eager = false;
    }
}

/* ---- starting ---------------------------------------------------------------------------------
 */

void pc_ring_startable(pc_core *core, struct pc_op *op) {
    op->cursor = 0;
    if (op->starting)
        return;
    op->starting = true;
    op->start_next = NULL;
    *core->start_tail = op;
    core->start_tail = &op->start_next;
}

static bool may_start(const pc_core *core, const struct pc_op *op, size_t bytes, bool *eager) {
    *eager = false;
    if (op->mismatched || core->in_flight >= core->window)
        return false;
    if (op->next_run + 1 >= core->world)
        return true;
    *eager = true;
    return core->eager_in_flight < core->window / 2 && op->eager_bytes + bytes <= PC_EAGER_BYTES;
}

static void start_segment(pc_core *core, struct pc_op *op, uint32_t i, bool eager) {
    struct pc_segment *segment = &op->segments[i];
    segment->started = true;
    segment->counted = true;
    segment->eager = eager;
    core->in_flight++;
    if (eager) {
        core->eager_in_flight++;
        op->eager_bytes += pc_op_bytes(op, i);
    }
    if (segment->state == PC_FINAL) {
        pc_mux_push(core, PC_NEXT, &segment->copy, op, i, PC_COPY);
    } else {
        segment->contributors = 1;
        pc_mux_push(core, PC_NEXT, &segment->sum, op, i, PC_SUM);
    }
}

/* Starts at most one segment of the op. Returns 1: started; 0: the window says no; -1: none left.
 */
static int start_one(pc_core *core, struct pc_op *op) {
    for (; op->cursor < op->segment_count; op->cursor++) {
        uint32_t i = op->cursor;
        struct pc_segment *segment = &op->segments[i];
        if (segment->started || segment->state == PC_MARKED || starter(core, op, i) != core->self)
            continue;
        if (segment->holder >= 0 && segment->state != PC_FINAL)
            continue;
        bool eager;
        if (!may_start(core, op, pc_op_bytes(op, i), &eager))
            return 0;
        start_segment(core, op, i, eager);
        op->cursor++;
        return 1;
    }
    return -1;
}

void pc_ring_start(pc_core *core) {
    if (core->stopped || core->world < 2)
        return;
    bool progress = true;
    while (progress && core->start_head && core->in_flight < core->window) {
        progress = false;
        struct pc_op **at = &core->start_head;
        while (*at) {
            struct pc_op *op = *at;
            int outcome = start_one(core, op);
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

/* ---- frames -----------------------------------------------------------------------------------
 */

static void become_final_as_owner(pc_core *core, struct pc_op *op, uint32_t i,
                                  struct pc_buffer *buffer) {
    struct pc_segment *segment = &op->segments[i];
    uint64_t elements = pc_op_elements(op, i);
    uint8_t *to = pc_op_address(op, i);
    keep_undo(op, i);
    pc_reduce_into(op->desc.dtype, op->desc.reduce, to, buffer->data, to, elements);
    if (op->desc.reduce == PCCL_AVG)
        pc_finalize_avg(op->desc.dtype, to, elements, core->world);
    pc_pool_put(&core->pool, buffer);
    now_final(core, op, i, (uint16_t)core->world);
    pc_mux_push(core, PC_NEXT, &segment->copy, op, i, PC_COPY);
}

static void on_sum(pc_core *core, struct pc_op *op, struct pc_buffer *buffer) {
    uint32_t i = buffer->header.segment;
    struct pc_segment *segment = &op->segments[i];
    uint32_t owner = pc_ring_owner(core, op, i);
    uint32_t expected =
        (core->self + core->world - after(core, owner)) % core->world; /* inputs so far */
    if (segment->state != PC_INTACT || segment->holder >= 0 || segment->started ||
        op->desc.kind != PCCL_ALL_REDUCE || !expected || buffer->header.contributors != expected) {
        pc_pool_put(&core->pool, buffer);
        pc_link_spoil(&core->links[PC_PREV], "a partial sum that cannot be");
        return;
    }
    segment->started = true;
    if (owner == core->self) {
        become_final_as_owner(core, op, i, buffer);
        return;
    }
    pc_reduce_into(op->desc.dtype, op->desc.reduce, buffer->data, buffer->data,
                   pc_op_address(op, i), pc_op_elements(op, i));
    segment->buffer = buffer;
    segment->contributors = (uint16_t)(buffer->header.contributors + 1);
    pc_mux_push(core, PC_NEXT, &segment->sum, op, i, PC_SUM);
}

static void on_copy(pc_core *core, struct pc_op *op, struct pc_buffer *buffer) {
    uint32_t i = buffer->header.segment;
    struct pc_segment *segment = &op->segments[i];
    uint32_t owner = pc_ring_owner(core, op, i);
    size_t bytes = pc_op_bytes(op, i);
    const char *wrong = NULL;
    if (owner == PC_NO_INDEX || owner == core->self || segment->state == PC_MARKED ||
        segment->copy.queued)
        wrong = "a copy that cannot be";
    else if (segment->state == PC_FINAL && memcmp(pc_op_address(op, i), buffer->data, bytes) != 0)
        wrong = "a copy that differs from the final value";
    if (wrong) {
        pc_pool_put(&core->pool, buffer);
        pc_link_spoil(&core->links[PC_PREV], wrong);
        return;
    }
    if (segment->state == PC_INTACT) {
        keep_undo(op, i);
        if (bytes)
            memcpy(pc_op_address(op, i), buffer->data, bytes);
        now_final(core, op, i, buffer->header.contributors);
    }
    pc_pool_put(&core->pool, buffer);
    segment->started = true;
    if (core->self != before(core, owner)) {
        pc_mux_push(core, PC_NEXT, &segment->copy, op, i, PC_COPY);
        return;
    }
    now_marked(core, op, i);
    pc_mux_push(core, PC_NEXT, &segment->mark, op, i, PC_MARK);
    pc_ring_check_end(core, op);
    pc_ring_start(core); /* in a ring of two the starter hears of the end here, and by no mark */
}

static void on_mark(pc_core *core, struct pc_op *op, uint32_t i) {
    struct pc_segment *segment = &op->segments[i];
    uint32_t owner = pc_ring_owner(core, op, i);
    if (owner == PC_NO_INDEX || segment->state != PC_FINAL || before(core, owner) == core->self) {
        pc_link_spoil(&core->links[PC_PREV], "a mark that cannot be");
        return;
    }
    now_marked(core, op, i);
    if (after(core, core->self) != before(core, owner))
        pc_mux_push(core, PC_NEXT, &segment->mark, op, i, PC_MARK);
    pc_ring_check_end(core, op);
    pc_ring_start(core);
}

static void data_frame(pc_core *core, struct pc_op *op, const struct pc_header *header,
                       struct pc_buffer *buffer) {
    if (header->segment >= op->segment_count ||
        (buffer && header->length != pc_op_bytes(op, header->segment))) {
        if (buffer)
            pc_pool_put(&core->pool, buffer);
        pc_link_spoil(&core->links[PC_PREV], "a segment that the op does not have");
        return;
    }
    if (buffer)
        op->result.bytes_received += header->length;
    if (header->type == PC_SUM)
        on_sum(core, op, buffer);
    else if (header->type == PC_COPY)
        on_copy(core, op, buffer);
    else
        on_mark(core, op, header->segment);
}

/* ---- announcements ----------------------------------------------------------------------------
 */

static void compare(pc_core *core, struct pc_op *op, int which) {
    char mine[64], theirs[64];
    if (op->mismatched || !op->desc_known[which] ||
        !pc_desc_differ(&op->desc, &op->desc_of[which], mine, theirs, sizeof mine))
        return;
    op->mismatched = true;
    op->mismatch_link = (uint8_t)which;
    pc_op_post(core, op, PC_OP_EVENT_MISMATCH);
}

void pc_ring_announce(pc_core *core, struct pc_op *op) {
    pc_mux_push(core, PC_NEXT, &op->ready[PC_NEXT], op, 0, PC_READY);
    pc_mux_push(core, PC_PREV, &op->ready[PC_PREV], op, 0, PC_READY);
}

static void on_ready(pc_core *core, int which, const struct pc_header *header,
                     const uint8_t *small) {
    struct pc_desc desc;
    if (!pc_desc_get(small, &desc)) {
        pc_link_spoil(&core->links[which], "a descriptor that cannot be");
        return;
    }
    uint64_t id = pc_op_id(header);
    if (pc_op_is_past(core, id))
        return;
    struct pc_op *op = pc_op_get(core, id);
    if (!op) {
        pc_link_spoil(&core->links[which], "more ops announced than allowed");
        return;
    }
    op->desc_known[which] = true;
    op->desc_of[which] = desc;
    if (which == PC_NEXT && header->contributors > op->next_run &&
        header->contributors <= core->world) {
        bool told_enough = op->next_run + 2 >= core->world; /* by what was announced before */
        op->next_run = header->contributors;
        if (op->state == PC_RUNNING && !told_enough)
            pc_mux_push(core, PC_PREV, &op->ready[PC_PREV], op, 0, PC_READY);
    }
    if (op->state == PC_RUNNING) {
        compare(core, op, which);
        pc_ring_start(core);
    }
}

static void park(struct pc_op *op, struct pc_buffer *buffer) {
    buffer->next = NULL;
    *op->parked_tail = buffer;
    op->parked_tail = &buffer->next;
}

void pc_ring_frame(pc_core *core, int which, const struct pc_header *header,
                   struct pc_buffer *buffer, const uint8_t *small) {
    if (header->type == PC_READY) {
        on_ready(core, which, header, small);
        return;
    }
    uint64_t id = pc_op_id(header);
    struct pc_op *op = pc_op_find(core, id);
    if (op && op->state == PC_RUNNING && !op->mismatched && op->desc_known[PC_PREV]) {
        data_frame(core, op, header, buffer);
        return;
    }
    bool waits = op && (op->state == PC_FOREIGN || op->mismatched) && buffer;
    if (waits) {
        park(op, buffer);
        return;
    }
    if (buffer)
        pc_pool_put(&core->pool, buffer);
    if (!op || op->state == PC_RUNNING)
        pc_link_spoil(&core->links[PC_PREV], "data of an op that was not announced");
}

void pc_ring_submitted(pc_core *core, struct pc_op *op) {
    pc_ring_announce(core, op);
    compare(core, op, PC_NEXT);
    compare(core, op, PC_PREV);
    struct pc_buffer *buffer = op->parked;
    if (op->mismatched)
        return; /* what is parked stays until the flush that aborts the op */
    op->parked = NULL;
    op->parked_tail = &op->parked;
    while (buffer) {
        struct pc_buffer *next = buffer->next;
        struct pc_header header = buffer->header;
        data_frame(core, op, &header, buffer);
        buffer = next;
    }
    if (op->state == PC_RUNNING)
        pc_ring_startable(core, op);
    pc_ring_start(core);
}

void pc_ring_root_final(struct pc_op *op) {
    for (uint32_t i = 0; i < op->segment_count; i++)
        if (op->segments[i].state == PC_INTACT) {
            op->segments[i].state = PC_FINAL;
            op->segments[i].contributors = 1;
            op->final_count++;
        }
}

/* A ring of one: the inputs are the result, the average of one included. */
void pc_ring_alone(pc_core *core, struct pc_op *op) {
    for (uint32_t i = 0; i < op->segment_count; i++) {
        if (op->segments[i].state == PC_INTACT)
            now_final(core, op, i, 1);
        if (op->segments[i].state == PC_FINAL)
            now_marked(core, op, i);
    }
    pc_ring_check_end(core, op);
}
