/* announce: who has submitted what. READY frames carry the op's descriptor: on the ring to both
 * neighbours, with a count of members in a row that are ready; on a star to everybody. Frames of an
 * op that this peer has not submitted, or whose sender's descriptor is not here yet (links overtake
 * each other), are parked with the op; the windows of their senders bound them. */
#include <string.h>

#include "check.h"
#include "internal.h"

bool pc_all_ready(const pc_core *core, const struct pc_op *op) {
    if (pc_route(core, op) == PCCL_ROUTE_RING)
        return op->next_run + 1 >= pc_size(op);
    return op->known_count + 1 >= pc_size(op);
}

/* ---- agreement ---------------------------------------------------------------------------------
 */

static void mismatch(pc_core *core, struct pc_op *op, const struct pc_desc *theirs, uint32_t from) {
    op->mismatched = true;
    op->mismatch_from = from;
    op->mismatch_desc = *theirs;
    pc_op_post(core, op, PC_OP_EVENT_MISMATCH);
    if (!op->plan_left)
        return;
    core->plan_left -= op->plan_left; /* its plan is not carried out: nobody waits for that */
    op->plan_left = 0;
    pc_view_check_repaired(core);
}

static bool differ(const struct pc_desc *a, const struct pc_desc *b) {
    char a_text[64], b_text[64];
    return pc_desc_differ(a, b, a_text, b_text, sizeof a_text) != NULL;
}

struct pc_desc pc_desc_for(const struct pc_op *op, uint32_t place) {
    struct pc_desc desc = op->desc;
    const struct pc_stream *stream = op->streams ? pc_stream_at(op, place) : NULL;
    if (stream)
        desc.count = stream->in_count;
    return desc;
}

/* In an exchange the two ends of each pair must agree on what passes between them. */
static void compare_streams(pc_core *core, struct pc_op *op) {
    for (uint32_t i = 0; i < op->stream_count && !op->mismatched; i++) {
        const struct pc_stream *stream = &op->streams[i];
        if (stream->place == PC_NO_INDEX || stream->place == pc_self(op))
            continue;
        const struct pc_said *said = pc_said(op, stream->place);
        if (!said->known)
            continue;
        struct pc_desc theirs = op->desc;
        theirs.count = said->for_you;
        if (stream->in_count != said->for_you)
            mismatch(core, op, &theirs, op->context->at[stream->place]);
    }
}

/* Our descriptor against those that are here: of all that differ, one at least differs from ours.
 */
static void compare(pc_core *core, struct pc_op *op) {
    if (op->mismatched || op->returned || op->first_from == PC_NO_INDEX)
        return;
    if (differ(&op->desc, &op->desc_first))
        mismatch(core, op, &op->desc_first, op->first_from);
    else if (op->odd_from != PC_NO_INDEX)
        mismatch(core, op, &op->desc_odd, op->odd_from);
    else
        compare_streams(core, op);
}

bool pc_is_complete(const pc_core *core, const struct pc_op *op) {
    for (uint32_t i = 0; i < op->block_count; i++)
        if (op->blocks[i].peer &&
            pc_place_of_peer(core, op->context, op->blocks[i].peer) == PC_NO_INDEX)
            return false;
    for (uint32_t i = 0; i < op->stream_count; i++)
        if (op->streams[i].place == PC_NO_INDEX && op->desc.kind != PCCL_SCATTER)
            return false;
    return true;
}

void pc_members_changed(pc_core *core, struct pc_op *op) {
    struct pc_desc without = op->desc;
    without.members = 0;
    if (!op->mismatched)
        mismatch(core, op, &without, core->self);
}

/* ---- saying it ---------------------------------------------------------------------------------
 */

static void announce_to(pc_core *core, struct pc_op *op, uint32_t place, bool lazily) {
    struct pc_said *said = pc_said(op, place);
    if (said->queued)
        return; /* the one that waits carries the news when it goes */
    said->queued = true;
    if (lazily)
        pc_push_lazily(core, op, place, 0, PC_READY);
    else
        pc_push(core, op, place, 0, PC_READY);
}

void pc_announce_all(pc_core *core, struct pc_op *op) {
    for (uint32_t i = pc_after(op, pc_self(op)); i != pc_self(op); i = pc_after(op, i))
        announce_to(core, op, i, false);
}

/* Of a small op the owners need to hear, and from the owners all; that the others agree among each
 * other can wait, since each op that ends has told them. */
static void announce_small(pc_core *core, struct pc_op *op) {
    bool own = false;
    for (uint32_t i = 0; i < op->segment_count; i++)
        own |= pc_owner(core, op, i) == pc_self(op);
    for (uint32_t place = pc_after(op, pc_self(op)); place != pc_self(op);
         place = pc_after(op, place)) {
        bool urgent = own;
        for (uint32_t i = 0; i < op->segment_count && !urgent; i++)
            urgent = pc_owner(core, op, i) == place;
        if (urgent || !pc_goes_by_hub(core, op))
            announce_to(core, op, place, !urgent);
    }
}

void pc_announce(pc_core *core, struct pc_op *op) {
    if (pc_size(op) == 1)
        return; /* the others are gone, and a verdict on that is asked for */
    if (pc_route(core, op) == PCCL_ROUTE_RING) {
        announce_to(core, op, pc_before(op, pc_self(op)), false);
        announce_to(core, op, pc_after(op, pc_self(op)), false);
        return;
    }
    pc_star_open(core, op);
    if (pc_returns_early(core, op) || pc_goes_by_hub(core, op))
        announce_small(core, op);
    else
        pc_announce_all(core, op);
}

/* What was said before the participants were known. */
static void take_stock(pc_core *core, struct pc_op *op) {
    op->known_count = 0;
    for (uint32_t place = 0; place < pc_size(op); place++) {
        struct pc_said *said = pc_said(op, place);
        if (place == pc_self(op) || !said->known)
            continue;
        op->known_count++;
        if (op->streams)
            pc_exchange_ready(core, op, place);
    }
    op->next_run = pc_said(op, pc_after(op, pc_self(op)))->run;
}

void pc_op_enter_view(pc_core *core, struct pc_op *op) {
    if (op->streams)
        pc_exchange_enter(core, op);
    for (uint32_t b = 0; b < op->block_count; b++) {
        uint32_t place = op->blocks[b].peer
                             ? pc_place_of_peer(core, op->context, op->blocks[b].peer)
                             : PC_NO_INDEX;
        if (place != PC_NO_INDEX)
            pc_said(op, place)->block = (uint16_t)b;
    }
}

static void learn(struct pc_op *op, uint32_t from, const struct pc_desc *desc) {
    struct pc_said *said = &op->said[from];
    said->known = true;
    said->weight = desc->weight;
    said->for_you = desc->for_you;
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

/* Whether a payload of this length can be that of this frame. */
static bool fits(const struct pc_op *op, uint32_t from, const struct pc_header *header) {
    size_t bytes = pc_op_bytes(op, header->segment);
    if (header->type == PC_PART && !header->length) /* it receives only */
        return !bytes || (op->desc.reduce == PCCL_AVG && op->said[from].weight <= 0);
    if (header->type == PC_SUM && op->desc.reduce == PCCL_AVG &&
        header->length == bytes + PC_WEIGHT_BYTES)
        return true;
    return header->length == bytes;
}

static const char *data_frame(pc_core *core, struct pc_op *op, uint32_t from,
                              const struct pc_header *header, struct pc_buffer *buffer) {
    uint32_t place = pc_place(op->context, from);
    const char *wrong = NULL;
    if (place == PC_NO_INDEX)
        wrong = "a frame of one who does not take part";
    else if (!op->streams && (header->segment >= op->segment_count ||
                              (pc_carries_value(header->type) && !fits(op, from, header))))
        wrong = "a segment that the op does not have";
    if (wrong) {
        if (buffer)
            pc_pool_put(&core->pool, buffer);
        return wrong;
    }
    op->result.bytes_received += header->length;
    if (op->streams)
        return pc_exchange_frame(core, op, place, header, buffer);
    if (pc_route(core, op) == PCCL_ROUTE_RING)
        return pc_ring_frame(core, op, place, header, buffer);
    return pc_star_frame(core, op, place, header, buffer);
}

/* Whether the value of a segment can come in this frame from that place. Who else sends one is
 * found out when it is whole: by then it would have been written over what came from the right one.
 */
static bool comes_from(const pc_core *core, const struct pc_op *op, uint32_t place,
                       const struct pc_header *header) {
    uint32_t owner = pc_owner(core, op, header->segment);
    if (header->type == PC_PART)
        return owner == pc_self(op) && pc_is_source(core, op, place);
    if (pc_route(core, op) == PCCL_ROUTE_RING)
        return owner != pc_self(op) && place == pc_before(op, pc_self(op));
    return owner == place;
}

uint8_t *pc_landing(pc_core *core, uint32_t from, const struct pc_header *header,
                    struct pc_op **which) {
    if ((header->type != PC_COPY && header->type != PC_PART) || !header->length)
        return NULL;
    struct pc_op *op = pc_op_find(core, pc_op_id(header));
    if (header->type == PC_PART && op && op->desc.kind != PCCL_BROADCAST)
        return NULL; /* an input, to be added */
    if (!op || op->state != PC_RUNNING || op->mismatched || !op->said[from].known)
        return NULL;
    uint32_t i = header->segment;
    *which = op;
    if (op->streams) {
        struct pc_stream *stream = pc_stream_at(op, pc_place(op->context, from));
        if (!stream || i >= stream->in_segments || stream->landed[i] != PC_MISSING ||
            header->length != pc_stream_elements(core, op, stream->in_count, i) * op->element_bytes)
            return NULL;
        stream->landed[i] = PC_LANDING;
        return stream->in + pc_stream_offset(core, op, i);
    }
    uint32_t place = pc_place(op->context, from);
    if (i >= op->segment_count || op->segments[i].state != PC_INTACT || op->segments[i].landing ||
        header->length != pc_op_bytes(op, i) || op->undo || place == PC_NO_INDEX ||
        !comes_from(core, op, place, header))
        return NULL;
    uint8_t *out = pc_op_out(op, i);
    bool input = pc_reduces(op->desc.kind) && pc_op_in(op, i) == out;
    if (!out || input)
        return NULL; /* an input must be replaced whole */
    op->segments[i].landing = true;
    return out;
}

void pc_landing_over(struct pc_op *op, uint32_t from, uint32_t segment) {
    if (op->state != PC_RUNNING)
        return;
    if (!op->streams) {
        op->segments[segment].landing = false;
        return;
    }
    struct pc_stream *stream = pc_stream_at(op, pc_place(op->context, from));
    if (stream && stream->landed[segment] == PC_LANDING)
        stream->landed[segment] = PC_MISSING;
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
        } else if (!op->said[buffer->from].known) {
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

static bool is_float(int dtype) {
    return dtype >= PCCL_FLOAT16 && dtype <= PCCL_FLOAT64;
}

/* Weights belong to averages of floats. */
static bool weight_is_sound(const struct pc_desc *desc) {
    bool one = desc->weight >= 1 && desc->weight <= 1;
    return one || (desc->reduce == PCCL_AVG && is_float(desc->dtype));
}

/* A participant has spoken, of an op that runs here. */
static void heard(pc_core *core, struct pc_op *op, uint32_t place, bool first) {
    op->known_count += first;
    compare(core, op);
    if (op->mismatched)
        return;
    if (op->streams)
        pc_exchange_ready(core, op, place);
    const struct pc_said *said = pc_said(op, place);
    if (place != pc_after(op, pc_self(op)) || said->run <= op->next_run || said->run > pc_size(op))
        return;
    bool told_enough = op->next_run + 2 >= pc_size(op); /* by what was announced before */
    op->next_run = said->run;
    if (!told_enough && pc_route(core, op) == PCCL_ROUTE_RING)
        announce_to(core, op, pc_before(op, pc_self(op)), false);
}

static const char *on_ready(pc_core *core, uint32_t from, const struct pc_header *header,
                            const uint8_t *small) {
    struct pc_desc desc;
    if (!pc_desc_get(small, &desc) || !weight_is_sound(&desc))
        return "a descriptor that cannot be";
    uint64_t id = pc_op_id(header);
    if (pc_op_is_past(core, id))
        return NULL;
    struct pc_op *op = pc_op_told(core, id, from);
    if (!op)
        return "more ops announced than allowed";
    uint32_t place = op->state == PC_RUNNING ? pc_place(op->context, from) : 0;
    if (place == PC_NO_INDEX)
        return "an op of others";
    struct pc_said *said = &op->said[from];
    bool first = !said->known;
    learn(op, from, &desc);
    if (header->segment > said->opened)
        said->opened = header->segment;
    if (header->contributors > said->run)
        said->run = header->contributors;
    if (op->state != PC_RUNNING)
        return NULL;
    heard(core, op, place, first);
    const char *wrong = unpark(core, op);
    pc_exchange_check(core, op);
    pc_start(core);
    return wrong;
}

/* A mark of an op that is not submitted here: in an exchange others may be done before we begin. */
static const char *early_mark(struct pc_op *op, uint32_t from, const struct pc_header *header) {
    bool exchange = op->first_from == PC_NO_INDEX || pc_is_exchange(op->desc_first.kind);
    if (header->type != PC_MARK || !exchange)
        return "a mark of an op that is not submitted";
    op->said[from].whole = true;
    return NULL;
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
    struct pc_op *op = pc_op_told(core, id, from);
    if (!op) {
        if (buffer)
            pc_pool_put(&core->pool, buffer);
        return "frames of more ops than allowed";
    }
    bool usable = op->state == PC_RUNNING && !op->mismatched;
    if (usable && (!buffer || op->said[from].known))
        return data_frame(core, op, from, header, buffer);
    if (buffer)
        park(op, buffer);
    else if (op->state == PC_FOREIGN)
        return early_mark(op, from, header);
    return NULL;
}

void pc_submitted(pc_core *core, struct pc_op *op) {
    pc_announce(core, op);
    take_stock(core, op);
    compare(core, op);
    (void)unpark(core, op); /* what was wrong before we knew the op costs nobody a link */
    if (op->state == PC_RUNNING)
        pc_startable(core, op);
    pc_start(core);
    if (op->streams)
        pc_exchange_check(core, op);
}
