/* program: of world.h, what the program does: opens and closes, submits, lets time pass, dies, and
 * goes on to the end. */
#include <stdlib.h>
#include <string.h>

#include "world.h"

/* ---- the world ---------------------------------------------------------------------------------
 */

static void first_view(struct fz_world *world) {
    struct fz_view *now = &world->now;
    now->view = (struct pccl_view){
        .epoch = 1, .fresh = 1, .member_count = world->count, .members = now->members};
    for (uint32_t i = 0; i < world->count; i++) {
        now->ring[i] = i;
        now->members[i].peer = world->members[i].peer;
    }
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
    first_view(world);
}

void fz_world_close(struct fz_world *world) {
    for (uint32_t i = 0; i < world->count; i++)
        for (uint32_t e = 0; e < FZ_ENDS_MAX; e++)
            fz_unlink(world, i, e);
    for (uint32_t i = 0; i < world->count; i++) {
        struct fz_member *member = &world->members[i];
        pc_core_free(member->core);
        for (uint32_t o = 0; o < member->op_count; o++)
            free(member->ops[o].data);
    }
    fz_view_free(&world->now);
}

/* ---- the program -------------------------------------------------------------------------------
 */

struct pccl_op fz_args(const struct fz_world *world, struct fz_reader *bytes) {
    static const uint64_t timeouts[] = {1, 1000000000, UINT64_C(10000000000), UINT64_MAX};
    struct pccl_op args = {.kind = fz_u8(bytes) % 4 ? PCCL_ALL_REDUCE : PCCL_BROADCAST};
    uint8_t dtype = fz_u8(bytes);
    args.dtype = dtype < 128 ? PCCL_INT64 : dtype % (PCCL_FLOAT64 + 1);
    uint8_t reduce = fz_u8(bytes);
    args.reduce = reduce < 128 ? PCCL_SUM : reduce % (PCCL_MAX + 1);
    args.count = fz_u16(bytes) % FZ_ELEMENTS_MAX;
    uint8_t how = fz_u8(bytes);
    args.route = how % (PCCL_ROUTE_DIRECT + 1);
    args.strict = how >= 192;
    args.timeout_ns = timeouts[how / 4 % 4];
    uint32_t root = fz_u8(bytes) % world->count;
    if (args.kind == PCCL_BROADCAST) {
        args.reduce = PCCL_SUM;
        args.root_peer = world->members[root].peer;
    }
    return args;
}

const struct fz_plan *fz_plan(struct fz_world *world, uint64_t id, const struct pccl_op *args) {
    for (uint32_t i = 0; i < world->plan_count; i++)
        if (world->plans[i].id == id)
            return &world->plans[i];
    if (world->plan_count == FZ_PLANS_MAX)
        return NULL;
    struct fz_plan *plan = &world->plans[world->plan_count++];
    *plan = (struct fz_plan){.id = id, .args = *args};
    return plan;
}

/* One bit per member for sums of 64 bits (see check_sum); else anything, and much of it. */
static void fill(struct fz_world *world, uint32_t index, const struct pccl_op *args,
                 uint8_t *data) {
    size_t bytes = args->count * pccl_dtype_size(args->dtype);
    for (size_t i = 0; i < bytes; i++)
        data[i] = args->dtype == PCCL_INT64 ? i % 8 == index : (uint8_t)fz_random(&world->random);
}

bool fz_submit(struct fz_world *world, uint32_t index, uint64_t id, const struct pccl_op *args) {
    struct fz_member *member = &world->members[index];
    if (!member->core || member->op_count == FZ_OPS_MAX)
        return false;
    for (uint32_t i = 0; i < member->op_count; i++)
        if (member->ops[i].id == id && (id & FZ_NAMED || member->ops[i].state == FZ_RUNNING))
            return false;
    bool named = (id & FZ_NAMED) != 0;
    if (!named && (uint32_t)id != member->unnamed + 1)
        return false;
    size_t bytes = args->count * pccl_dtype_size(args->dtype);
    struct fz_op *op = &member->ops[member->op_count++];
    *op = (struct fz_op){.state = FZ_RUNNING, .id = id, .args = *args, .status = PCCL_PENDING};
    op->data = malloc(bytes ? bytes : 1);
    FZ_CHECK(op->data);
    fill(world, index, args, op->data);
    op->args.data = op->data;
    op->due_ns = args->timeout_ns > UINT64_MAX - world->now_ns ? UINT64_MAX
                                                               : world->now_ns + args->timeout_ns;
    member->unnamed += !named;
    int status = pc_core_submit(member->core, &op->args, id, world->now_ns);
    FZ_CHECK(status == PCCL_OK || world->twisted);
    if (status != PCCL_OK) { /* a new line in the midst of ops: the shell gives up, and so do we */
        member->op_count--;
        free(op->data);
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
        free(member->ops[i].data);
        member->ops[i].data = NULL;
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

void fz_pump(struct fz_world *world) {
    size_t moved = 1;
    for (int rounds = 0; moved; rounds++) {
        FZ_CHECK(rounds < 20000); /* what never comes to rest is a finding */
        moved = 0;
        for (uint32_t m = 0; m < world->count; m++)
            for (uint32_t e = 0; e < FZ_ENDS_MAX; e++) {
                moved += fz_transmit(world, m, e, 1 + fz_random(&world->random) % 2000);
                uint32_t piece = fz_random(&world->random);
                moved += fz_deliver(world, m, e, piece % 4 ? FZ_PIPE_MAX : 1 + piece / 4 % 99);
            }
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
            fz_submit(world, m, world->plans[p].id, &world->plans[p].args);
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
    for (int views = 0; views < 4 && running; views++) {
        for (uint32_t m = 0; m < world->count; m++) /* what was lost with a link, or lied about */
            for (uint32_t e = 0; e < FZ_ENDS_MAX; e++)
                if (world->members[m].ends[e].broken)
                    fz_unlink(world, m, e);
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
    struct pccl_op args = {.kind = PCCL_ALL_REDUCE,
                           .dtype = PCCL_INT64,
                           .count = 50,
                           .timeout_ns = UINT64_C(1000000000)};
    for (uint32_t m = 0; m < world->count; m++) {
        struct fz_member *member = &world->members[m];
        if (member->op_count < FZ_OPS_MAX)
            fz_submit(world, m, member->unnamed + 1, &args);
    }
    fz_pump(world);
    for (uint32_t m = 0; m < world->count; m++) {
        const struct fz_member *member = &world->members[m];
        if (member->core)
            FZ_CHECK(member->ops[member->op_count - 1].status == PCCL_OK);
    }
}
