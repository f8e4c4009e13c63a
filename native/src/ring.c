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

#include "check.h"
#include "internal.h"
#include "reduce.h"

/* Which peer puts the segment on its way: the holder of a final value, else the owner's successor.
 */
static uint32_t starter(const pc_core *core, const struct pc_op *op, uint32_t segment) {
    uint32_t owner = pc_owner(core, op, segment);
    if (owner == PC_NO_INDEX || pc_copy_only(op, segment))
        return owner;
    return pc_after(core, owner);
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
    if (segment->state == PC_INTACT)
        segment->contributors = 1;
    pc_pair_push(core, pc_after(core, core->self), op, i,
                 segment->state == PC_FINAL ? PC_COPY : PC_SUM);
}

int pc_ring_start_one(pc_core *core, struct pc_op *op) {
    for (; op->cursor < op->segment_count; op->cursor++) {
        uint32_t i = op->cursor;
        struct pc_segment *segment = &op->segments[i];
        if (segment->started || segment->state == PC_MARKED || starter(core, op, i) != core->self)
            continue;
        if (pc_copy_only(op, i) && segment->state != PC_FINAL)
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

static void become_final_as_owner(pc_core *core, struct pc_op *op, uint32_t i,
                                  struct pc_buffer *buffer) {
    uint64_t elements = pc_op_elements(op, i);
    uint8_t *to = pc_op_address(op, i);
    pc_keep_undo(op, i);
    pc_reduce_into(op->desc.dtype, op->desc.reduce, to, buffer->data, to, elements);
    if (op->desc.reduce == PCCL_AVG)
        pc_finalize_avg(op->desc.dtype, to, elements, core->world);
    pc_pool_put(&core->pool, buffer);
    pc_now_final(core, op, i, (uint16_t)core->world);
    pc_pair_push(core, pc_after(core, core->self), op, i, PC_COPY);
}

static const char *on_sum(pc_core *core, struct pc_op *op, struct pc_buffer *buffer) {
    uint32_t i = buffer->header.segment;
    struct pc_segment *segment = &op->segments[i];
    uint32_t owner = pc_owner(core, op, i);
    uint32_t expected = 0; /* inputs so far */
    if (owner != PC_NO_INDEX)
        expected = (core->self + core->world - pc_after(core, owner)) % core->world;
    if (segment->state != PC_INTACT || segment->started || pc_copy_only(op, i) || !expected ||
        buffer->header.contributors != expected) {
        pc_pool_put(&core->pool, buffer);
        return "a partial sum that cannot be";
    }
    segment->started = true;
    if (owner == core->self) {
        become_final_as_owner(core, op, i, buffer);
        return NULL;
    }
    pc_reduce_into(op->desc.dtype, op->desc.reduce, buffer->data, buffer->data,
                   pc_op_address(op, i), pc_op_elements(op, i));
    segment->buffer = buffer;
    segment->contributors = (uint16_t)(buffer->header.contributors + 1);
    pc_pair_push(core, pc_after(core, core->self), op, i, PC_SUM);
    return NULL;
}

static void mark_here(pc_core *core, struct pc_op *op, uint32_t i) {
    uint32_t last = pc_before(core, pc_owner(core, op, i));
    uint32_t next = pc_after(core, core->self);
    pc_now_marked(core, op, i);
    if (next != last)
        pc_pair_push(core, next, op, i, PC_MARK);
    pc_check_end(core, op);
}

static const char *on_copy(pc_core *core, struct pc_op *op, struct pc_buffer *buffer) {
    uint32_t i = buffer->header.segment;
    struct pc_segment *segment = &op->segments[i];
    uint32_t owner = pc_owner(core, op, i);
    size_t bytes = pc_op_bytes(op, i);
    const char *wrong = NULL;
    if (owner == PC_NO_INDEX || owner == core->self || segment->state == PC_MARKED ||
        segment->copied || segment->sum_queued)
        wrong = "a copy that cannot be";
    else if (segment->state == PC_FINAL && bytes &&
             memcmp(pc_op_address(op, i), buffer->data, bytes) != 0)
        wrong = "a copy that differs from the final value";
    if (wrong) {
        pc_pool_put(&core->pool, buffer);
        return wrong;
    }
    if (segment->state == PC_INTACT) {
        pc_keep_undo(op, i);
        if (bytes)
            memcpy(pc_op_address(op, i), buffer->data, bytes);
        pc_now_final(core, op, i, buffer->header.contributors);
    }
    pc_pool_put(&core->pool, buffer);
    segment->started = true;
    segment->copied = true;
    if (core->self != pc_before(core, owner)) {
        pc_pair_push(core, pc_after(core, core->self), op, i, PC_COPY);
        return NULL;
    }
    pc_now_marked(core, op, i);
    pc_pair_push(core, pc_after(core, core->self), op, i, PC_MARK);
    pc_check_end(core, op);
    pc_start(core); /* in a ring of two the starter hears of the end here, and by no mark */
    return NULL;
}

static const char *on_mark(pc_core *core, struct pc_op *op, uint32_t i) {
    struct pc_segment *segment = &op->segments[i];
    uint32_t owner = pc_owner(core, op, i);
    /* No mark overtakes its copy: it is sent by one whom the copy reached through this peer. */
    if (owner == PC_NO_INDEX || segment->state != PC_FINAL ||
        pc_before(core, owner) == core->self || (owner != core->self && !segment->copied))
        return "a mark that cannot be";
    mark_here(core, op, i);
    pc_start(core);
    return NULL;
}

const char *pc_ring_frame(pc_core *core, struct pc_op *op, uint32_t from,
                          const struct pc_header *header, struct pc_buffer *buffer) {
    if (from == pc_before(core, core->self)) {
        if (header->type == PC_SUM)
            return on_sum(core, op, buffer);
        if (header->type == PC_COPY)
            return on_copy(core, op, buffer);
        if (header->type == PC_MARK)
            return on_mark(core, op, header->segment);
    }
    if (buffer)
        pc_pool_put(&core->pool, buffer);
    return "a frame that has no place on the ring";
}
