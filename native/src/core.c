/* core: see core.h. Creation, submission, time, events. */
#include "core.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "internal.h"

#define SEGMENT_BYTES_MIN (16u << 10)
#define SEGMENT_BYTES_MAX (512u << 10)
#define SEGMENTS_WANTED   32 /* of an op between the two: enough to keep every member busy */

size_t pccl_dtype_size(int dtype) {
    static const size_t sizes[] = {1, 1, 2, 4, 8, 2, 2, 4, 8};
    return dtype >= 0 && (size_t)dtype < sizeof sizes / sizeof *sizes ? sizes[dtype] : 0;
}

pc_core *pc_core_new(const struct pc_core_config *config) {
    pc_core *core = calloc(1, sizeof *core);
    if (!core)
        return NULL;
    core->config = *config;
    if (!core->config.segment_bytes_min)
        core->config.segment_bytes_min = SEGMENT_BYTES_MIN;
    if (!core->config.segment_bytes_max)
        core->config.segment_bytes_max = SEGMENT_BYTES_MAX;
    PC_ASSERT(core->config.segment_bytes_min <= core->config.segment_bytes_max);
    PC_ASSERT(core->config.segment_bytes_max < PC_PAYLOAD_MAX);
    pc_pool_init(&core->pool, core->config.segment_bytes_max);
    core->event_tail = &core->event_head;
    core->start_tail = &core->start_head;
    core->deadline_ns = UINT64_MAX;
    return core;
}

void pc_core_free(pc_core *core) {
    if (!core)
        return;
    for (struct pc_op *op = core->ops_head, *next; op; op = next) {
        next = op->next;
        free(op->segments);
        free(op->part_cursors);
        free(op->acked);
        free(op->undo);
        free(op);
    }
    for (uint32_t i = 0; i < core->verdict_count; i++) {
        free(core->verdicts[i].holders);
        free(core->verdicts[i].text);
    }
    free(core->verdicts);
    pc_pairs_free(core);
    for (int id = 0; id < PC_LINKS_MAX; id++)
        free(core->links[id]);
    free(core->peers);
    pc_pool_free(&core->pool);
    free(core);
}

uint32_t pc_core_epoch(const pc_core *core) {
    return core->epoch;
}

/* The size of a segment depends on the tensor alone, never on the view: a repair speaks of the same
 * segments. Returns elements per segment, at least 1. */
static uint64_t segment_elements(const pc_core *core, int dtype, uint64_t count) {
    size_t element = pccl_dtype_size(dtype);
    uint64_t bytes = count * element / SEGMENTS_WANTED;
    if (bytes < core->config.segment_bytes_min)
        bytes = core->config.segment_bytes_min;
    if (bytes > core->config.segment_bytes_max)
        bytes = core->config.segment_bytes_max;
    uint64_t elements = bytes / element;
    return elements ? elements : 1;
}

uint32_t pc_core_segments(const pc_core *core, int dtype, uint64_t count) {
    uint64_t each = segment_elements(core, dtype, count);
    uint64_t segments = (count + each - 1) / each;
    return segments ? (uint32_t)segments : 1; /* an empty tensor is one empty segment */
}

int pc_core_submit(pc_core *core, const struct pccl_op *args, uint64_t op_id, uint64_t now_ns) {
    struct pc_op *op = pc_op_get(core, op_id, PC_OPS_TABLE_MAX);
    if (!op)
        return PCCL_RESOURCE;
    if (op->state != PC_FOREIGN)
        return PCCL_USAGE; /* another name with the same hash */
    if (!pc_op_start_running(core, op, args, now_ns))
        return PCCL_RESOURCE;
    if (!pc_is_named(op_id)) {
        PC_ASSERT(pc_number(op_id) == core->submitted + 1);
        core->submitted++;
    }
    if (args->kind == PCCL_BROADCAST && args->root_peer == core->config.peer)
        pc_root_final(op);
    if (!core->epoch || core->stopped)
        return PCCL_OK; /* registered; it starts when a view is installed */
    if (!pc_view_apply(core, op)) {
        core->plan_left -= op->plan_left; /* a late submitter does not count for Repaired */
        op->plan_left = 0;
        op->result.repaired = 0;
        pc_submitted(core, op);
    }
    return PCCL_OK;
}

void pc_core_fail(pc_core *core, int status, const char *text, uint64_t now_ns) {
    (void)now_ns;
    core->stopped = true;
    for (struct pc_op *op = core->ops_head, *next; op; op = next) {
        next = op->next;
        op->queued_count = op->values_queued = 0;
        if (op->state == PC_RUNNING)
            pc_op_end(core, op, status, text);
    }
}

/* ---- time -------------------------------------------------------------------------------------
 */

uint64_t pc_core_deadline(const pc_core *core) {
    return core->deadline_ns;
}

void pc_core_tick(pc_core *core, uint64_t now_ns) {
    if (now_ns < core->deadline_ns)
        return;
    core->deadline_ns = UINT64_MAX;
    for (struct pc_op *op = core->ops_head; op; op = op->next) {
        if (op->state != PC_RUNNING || op->timed_out)
            continue;
        if (now_ns >= op->deadline_ns) {
            op->timed_out = true;
            pc_op_post(core, op, PC_OP_EVENT_TIMEOUT);
        } else if (op->deadline_ns < core->deadline_ns) {
            core->deadline_ns = op->deadline_ns;
        }
    }
}

/* ---- events -----------------------------------------------------------------------------------
 */

/* The first member, from the successor on, of which no descriptor is here. */
static uint32_t first_silent(const pc_core *core, const struct pc_op *op) {
    if (core->world < 2 || pc_all_ready(core, op))
        return PC_NO_INDEX;
    if (pc_route(core, op) == PCCL_ROUTE_RING)
        return (core->self + op->next_run + 1) % core->world;
    uint32_t i = pc_after(core, core->self);
    while (pc_is_known(op, i))
        i = pc_after(core, i);
    return i;
}

/* The blame line: what is missing, and who is the first that has not submitted, if any. */
static void blame(const pc_core *core, const struct pc_op *op, uint64_t now_ns,
                  struct pccl_event *event) {
    uint64_t missing = 0;
    for (uint32_t i = 0; i < op->segment_count; i++)
        if (op->segments[i].state == PC_INTACT)
            missing += pc_op_bytes(op, i);
    double seconds = (double)(now_ns - op->submitted_ns) / 1e9;
    uint32_t silent = first_silent(core, op);
    if (silent != PC_NO_INDEX) {
        event->peer = core->peers[silent];
        snprintf(event->reason, sizeof event->reason,
                 "waited %.1f s, %" PRIu64 " bytes missing, not known to have submitted it: "
                 "peer %08" PRIx64,
                 seconds, missing, event->peer >> 32);
    } else {
        snprintf(event->reason, sizeof event->reason,
                 "waited %.1f s in %s, %" PRIu64 " bytes missing", seconds,
                 op->final_count < op->segment_count ? "reduce and copy" : "confirmation", missing);
    }
}

static void fill_mismatch(const pc_core *core, const struct pc_op *op, struct pccl_event *event) {
    event->peer = core->peers[op->mismatch_from];
    const char *field = pc_desc_differ(&op->desc, &op->mismatch_desc, event->mine, event->theirs,
                                       sizeof event->mine);
    snprintf(event->field, sizeof event->field, "%s", field ? field : "descriptor");
}

static int op_event(pc_core *core, struct pc_core_event *out, uint64_t now_ns) {
    struct pc_op *op = core->event_head;
    out->event.op = op->id;
    if (op->events & PC_OP_EVENT_MISMATCH) {
        op->events &= (uint8_t)~PC_OP_EVENT_MISMATCH;
        out->event.type = PCCL_EVENT_MISMATCH;
        fill_mismatch(core, op, &out->event);
    } else if (op->events & PC_OP_EVENT_TIMEOUT) {
        op->events &= (uint8_t)~PC_OP_EVENT_TIMEOUT;
        out->event.type = PCCL_EVENT_TIMEOUT;
        blame(core, op, now_ns, &out->event);
    } else if (op->events & PC_OP_EVENT_ENDED) {
        op->events = 0;
        out->event.type = PC_EVENT_ENDED;
        op->result.elapsed_ns = now_ns - op->submitted_ns;
        out->result = op->result;
        out->timed_out = op->timed_out;
    } else {
        pc_op_unpost(core, op);
        return 0;
    }
    if (!op->events) {
        pc_op_unpost(core, op);
        if (op->state == PC_STABLE)
            pc_op_sweep(core);
    }
    return 1;
}

int pc_core_next_event(pc_core *core, struct pc_core_event *out, uint64_t now_ns) {
    out->event = (struct pccl_event){.epoch = core->epoch};
    out->which = 0;
    for (int id = 0; id < core->links_high; id++) {
        struct pc_link *link = core->links[id];
        if (!link || !link->bad || link->bad_told)
            continue;
        link->bad_told = true;
        out->which = id;
        out->event.type = PC_EVENT_LINK_BAD;
        snprintf(out->event.reason, sizeof out->event.reason, "%s", link->bad_why);
        return 1;
    }
    while (core->event_head)
        if (op_event(core, out, now_ns))
            return 1;
    if (core->repaired_pending) {
        core->repaired_pending = false;
        out->event.type = PCCL_EVENT_REPAIRED;
        return 1;
    }
    if (core->full_pending) {
        core->full_pending = false;
        core->full_told = true;
        out->event.type = PCCL_EVENT_FULL;
        return 1;
    }
    return 0;
}

void pc_core_stats(const pc_core *core, struct pccl_stats *stats) {
    *stats = core->stats;
    stats->scratch_bytes = (uint64_t)core->pool.count * core->pool.buffer_bytes;
    stats->ops_running = core->running_count;
    for (int id = 0; id < PC_LINKS_MAX; id++)
        stats->links_up += core->links[id] != NULL;
}
