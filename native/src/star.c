/* star: the rules by which a segment is finished by one member, its hub (PROTOCOL.md, DESIGN
 * §3.2): one fixed hub (the classic star; the view names the member that all reach soonest), or
 * hubs that rotate over the segments (the direct route).
 *
 *   each -> owner   PART: an input, straight from the user's memory
 *   owner           adds the parts in ring order from its own on: the order fixes the bits
 *   owner -> each   COPY: the final value; landed, whole, and answered
 *   each -> owner   ACK: I hold it
 *   owner -> each   MARK: all hold it (with two members the copy says as much)
 *
 * Of a large broadcast the source gives each segment to one member as PART, who copies it on. Where
 * only the owner gets the value (reduce, reduce-scatter), MARK follows at once; where it is
 * there from the start (broadcast, all-gather), COPY is the beginning.
 *
 * Windows: an owner asks for the parts of at most `open_window` of its segments at a time; which,
 * it says in READY. It alone decides, so parts of different ops cannot wait for each other. At most
 * half of them may be of ops that not all are known to have submitted. Some parts to each owner go
 * unasked, so that an op need not wait for its READY: `eager_window` of those of small ops,
 * `unasked_window` of others; they are released by the copy. An owner has at most `copy_window`
 * copies under way that were not preceded by parts.
 *
 * In a repaired view the holder is the owner and only COPY, ACK and MARK run again. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "internal.h"

/* ---- starting ----------------------------------------------------------------------------------
 */

static bool may_copy(const pc_core *core, struct pc_op *op, size_t bytes) {
    if (core->copies_in_flight >= core->copy_window)
        return false;
    if (pc_all_ready(core, op))
        return true;
    if (core->copies_in_flight >= core->copy_window / 2 || op->eager_bytes + bytes > PC_EAGER_BYTES)
        return false;
    op->eager_bytes += bytes;
    return true;
}

/* Only the owner was to get the segment, and holds it: nobody waits any more. */
static void mark_all(pc_core *core, struct pc_op *op, uint32_t i) {
    op->segments[i].started = true;
    pc_push_all(core, op, i, PC_MARK);
    pc_now_marked(core, op, i);
}

/* Copies of values that are there: what a root spreads, or a holder serves. 1, 0, -1 as start. */
static int start_copy(pc_core *core, struct pc_op *op) {
    for (; op->cursor < op->segment_count; op->cursor++) {
        uint32_t i = op->cursor;
        struct pc_segment *segment = &op->segments[i];
        if (!pc_copy_only(core, op, i) || segment->started || segment->state != PC_FINAL ||
            pc_owner(core, op, i) != pc_self(op))
            continue;
        if (pc_owner_only(op->desc.kind)) { /* final before this view: say so again */
            mark_all(core, op, i);
            op->cursor++;
            return 1;
        }
        if (!may_copy(core, op, pc_op_bytes(op, i)))
            return 0;
        segment->started = true;
        segment->counted = true;
        core->copies_in_flight++;
        pc_push_all(core, op, i, PC_COPY);
        op->cursor++;
        return 1;
    }
    return -1;
}

/* The k-th segment of an owner, in a view without holders; at or past segment_count: none. */
static uint64_t segment_of(const pc_core *core, const struct pc_op *op, uint32_t owner,
                           uint32_t k) {
    if (op->desc.kind == PCCL_REDUCE_SCATTER) {
        const struct pc_block *block = &op->blocks[pc_said(op, owner)->block];
        return k < block->segments ? block->first + (uint64_t)k : UINT64_MAX;
    }
    if (op->desc.kind == PCCL_REDUCE)
        return core->peers[op->context->at[owner]] == op->desc.root_peer ? k : UINT64_MAX;
    if (pc_route(core, op) == PCCL_ROUTE_STAR)
        return owner == pc_hub(core, op) ? k : UINT64_MAX;
    uint32_t turns = pc_size(op), turn = owner;
    if (op->desc.kind == PCCL_BROADCAST) { /* all but the source take turns */
        uint32_t source = pc_place_of_peer(core, op->context, op->desc.root_peer);
        if (owner == source || source == PC_NO_INDEX)
            return UINT64_MAX;
        turn = (owner + turns - source - 1) % turns;
        turns--;
    }
    uint32_t first = (turn + turns - pc_turn(op) % turns) % turns;
    return first + (uint64_t)k * turns;
}

static bool wants_parts(const pc_core *core, const struct pc_op *op, uint64_t i) {
    const struct pc_segment *segment = &op->segments[i];
    return segment->state == PC_INTACT && !pc_copy_only(core, op, (uint32_t)i);
}

/* All have a part of what is reduced, its source alone of what is broadcast. */
static bool has_part(const pc_core *core, const struct pc_op *op, uint64_t i) {
    if (pc_reduces(op->desc.kind))
        return wants_parts(core, op, i);
    return pc_is_source(core, op, pc_self(op)) && op->segments[i].state == PC_FINAL &&
           !pc_copy_only(core, op, (uint32_t)i);
}

/* Asks for parts of own segments as far as the window allows. Returns as start_one. */
static int open_more(pc_core *core, struct pc_op *op) {
    uint32_t before = op->opened;
    int outcome = -1;
    if (op->desc.kind == PCCL_ALL_GATHER)
        return -1;
    for (;; op->opened++) {
        uint64_t i = segment_of(core, op, pc_self(op), op->opened);
        if (i >= op->segment_count)
            break;
        if (!wants_parts(core, op, i))
            continue;
        bool unready = !pc_all_ready(core, op);
        if (core->open_in_flight >= core->open_window ||
            (unready && core->open_unready >= core->open_window / 2)) {
            outcome = 0;
            break;
        }
        op->segments[i].open = true;
        op->segments[i].eager = unready;
        core->open_in_flight++;
        core->open_unready += unready;
    }
    return op->opened > before ? 1 : outcome;
}

void pc_star_open(pc_core *core, struct pc_op *op) {
    (void)open_more(core, op);
}

/* The next segment of an owner that this peer owes it a part of. */
static bool next_part(const pc_core *core, struct pc_op *op, uint32_t owner, uint32_t *segment) {
    uint32_t *k = &pc_said(op, owner)->cursor;
    for (;; (*k)++) {
        uint64_t i = segment_of(core, op, owner, *k);
        if (i >= op->segment_count)
            return false;
        if (has_part(core, op, i) && !op->segments[i].started) {
            *segment = (uint32_t)i;
            return true;
        }
    }
}

/* Of a broadcast no copy comes back that would release it. */
static bool goes_unasked(const pc_core *core, const struct pc_op *op, const struct pc_pair *pair) {
    uint32_t window = op->small ? core->eager_window : core->unasked_window;
    return pc_reduces(op->desc.kind) && pair->eager < window;
}

/* One part to each owner that has asked for it, or that takes it unasked. */
static int start_parts(pc_core *core, struct pc_op *op) {
    int outcome = -1;
    if (op->desc.kind == PCCL_ALL_GATHER)
        return -1;
    for (uint32_t owner = pc_after(op, pc_self(op)); owner != pc_self(op);
         owner = pc_after(op, owner)) {
        uint32_t i;
        if (!next_part(core, op, owner, &i))
            continue;
        struct pc_pair *pair = core->pairs[op->context->at[owner]];
        const struct pc_said *said = pc_said(op, owner);
        bool asked = said->cursor < said->opened;
        if (!asked && !goes_unasked(core, op, pair)) {
            outcome = outcome < 0 ? 0 : outcome;
            continue;
        }
        struct pc_segment *segment = &op->segments[i];
        segment->started = true;
        segment->counted = !asked;
        pair->eager += !asked;
        pc_push(core, op, owner, i, PC_PART);
        outcome = 1;
    }
    return outcome;
}

int pc_star_start_one(pc_core *core, struct pc_op *op) {
    int copies = start_copy(core, op);
    int parts = start_parts(core, op);
    int opened = open_more(core, op);
    if (opened > 0)
        pc_announce_all(core, op);
    if (copies > 0)
        pc_check_end(core, op); /* marks that were said again may have been the last */
    if (copies > 0 || parts > 0 || opened > 0)
        return 1;
    return copies == 0 || parts == 0 || opened == 0 ? 0 : -1;
}

/* ---- the owner ---------------------------------------------------------------------------------
 */

static void close_window(pc_core *core, struct pc_segment *segment) {
    if (!segment->open)
        return;
    core->open_in_flight--;
    core->open_unready -= segment->eager;
    segment->open = segment->eager = false;
}

/* To all who do not have it. */
static void copy_on(pc_core *core, struct pc_op *op, uint32_t i) {
    op->segments[i].started = true;
    for (uint32_t place = pc_after(op, pc_self(op)); place != pc_self(op);
         place = pc_after(op, place))
        if (!pc_is_source(core, op, place))
            pc_push(core, op, place, i, PC_COPY);
}

/* All inputs are in the destination. */
static void summed(pc_core *core, struct pc_op *op, uint32_t i) {
    struct pc_segment *segment = &op->segments[i];
    pc_finish(op, i, pc_op_out(op, i));
    pc_now_final(core, op, i, segment->contributors);
    close_window(core, segment);
    if (pc_owner_only(op->desc.kind)) {
        mark_all(core, op, i);
        return;
    }
    copy_on(core, op, i);
}

/* Adds the next input in order. The last sum goes straight to the destination. */
static void add_part(pc_core *core, struct pc_op *op, uint32_t i, struct pc_buffer *part) {
    struct pc_segment *segment = &op->segments[i];
    bool last = segment->parts_done + 1u == pc_size(op);
    /* The own input is only read: sums of two and more are in a buffer. */
    uint8_t *own = (uint8_t *)(uintptr_t)pc_op_in(op, i);
    uint8_t *so_far = segment->buffer ? segment->buffer->data : own;
    if (last)
        pc_keep_undo(op, i);
    uint8_t *to = last ? pc_op_out(op, i) : segment->buffer ? so_far : part->data;
    double weight = op->said[part->from].weight;
    pc_add_input(op, i, to, so_far, part->data, weight);
    segment->parts_done++;
    if (!last && !segment->buffer) {
        segment->buffer = part; /* it holds the sum of two now */
        return;
    }
    pc_pool_put(&core->pool, part);
    if (!last)
        return;
    if (segment->buffer)
        pc_pool_put(&core->pool, segment->buffer);
    segment->buffer = NULL;
    summed(core, op, i);
}

/* How far round from this peer: 1 .. size - 1. */
static uint32_t distance(const struct pc_op *op, uint32_t from) {
    return (pc_place(op->context, from) + pc_size(op) - pc_self(op)) % pc_size(op);
}

/* The owner's own input is the first. */
static void begin_value(struct pc_op *op, struct pc_segment *segment) {
    double weight = op->desc.weight;
    segment->parts_done = 1;
    segment->weight = weight;
    segment->contributors = weight > 0;
    segment->mean = weight < 1 || weight > 1;
}

/* What its source gives this member to copy on. */
static const char *on_share(pc_core *core, struct pc_op *op, uint32_t from,
                            const struct pc_header *header, struct pc_buffer *buffer) {
    uint32_t i = header->segment;
    struct pc_segment *segment = &op->segments[i];
    const char *wrong = NULL;
    if (segment->state != PC_INTACT || segment->landing || pc_copy_only(core, op, i) ||
        pc_owner(core, op, i) != pc_self(op) || !pc_is_source(core, op, from))
        wrong = "a part that cannot be";
    else
        wrong = pc_land(core, op, header, buffer);
    if (buffer)
        pc_pool_put(&core->pool, buffer);
    if (wrong)
        return wrong;
    close_window(core, segment);
    copy_on(core, op, i);
    pc_start(core);
    return NULL;
}

static const char *on_part(pc_core *core, struct pc_op *op, struct pc_buffer *buffer) {
    uint32_t i = buffer->header.segment;
    struct pc_segment *segment = &op->segments[i];
    const char *wrong = NULL;
    if (segment->state != PC_INTACT || pc_copy_only(core, op, i) ||
        pc_owner(core, op, i) != pc_self(op))
        wrong = "a part that cannot be";
    if (!wrong && !segment->parts_done)
        begin_value(op, segment);
    uint32_t at = distance(op, buffer->from);
    if (!wrong && at < segment->parts_done)
        wrong = "the same part twice";
    struct pc_buffer **slot = &segment->early;
    while (!wrong && *slot && distance(op, (*slot)->from) <= at) {
        if (distance(op, (*slot)->from) == at)
            wrong = "the same part twice";
        slot = &(*slot)->next;
    }
    if (wrong) {
        pc_pool_put(&core->pool, buffer);
        return wrong;
    }
    buffer->next = *slot;
    *slot = buffer;
    while (segment->early && distance(op, segment->early->from) == segment->parts_done) {
        struct pc_buffer *next = segment->early;
        segment->early = next->next;
        next->next = NULL;
        add_part(core, op, i, next);
    }
    if (segment->state == PC_INTACT)
        return NULL;
    pc_check_end(core, op);
    pc_start(core);
    return NULL;
}

/* true: the first from that member. Counting alone would let one speak for all. */
static bool first_ack(struct pc_op *op, uint32_t from, uint32_t i) {
    size_t bit = (size_t)i * pc_size(op) + from;
    if (!op->acked)
        op->acked = calloc(((size_t)op->segment_count * pc_size(op) + 7) / 8, 1);
    PC_ASSERT(op->acked); /* a bit per segment and member: the machine is done for */
    uint8_t mask = (uint8_t)(1u << bit % 8);
    bool first = !(op->acked[bit / 8] & mask);
    op->acked[bit / 8] |= mask;
    return first;
}

static void say_all_hold(pc_core *core, struct pc_op *op, uint32_t i) {
    if (!pc_returns_early(core, op)) {
        pc_push_all(core, op, i, PC_MARK);
        return;
    }
    for (uint32_t place = pc_after(op, pc_self(op)); place != pc_self(op);
         place = pc_after(op, place))
        pc_push_lazily(core, op, place, i, PC_MARK);
}

static const char *on_ack(pc_core *core, struct pc_op *op, uint32_t from, uint32_t i) {
    struct pc_segment *segment = &op->segments[i];
    if (pc_owner(core, op, i) != pc_self(op) || segment->state != PC_FINAL || !segment->started ||
        !first_ack(op, from, i))
        return "an acknowledgement that cannot be";
    bool given = !pc_copy_only(core, op, i) && op->desc.kind == PCCL_BROADCAST;
    if (++segment->acks + 1u + given < pc_size(op)) /* its source has it anyhow */
        return NULL;
    if (pc_size(op) > 2)
        say_all_hold(core, op, i);
    pc_now_marked(core, op, i);
    pc_check_end(core, op);
    pc_start(core);
    return NULL;
}

/* ---- everybody else ----------------------------------------------------------------------------
 */

static void release_part(struct pc_pair *owner, struct pc_segment *segment) {
    if (!segment->counted)
        return;
    segment->counted = false;
    owner->eager--;
}

static const char *on_copy(pc_core *core, struct pc_op *op, uint32_t from,
                           const struct pc_header *header, struct pc_buffer *buffer) {
    uint32_t i = header->segment;
    struct pc_segment *segment = &op->segments[i];
    const char *wrong = NULL;
    if (pc_owner_only(op->desc.kind) || pc_owner(core, op, i) != from ||
        segment->state == PC_MARKED || segment->copied || segment->landing)
        wrong = "a copy that cannot be";
    else
        wrong = pc_land(core, op, header, buffer);
    if (buffer)
        pc_pool_put(&core->pool, buffer);
    if (wrong)
        return wrong;
    release_part(core->pairs[op->context->at[from]], segment);
    if (pc_returns_early(core, op))
        pc_push_lazily(core, op, from, i, PC_ACK);
    else
        pc_push(core, op, from, i, PC_ACK);
    if (pc_size(op) == 2) /* the owner and this peer: all hold it */
        pc_now_marked(core, op, i);
    pc_check_end(core, op);
    pc_start(core);
    return NULL;
}

static const char *on_mark(pc_core *core, struct pc_op *op, uint32_t from,
                           const struct pc_header *header) {
    uint32_t i = header->segment;
    struct pc_segment *segment = &op->segments[i];
    bool gets_it = !pc_owner_only(op->desc.kind);
    bool has_it =
        segment->state == PC_FINAL && (segment->copied || pc_is_source(core, op, pc_self(op)));
    if (pc_owner(core, op, i) != from || segment->state == PC_MARKED || (gets_it && !has_it))
        return "a mark that cannot be";
    if (!gets_it) {
        release_part(core->pairs[op->context->at[from]], segment);
        pc_now_final(core, op, i, header->contributors);
    }
    pc_now_marked(core, op, i);
    pc_check_end(core, op);
    pc_start(core);
    return NULL;
}

const char *pc_star_frame(pc_core *core, struct pc_op *op, uint32_t from,
                          const struct pc_header *header, struct pc_buffer *buffer) {
    switch (header->type) {
    case PC_PART:
        if (op->desc.kind == PCCL_BROADCAST)
            return on_share(core, op, from, header, buffer);
        return on_part(core, op, buffer);
    case PC_COPY:
        return on_copy(core, op, from, header, buffer);
    case PC_MARK:
        return on_mark(core, op, from, header);
    case PC_ACK:
        return on_ack(core, op, from, header->segment);
    default:
        if (buffer)
            pc_pool_put(&core->pool, buffer);
        return "a frame that has no place on a star";
    }
}
