/* view: flush and install (VIEWS §1, peer rules 5 and 6). A flush stops the core and reports which
 * segments are final; an install drops everything that was on its way, applies the coordinator's
 * verdicts, and starts what is left among the new members, from intact inputs or from a holder. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "internal.h"

/* ---- flush ------------------------------------------------------------------------------------
 */

int pc_core_flush(pc_core *core, uint32_t epoch) {
    if (epoch != core->epoch || !core->epoch)
        return 0;
    core->stopped = true;
    for (int id = 0; id < PC_LINKS_MAX; id++)
        if (core->links[id])
            pc_demux_stop(core, core->links[id]);
    return 1;
}

static bool reported(const struct pc_op *op, uint32_t stable) {
    if (op->state == PC_FOREIGN)
        return false;
    return pc_is_named(op->id) || pc_number(op->id) > stable;
}

struct pccl_report *pc_core_report(const pc_core *core) {
    uint32_t stable = pc_op_stable(core);
    uint32_t count = 0;
    size_t bitmap_bytes = 0;
    for (const struct pc_op *op = core->ops_head; op; op = op->next)
        if (reported(op, stable)) {
            count++;
            bitmap_bytes += (op->segment_count + 7) / 8;
        }
    struct pccl_op_report *ops;
    struct pccl_report *report = calloc(1, sizeof *report + count * sizeof *ops + bitmap_bytes);
    if (!report)
        return NULL;
    ops = (struct pccl_op_report *)(report + 1);
    uint8_t *bits = (uint8_t *)(ops + count);
    *report = (struct pccl_report){.epoch = core->epoch,
                                   .submitted = core->submitted,
                                   .stable = stable,
                                   .op_count = count,
                                   .ops = ops};
    for (const struct pc_op *op = core->ops_head; op; op = op->next) {
        if (!reported(op, stable))
            continue;
        *ops++ = (struct pccl_op_report){.op = op->id,
                                         .status = op->state - PC_RUNNING,
                                         .strict = op->desc.strict,
                                         .root_peer = op->desc.root_peer,
                                         .timed_out = op->timed_out,
                                         .code = op->state == PC_RAISED ? op->result.status : 0,
                                         .segments = op->segment_count,
                                         .final = bits};
        for (uint32_t i = 0; i < op->segment_count; i++)
            if (op->state == PC_STABLE ||
                (op->state == PC_RUNNING && op->segments[i].state != PC_INTACT))
                bits[i / 8] |= (uint8_t)(1u << i % 8);
        bits += (op->segment_count + 7) / 8;
    }
    return report;
}

void pc_core_report_free(struct pccl_report *report) {
    free(report);
}

/* ---- install ----------------------------------------------------------------------------------
 */

const struct pc_verdict_copy *pc_view_verdict(const pc_core *core, uint64_t id) {
    for (uint32_t i = 0; i < core->verdict_count; i++)
        if (core->verdicts[i].op == id)
            return &core->verdicts[i];
    return NULL;
}

static void free_verdicts(struct pc_verdict_copy *verdicts, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        free(verdicts[i].holders);
        free(verdicts[i].text);
    }
    free(verdicts);
}

/* One allocation attempt for all of the view, before anything changes. */
static bool copy_view(const struct pccl_view *view, uint64_t **peers,
                      struct pc_verdict_copy **verdicts) {
    *peers = calloc(view->member_count, sizeof **peers);
    *verdicts = calloc(view->verdict_count ? view->verdict_count : 1, sizeof **verdicts);
    if (!*peers || !*verdicts)
        goto fail;
    for (uint32_t i = 0; i < view->member_count; i++)
        (*peers)[i] = view->members[i].peer;
    for (uint32_t i = 0; i < view->verdict_count; i++) {
        const struct pccl_verdict *from = &view->verdicts[i];
        struct pc_verdict_copy *to = &(*verdicts)[i];
        *to = (struct pc_verdict_copy){.op = from->op,
                                       .outcome = from->outcome,
                                       .status = from->status,
                                       .holder_count = from->holder_count};
        to->text = strdup(from->text ? from->text : "");
        if (!to->text)
            goto fail;
        if (!from->holder_count)
            continue;
        to->holders = malloc(from->holder_count * sizeof *to->holders);
        if (!to->holders)
            goto fail;
        memcpy(to->holders, from->holders, from->holder_count * sizeof *to->holders);
    }
    return true;
fail:
    if (*verdicts)
        free_verdicts(*verdicts, view->verdict_count);
    free(*peers);
    return false;
}

static void drop_transit(pc_core *core) {
    for (int id = 0; id < PC_LINKS_MAX; id++) {
        struct pc_link *link = core->links[id];
        if (!link)
            continue;
        link->buffer = NULL;
        link->target = PC_RX_NOWHERE;
        pc_mux_enter_view(link);
    }
    pc_pool_put_all(&core->pool);
    core->in_flight = core->eager_in_flight = core->copies_in_flight = 0;
    core->open_in_flight = core->open_unready = 0;
    core->start_head = NULL;
    core->start_tail = &core->start_head;
}

static void reset_op(struct pc_op *op) {
    op->starting = false;
    op->mismatched = false;
    op->queued_count = op->values_queued = 0;
    memset(op->known, 0, sizeof op->known);
    op->known_count = 0;
    op->first_from = op->odd_from = PC_NO_INDEX;
    op->next_run = 0;
    memset(op->ready_queued, 0, sizeof op->ready_queued);
    op->opened = 0;
    free(op->acked);
    op->acked = NULL;
    op->parked = NULL;
    op->parked_tail = &op->parked;
    op->eager_bytes = 0;
    op->plan_left = 0;
    op->cursor = 0;
    op->events &= (uint8_t)~(PC_OP_EVENT_TIMEOUT | PC_OP_EVENT_MISMATCH);
    if (op->state != PC_RUNNING)
        return;
    for (uint32_t i = 0; i < op->segment_count; i++) {
        struct pc_segment *segment = &op->segments[i];
        segment->started = segment->counted = segment->eager = false;
        segment->copied = segment->sum_queued = segment->open = false;
        segment->parts_done = segment->acks = 0;
        segment->buffer = segment->early = NULL;
        segment->holder = PCCL_HOLDER_REDO;
    }
}

/* Ended ops: a view that decided about them lets go of them (its members have all ended them). */
static void forget_ended(pc_core *core, bool fresh) {
    for (struct pc_op *op = core->ops_head, *next; op; op = next) {
        next = op->next;
        if (op->event_queued)
            continue; /* its end has not been told yet; the next sweep or view takes it */
        bool covered = !pc_is_named(op->id) && pc_number(op->id) <= core->stable;
        const struct pc_verdict_copy *verdict = pc_view_verdict(core, op->id);
        bool in_force = verdict && verdict->outcome == PCCL_ABORT;
        if (op->state == PC_FOREIGN || op->state == PC_STABLE ||
            (op->state == PC_RAISED && (fresh || covered || !in_force)))
            pc_op_forget(core, op);
    }
}

/* A plan is made from what members report, and a member may lie. */
static void end_wrongly_planned(pc_core *core, struct pc_op *op) {
    pc_op_end(core, op, PCCL_PROTOCOL, "the view's plan contradicts what this peer holds");
}

static void all_held(pc_core *core, struct pc_op *op) {
    if (op->final_count < op->segment_count) {
        end_wrongly_planned(core, op);
        return;
    }
    for (uint32_t i = 0; i < op->segment_count; i++)
        op->segments[i].state = PC_MARKED;
    op->final_count = op->marked_count = op->segment_count;
    pc_check_end(core, op);
}

static bool contradicts(const struct pc_op *op, uint32_t i, int32_t holder) {
    uint8_t state = op->segments[i].state;
    if (holder == PCCL_HOLDER_ALL)
        return state == PC_INTACT;
    return holder == PCCL_HOLDER_REDO && state == PC_FINAL && op->desc.kind != PCCL_BROADCAST;
}

static void apply_holders(pc_core *core, struct pc_op *op, const struct pc_verdict_copy *verdict) {
    if (verdict->holder_count && verdict->holder_count != op->segment_count)
        return; /* submitted late and differently: the descriptors will tell, nothing is added */
    for (uint32_t i = 0; i < op->segment_count; i++)
        if (contradicts(op, i, verdict->holder_count ? verdict->holders[i] : PCCL_HOLDER_REDO)) {
            end_wrongly_planned(core, op);
            return;
        }
    for (uint32_t i = 0; i < op->segment_count; i++) {
        struct pc_segment *segment = &op->segments[i];
        int32_t holder = verdict->holder_count ? verdict->holders[i] : PCCL_HOLDER_REDO;
        if (segment->state == PC_MARKED)
            continue;
        if (holder == PCCL_HOLDER_ALL) {
            segment->state = PC_MARKED;
            op->marked_count++;
            continue;
        }
        op->result.repaired++;
        if (holder == PCCL_HOLDER_REDO)
            continue;
        PC_ASSERT((uint32_t)holder < core->world);
        segment->holder = holder;
        if (segment->state == PC_INTACT)
            op->plan_left++;
    }
    core->plan_left += op->plan_left;
}

bool pc_view_apply(pc_core *core, struct pc_op *op) {
    const struct pc_verdict_copy *verdict = pc_view_verdict(core, op->id);
    bool covered = !pc_is_named(op->id) && pc_number(op->id) <= core->stable;
    if (covered || (verdict && verdict->outcome == PCCL_DONE)) {
        all_held(core, op);
        return true;
    }
    if (verdict && verdict->outcome == PCCL_ABORT) {
        pc_op_end(core, op, verdict->status, verdict->text);
        return true;
    }
    if (verdict) {
        apply_holders(core, op, verdict);
        if (op->state != PC_RUNNING)
            return true;
    } else if (op->desc.kind == PCCL_BROADCAST &&
               pc_ring_index(core, op->desc.root_peer) == PC_NO_INDEX) {
        pc_op_end(core, op, PCCL_PEER_LOST, "the source of the broadcast is not a member any more");
        return true;
    }
    if (core->world == 1)
        pc_alone(core, op);
    else
        pc_check_end(core, op);
    return op->state != PC_RUNNING;
}

void pc_view_check_repaired(pc_core *core) {
    if (core->plan_left || core->repaired_told)
        return;
    core->repaired_told = true;
    core->repaired_pending = true;
}

static uint32_t at_least(uint32_t floor, uint32_t value) {
    return value < floor ? floor : value;
}

/* Shares of the scratch, in segments: three quarters for the parts that owners ask for, an eighth
 * for parts sent unasked (of small ops: most of each buffer is never touched), an eighth for the
 * ring. A copy needs a buffer only while it arrives, unless links overtake each other. With many
 * members the floors hold. */
static void set_windows(pc_core *core) {
    uint32_t buffers = (uint32_t)(core->config.scratch_bytes / core->pool.buffer_bytes);
    uint32_t world = core->world;
    uint32_t others = at_least(1, world - 1);
    core->window = at_least(2, buffers / 8 / world);
    core->copy_window = at_least(2, buffers / 2 / world);
    core->open_window = at_least(2, buffers * 3 / 4 / others);
    core->eager_window = at_least(2, buffers / 8 / others);
    core->pool.count_max = (core->window + core->copy_window) * world +
                           (core->open_window + core->eager_window) * others + PC_LINKS_MAX;
}

static void enter(pc_core *core, const struct pccl_view *view) {
    core->epoch = view->epoch;
    core->stopped = false;
    core->self = view->self;
    core->world = view->member_count;
    core->stable = view->stable;
    core->cut = false;
    for (uint32_t i = 0; i < view->member_count; i++)
        core->cut |= view->members[i].cut != 0;
    core->plan_left = 0;
    core->repaired_told = core->repaired_pending = false;
    core->full_told = core->full_pending = false;
    set_windows(core);
}

/* Per running op, what each owner has opened and been sent. */
static bool cursors_enter_view(pc_core *core, uint32_t world) {
    for (struct pc_op *op = core->ops_head; op; op = op->next)
        if (op->state == PC_RUNNING && !pc_op_owners(op, world))
            return false;
    return true;
}

int pc_core_set_view(pc_core *core, const struct pccl_view *view, uint64_t now_ns) {
    PC_ASSERT(view->epoch > core->epoch);
    PC_ASSERT(view->member_count && view->self < view->member_count);
    PC_ASSERT(view->members[view->self].peer == core->config.peer);
    uint64_t *peers;
    struct pc_verdict_copy *verdicts;
    if (!copy_view(view, &peers, &verdicts))
        return PCCL_RESOURCE;
    if (!cursors_enter_view(core, view->member_count) ||
        !pc_pairs_enter_view(core, peers, view->member_count, view->self)) {
        free_verdicts(verdicts, view->verdict_count);
        free(peers);
        return PCCL_RESOURCE;
    }
    free(core->peers);
    free_verdicts(core->verdicts, core->verdict_count);
    core->peers = peers;
    core->verdicts = verdicts;
    core->verdict_count = view->verdict_count;
    enter(core, view);
    drop_transit(core);
    if (view->fresh)
        core->submitted = 0;
    for (struct pc_op *op = core->ops_head; op; op = op->next) {
        reset_op(op);
        if (view->fresh && op->state == PC_RUNNING) /* R19 lets none be: not for us to die of */
            pc_op_end(core, op, PCCL_PROTOCOL, "a new line of views began while the op ran");
    }
    forget_ended(core, view->fresh != 0);
    for (struct pc_op *op = core->ops_head, *next; op; op = next) {
        next = op->next;
        if (op->state != PC_RUNNING)
            continue;
        if (op->timed_out) { /* rolled forward: one more deadline */
            op->timed_out = false;
            op->deadline_ns =
                op->timeout_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + op->timeout_ns;
            if (op->deadline_ns < core->deadline_ns)
                core->deadline_ns = op->deadline_ns;
        }
        if (!pc_view_apply(core, op)) {
            pc_announce(core, op);
            pc_startable(core, op);
        }
    }
    pc_view_check_repaired(core);
    pc_start(core);
    return PCCL_OK;
}
