/* blame: how an op in flight stands, for people: what it waits for, for whom, and how many bytes
 * are missing here. It reads what the other files keep and changes nothing. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

#define LINE_NAMES_MAX 3 /* members that one line names */

struct waits {
    int phase;
    uint32_t count;
    uint64_t peers[PCCL_AWAITED_MAX];
    uint8_t seen[PCCL_MEMBERS_MAX / 8]; /* by place */
};

static bool has(const uint8_t *bits, size_t i) {
    return (bits[i / 8] >> i % 8 & 1) != 0;
}

static void wait_for(const pc_core *core, const struct pc_op *op, uint32_t place,
                     struct waits *waits) {
    if (place == PC_NO_INDEX || place == pc_self(op) || has(waits->seen, place))
        return;
    waits->seen[place / 8] |= (uint8_t)(1u << place % 8);
    if (waits->count < PCCL_AWAITED_MAX)
        waits->peers[waits->count] = core->peers[op->context->at[place]];
    waits->count++;
}

/* ---- whose descriptor is not here -------------------------------------------------------------
 */

/* All of them; on the ring the first alone, for those beyond it cannot be known. */
static void find_silent(const pc_core *core, const struct pc_op *op, struct waits *waits) {
    if (pc_all_ready(core, op))
        return;
    if (pc_route(core, op) == PCCL_ROUTE_RING) {
        wait_for(core, op, (pc_self(op) + op->next_run + 1) % pc_size(op), waits);
        return;
    }
    bool hub_alone = pc_goes_by_hub(core, op) && pc_hub(core, op) != pc_self(op);
    for (uint32_t i = pc_after(op, pc_self(op)); i != pc_self(op); i = pc_after(op, i))
        if (!pc_said(op, i)->known && (!hub_alone || i == pc_hub(core, op)))
            wait_for(core, op, i, waits);
}

/* ---- values ------------------------------------------------------------------------------------
 */

/* The members whose inputs an owner has asked for and does not have. */
static void find_parts(const pc_core *core, const struct pc_op *op, uint32_t i,
                       struct waits *waits) {
    const struct pc_segment *segment = &op->segments[i];
    if (!segment->open && !op->small)
        return; /* its turn has not come */
    uint8_t early[PCCL_MEMBERS_MAX / 8] = {0};
    for (const struct pc_buffer *part = segment->early; part; part = part->next) {
        uint32_t place = pc_place(op->context, part->from);
        if (place != PC_NO_INDEX)
            early[place / 8] |= (uint8_t)(1u << place % 8);
    }
    for (uint32_t at = 1; at < pc_size(op); at++) {
        uint32_t place = (pc_self(op) + at) % pc_size(op);
        if (at >= segment->parts_done && !has(early, place))
            wait_for(core, op, place, waits);
    }
}

static void find_holders(const pc_core *core, const struct pc_op *op, uint32_t i,
                         struct waits *waits) {
    if (pc_route(core, op) == PCCL_ROUTE_RING)
        wait_for(core, op, pc_before(op, pc_self(op)), waits);
    else if (pc_owner(core, op, i) != pc_self(op))
        wait_for(core, op, pc_owner(core, op, i), waits);
    else if (op->desc.kind == PCCL_BROADCAST)
        wait_for(core, op, pc_place_of_peer(core, op->context, op->desc.root_peer), waits);
    else
        find_parts(core, op, i, waits);
}

static void find_unconfirmed(const pc_core *core, const struct pc_op *op, uint32_t i,
                             struct waits *waits) {
    uint32_t size = pc_size(op);
    if (pc_route(core, op) == PCCL_ROUTE_RING) {
        wait_for(core, op, pc_before(op, pc_self(op)), waits);
        return;
    }
    if (pc_owner(core, op, i) != pc_self(op)) {
        wait_for(core, op, pc_owner(core, op, i), waits);
        return;
    }
    for (uint32_t place = 0; place < size; place++)
        if (!pc_is_source(core, op, place) &&
            !(op->acked && has(op->acked, (size_t)i * size + place)))
            wait_for(core, op, place, waits);
}

static bool is_missing(const struct pc_op *op, uint32_t i) {
    return op->segments[i].state == PC_INTACT && pc_op_out(op, i);
}

static void find_values(const pc_core *core, const struct pc_op *op, struct waits *waits) {
    waits->phase = PCCL_PHASE_CONFIRM;
    for (uint32_t i = 0; i < op->segment_count; i++) {
        if (!is_missing(op, i))
            continue;
        if (!pc_copy_only(core, op, i))
            waits->phase = PCCL_PHASE_REDUCE;
        else if (waits->phase == PCCL_PHASE_CONFIRM)
            waits->phase = PCCL_PHASE_COPY;
        if (waits->count + 1 < pc_size(op)) /* else all are named already */
            find_holders(core, op, i, waits);
    }
    if (waits->phase != PCCL_PHASE_CONFIRM)
        return;
    for (uint32_t i = 0; i < op->segment_count && waits->count + 1 < pc_size(op); i++)
        if (op->segments[i].state != PC_MARKED)
            find_unconfirmed(core, op, i, waits);
}

/* ---- exchanges ---------------------------------------------------------------------------------
 */

/* Whether this peer needs word of it: one of the two sends to the other. */
static bool concerns(const pc_core *core, const struct pc_op *op, uint64_t peer) {
    bool sends = op->desc.kind != PCCL_SCATTER || peer == op->desc.root_peer;
    return pc_receives(op, peer) || (sends && pc_receives(op, core->config.peer));
}

static bool is_unheard(const pc_core *core, const struct pc_op *op,
                       const struct pc_stream *stream) {
    return !stream->ready && !stream->whole && concerns(core, op, stream->peer);
}

static bool is_to_confirm(const struct pc_op *op, const struct pc_stream *stream) {
    return !stream->whole && pc_receives(op, stream->peer);
}

static void find_streams(const pc_core *core, const struct pc_op *op, struct waits *waits) {
    waits->phase = PCCL_PHASE_CONFIRM;
    for (uint32_t s = 0; s < op->stream_count; s++) {
        const struct pc_stream *stream = &op->streams[s];
        if (stream->place == PC_NO_INDEX || stream->place == pc_self(op))
            continue;
        if (is_unheard(core, op, stream))
            waits->phase = PCCL_PHASE_SUBMIT;
        else if (stream->in_left && waits->phase == PCCL_PHASE_CONFIRM)
            waits->phase = PCCL_PHASE_COPY;
    }
    for (uint32_t s = 0; s < op->stream_count; s++) {
        const struct pc_stream *stream = &op->streams[s];
        if (waits->phase == PCCL_PHASE_SUBMIT ? is_unheard(core, op, stream)
            : waits->phase == PCCL_PHASE_COPY ? stream->in_left > 0
                                              : is_to_confirm(op, stream))
            wait_for(core, op, stream->place, waits);
    }
}

/* ---- one op ------------------------------------------------------------------------------------
 */

static void find(const pc_core *core, const struct pc_op *op, struct waits *waits) {
    *waits = (struct waits){.phase = PCCL_PHASE_VIEW};
    if (core->stopped || !core->epoch || op->mismatched)
        return;
    if (op->streams) {
        find_streams(core, op, waits);
        return;
    }
    find_silent(core, op, waits);
    if (waits->count)
        waits->phase = PCCL_PHASE_SUBMIT;
    else
        find_values(core, op, waits);
}

uint64_t pc_missing_bytes(const pc_core *core, const struct pc_op *op) {
    uint64_t missing = 0;
    for (uint32_t i = 0; i < op->segment_count; i++)
        if (is_missing(op, i))
            missing += pc_op_bytes(op, i);
    for (uint32_t s = 0; s < op->stream_count; s++) {
        const struct pc_stream *stream = &op->streams[s];
        for (uint32_t i = 0; i < stream->in_segments; i++)
            if (stream->landed[i] != PC_LANDED)
                missing += pc_stream_elements(core, op, stream->in_count, i) * op->element_bytes;
    }
    return missing;
}

void pc_note_phases(const pc_core *core) {
    for (struct pc_op *op = core->ops_head; op; op = op->next) {
        if (op->state != PC_RUNNING || (core->stopped && op->phase))
            continue; /* of one that ran when the core stopped it is known */
        struct waits waits;
        find(core, op, &waits);
        op->phase = (uint8_t)waits.phase;
    }
}

static const char *words_of(int phase) {
    switch (phase) {
    case PCCL_PHASE_SUBMIT:
        return "members to submit it";
    case PCCL_PHASE_REDUCE:
        return "values";
    case PCCL_PHASE_COPY:
        return "copies";
    case PCCL_PHASE_CONFIRM:
        return "confirmation";
    default:
        return "the next view";
    }
}

void pc_blame(const pc_core *core, const struct pc_op *op, uint64_t now_ns,
              struct pccl_event *event) {
    struct waits waits;
    find(core, op, &waits);
    size_t size = sizeof event->reason, used = 0;
    int n = snprintf(event->reason, size, "waited %.1f s for %s, %" PRIu64 " bytes missing",
                     (double)(now_ns - op->submitted_ns) / 1e9, words_of(waits.phase),
                     pc_missing_bytes(core, op));
    uint32_t named = waits.count < LINE_NAMES_MAX ? waits.count : LINE_NAMES_MAX;
    for (uint32_t i = 0; i < named && n > 0 && (used += (size_t)n) < size; i++)
        n = snprintf(event->reason + used, size - used, "%s peer %08" PRIx64,
                     i ? "," : ", awaiting", waits.peers[i] >> 32);
    if (waits.count > named && n > 0 && (used += (size_t)n) < size)
        snprintf(event->reason + used, size - used, " and %" PRIu32 " more", waits.count - named);
    if (waits.phase == PCCL_PHASE_SUBMIT)
        event->peer = waits.peers[0];
}

void pc_core_inspect(const pc_core *core, uint64_t now_ns, struct pccl_inspection *out) {
    *out = (struct pccl_inspection){.running = core->running_count};
    for (const struct pc_op *op = core->ops_head; op; op = op->next) {
        if (op->state != PC_RUNNING || op->returned)
            continue;
        if (out->count == PCCL_FLIGHTS_MAX)
            return;
        struct waits waits;
        find(core, op, &waits);
        struct pccl_flight *row = &out->rows[out->count++];
        *row = (struct pccl_flight){.op = op->id,
                                    .kind = op->desc.kind,
                                    .phase = waits.phase,
                                    .timed_out = op->timed_out,
                                    .awaited_count = waits.count,
                                    .bytes = op->bytes,
                                    .missing = pc_missing_bytes(core, op),
                                    .age_ns = now_ns - op->submitted_ns};
        memcpy(row->awaited, waits.peers, sizeof row->awaited);
    }
}
