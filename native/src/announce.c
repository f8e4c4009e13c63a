/* announce: who has submitted what. READY frames carry the op's descriptor: on the ring to both
 * neighbours, with a count of members in a row that are ready; on a star to everybody. Frames of an
 * op that this peer has not submitted, or whose sender's descriptor is not here yet (links overtake
 * each other), are parked with the op; the windows of their senders bound them. */
#include <string.h>

#include "check.h"
#include "internal.h"

bool pc_is_known(const struct pc_op *op, uint32_t index) {
    return (op->known[index / 8] >> index % 8 & 1) != 0;
}

bool pc_all_ready(const pc_core *core, const struct pc_op *op) {
    if (pc_route(core, op) == PCCL_ROUTE_RING)
        return op->next_run + 1 >= core->world;
    return op->known_count + 1 >= core->world;
}

static void mismatch(pc_core *core, struct pc_op *op, const struct pc_desc *theirs, uint32_t from) {
    op->mismatched = true;
    op->mismatch_from = from;
    op->mismatch_desc = *theirs;
    pc_op_post(core, op, PC_OP_EVENT_MISMATCH);
}

static bool differ(const struct pc_desc *a, const struct pc_desc *b) {
    char a_text[64], b_text[64];
    return pc_desc_differ(a, b, a_text, b_text, sizeof a_text) != NULL;
}

/* Our descriptor against those that are here: of all that differ, one at least differs from ours.
 */
static void compare(pc_core *core, struct pc_op *op) {
    if (op->mismatched || op->first_from == PC_NO_INDEX)
        return;
    if (differ(&op->desc, &op->desc_first))
        mismatch(core, op, &op->desc_first, op->first_from);
    else if (op->odd_from != PC_NO_INDEX)
        mismatch(core, op, &op->desc_odd, op->odd_from);
}

void pc_announce_to(pc_core *core, struct pc_op *op, uint32_t index) {
    uint8_t bit = (uint8_t)(1u << index % 8);
    if (op->ready_queued[index / 8] & bit)
        return; /* the one that waits carries the news when it goes */
    op->ready_queued[index / 8] |= bit;
    pc_pair_push(core, index, op, 0, PC_READY);
}

void pc_announce(pc_core *core, struct pc_op *op) {
    if (pc_route(core, op) == PCCL_ROUTE_RING) {
        pc_announce_to(core, op, pc_before(core, core->self));
        pc_announce_to(core, op, pc_after(core, core->self));
        return;
    }
    pc_star_open(core, op);
    for (uint32_t i = pc_after(core, core->self); i != core->self; i = pc_after(core, i))
        pc_announce_to(core, op, i);
}

static void learn(struct pc_op *op, uint32_t from, const struct pc_desc *desc) {
    if (!pc_is_known(op, from)) {
        op->known[from / 8] |= (uint8_t)(1u << from % 8);
        op->known_count++;
    }
    if (op->first_from == PC_NO_INDEX) {
        op->first_from = from;
        op->desc_first = *desc;
    } else if (op->odd_from == PC_NO_INDEX && differ(&op->desc_first, desc)) {
        op->odd_from = from;
        op->desc_odd = *desc;
    }
}

/* ---- data frames, parked or at once ------------------------------------------------------------
 */

static const char *data_frame(pc_core *core, struct pc_op *op, uint32_t from,
                              const struct pc_header *header, struct pc_buffer *buffer) {
    if (header->segment >= op->segment_count ||
        (buffer && header->length != pc_op_bytes(op, header->segment))) {
        if (buffer)
            pc_pool_put(&core->pool, buffer);
        return "a segment that the op does not have";
    }
    if (buffer)
        op->result.bytes_received += header->length;
    if (pc_route(core, op) == PCCL_ROUTE_RING)
        return pc_ring_frame(core, op, from, header, buffer);
    return pc_star_frame(core, op, from, header, buffer);
}

static void park(struct pc_op *op, struct pc_buffer *buffer) {
    buffer->next = NULL;
    *op->parked_tail = buffer;
    op->parked_tail = &buffer->next;
}

/* Takes what was parked and can be taken now. */
static const char *unpark(pc_core *core, struct pc_op *op) {
    const char *wrong = NULL;
    if (op->state != PC_RUNNING || op->mismatched || !op->parked)
        return NULL; /* of a mismatched op: until the flush that aborts it */
    struct pc_buffer *buffer = op->parked;
    op->parked = NULL;
    op->parked_tail = &op->parked;
    while (buffer) {
        struct pc_buffer *next = buffer->next;
        buffer->next = NULL;
        if (op->state != PC_RUNNING) {
            pc_pool_put(&core->pool, buffer);
        } else if (!pc_is_known(op, buffer->from)) {
            park(op, buffer);
        } else {
            struct pc_header header = buffer->header;
            const char *fault = data_frame(core, op, buffer->from, &header, buffer);
            wrong = wrong ? wrong : fault;
        }
        buffer = next;
    }
    return wrong;
}

static const char *on_ready(pc_core *core, uint32_t from, const struct pc_header *header,
                            const uint8_t *small) {
    struct pc_desc desc;
    if (!pc_desc_get(small, &desc))
        return "a descriptor that cannot be";
    uint64_t id = pc_op_id(header);
    if (pc_op_is_past(core, id))
        return NULL;
    struct pc_op *op = pc_op_get(core, id, PC_OPS_ANNOUNCED_MAX);
    if (!op)
        return "more ops announced than allowed";
    learn(op, from, &desc);
    if (header->segment > op->opened_by[from])
        op->opened_by[from] = header->segment;
    if (from == pc_after(core, core->self) && header->contributors > op->next_run &&
        header->contributors <= core->world) {
        bool told_enough = op->next_run + 2 >= core->world; /* by what was announced before */
        op->next_run = header->contributors;
        if (op->state == PC_RUNNING && !told_enough && pc_route(core, op) == PCCL_ROUTE_RING)
            pc_announce_to(core, op, pc_before(core, core->self));
    }
    if (op->state != PC_RUNNING)
        return NULL;
    compare(core, op);
    const char *wrong = unpark(core, op);
    pc_start(core);
    return wrong;
}

const char *pc_frame_arrived(pc_core *core, uint32_t from, const struct pc_header *header,
                             struct pc_buffer *buffer, const uint8_t *small) {
    if (header->type == PC_READY)
        return on_ready(core, from, header, small);
    uint64_t id = pc_op_id(header);
    if (pc_op_is_past(core, id)) {
        if (buffer)
            pc_pool_put(&core->pool, buffer);
        return NULL;
    }
    struct pc_op *op = buffer ? pc_op_get(core, id, PC_OPS_ANNOUNCED_MAX) : pc_op_find(core, id);
    if (!op) {
        if (buffer)
            pc_pool_put(&core->pool, buffer);
        return buffer ? "frames of more ops than allowed" : "a mark of an op that nobody has";
    }
    bool usable = op->state == PC_RUNNING && !op->mismatched;
    if (usable && (!buffer || pc_is_known(op, from)))
        return data_frame(core, op, from, header, buffer);
    if (!buffer)
        return op->mismatched ? NULL : "a mark of an op that is not submitted";
    park(op, buffer);
    return NULL;
}

void pc_submitted(pc_core *core, struct pc_op *op) {
    pc_announce(core, op);
    compare(core, op);
    (void)unpark(core, op); /* what was wrong before we knew the op costs nobody a link */
    if (op->state == PC_RUNNING)
        pc_startable(core, op);
    pc_start(core);
}
