/* core: see core.h. Creation, submission, time, events. */
#include "core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "internal.h"

#define SEGMENT_BYTES_MIN (32u << 10)
#define SEGMENT_BYTES_MAX (512u << 10)

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
    if (!core->config.small_bytes)
        core->config.small_bytes = PC_SMALL_OP_BYTES;
    PC_ASSERT(core->config.segment_bytes_min <= core->config.segment_bytes_max);
    PC_ASSERT(core->config.segment_bytes_max < PC_PAYLOAD_MAX);
    pc_pool_init(&core->pool, core->config.segment_bytes_max + PC_WEIGHT_BYTES);
    core->event_tail = &core->event_head;
    core->start_tail = &core->start_head;
    core->deadline_ns = UINT64_MAX;
    core->whole = pc_context_get(core, 0, NULL, 0);
    if (!core->whole) {
        free(core);
        return NULL;
    }
    return core;
}

void pc_core_free(pc_core *core) {
    if (!core)
        return;
    for (struct pc_op *op = core->ops_head, *next; op; op = next) {
        next = op->next;
        pc_op_free(op);
    }
    for (uint32_t i = 0; i < core->verdict_count; i++) {
        free(core->verdicts[i].holders);
        free(core->verdicts[i].text);
    }
    free(core->verdicts);
    pc_pairs_free(core);
    pc_contexts_free(core, true);
    for (int id = 0; id < PC_LINKS_MAX; id++)
        free(core->links[id]);
    free(core->peers);
    free(core->cuts);
    pc_pool_free(&core->pool);
    free(core);
}

uint32_t pc_core_epoch(const pc_core *core) {
    return core->epoch;
}

int pc_core_submit(pc_core *core, const struct pccl_op *args, uint64_t op_id, uint64_t now_ns) {
    struct pc_op *op = pc_op_get(core, op_id);
    if (!op)
        return PCCL_RESOURCE;
    if (op->state != PC_FOREIGN)
        return PCCL_USAGE; /* another name with the same hash */
    int status = pc_op_start_running(core, op, args, now_ns);
    struct pc_context *context = pc_context_find(core, pc_context_id(op_id));
    if (context && !pc_is_named(op_id) && pc_number(op_id) > context->submitted)
        context->submitted = pc_number(op_id);
    if (status != PCCL_OK)
        return status;
    if (!pc_reduces(args->kind))
        pc_sources_final(op, core->config.peer);
    if (!core->epoch)
        return PCCL_OK; /* registered; it starts when a view is installed */
    pc_op_enter_view(core, op);
    if (core->stopped) {
        pc_view_registered(core, op);
        return PCCL_OK;
    }
    if (pc_view_apply(core, op))
        return PCCL_OK;
    core->plan_left -= op->plan_left; /* a late submitter does not count for Repaired */
    op->plan_left = 0;
    op->result.repaired = 0;
    pc_submitted(core, op);
    return PCCL_OK;
}

void pc_core_fail(pc_core *core, int status, const char *text, uint64_t now_ns) {
    (void)now_ns;
    pc_note_phases(core);
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
    return core->lazy_ns && core->lazy_ns < core->deadline_ns ? core->lazy_ns : core->deadline_ns;
}

static void tick_lazy(pc_core *core, uint64_t now_ns) {
    if (!core->lazy)
        core->lazy_ns = 0;
    else if (!core->lazy_ns)
        core->lazy_ns = now_ns + PC_LAZY_NS;
    else if (now_ns >= core->lazy_ns)
        pc_pairs_hurry(core);
}

void pc_core_tick(pc_core *core, uint64_t now_ns) {
    tick_lazy(core, now_ns);
    if (now_ns < core->deadline_ns)
        return;
    core->deadline_ns = UINT64_MAX;
    for (struct pc_op *op = core->ops_head; op; op = op->next) {
        if (op->state != PC_RUNNING || op->timed_out || op->returned)
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

static void fill_mismatch(const pc_core *core, const struct pc_op *op, struct pccl_event *event) {
    event->peer = core->peers[op->mismatch_from];
    struct pc_desc mine = pc_desc_for(op, pc_place(op->context, op->mismatch_from));
    struct pc_desc theirs = op->mismatch_desc;
    if (op->streams)
        theirs.count = mine.count; /* of this pair, and told last: it follows from the others */
    const char *field =
        pc_desc_differ(&mine, &theirs, event->mine, event->theirs, sizeof event->mine);
    if (!field)
        field = pc_desc_differ(&mine, &op->mismatch_desc, event->mine, event->theirs,
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
        pc_blame(core, op, now_ns, &out->event);
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
            core->sweep = true;
    }
    return 1;
}

int pc_core_next_event(pc_core *core, struct pc_core_event *out, uint64_t now_ns) {
    if (core->sweep)
        pc_op_sweep(core);
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

int pc_core_is_busy(const pc_core *core) {
    return core->running_count || core->relayed || core->cut_count;
}

void pc_core_stats(const pc_core *core, struct pccl_stats *stats) {
    *stats = core->stats;
    stats->scratch_bytes = (uint64_t)core->pool.count * core->pool.buffer_bytes;
    stats->ops_running = core->running_count;
    for (int id = 0; id < core->links_high; id++)
        stats->links_up += core->links[id] != NULL;
}
