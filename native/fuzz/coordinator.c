/* coordinator: of world.h, views: by the rules of VIEWS §1 (coordinator rule 3), sharing no code
 * with the product's. */
#include <stdlib.h>

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
    if (view.fresh)
        member->unnamed = 0;
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
    uint32_t ring[FZ_MEMBERS_MAX];
    uint32_t ring_count;
    bool lost[FZ_MEMBERS_MAX]; /* of the last view, not of this */
};

static const struct pccl_op_report *row_of(const struct pccl_report *report, uint64_t id) {
    for (uint32_t i = 0; report && i < report->op_count; i++)
        if (report->ops[i].op == id)
            return &report->ops[i];
    return NULL;
}

static bool has_final(const struct pccl_op_report *row, uint32_t segment) {
    return row && segment < row->segments && (row->final[segment / 8] >> segment % 8 & 1);
}

static bool is_disputed(const struct fz_world *world, uint64_t id) {
    for (uint32_t i = 0; i < world->disputed_count; i++)
        if (world->disputed[i] == id)
            return true;
    return false;
}

static uint64_t root_of(const struct fz_world *world, uint64_t id) {
    for (uint32_t i = 0; i < world->plan_count; i++)
        if (world->plans[i].id == id)
            return world->plans[i].args.root_peer;
    return 0;
}

struct tally { /* of one op over all answers */
    uint32_t segments, rows;
    bool raised, stable, strict, late, everywhere, nowhere, somewhere;
    int code;
};

static struct tally count_rows(const struct answers *answers, uint64_t id) {
    struct tally tally = {.everywhere = true};
    for (uint32_t r = 0; r < answers->ring_count; r++) {
        const struct pccl_op_report *row = row_of(answers->of[answers->ring[r]], id);
        if (!row)
            continue;
        tally.rows++;
        tally.segments = tally.segments ? tally.segments : row->segments;
        tally.raised |= row->status == PCCL_OP_RAISED;
        tally.code = row->status == PCCL_OP_RAISED ? row->code : tally.code;
        tally.stable |= row->status == PCCL_OP_STABLE;
        tally.strict |= row->strict != 0;
        tally.late |= row->timed_out != 0;
    }
    for (uint32_t s = 0; s < tally.segments; s++) {
        uint32_t final = 0;
        for (uint32_t r = 0; r < answers->ring_count; r++)
            final += has_final(row_of(answers->of[answers->ring[r]], id), s);
        tally.everywhere &= final == answers->ring_count;
        tally.nowhere |= !final;
        tally.somewhere |= final > 0;
    }
    return tally;
}

static int32_t *choose_holders(struct fz_world *world, const struct answers *answers, uint64_t id,
                               uint32_t segments) {
    int32_t *holders = calloc(segments, sizeof *holders);
    FZ_CHECK(holders);
    for (uint32_t s = 0; s < segments; s++) {
        int32_t having[FZ_MEMBERS_MAX];
        uint32_t count = 0;
        for (uint32_t r = 0; r < answers->ring_count; r++)
            if (has_final(row_of(answers->of[answers->ring[r]], id), s))
                having[count++] = (int32_t)r;
        holders[s] = !count                         ? PCCL_HOLDER_REDO
                     : count == answers->ring_count ? PCCL_HOLDER_ALL
                                                    : having[fz_random(&world->random) % count];
    }
    return holders;
}

static struct pccl_verdict judge(struct fz_world *world, const struct answers *answers,
                                 uint64_t id) {
    struct tally tally = count_rows(answers, id);
    uint64_t root = root_of(world, id);
    bool any_lost = false, root_lost = false;
    for (uint32_t m = 0; m < world->count; m++) {
        any_lost |= answers->lost[m];
        root_lost |= answers->lost[m] && world->members[m].peer == root;
    }
    struct pccl_verdict abort = {.op = id, .outcome = PCCL_ABORT, .text = "aborted"};
    if (tally.raised) {
        abort.status = tally.code;
        return abort;
    }
    if (tally.stable || (tally.rows == answers->ring_count && tally.everywhere))
        return (struct pccl_verdict){.op = id, .outcome = PCCL_DONE};
    if (is_disputed(world, id) || (tally.late && (!tally.somewhere || root))) {
        abort.status = is_disputed(world, id) ? PCCL_USAGE : PCCL_DEADLINE_EXCEEDED;
        return abort;
    }
    if (tally.nowhere && any_lost && (tally.strict || root_lost)) {
        abort.status = PCCL_PEER_LOST;
        return abort;
    }
    return (struct pccl_verdict){.op = id,
                                 .outcome = PCCL_RUN,
                                 .holder_count = tally.segments,
                                 .holders = choose_holders(world, answers, id, tally.segments)};
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

/* Aborts of the last view stay in force for those who submit late. */
static void add_verdicts(struct fz_world *world, const struct answers *answers,
                         struct pccl_verdict *verdicts, uint32_t *count, uint32_t stable) {
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
            bool covered = !(id & FZ_NAMED) && (uint32_t)id <= stable;
            if (known == *count && !covered && *count < VERDICTS_MAX)
                verdicts[(*count)++] = judge(world, answers, id);
        }
}

static void ask(struct fz_world *world, struct answers *answers, uint32_t *stable) {
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
        if (answers->of[m]->stable > *stable)
            *stable = answers->of[m]->stable;
        fz_check(world, m);
    }
}

void fz_view(struct fz_world *world, struct fz_reader *twist) {
    fz_install_all(world); /* a member that skips a view would be lost to the group */
    struct answers answers = {0};
    uint32_t stable = 0, count = 0;
    ask(world, &answers, &stable);
    struct pccl_verdict *verdicts = calloc(VERDICTS_MAX, sizeof *verdicts);
    FZ_CHECK(verdicts);
    if (answers.ring_count)
        add_verdicts(world, &answers, verdicts, &count, stable);
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
    now->view.verdict_count = count;
    int32_t cut = fz_random(&world->random) % 8 == 0; /* then everything takes the ring */
    for (uint32_t r = 0; r < answers.ring_count; r++) {
        uint64_t peer = world->members[answers.ring[r]].peer;
        now->ring[r] = answers.ring[r];
        now->members[r] = (struct pccl_member){.peer = peer, .cut = cut};
    }
    if (twist && fz_left(twist)) {
        world->honest = false;
        world->twisted = true;
        twist_view(now, twist);
    }
}
