/* segment: what ring and star share: which route an op takes, who owns a segment, its steps to
 * final and marked, and the order in which ops start theirs. */
#include <string.h>

#include "check.h"
#include "internal.h"

int pc_route(const pc_core *core, const struct pc_op *op) {
    if (core->cut)
        return PCCL_ROUTE_RING;
    if (op->desc.route != PCCL_ROUTE_AUTO)
        return op->desc.route;
    return core->world <= PC_DIRECT_WORLD_MAX ? PCCL_ROUTE_DIRECT : PCCL_ROUTE_RING;
}

uint32_t pc_ring_index(const pc_core *core, uint64_t peer) {
    for (uint32_t i = 0; core->epoch && i < core->world; i++)
        if (core->peers[i] == peer)
            return i;
    return PC_NO_INDEX;
}

/* Where the rotation of owners begins. It depends on the tensor's size alone, so that equal inputs
 * in one view give equal bits each time, and yet not all small ops have one owner. */
uint32_t pc_turn(const pc_core *core, const struct pc_op *op) {
    return (uint32_t)(op->desc.count * UINT64_C(0x9E3779B97F4A7C15) >> 40) % core->world;
}

uint32_t pc_owner(const pc_core *core, const struct pc_op *op, uint32_t segment) {
    int32_t holder = op->segments[segment].holder;
    if (holder >= 0)
        return (uint32_t)holder;
    if (op->desc.kind == PCCL_BROADCAST)
        return pc_ring_index(core, op->desc.root_peer);
    if (pc_route(core, op) == PCCL_ROUTE_STAR)
        return 0;
    return (segment + pc_turn(core, op)) % core->world;
}

bool pc_copy_only(const struct pc_op *op, uint32_t segment) {
    return op->desc.kind == PCCL_BROADCAST || op->segments[segment].holder >= 0;
}

/* ---- the steps of a segment --------------------------------------------------------------------
 */

void pc_check_end(pc_core *core, struct pc_op *op) {
    /* A member that lies about what it holds must not end an op whose memory is still to be sent.
     */
    if (op->state == PC_RUNNING && op->marked_count == op->segment_count && !op->values_queued)
        pc_op_end(core, op, PCCL_OK, "");
}

/* The value is in the destination, whole. */
void pc_now_final(pc_core *core, struct pc_op *op, uint32_t i, uint16_t contributors) {
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
    const uint8_t *from = pc_op_address(op, segment);
    memcpy(op->undo + (from - op->data), from, pc_op_bytes(op, segment));
}

void pc_root_final(struct pc_op *op) {
    for (uint32_t i = 0; i < op->segment_count; i++)
        if (op->segments[i].state == PC_INTACT) {
            op->segments[i].state = PC_FINAL;
            op->segments[i].contributors = 1;
            op->final_count++;
        }
}

/* A ring of one: the inputs are the result, the average of one included. */
void pc_alone(pc_core *core, struct pc_op *op) {
    for (uint32_t i = 0; i < op->segment_count; i++) {
        if (op->segments[i].state == PC_INTACT)
            pc_now_final(core, op, i, 1);
        if (op->segments[i].state == PC_FINAL)
            pc_now_marked(core, op, i);
    }
    pc_check_end(core, op);
}

/* ---- starting ----------------------------------------------------------------------------------
 */

void pc_startable(pc_core *core, struct pc_op *op) {
    op->cursor = 0;
    for (uint32_t i = 0; i < op->owner_count; i++)
        op->part_cursors[i] = 0;
    if (op->starting)
        return;
    op->starting = true;
    op->start_next = NULL;
    *core->start_tail = op;
    core->start_tail = &op->start_next;
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
                outcome = pc_route(core, op) == PCCL_ROUTE_RING ? pc_ring_start_one(core, op)
                                                                : pc_star_start_one(core, op);
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
