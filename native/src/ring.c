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
 * Where only the owner gets the value, MARK goes round from the owner itself. Where the value is
 * there from the start, COPY is the beginning. A member that is to get nothing passes on.
 *
 * A partial average is a sum while all weights are 1; else a mean, and its weight and count follow
 * the elements.
 *
 * In a repaired view the member named as holder is the owner and only COPY and MARK run again. */
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "internal.h"
#include "reduce.h"

/* Which peer puts the segment on its way: who has a final value, else the owner's successor. */
static uint32_t starter(const pc_core *core, const struct pc_op *op, uint32_t segment) {
    uint32_t owner = pc_owner(core, op, segment);
    if (owner == PC_NO_INDEX || pc_copy_only(core, op, segment))
        return owner;
    return pc_after(op, owner);
}

static void push_next(pc_core *core, struct pc_op *op, uint32_t i, uint8_t type) {
    pc_push(core, op, pc_after(op, pc_self(op)), i, type);
}

static bool may_start(const pc_core *core, const struct pc_op *op, size_t bytes, bool *eager) {
    *eager = false;
    if (core->in_flight >= core->window)
        return false;
    if (pc_all_ready(core, op))
        return true;
    *eager = true;
    return core->eager_in_flight < core->window / 2 && op->eager_bytes + bytes <= PC_EAGER_BYTES;
}

/* ---- partial sums ------------------------------------------------------------------------------
 */

/* Not every member's weight so far is 1. */
static bool tells_weight(const struct pc_op *op, const struct pc_segment *segment) {
    return op->desc.reduce == PCCL_AVG &&
           (segment->mean || segment->contributors != segment->parts_done);
}

/* Behind the elements: pool buffers have room for it. */
static void put_weight(struct pc_op *op, uint32_t i) {
    struct pc_segment *segment = &op->segments[i];
    if (!segment->mean && segment->contributors > 1)
        pc_finalize_avg(op->desc.dtype, segment->buffer->data, pc_op_elements(op, i),
                        segment->contributors);
    segment->mean = true;
    uint8_t *tail = segment->buffer->data + pc_op_bytes(op, i);
    uint64_t bits;
    memcpy(&bits, &segment->weight, sizeof bits);
    pc_put_u64(tail, bits);
    pc_put_u64(tail + 8, segment->contributors);
}

/* What the partial sum that arrived is made of. false: it cannot be. */
static bool get_weight(struct pc_op *op, uint32_t i, const struct pc_buffer *buffer) {
    struct pc_segment *segment = &op->segments[i];
    size_t bytes = pc_op_bytes(op, i);
    uint16_t members = buffer->header.contributors;
    segment->mean = buffer->header.length != bytes;
    segment->contributors = members;
    segment->told = false;
    segment->weight = members;
    if (!segment->mean)
        return true;
    uint64_t bits = pc_get_u64(buffer->data + bytes);
    memcpy(&segment->weight, &bits, sizeof bits);
    uint64_t contributors = pc_get_u64(buffer->data + bytes + 8);
    segment->contributors = (uint16_t)contributors;
    return contributors <= members && segment->weight >= 0 && segment->weight <= 1e300 * members;
}

size_t pc_ring_sum_bytes(const struct pc_op *op, uint32_t i) {
    return pc_op_bytes(op, i) + (tells_weight(op, &op->segments[i]) ? PC_WEIGHT_BYTES : 0);
}

/* The first input: straight from the user's memory if nothing need be said about it. */
static bool begin_sum(pc_core *core, struct pc_op *op, uint32_t i) {
    struct pc_segment *segment = &op->segments[i];
    double weight = op->desc.weight;
    segment->weight = weight;
    segment->contributors = weight > 0;
    segment->told = false;
    segment->mean = weight < 1 || weight > 1;
    segment->parts_done = 1;
    if (!tells_weight(op, segment))
        return true;
    segment->buffer = pc_pool_take(&core->pool, core->self);
    if (!segment->buffer)
        return false;
    memcpy(segment->buffer->data, pc_op_in(op, i), pc_op_bytes(op, i));
    put_weight(op, i);
    return true;
}

/* 1, 0: no memory now. */
static int start_segment(pc_core *core, struct pc_op *op, uint32_t i, bool eager) {
    struct pc_segment *segment = &op->segments[i];
    bool sum = segment->state == PC_INTACT;
    if (sum && !begin_sum(core, op, i))
        return 0;
    segment->started = true;
    segment->counted = true;
    segment->eager = eager;
    core->in_flight++;
    if (eager) {
        core->eager_in_flight++;
        op->eager_bytes += pc_op_bytes(op, i);
    }
    push_next(core, op, i, sum ? PC_SUM : pc_owner_only(op->desc.kind) ? PC_MARK : PC_COPY);
    return 1;
}

int pc_ring_start_one(pc_core *core, struct pc_op *op) {
    for (; op->cursor < op->segment_count; op->cursor++) {
        uint32_t i = op->cursor;
        struct pc_segment *segment = &op->segments[i];
        if (segment->started || segment->state == PC_MARKED || starter(core, op, i) != pc_self(op))
            continue;
        if (pc_copy_only(core, op, i) && segment->state != PC_FINAL)
            continue;
        bool eager;
        if (!may_start(core, op, pc_op_bytes(op, i), &eager) || !start_segment(core, op, i, eager))
            return 0;
        op->cursor++;
        if (pc_owner_only(op->desc.kind) && segment->state == PC_FINAL) {
            pc_now_marked(core, op, i); /* final before this view: it is said again */
            pc_check_end(core, op);
        }
        return 1;
    }
    return -1;
}

static void become_final_as_owner(pc_core *core, struct pc_op *op, uint32_t i,
                                  struct pc_buffer *buffer) {
    struct pc_segment *segment = &op->segments[i];
    uint8_t *to = pc_op_out(op, i);
    pc_keep_undo(op, i);
    pc_add_input(op, i, to, buffer->data, pc_op_in(op, i), op->desc.weight);
    pc_finish(op, i, to);
    pc_pool_put(&core->pool, buffer);
    pc_now_final(core, op, i, segment->contributors);
    if (!pc_owner_only(op->desc.kind)) {
        push_next(core, op, i, PC_COPY);
        return;
    }
    push_next(core, op, i, PC_MARK);
    pc_now_marked(core, op, i);
    pc_check_end(core, op);
}

static const char *on_sum(pc_core *core, struct pc_op *op, struct pc_buffer *buffer) {
    uint32_t i = buffer->header.segment;
    struct pc_segment *segment = &op->segments[i];
    uint32_t owner = pc_owner(core, op, i);
    uint32_t expected = 0; /* members so far */
    if (owner != PC_NO_INDEX)
        expected = (pc_self(op) + pc_size(op) - pc_after(op, owner)) % pc_size(op);
    if (segment->state != PC_INTACT || segment->started || pc_copy_only(core, op, i) || !expected ||
        buffer->header.contributors != expected || !get_weight(op, i, buffer)) {
        pc_pool_put(&core->pool, buffer);
        return "a partial sum that cannot be";
    }
    segment->started = true;
    if (owner == pc_self(op)) {
        become_final_as_owner(core, op, i, buffer);
        return NULL;
    }
    pc_add_input(op, i, buffer->data, buffer->data, pc_op_in(op, i), op->desc.weight);
    segment->buffer = buffer;
    segment->parts_done = (uint16_t)(expected + 1);
    if (tells_weight(op, segment))
        put_weight(op, i);
    push_next(core, op, i, PC_SUM);
    return NULL;
}

/* ---- copies and marks --------------------------------------------------------------------------
 */

static const char *on_copy(pc_core *core, struct pc_op *op, const struct pc_header *header,
                           struct pc_buffer *buffer) {
    uint32_t i = header->segment;
    struct pc_segment *segment = &op->segments[i];
    uint32_t owner = pc_owner(core, op, i);
    const char *wrong = NULL;
    if (pc_owner_only(op->desc.kind) || owner == PC_NO_INDEX || owner == pc_self(op) ||
        segment->state == PC_MARKED || segment->copied || segment->sum_queued || segment->landing)
        wrong = "a copy that cannot be";
    else
        wrong = pc_land(core, op, header, buffer);
    if (buffer)
        pc_pool_put(&core->pool, buffer);
    if (wrong)
        return wrong;
    segment->started = true;
    if (pc_self(op) != pc_before(op, owner)) {
        push_next(core, op, i, PC_COPY);
        return NULL;
    }
    push_next(core, op, i, PC_MARK);
    pc_now_marked(core, op, i);
    pc_check_end(core, op);
    pc_start(core); /* in a ring of two the starter hears of the end here, and by no mark */
    return NULL;
}

static const char *on_mark(pc_core *core, struct pc_op *op, const struct pc_header *header) {
    uint32_t i = header->segment;
    struct pc_segment *segment = &op->segments[i];
    uint32_t owner = pc_owner(core, op, i);
    bool owner_only = pc_owner_only(op->desc.kind);
    if (owner == PC_NO_INDEX || segment->state == PC_MARKED)
        return "a mark that cannot be";
    uint32_t first = owner_only ? owner : pc_before(op, owner); /* who says it first */
    if (first == pc_self(op) || segment->sum_queued)
        return "a mark that cannot be";
    /* No mark overtakes its copy: it is sent by one whom the copy reached through this peer. */
    if (!owner_only && (segment->state != PC_FINAL || (owner != pc_self(op) && !segment->copied)))
        return "a mark that cannot be";
    if (owner_only)
        pc_now_final(core, op, i, header->contributors);
    pc_now_marked(core, op, i);
    if (pc_after(op, pc_self(op)) != first)
        push_next(core, op, i, PC_MARK);
    pc_check_end(core, op);
    pc_start(core);
    return NULL;
}

const char *pc_ring_frame(pc_core *core, struct pc_op *op, uint32_t from,
                          const struct pc_header *header, struct pc_buffer *buffer) {
    if (from == pc_before(op, pc_self(op))) {
        if (header->type == PC_SUM)
            return on_sum(core, op, buffer);
        if (header->type == PC_COPY)
            return on_copy(core, op, header, buffer);
        if (header->type == PC_MARK)
            return on_mark(core, op, header);
    }
    if (buffer)
        pc_pool_put(&core->pool, buffer);
    return "a frame that has no place on the ring";
}
