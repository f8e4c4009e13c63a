/* program: of world.h, what the program does: opens and closes, submits, lets time pass, dies, and
 * goes on to the end. */
#include <stdlib.h>
#include <string.h>

#include "world.h"

/* ---- the world ---------------------------------------------------------------------------------
 */

static void first_view(struct fz_world *world, bool cut) {
    struct fz_view *now = &world->now;
    now->view = (struct pccl_view){
        .epoch = 1, .fresh = 1, .member_count = world->count, .members = now->members, .hub = -1};
    for (uint32_t i = 0; i < world->count; i++) {
        now->ring[i] = i;
        now->members[i].peer = world->members[i].peer;
    }
    now->cut = (struct pccl_edge){0, 1};
    now->view.cuts = &now->cut;
    now->view.cut_count = cut;
    world->relays = cut;
    fz_install_all(world);
}

void fz_world_open(struct fz_world *world, const struct fz_setup *setup) {
    memset(world, 0, sizeof *world);
    world->count = setup->count;
    world->now_ns = 1000000000;
    world->random = setup->random;
    world->honest = true;
    for (uint32_t i = 0; i < setup->count; i++) {
        struct fz_member *member = &world->members[i];
        member->peer = 1000 + i;
        if (setup->nobody >> i & 1) {
            member->evil = true;
            world->honest = false;
            continue;
        }
        struct pc_core_config config = {.peer = member->peer,
                                        .scratch_bytes = FZ_SCRATCH_BYTES,
                                        .segment_bytes_min = FZ_SEGMENT_BYTES,
                                        .segment_bytes_max = FZ_SEGMENT_BYTES,
                                        .checksum_payload = setup->checksum};
        member->core = pc_core_new(&config);
        FZ_CHECK(member->core);
    }
    first_view(world, setup->cut && setup->count > 2);
}

void fz_world_close(struct fz_world *world) {
    for (uint32_t i = 0; i < world->count; i++)
        for (uint32_t e = 0; e < FZ_ENDS_MAX; e++)
            fz_unlink(world, i, e);
    for (uint32_t i = 0; i < world->count; i++) {
        struct fz_member *member = &world->members[i];
        pc_core_free(member->core);
        for (uint32_t o = 0; o < member->op_count; o++)
            fz_tensors_free(&member->ops[o]);
    }
    fz_view_free(&world->now);
}

/* ---- the program -------------------------------------------------------------------------------
 */

static uint8_t bit_of(uint32_t member) {
    return (uint8_t)(1u << member);
}

/* A sub-group of these members, or one and another: its context says who takes part. */
static void choose_context(const struct fz_world *world, struct fz_wish *wish, uint8_t which,
                           uint8_t root) {
    static const uint8_t groups[FZ_SUBGROUPS] = {0x3, 0x6, 0xd};
    uint32_t from = which % world->count, to = root % world->count;
    struct pccl_op *args = &wish->args;
    if (args->kind == PCCL_SEND) {
        to = to == from ? (from + 1) % world->count : to;
        args->context = FZ_PAIRS + from * FZ_MEMBERS_MAX + to;
        wish->among = bit_of(from) | bit_of(to);
        args->root_peer = world->members[to].peer;
        return;
    }
    if (which >= 160) {
        args->context = 1 + which % FZ_SUBGROUPS;
        wish->among = groups[which % FZ_SUBGROUPS] & (uint8_t)(bit_of(world->count) - 1u);
    }
    while (wish->among && !(wish->among >> to & 1))
        to = (to + 1) % world->count;
    if (args->root_peer)
        args->root_peer = world->members[to].peer;
}

struct fz_wish fz_wish(const struct fz_world *world, struct fz_reader *bytes) {
    static const uint64_t timeouts[] = {1, 100000000000, UINT64_C(1000000000000), UINT64_MAX};
    static const double weights[] = {1, 0, 0.5, 3};
    uint8_t kind = fz_u8(bytes), dtype = fz_u8(bytes), reduce = fz_u8(bytes);
    struct fz_wish wish = {.args.weight = 1, .args.reduce = PCCL_SUM};
    struct pccl_op *args = &wish.args;
    args->kind = kind < 80 ? PCCL_ALL_REDUCE : kind % PCCL_RECV; /* a receive is the other end */
    args->dtype = dtype < 128 ? PCCL_INT64 : dtype % (PCCL_FLOAT64 + 1);
    if (args->kind == PCCL_ALL_REDUCE || args->kind == PCCL_REDUCE ||
        args->kind == PCCL_REDUCE_SCATTER)
        args->reduce = reduce < 128 ? PCCL_SUM : reduce % (PCCL_MAX + 1);
    if (args->reduce == PCCL_AVG && args->dtype >= PCCL_FLOAT16)
        args->weight = weights[reduce / 8 % 4];
    args->count = fz_u16(bytes) % FZ_ELEMENTS_MAX;
    uint8_t how = fz_u8(bytes), root = fz_u8(bytes), which = fz_u8(bytes);
    args->route = how % (PCCL_ROUTE_DIRECT + 1);
    args->strict = how >= 192 && args->kind == PCCL_ALL_REDUCE;
    args->timeout_ns = timeouts[how / 4 % 4];
    wish.uneven = root / 8;
    wish.apart = how / 64 % 2;
    switch (args->kind) {
    case PCCL_BROADCAST:
    case PCCL_REDUCE:
    case PCCL_GATHER:
    case PCCL_SCATTER:
        args->root_peer = 1;
        break;
    default:
        break;
    }
    choose_context(world, &wish, which, root);
    return wish;
}

uint64_t fz_next_id(const struct fz_world *world, uint32_t index, const struct fz_wish *wish) {
    uint64_t context = wish->args.context;
    return context << 33 | (wish->args.name ? FZ_NAMED | wish->args.name
                                            : world->members[index].unnamed[context] + 1u);
}

const struct fz_plan *fz_plan(struct fz_world *world, uint64_t id, const struct fz_wish *wish) {
    for (uint32_t i = 0; i < world->plan_count; i++)
        if (world->plans[i].id == id)
            return &world->plans[i];
    if (world->plan_count == FZ_PLANS_MAX)
        return NULL;
    struct fz_plan *plan = &world->plans[world->plan_count++];
    *plan = (struct fz_plan){.id = id, .wish = *wish};
    return plan;
}

static bool may_submit(const struct fz_world *world, uint32_t index, uint64_t id,
                       const struct fz_wish *wish) {
    const struct fz_member *member = &world->members[index];
    if (!member->core || member->op_count == FZ_OPS_MAX)
        return false;
    for (uint32_t i = 0; i < member->op_count; i++)
        if (member->ops[i].id == id && (id & FZ_NAMED || member->ops[i].state == FZ_RUNNING))
            return false;
    return id & FZ_NAMED || id == fz_next_id(world, index, wish);
}

bool fz_submit(struct fz_world *world, uint32_t index, uint64_t id, const struct fz_wish *wish) {
    struct fz_member *member = &world->members[index];
    if (!may_submit(world, index, id, wish))
        return false;
    struct fz_op *op = &member->ops[member->op_count];
    *op = (struct fz_op){.state = FZ_RUNNING, .id = id, .args = wish->args, .status = PCCL_PENDING};
    if (!fz_tensors_make(world, index, op, wish))
        return false;
    member->op_count++;
    op->due_ns = wish->args.timeout_ns > UINT64_MAX - world->now_ns
                     ? UINT64_MAX
                     : world->now_ns + wish->args.timeout_ns;
    member->unnamed[id >> 33] += !(id & FZ_NAMED);
    world->relays |= wish->args.route == PCCL_ROUTE_RING;
    int status = pc_core_submit(member->core, &op->args, id, world->now_ns);
    FZ_CHECK(status == PCCL_OK || world->twisted);
    if (status != PCCL_OK) { /* a new line in the midst of ops: the shell gives up, and so do we */
        fz_tensors_free(op);
        member->op_count--;
        fz_fail(world, index);
        return false;
    }
    fz_check(world, index);
    return true;
}

void fz_advance(struct fz_world *world, uint64_t ns) {
    world->now_ns += ns;
    for (uint32_t i = 0; i < world->count; i++) {
        struct fz_member *member = &world->members[i];
        if (!member->core)
            continue;
        pc_core_tick(member->core, world->now_ns);
        fz_check(world, i);
        FZ_CHECK(pc_core_deadline(member->core) > world->now_ns); /* no spinning */
    }
}

void fz_kill(struct fz_world *world, uint32_t index) {
    struct fz_member *member = &world->members[index];
    for (uint32_t e = 0; e < FZ_ENDS_MAX; e++)
        fz_unlink(world, index, e);
    pc_core_free(member->core);
    member->core = NULL;
    for (uint32_t i = 0; i < member->op_count; i++) {
        member->ops[i].state = FZ_UNUSED;
        fz_tensors_free(&member->ops[i]);
    }
}

void fz_fail(struct fz_world *world, uint32_t index) {
    struct fz_member *member = &world->members[index];
    if (!member->core)
        return;
    for (uint32_t e = 0; e < FZ_ENDS_MAX; e++)
        fz_unlink(world, index, e);
    pc_core_fail(member->core, PCCL_EVICTED, "evicted", world->now_ns);
    fz_check(world, index);
    for (uint32_t i = 0; i < member->op_count; i++)
        FZ_CHECK(member->ops[i].state != FZ_RUNNING);
    fz_kill(world, index);
}

/* ---- to the end --------------------------------------------------------------------------------
 */

/* What nobody waits for may lie a little: lets that time pass. false: nothing is due soon. */
static bool wait_a_little(struct fz_world *world) {
    uint64_t soon = UINT64_MAX;
    for (uint32_t m = 0; m < world->count; m++) {
        fz_check(world, m);
        if (world->members[m].core && pc_core_deadline(world->members[m].core) < soon)
            soon = pc_core_deadline(world->members[m].core);
    }
    if (soon <= world->now_ns || soon - world->now_ns > 10000000)
        return false;
    fz_advance(world, soon - world->now_ns);
    return true;
}

void fz_pump(struct fz_world *world) {
    bool moved = true;
    for (int rounds = 0; moved; rounds++) {
        FZ_CHECK(rounds < 20000); /* what never comes to rest is a finding */
        moved = false;
        for (uint32_t m = 0; m < world->count; m++)
            for (uint32_t e = 0; e < FZ_ENDS_MAX; e++) {
                moved |= fz_transmit(world, m, e, 1 + fz_random(&world->random) % 2000) > 0;
                uint32_t piece = fz_random(&world->random);
                size_t limit = piece % 4 ? FZ_PIPE_MAX : 1 + piece / 4 % 99;
                moved |= fz_deliver(world, m, e, limit) > 0;
            }
        moved = moved || wait_a_little(world);
    }
}

static void link_all(struct fz_world *world) {
    for (uint32_t a = 0; a < world->count; a++)
        for (uint32_t b = a + 1; b < world->count; b++) {
            bool linked = !world->members[a].core || !world->members[b].core;
            for (uint32_t e = 0; e < FZ_ENDS_MAX; e++)
                linked |= world->members[a].ends[e].up && world->members[a].ends[e].far == b;
            if (!linked)
                fz_link(world, a, b);
        }
}

static bool submit_rest(struct fz_world *world) {
    bool running = false;
    for (uint32_t m = 0; m < world->count; m++) {
        for (uint32_t p = 0; p < world->plan_count; p++)
            fz_submit(world, m, world->plans[p].id, &world->plans[p].wish);
        for (uint32_t i = 0; i < world->members[m].op_count; i++)
            running |= world->members[m].ops[i].state == FZ_RUNNING;
    }
    return running;
}

void fz_settle(struct fz_world *world) {
    for (uint32_t m = 0; m < world->count; m++)
        if (world->members[m].evil) {
            fz_kill(world, m);
            world->members[m].evil = false; /* not a member any more */
        }
    bool running = true;
    for (int views = 0; views < 6 && running; views++) {
        link_all(world);
        fz_view(world, NULL);
        fz_install_all(world);
        running = submit_rest(world);
        fz_pump(world);
        running = submit_rest(world);
    }
    FZ_CHECK(!running || world->twisted);
}

void fz_prove(struct fz_world *world) {
    if (world->twisted)
        return; /* who is told that all hold op 7 takes it for ended */
    world->honest = true;
    struct fz_wish wish = {.args = {.kind = PCCL_ALL_REDUCE,
                                    .dtype = PCCL_INT64,
                                    .count = 50,
                                    .weight = 1,
                                    .timeout_ns = UINT64_C(1000000000000)}};
    for (uint32_t m = 0; m < world->count; m++)
        if (world->members[m].core)
            FZ_CHECK(fz_submit(world, m, fz_next_id(world, m, &wish), &wish));
    fz_pump(world);
    for (uint32_t m = 0; m < world->count; m++) {
        const struct fz_member *member = &world->members[m];
        if (member->core)
            FZ_CHECK(member->ops[member->op_count - 1].status == PCCL_OK);
    }
}
