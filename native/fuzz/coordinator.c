/* coordinator: of world.h, views: by the rules of VIEWS §1 (coordinator rule 3), sharing no code
 * with the product's. */
#include <stdlib.h>
#include <string.h>

#include "world.h"

#define VERDICTS_MAX (2 * FZ_OPS_MAX) /* running now, and aborts that stay in force */

void fz_view_free(struct fz_view *view) {
    for (uint32_t i = 0; i < view->view.verdict_count; i++)
        free((int32_t *)(uintptr_t)view->verdicts[i].holders);
    free(view->verdicts);
    view->verdicts = NULL;
    view->view.verdict_count = 0;
}

void fz_install(struct fz_world *world, uint32_t index) {
    struct fz_member *member = &world->members[index];
    struct pccl_view view = world->now.view;
    if (!member->core || member->epoch == view.epoch)
        return;
    uint32_t place = 0;
    while (place < view.member_count && world->now.ring[place] != index)
        place++;
    if (place == view.member_count)
        return;
    view.self = place;
    view.verdicts = world->now.verdicts;
    FZ_CHECK(pc_core_set_view(member->core, &view, world->now_ns) == PCCL_OK);
    FZ_CHECK(pc_core_epoch(member->core) == view.epoch);
    member->epoch = view.epoch;
    member->flushed = false;
    member->ring = 0;
    for (uint32_t r = 0; r < view.member_count; r++)
        member->ring |= (uint8_t)(1u << world->now.ring[r]);
    if (view.fresh)
        memset(member->unnamed, 0, sizeof member->unnamed);
    for (uint32_t i = 0; i < member->op_count; i++) {
        struct fz_op *op = &member->ops[i];
        if (op->state != FZ_RUNNING || !op->told_late)
            continue; /* rolled forward: one more deadline */
        op->told_late = false;
        op->due_ns = op->args.timeout_ns > UINT64_MAX - world->now_ns
                         ? UINT64_MAX
                         : world->now_ns + op->args.timeout_ns;
    }
    fz_check(world, index);
    for (uint32_t e = 0; e < FZ_ENDS_MAX; e++) /* what was held goes on */
        fz_deliver(world, index, e, 0);
}

void fz_install_all(struct fz_world *world) {
    for (uint32_t i = 0; i < world->count; i++)
        fz_install(world, i);
}

struct answers {
    struct pccl_report *of[FZ_MEMBERS_MAX]; /* by member; NULL: it says nothing */
    const struct fz_view *old;              /* what they speak of */
    uint32_t ring[FZ_MEMBERS_MAX];          /* the next */
    uint32_t ring_count;
    bool lost[FZ_MEMBERS_MAX]; /* of the last view, not of this */
};

static const struct pccl_op_report *row_of(const struct pccl_report *report, uint64_t id) {
    for (uint32_t i = 0; report && i < report->op_count; i++)
        if (report->ops[i].op == id)
            return &report->ops[i];
    return NULL;
}

/* Raised: nothing; stable: all. */
static bool has(const struct pccl_op_report *row, uint32_t segment) {
    if (!row || row->status == PCCL_OP_RAISED)
        return false;
    return row->status == PCCL_OP_STABLE ||
           (segment < row->segments && (row->final[segment / 8] >> segment % 8 & 1));
}

static bool is_disputed(const struct fz_world *world, uint64_t id) {
    for (uint32_t i = 0; i < world->disputed_count; i++)
        if (world->disputed[i] == id)
            return true;
    return false;
}

/* One op over all answers: the facts. Participants are bits of members. */
struct tally {
    uint32_t segments;
    uint8_t among, staying, rows;
    bool raised, stable, late, everywhere, nowhere, somewhere;
    int code, on_loss;
    uint32_t root; /* a member, or FZ_MEMBERS_MAX */
};

static void count_row(const struct fz_world *world, const struct answers *answers, uint32_t m,
                      const struct pccl_op_report *row, struct tally *tally) {
    if (!tally->rows) {
        tally->on_loss = row->on_loss;
        for (uint32_t i = 0; i < world->count; i++)
            if (world->members[i].peer == row->root_peer)
                tally->root = i;
    }
    tally->rows |= (uint8_t)(1u << m);
    tally->segments = tally->segments > row->segments ? tally->segments : row->segments;
    tally->raised |= row->status == PCCL_OP_RAISED;
    tally->code = row->status == PCCL_OP_RAISED ? row->code : tally->code;
    tally->stable |= row->status == PCCL_OP_STABLE;
    tally->late |= row->timed_out != 0;
    tally->among |= (uint8_t)(1u << m);
    for (uint32_t r = 0; r < answers->old->view.member_count; r++)
        if (!row->among_bytes || (row->among[r / 8] >> r % 8 & 1))
            tally->among |= (uint8_t)(1u << answers->old->ring[r]);
}

static struct tally tally_of(const struct fz_world *world, const struct answers *answers,
                             uint64_t id) {
    struct tally tally = {.everywhere = true, .root = FZ_MEMBERS_MAX};
    for (uint32_t r = 0; r < answers->ring_count; r++) {
        const struct pccl_op_report *row = row_of(answers->of[answers->ring[r]], id);
        if (row)
            count_row(world, answers, answers->ring[r], row, &tally);
    }
    uint32_t staying = 0;
    for (uint32_t r = 0; r < answers->ring_count; r++)
        if (tally.among >> answers->ring[r] & 1) {
            tally.staying |= (uint8_t)(1u << answers->ring[r]);
            staying++;
        }
    for (uint32_t s = 0; s < tally.segments; s++) {
        uint32_t final = 0;
        for (uint32_t m = 0; m < world->count; m++)
            final += (tally.staying >> m & 1) && has(row_of(answers->of[m], id), s);
        tally.everywhere &= final == staying;
        tally.nowhere |= !final;
        tally.somewhere |= final > 0;
    }
    tally.everywhere &= tally.rows == tally.staying;
    return tally;
}

static bool is_exchange(int on_loss) {
    return on_loss == PCCL_EXCHANGE || on_loss == PCCL_TO_ROOT || on_loss == PCCL_FROM_ROOT;
}

/* Of an exchange: whether one has all that another was to send it. */
static bool has_from(const struct answers *answers, uint64_t id, uint32_t to, uint32_t from) {
    for (uint32_t r = 0; r < answers->old->view.member_count; r++)
        if (answers->old->ring[r] == from)
            return has(row_of(answers->of[to], id), r);
    return false;
}

/* Whether somebody is gone without whom the op cannot be completed. */
static bool is_missed(const struct fz_world *world, const struct answers *answers, uint64_t id,
                      const struct tally *tally) {
    uint8_t gone = tally->among & (uint8_t)~tally->staying;
    bool rootless = tally->root < FZ_MEMBERS_MAX && !(tally->staying >> tally->root & 1);
    bool missed = false;
    switch (tally->on_loss) {
    case PCCL_REPAIR:
    case PCCL_SPREAD:
        return rootless && tally->nowhere;
    case PCCL_STRICT:
    case PCCL_FIXED:
        return gone && tally->nowhere;
    case PCCL_FROM_ROOT:
        for (uint32_t m = 0; m < world->count; m++)
            missed |= (tally->staying >> m & 1) && !has_from(answers, id, m, tally->root);
        return rootless && missed;
    case PCCL_TO_ROOT:
        if (rootless)
            return true;
        break;
    default:
        break;
    }
    for (uint32_t from = 0; from < world->count; from++)
        for (uint32_t to = 0; to < world->count; to++)
            missed |= (gone >> from & 1) && (tally->staying >> to & 1) &&
                      (tally->on_loss == PCCL_EXCHANGE || to == tally->root) &&
                      !has_from(answers, id, to, from);
    return missed;
}

/* Whether an abort does no harm: nobody has returned it, no input is overwritten. */
static bool is_retriable(const struct tally *tally) {
    if (tally->on_loss == PCCL_REPAIR || tally->on_loss == PCCL_STRICT)
        return !tally->somewhere;
    if (tally->on_loss == PCCL_SPREAD)
        return !tally->somewhere || (tally->staying >> tally->root & 1);
    return true;
}

static int32_t *choose_holders(struct fz_world *world, const struct answers *answers, uint64_t id,
                               const struct tally *tally) {
    int32_t *holders = calloc(tally->segments, sizeof *holders);
    FZ_CHECK(holders);
    for (uint32_t s = 0; s < tally->segments; s++) {
        int32_t having[FZ_MEMBERS_MAX];
        uint32_t count = 0, staying = 0;
        for (uint32_t r = 0; r < answers->ring_count; r++) {
            uint32_t m = answers->ring[r];
            staying += tally->staying >> m & 1;
            if ((tally->staying >> m & 1) && has(row_of(answers->of[m], id), s))
                having[count++] = (int32_t)r;
        }
        holders[s] = !count             ? PCCL_HOLDER_REDO
                     : count == staying ? PCCL_HOLDER_ALL
                                        : having[fz_random(&world->random) % count];
    }
    return holders;
}

static struct pccl_verdict judge(struct fz_world *world, const struct answers *answers, uint64_t id,
                                 bool covered) {
    struct tally tally = tally_of(world, answers, id);
    struct pccl_verdict abort = {.op = id, .outcome = PCCL_ABORT, .text = "aborted"};
    bool rootless = tally.on_loss == PCCL_TO_ROOT && !(tally.staying >> tally.root & 1);
    if (tally.raised) {
        abort.status = tally.code;
        return abort;
    }
    if (tally.stable || covered || (tally.everywhere && !rootless && !is_disputed(world, id)))
        return (struct pccl_verdict){.op = id, .outcome = PCCL_DONE};
    bool missed = is_missed(world, answers, id, &tally);
    bool late = tally.late || is_disputed(world, id);
    if (missed || (late && is_retriable(&tally))) {
        abort.status = is_disputed(world, id) ? PCCL_USAGE
                       : missed               ? PCCL_PEER_LOST
                                              : PCCL_DEADLINE_EXCEEDED;
        return abort;
    }
    struct pccl_verdict run = {.op = id, .outcome = PCCL_RUN};
    if (!is_exchange(tally.on_loss) && tally.somewhere) {
        run.holder_count = tally.segments;
        run.holders = choose_holders(world, answers, id, &tally);
    }
    return run;
}

/* Makes some of it wrong, yet sound: what a member's false report could lead to. */
static void twist_view(struct fz_view *view, struct fz_reader *twist) {
    while (fz_left(twist)) {
        uint8_t how = fz_u8(twist);
        uint8_t value = fz_u8(twist);
        if (how % 8 == 0)
            view->view.stable += value % 4;
        if (how % 8 == 1 && value % 8 == 0)
            view->view.fresh = 1;
        if (!view->view.verdict_count)
            continue;
        struct pccl_verdict *verdict = &view->verdicts[how / 8 % view->view.verdict_count];
        if (how % 8 == 2) {
            verdict->outcome = value % 3;
            verdict->status = PCCL_PEER_LOST;
            verdict->text = "twisted";
        } else if (how % 8 >= 3 && verdict->outcome == PCCL_RUN && verdict->holder_count) {
            int32_t *holders = (int32_t *)(uintptr_t)verdict->holders;
            holders[value % verdict->holder_count] =
                (int32_t)(value / 16 % (view->view.member_count + 2)) - 2;
        }
    }
}

static uint32_t stable_of(const struct answers *answers, uint64_t context) {
    uint32_t stable = 0;
    for (uint32_t m = 0; m < FZ_MEMBERS_MAX; m++) {
        const struct pccl_report *report = answers->of[m];
        uint32_t theirs = report && !context ? report->stable : 0;
        for (uint32_t i = 0; report && i < report->context_count; i++)
            if (report->contexts[i].context == context)
                theirs = report->contexts[i].stable;
        stable = theirs > stable ? theirs : stable;
    }
    return stable;
}

/* Aborts of the last view stay in force for those who submit late. */
static void add_verdicts(struct fz_world *world, const struct answers *answers,
                         struct pccl_verdict *verdicts, uint32_t *count) {
    for (uint32_t i = 0; i < world->now.view.verdict_count; i++)
        if (world->now.verdicts[i].outcome == PCCL_ABORT) {
            verdicts[*count] = world->now.verdicts[i];
            verdicts[*count].holders = NULL; /* the old view's, if a twist made it an abort */
            verdicts[(*count)++].holder_count = 0;
        }
    for (uint32_t m = 0; m < world->count; m++)
        for (uint32_t i = 0; answers->of[m] && i < answers->of[m]->op_count; i++) {
            uint64_t id = answers->of[m]->ops[i].op;
            uint32_t known = 0;
            while (known < *count && verdicts[known].op != id)
                known++;
            bool covered = !(id & FZ_NAMED) && (uint32_t)id <= stable_of(answers, id >> 33);
            bool said = covered && !(id >> 33); /* by the view's `stable` */
            if (known == *count && !said && *count < VERDICTS_MAX)
                verdicts[(*count)++] = judge(world, answers, id, covered);
        }
}

static void ask(struct fz_world *world, struct answers *answers) {
    for (uint32_t r = 0; r < world->now.view.member_count; r++) {
        uint32_t m = world->now.ring[r];
        struct fz_member *member = &world->members[m];
        if (!member->core && !member->evil) {
            answers->lost[m] = true;
            continue;
        }
        answers->ring[answers->ring_count++] = m;
        if (!member->core)
            continue;
        FZ_CHECK(pc_core_flush(member->core, member->epoch) == 1);
        member->flushed = true;
        answers->of[m] = pc_core_report(member->core);
        FZ_CHECK(answers->of[m] && answers->of[m]->epoch == member->epoch);
        fz_check(world, m);
    }
}

/* Now and then a link is known to be broken, and two members reach each other over a third. */
static void cut_an_edge(struct fz_world *world, struct fz_view *now) {
    uint32_t draw = fz_random(&world->random), n = now->view.member_count;
    now->view.cut_count = 0;
    now->view.cuts = &now->cut;
    if (n < 3 || draw % 4)
        return;
    now->cut.a = draw / 4 % n;
    now->cut.b = (now->cut.a + 1 + draw / 16 % (n - 1)) % n;
    now->view.cut_count = 1;
    world->relays = true;
}

void fz_view(struct fz_world *world, struct fz_reader *twist) {
    fz_install_all(world); /* a member that skips a view would be lost to the group */
    struct fz_view old = world->now;
    struct answers answers = {.old = &old};
    uint32_t count = 0;
    ask(world, &answers);
    uint32_t stable = stable_of(&answers, 0);
    struct pccl_verdict *verdicts = calloc(VERDICTS_MAX, sizeof *verdicts);
    FZ_CHECK(verdicts);
    if (answers.ring_count)
        add_verdicts(world, &answers, verdicts, &count);
    for (uint32_t m = 0; m < world->count; m++)
        pc_core_report_free(answers.of[m]);
    if (!answers.ring_count) {
        free(verdicts);
        return;
    }
    fz_view_free(&world->now);
    struct fz_view *now = &world->now;
    now->verdicts = verdicts;
    now->view.epoch++;
    now->view.fresh = 0;
    now->view.stable = stable;
    now->view.member_count = answers.ring_count;
    now->view.hub = (int32_t)((uint32_t)(now->view.hub + 2) % (answers.ring_count + 1)) - 1;
    now->view.verdict_count = count;
    for (uint32_t r = 0; r < answers.ring_count; r++) {
        now->ring[r] = answers.ring[r];
        now->members[r] = (struct pccl_member){.peer = world->members[answers.ring[r]].peer};
    }
    cut_an_edge(world, now);
    if (twist && fz_left(twist)) {
        world->honest = false;
        world->twisted = true;
        twist_view(now, twist);
    }
}
