/* view: install (VIEWS §1, peer rule 6): drops everything that was on its way, applies the
 * coordinator's verdicts, and starts what is left among the new members, from intact inputs or from
 * a holder. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "internal.h"

static const struct pc_verdict_copy *verdict_on(const pc_core *core, uint64_t id) {
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
        link->direct_op = NULL;
        link->target = PC_RX_NOWHERE;
        pc_mux_enter_view(link);
    }
    pc_pool_put_all(&core->pool);
    core->in_flight = core->eager_in_flight = core->copies_in_flight = 0;
    core->open_in_flight = core->open_unready = 0;
    core->start_head = NULL;
    core->start_tail = &core->start_head;
    core->lazy = false;
    core->lazy_ns = 0;
}

/* The owner of what it alone gets marks it when it says so; the others may not have heard. It says
 * so again, and all pass it on. */
static void doubt_mark(struct pc_op *op, uint32_t i) {
    struct pc_segment *segment = &op->segments[i];
    if (segment->state != PC_MARKED || !pc_owner_only(op->desc.kind))
        return;
    bool owner = pc_op_out(op, i) != NULL;
    segment->state = owner ? PC_FINAL : PC_INTACT;
    op->marked_count--;
    op->final_count -= !owner;
}

static void reset_op(struct pc_op *op) {
    op->starting = false;
    op->mismatched = false;
    op->queued_count = op->values_queued = 0;
    op->known_count = 0;
    op->told_by = op->first_from = op->odd_from = PC_NO_INDEX;
    op->next_run = 0;
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
    for (uint32_t i = 0; i < op->stream_count; i++)
        op->streams[i].eager = 0; /* the pairs begin anew */
    for (uint32_t i = 0; i < op->segment_count; i++) {
        struct pc_segment *segment = &op->segments[i];
        segment->started = segment->counted = segment->eager = false;
        segment->copied = segment->sum_queued = segment->open = segment->landing = false;
        segment->parts_done = segment->acks = 0;
        segment->buffer = segment->early = NULL;
        segment->holder = PCCL_HOLDER_REDO;
        doubt_mark(op, i);
    }
}

/* `stable` of a view speaks of the whole group's unnamed ops. */
static bool is_covered(const pc_core *core, const struct pc_op *op) {
    return pc_number(op->id) <= core->stable && op->id >> 32 == 0;
}

/* Ended ops: a view that decided about them lets go of them (its members have all ended them). */
static void forget_ended(pc_core *core, bool fresh) {
    for (struct pc_op *op = core->ops_head, *next; op; op = next) {
        next = op->next;
        if (op->event_queued)
            continue; /* its end has not been told yet; the next sweep or view takes it */
        bool covered = is_covered(core, op);
        const struct pc_verdict_copy *verdict = verdict_on(core, op->id);
        bool in_force = verdict && verdict->outcome == PCCL_ABORT;
        if (op->state == PC_FOREIGN || op->state == PC_STABLE ||
            (op->state == PC_RAISED && (fresh || covered || !in_force)))
            pc_op_forget(core, op);
    }
}

/* A new line: numbers begin anew. */
static void forget_contexts(pc_core *core) {
    for (struct pc_op *op = core->ops_head; op; op = op->next) /* ended, and not told yet */
        op->context = core->whole;
    pc_contexts_free(core, false);
}

/* A plan is made from what members report, and a member may lie. */
static void end_wrongly_planned(pc_core *core, struct pc_op *op) {
    pc_op_end(core, op, PCCL_PROTOCOL, "the view's plan contradicts what this peer holds");
}

static void all_held(pc_core *core, struct pc_op *op) {
    if (!pc_holds_all(op)) {
        end_wrongly_planned(core, op);
        return;
    }
    for (uint32_t i = 0; i < op->segment_count; i++)
        op->segments[i].state = PC_MARKED;
    op->final_count = op->marked_count = op->segment_count;
    if (op->state == PC_RUNNING)
        pc_op_end(core, op, PCCL_OK, "");
}

static bool contradicts(const struct pc_op *op, uint32_t i, int32_t holder) {
    uint8_t state = op->segments[i].state;
    if (holder == PCCL_HOLDER_ALL)
        return state == PC_INTACT && pc_op_out(op, i);
    return holder == PCCL_HOLDER_REDO && state == PC_FINAL && pc_reduces(op->desc.kind);
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
        if (segment->state == PC_MARKED && holder >= 0) { /* its owner said so, and lied */
            segment->state = PC_FINAL;
            op->marked_count--;
        }
        if (segment->state == PC_MARKED)
            continue;
        if (holder == PCCL_HOLDER_ALL) {
            op->final_count += segment->state == PC_INTACT;
            segment->state = PC_MARKED;
            op->marked_count++;
            continue;
        }
        op->result.repaired++;
        if (holder == PCCL_HOLDER_REDO)
            continue;
        PC_ASSERT((uint32_t)holder < core->world);
        uint32_t place = pc_place(op->context, (uint32_t)holder);
        if (place == PC_NO_INDEX) {
            end_wrongly_planned(core, op);
            return;
        }
        segment->holder = (int32_t)place;
        if (segment->state == PC_INTACT)
            op->plan_left++;
    }
    core->plan_left += op->plan_left;
}

static bool root_is_gone(const pc_core *core, const struct pc_op *op) {
    return op->desc.root_peer &&
           pc_place_of_peer(core, op->context, op->desc.root_peer) == PC_NO_INDEX;
}

/* Its report cannot name who is gone, so that the verdict on it may say that it goes on. Not so if
 * there is a verdict already: what is lacking then is in the plan. */
void pc_view_registered(pc_core *core, struct pc_op *op) {
    op->lacking = !verdict_on(core, op->id) && !root_is_gone(core, op) && !pc_is_complete(core, op);
}

bool pc_view_apply(pc_core *core, struct pc_op *op) {
    const struct pc_verdict_copy *verdict = verdict_on(core, op->id);
    if (is_covered(core, op) || (verdict && verdict->outcome == PCCL_DONE)) {
        all_held(core, op);
        return true;
    }
    if (verdict && verdict->outcome == PCCL_ABORT) {
        pc_op_end(core, op, verdict->status, verdict->text);
        return true;
    }
    if (verdict && op->lacking) {
        pc_members_changed(core, op);
        return false;
    }
    if (verdict) {
        if (!op->streams)
            apply_holders(core, op, verdict);
        if (op->state != PC_RUNNING)
            return true;
    } else if (root_is_gone(core, op)) {
        pc_op_end(core, op, PCCL_PEER_LOST,
                  "the member at whom the op begins or ends has gone; look again, and retry");
        return true;
    } else if (!pc_is_complete(core, op)) {
        pc_members_changed(core, op);
        return false;
    }
    if (pc_size(op) == 1)
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
 * for parts sent unasked (of small ops most of each buffer is never touched), an eighth for the
 * ring. A copy needs a buffer only while it arrives, unless links overtake each other. With many
 * members the floors hold. */
static void set_windows(pc_core *core) {
    uint32_t buffers = (uint32_t)(core->config.scratch_bytes / core->config.segment_bytes_max);
    uint32_t world = core->world;
    uint32_t others = at_least(1, world - 1);
    core->window = at_least(2, buffers / 8 / world);
    core->copy_window = at_least(2, buffers / 2 / world);
    core->open_window = at_least(2, buffers * 3 / 4 / others);
    core->eager_window = at_least(2, buffers / 8 / others);
    uint32_t unasked = PC_UNASKED_BYTES / (uint32_t)core->config.segment_bytes_max;
    core->unasked_window = unasked < core->eager_window ? unasked : core->eager_window - 1;
    /* What one member may send: on the ring all comes from one; a link, called by it or by us,
     * receives one at a time. A sum that starts with a weight lies in a buffer at its starter, too.
     */
    uint32_t ring = (2 * core->window + core->copy_window) * world;
    uint32_t star = core->open_window + core->eager_window;
    uint32_t relayed = 2 * PC_RELAY_CREDIT * core->cut_count; /* both ways */
    core->pool.share = ring + star + core->copy_window + relayed + 2 * PC_PEER_LINKS;
    core->pool.count_max = ring + star * others + relayed + PC_LINKS_MAX + core->pool.share;
}

static void enter(pc_core *core, const struct pccl_view *view) {
    core->epoch = view->epoch;
    core->stopped = false;
    core->self = view->self;
    core->world = view->member_count;
    core->stable = view->stable;
    core->hub = view->hub >= 0 ? (uint32_t)view->hub : PC_NO_INDEX;
    core->large = view->large;
    core->plan_left = 0;
    core->repaired_told = core->repaired_pending = false;
    core->full_told = core->full_pending = false;
    set_windows(core);
}

/* Per running op, what each member says of it. */
static bool said_enters_view(pc_core *core, uint32_t world) {
    for (struct pc_op *op = core->ops_head; op; op = op->next) {
        if (op->state != PC_RUNNING)
            continue;
        struct pc_said *said = calloc(world, sizeof *said);
        if (!said)
            return false;
        free(op->said);
        op->said = said;
    }
    return true;
}

int pc_core_set_view(pc_core *core, const struct pccl_view *view, uint64_t now_ns) {
    PC_ASSERT(view->epoch > core->epoch);
    PC_ASSERT(view->member_count && view->self < view->member_count);
    PC_ASSERT(view->members[view->self].peer == core->config.peer);
    PC_ASSERT(view->hub >= -1 && view->hub < (int32_t)view->member_count);
    uint64_t *peers;
    struct pc_verdict_copy *verdicts;
    struct pccl_edge *cuts = calloc(view->cut_count + 1u, sizeof *cuts);
    if (!cuts || !copy_view(view, &peers, &verdicts)) {
        free(cuts);
        return PCCL_RESOURCE;
    }
    if (view->cut_count)
        memcpy(cuts, view->cuts, view->cut_count * sizeof *cuts);
    if (!said_enters_view(core, view->member_count) ||
        !pc_contexts_enter_view(core, peers, view->member_count, view->self) ||
        !pc_pairs_enter_view(core, peers, view->member_count, view->self) ||
        !pc_pool_members(&core->pool, view->member_count)) {
        free_verdicts(verdicts, view->verdict_count);
        free(peers);
        free(cuts);
        return PCCL_RESOURCE;
    }
    free(core->cuts);
    core->cuts = cuts;
    core->cut_count = view->cut_count;
    free(core->peers);
    free_verdicts(core->verdicts, core->verdict_count);
    core->peers = peers;
    core->verdicts = verdicts;
    core->verdict_count = view->verdict_count;
    enter(core, view);
    pc_pairs_find_ways(core);
    pc_contexts_look(core);
    drop_transit(core);
    for (struct pc_op *op = core->ops_head; op; op = op->next) {
        reset_op(op);
        if (view->fresh && op->state == PC_RUNNING) /* returned (R11); else R19 lets none be */
            pc_op_end(core, op, PCCL_PROTOCOL, "a new line of views began while the op ran");
    }
    forget_ended(core, view->fresh != 0);
    if (view->fresh)
        forget_contexts(core);
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
        pc_op_enter_view(core, op);
        if (pc_view_apply(core, op))
            continue;
        pc_announce(core, op);
        pc_startable(core, op);
        pc_exchange_check(core, op);
    }
    pc_view_check_repaired(core);
    pc_start(core);
    return PCCL_OK;
}
