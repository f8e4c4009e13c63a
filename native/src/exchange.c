/* exchange: gather, scatter, all-to-all, send and receive. Each directed pair of participants has
 * its own segments; nobody else knows how many (PROTOCOL.md).
 *
 *   each -> each   READY: I have submitted it, I hold so many of your segments, I have so much for
 *                  you
 *   each -> each   COPY: a segment, from the user's memory straight into the user's memory
 *   each -> all    MARK: all that I was to get is here
 *
 * A receiver's memory is its own scratch: after its READY nothing bounds a sender but the queue to
 * it; before, small ops alone are sent. Whoever was to get something says when it has; an op ends
 * when all those have said so, so that no member returns what another has to give up.
 *
 * In a repaired view all say again where they stand, and senders go on from there. */
#include <string.h>

#include "check.h"
#include "internal.h"

#define QUEUE_MAX 8 /* segments of one stream in a pair's queue: others want the link too */

struct pc_stream *pc_stream_at(const struct pc_op *op, uint32_t place) {
    for (uint32_t i = 0; i < op->stream_count; i++)
        if (op->streams[i].place == place)
            return &op->streams[i];
    return NULL;
}

bool pc_receives(const struct pc_op *op, uint64_t peer) {
    switch (op->desc.kind) {
    case PCCL_SCATTER:
        return peer != op->desc.root_peer;
    case PCCL_ALL_TO_ALL:
        return true;
    default:
        return peer == op->desc.root_peer;
    }
}

/* Nothing more is to come here. Who has nothing to send must have said so. */
static bool is_whole(const pc_core *core, const struct pc_op *op) {
    if (op->own_left)
        return false;
    if (!pc_receives(op, core->config.peer))
        return true;
    for (uint32_t i = 0; i < op->stream_count; i++) {
        const struct pc_stream *stream = &op->streams[i];
        bool sends = op->desc.kind != PCCL_SCATTER || stream->peer == op->desc.root_peer;
        if (sends && stream->place != PC_NO_INDEX && stream->peer != core->config.peer &&
            !stream->ready)
            return false;
    }
    return true;
}

/* All who were to get something have it, as far as they live. */
static bool all_whole(const pc_core *core, const struct pc_op *op) {
    if (!is_whole(core, op))
        return false;
    for (uint32_t i = 0; i < op->stream_count; i++) {
        const struct pc_stream *stream = &op->streams[i];
        if (stream->place != PC_NO_INDEX && stream->peer != core->config.peer &&
            pc_receives(op, stream->peer) && !stream->whole)
            return false;
    }
    return true;
}

void pc_exchange_check(pc_core *core, struct pc_op *op) {
    if (op->state != PC_RUNNING || !op->streams || core->stopped || op->mismatched)
        return;
    if (is_whole(core, op) && !op->told_whole && pc_receives(op, core->config.peer)) {
        op->told_whole = true;
        pc_push_all(core, op, 0, PC_MARK);
    }
    if (all_whole(core, op) && !op->values_queued)
        pc_op_end(core, op, PCCL_OK, "");
}

/* Segments sent unasked count no longer. */
static void release(pc_core *core, const struct pc_op *op, struct pc_stream *stream) {
    if (stream->eager)
        core->pairs[op->context->at[stream->place]]->eager -= stream->eager;
    stream->eager = 0;
}

/* A mark may end an op before the announcement that it overtook is here. */
void pc_exchange_release(pc_core *core, struct pc_op *op) {
    for (uint32_t i = 0; i < op->stream_count; i++)
        release(core, op, &op->streams[i]);
}

void pc_exchange_enter(pc_core *core, struct pc_op *op) {
    op->told_whole = false;
    for (uint32_t i = 0; i < op->stream_count; i++) {
        struct pc_stream *stream = &op->streams[i];
        stream->place = pc_place_of_peer(core, op->context, stream->peer);
        stream->out_next = stream->out_queued = 0;
        stream->ready = false;
        for (uint32_t s = 0; s < stream->in_segments; s++)
            if (stream->landed[s] == PC_LANDING)
                stream->landed[s] = PC_MISSING;
    }
}

/* ---- sending -----------------------------------------------------------------------------------
 */

static bool may_send(const pc_core *core, const struct pc_op *op, const struct pc_stream *stream) {
    if (stream->ready)
        return stream->out_queued < QUEUE_MAX;
    const struct pc_pair *pair = core->pairs[op->context->at[stream->place]];
    return op->small && pair->eager < core->eager_window;
}

int pc_exchange_start_one(pc_core *core, struct pc_op *op) {
    int outcome = -1;
    for (uint32_t i = 0; i < op->stream_count; i++) {
        struct pc_stream *stream = &op->streams[i];
        if (stream->place == PC_NO_INDEX || stream->whole ||
            stream->out_next >= stream->out_segments)
            continue;
        if (!may_send(core, op, stream)) {
            outcome = outcome < 0 ? 0 : outcome;
            continue;
        }
        if (!stream->ready) {
            stream->eager++;
            core->pairs[op->context->at[stream->place]]->eager++;
        }
        stream->out_queued++;
        pc_push(core, op, stream->place, stream->out_next++, PC_COPY);
        outcome = 1;
    }
    return outcome;
}

void pc_exchange_sent(pc_core *core, struct pc_op *op, uint32_t place) {
    struct pc_stream *stream = pc_stream_at(op, place);
    PC_ASSERT(stream && stream->out_queued);
    stream->out_queued--;
    pc_exchange_check(core, op);
    if (op->state == PC_RUNNING && stream->out_queued < QUEUE_MAX / 2)
        pc_start(core);
}

/* ---- receiving ---------------------------------------------------------------------------------
 */

void pc_exchange_ready(pc_core *core, struct pc_op *op, uint32_t place) {
    struct pc_stream *stream = pc_stream_at(op, place);
    const struct pc_said *said = pc_said(op, place);
    PC_ASSERT(stream);
    if (said->whole && pc_receives(op, stream->peer))
        stream->whole = true;
    if (stream->ready)
        return;
    stream->ready = true;
    release(core, op, stream);
    if (said->opened > stream->out_next && said->opened <= stream->out_segments)
        stream->out_next = said->opened;
}

static const char *on_copy(pc_core *core, struct pc_op *op, struct pc_stream *stream,
                           const struct pc_header *header, struct pc_buffer *buffer) {
    uint32_t i = header->segment;
    if (i >= stream->in_segments)
        return "a segment that nobody waits for";
    uint64_t elements = pc_stream_elements(core, op, stream->in_count, i);
    if (header->length != elements * op->element_bytes)
        return "a segment of a wrong size";
    if (stream->landed[i] == PC_LANDED || (buffer && stream->landed[i] == PC_LANDING))
        return NULL; /* sent again in a repaired view, on another link */
    if (buffer)
        memcpy(stream->in + pc_stream_offset(core, op, i), buffer->data, header->length);
    stream->landed[i] = PC_LANDED;
    while (stream->in_prefix < stream->in_segments &&
           stream->landed[stream->in_prefix] == PC_LANDED)
        stream->in_prefix++;
    if (!--stream->in_left)
        op->own_left--;
    return NULL;
}

const char *pc_exchange_frame(pc_core *core, struct pc_op *op, uint32_t from,
                              const struct pc_header *header, struct pc_buffer *buffer) {
    struct pc_stream *stream = pc_stream_at(op, from);
    const char *wrong = NULL;
    PC_ASSERT(stream);
    if (header->type == PC_COPY)
        wrong = on_copy(core, op, stream, header, buffer);
    else if (header->type == PC_MARK && pc_receives(op, stream->peer))
        stream->whole = true;
    else
        wrong = "a frame that has no place in an exchange";
    if (buffer)
        pc_pool_put(&core->pool, buffer);
    if (!wrong)
        pc_exchange_check(core, op);
    return wrong;
}
