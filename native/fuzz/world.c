/* world: see world.h. Cores, links, ops and what must hold; views are in coordinator.c. */
#include "world.h"

#include <stdlib.h>
#include <string.h>

#include "crc.h"
#include "frame.h"

/* ---- what must hold ----------------------------------------------------------------------------
 */

static struct fz_op *running_op(struct fz_member *member, uint64_t id) {
    for (uint32_t i = 0; i < member->op_count; i++)
        if (member->ops[i].id == id && member->ops[i].state == FZ_RUNNING)
            return &member->ops[i];
    return NULL;
}

/* Who has ended the same op well has the same bits, where all get the same. */
static void check_alike(const struct fz_world *world, const struct fz_op *op) {
    for (uint32_t m = 0; m < world->count; m++)
        for (uint32_t i = 0; i < world->members[m].op_count; i++) {
            const struct fz_op *other = &world->members[m].ops[i];
            if (other->id == op->id && other->state == FZ_ENDED && other->status == PCCL_OK)
                FZ_CHECK(other->digest == op->digest);
        }
}

static void op_ended(struct fz_world *world, struct fz_member *member,
                     const struct pccl_result *result) {
    struct fz_op *op = running_op(member, result->op);
    FZ_CHECK(op); /* once, and only what was submitted */
    FZ_CHECK(memchr(result->text, 0, sizeof result->text));
    FZ_CHECK((result->status == PCCL_OK) == !result->text[0]);
    op->state = FZ_ENDED;
    op->status = result->status;
    op->contributors_min = result->contributors_min;
    op->contributors_max = result->contributors_max;
    fz_tensors_check(world, op);
    if (op->status == PCCL_OK && world->honest) {
        FZ_CHECK(op->contributors_min <= op->contributors_max);
        FZ_CHECK(op->contributors_max <= world->count);
        if (op->args.kind == PCCL_ALL_REDUCE || op->args.kind == PCCL_BROADCAST ||
            op->args.kind == PCCL_ALL_GATHER)
            check_alike(world, op);
    }
    world->ended_well += op->status == PCCL_OK;
    world->ended_ill += op->status != PCCL_OK;
    fz_tensors_free(op); /* the caller's again: nobody may touch it */
}

static void disputed(struct fz_world *world, uint64_t id) {
    for (uint32_t i = 0; i < world->disputed_count; i++)
        if (world->disputed[i] == id)
            return;
    if (world->disputed_count < FZ_PLANS_MAX)
        world->disputed[world->disputed_count++] = id;
}

static struct fz_end *end_of(struct fz_member *member, int id) {
    for (uint32_t i = 0; i < FZ_ENDS_MAX; i++)
        if (member->ends[i].up && member->ends[i].id == id)
            return &member->ends[i];
    return NULL;
}

/* An innocent may pass on what a liar told it: on the ring anything, else a value in a repaired
 * view, where a lying owner had given each another. */
static bool may_blame(const struct fz_world *world, const struct fz_member *member,
                      const struct fz_end *end, const char *reason) {
    return world->twisted || world->relays || member->evil || world->members[end->far].evil ||
           strstr(reason, "differs");
}

static void on_event(struct fz_world *world, struct fz_member *member,
                     const struct pc_core_event *event) {
    struct fz_op *op;
    switch (event->event.type) {
    case PC_EVENT_ENDED:
        op_ended(world, member, &event->result);
        return;
    case PC_EVENT_LINK_BAD: {
        struct fz_end *end = end_of(member, event->which);
        FZ_CHECK(end && !end->broken); /* told once, of a link that is */
        FZ_CHECK(event->event.reason[0]);
        FZ_CHECK(!world->honest);
        FZ_CHECK(may_blame(world, member, end, event->event.reason));
        end->broken = true;
        world->links_bad++;
        return;
    }
    case PCCL_EVENT_TIMEOUT:
        op = running_op(member, event->event.op);
        FZ_CHECK(op && !op->told_late && world->now_ns >= op->due_ns);
        op->told_late = true;
        return;
    case PCCL_EVENT_MISMATCH:
        FZ_CHECK(running_op(member, event->event.op));
        disputed(world, event->event.op);
        return;
    default:
        FZ_CHECK(event->event.type == PCCL_EVENT_REPAIRED || event->event.type == PCCL_EVENT_FULL);
    }
}

/* Scratch: what was configured, the floors of the windows, and one buffer per possible link. */
static void check_memory(const struct fz_world *world, const struct fz_member *member) {
    struct pccl_stats stats;
    pc_core_stats(member->core, &stats);
    uint64_t buffers = 2 * FZ_SCRATCH_BYTES / FZ_SEGMENT_BYTES + 16 * world->count + PC_LINKS_MAX;
    FZ_CHECK(stats.scratch_bytes <= buffers * (FZ_SEGMENT_BYTES + 32));
    uint32_t running = 0, up = 0;
    for (uint32_t i = 0; i < member->op_count; i++)
        running += member->ops[i].state == FZ_RUNNING;
    for (uint32_t i = 0; i < FZ_ENDS_MAX; i++)
        up += member->ends[i].up;
    FZ_CHECK(stats.ops_running == running && stats.links_up == up);
    struct pccl_inspection seen;
    pc_core_inspect(member->core, world->now_ns, &seen);
    FZ_CHECK(seen.running == running && seen.count <= running);
}

static void check_deadline(const struct fz_member *member) {
    uint64_t at = pc_core_deadline(member->core);
    for (uint32_t i = 0; i < member->op_count; i++)
        if (member->ops[i].state == FZ_RUNNING && !member->ops[i].told_late)
            FZ_CHECK(at <= member->ops[i].due_ns);
}

/* Whom a core wants to reach: somebody else, each once. */
static void check_wanted(const struct fz_world *world, struct fz_member *member) {
    uint32_t times = 0;
    for (uint64_t peer; (peer = pc_core_wanted(member->core)) != 0; times++) {
        bool known = false;
        for (uint32_t m = 0; m < world->count; m++)
            known |= world->members[m].peer == peer && &world->members[m] != member;
        FZ_CHECK(known && times < world->count);
    }
}

void fz_check(struct fz_world *world, uint32_t index) {
    struct fz_member *member = &world->members[index];
    if (!member->core)
        return;
    pc_core_tick(member->core, world->now_ns);
    struct pc_core_event event;
    int left = 100000; /* events that never end are a finding too */
    while (pc_core_next_event(member->core, &event, world->now_ns)) {
        FZ_CHECK(left--);
        on_event(world, member, &event);
    }
    check_wanted(world, member);
    for (uint32_t i = 0; i < FZ_ENDS_MAX; i++)
        if (member->ends[i].up && member->ends[i].broken)
            fz_unlink(world, index, i);
}

void fz_check_all(struct fz_world *world) {
    for (uint32_t m = 0; m < world->count; m++) {
        if (!world->members[m].core)
            continue;
        fz_check(world, m);
        check_memory(world, &world->members[m]);
        check_deadline(&world->members[m]);
    }
}

/* ---- links -------------------------------------------------------------------------------------
 */

static uint32_t free_end(const struct fz_member *member) {
    uint32_t i = 0;
    while (i < FZ_ENDS_MAX && member->ends[i].up)
        i++;
    return i;
}

static void raise_end(struct fz_world *world, uint32_t index, uint32_t i, uint32_t far,
                      uint32_t far_end) {
    struct fz_member *member = &world->members[index];
    uint8_t *bytes = malloc(FZ_PIPE_MAX);
    FZ_CHECK(bytes);
    member->ends[i] = (struct fz_end){
        .up = true, .far = far, .far_end = far_end, .id = -1, .in = {.bytes = bytes}};
    if (member->core)
        member->ends[i].id = pc_core_link_new(member->core, world->members[far].peer, far % 2);
    FZ_CHECK(!member->core || member->ends[i].id >= 0);
}

bool fz_link(struct fz_world *world, uint32_t a, uint32_t b) {
    uint32_t i = free_end(&world->members[a]), j = free_end(&world->members[b]);
    if (a == b || i == FZ_ENDS_MAX || j == FZ_ENDS_MAX)
        return false;
    raise_end(world, a, i, b, j);
    raise_end(world, b, j, a, i);
    return true;
}

static void drop_end(struct fz_member *member, uint32_t i) {
    struct fz_end *end = &member->ends[i];
    if (!end->up)
        return;
    int id = end->id;
    free(end->in.bytes);
    *end = (struct fz_end){0};
    if (member->core)
        pc_core_link_free(member->core, id);
}

void fz_unlink(struct fz_world *world, uint32_t index, uint32_t i) {
    struct fz_end *end = &world->members[index].ends[i];
    if (!end->up)
        return;
    uint32_t far = end->far, far_end = end->far_end;
    drop_end(&world->members[index], i);
    drop_end(&world->members[far], far_end);
    fz_check(world, index);
    fz_check(world, far);
}

/* Forgets what was taken, but not the header of a frame that was taken in part. */
static void compact(struct fz_pipe *pipe) {
    size_t gone = pipe->head < pipe->frame ? pipe->head : pipe->frame;
    memmove(pipe->bytes, pipe->bytes + gone, pipe->tail - gone);
    pipe->tail -= gone;
    pipe->head -= gone;
    pipe->frame -= gone;
}

static size_t room(struct fz_pipe *pipe) {
    compact(pipe);
    return FZ_PIPE_MAX - pipe->tail;
}

size_t fz_transmit(struct fz_world *world, uint32_t index, uint32_t i, size_t limit) {
    struct fz_member *member = &world->members[index];
    struct fz_end *end = &member->ends[i];
    if (!end->up || !member->core)
        return 0;
    struct fz_pipe *pipe = &world->members[end->far].ends[end->far_end].in;
    size_t space = world->members[end->far].core ? room(pipe) : SIZE_MAX;
    limit = limit < space ? limit : space;
    struct pc_slice slices[PC_SLICES_MAX];
    int count = pc_core_tx(member->core, end->id, slices);
    FZ_CHECK(count >= 0 && count <= PC_SLICES_MAX);
    if (!count)
        return 0;
    size_t sent = 0;
    for (int s = 0; s < count && sent < limit; s++) {
        FZ_CHECK(slices[s].len && slices[s].ptr);
        size_t n = slices[s].len < limit - sent ? slices[s].len : limit - sent;
        if (world->members[end->far].core) {
            memcpy(pipe->bytes + pipe->tail, slices[s].ptr, n);
            pipe->tail += n;
        } else {
            (void)pc_crc32c(0, slices[s].ptr, n); /* read, as the kernel would */
        }
        sent += n;
    }
    if (sent)
        pc_core_sent(member->core, end->id, sent);
    fz_check(world, index);
    return sent;
}

static size_t frame_bytes(const uint8_t *at, size_t n) {
    struct pc_header header = fz_header(at, n);
    return pc_header_size(header.flags) + (size_t)header.length;
}

/* Moves the mark of the first whole frame past what was taken. */
static void follow(struct fz_pipe *pipe) {
    while (pipe->frame < pipe->head && pipe->frame + PC_HEADER_BYTES <= pipe->tail)
        pipe->frame += frame_bytes(pipe->bytes + pipe->frame, pipe->tail - pipe->frame);
}

size_t fz_deliver(struct fz_world *world, uint32_t index, uint32_t i, size_t limit) {
    struct fz_member *member = &world->members[index];
    struct fz_end *end = &member->ends[i];
    if (!end->up || !member->core)
        return 0;
    struct fz_pipe *pipe = &end->in;
    size_t n = pipe->tail - pipe->head;
    if (!n && limit)
        return 0;
    n = n < limit ? n : limit;
    uint8_t *into;
    size_t taken, space = pc_core_rx_space(member->core, end->id, &into);
    if (n && space && fz_random(&world->random) % 2) {
        taken = n < space ? n : space;
        memcpy(into, pipe->bytes + pipe->head, taken);
        pc_core_rx_done(member->core, end->id, taken);
    } else {
        uint8_t *piece = malloc(n ? n : 1); /* of its own: reading on would be seen */
        FZ_CHECK(piece);
        memcpy(piece, pipe->bytes + pipe->head, n);
        taken = pc_core_feed(member->core, end->id, piece, n);
        free(piece);
        FZ_CHECK(taken <= n);
        bool held = pc_core_held(member->core, end->id) != 0;
        fz_check(world, index);
        FZ_CHECK(taken == n || held || !end->up); /* the rest waits for a view, or the link broke */
    }
    if (end->up) {
        pipe->head += taken;
        follow(pipe);
    }
    fz_check(world, index);
    return taken;
}

void fz_inject(struct fz_world *world, uint32_t index, uint32_t i, const uint8_t *bytes, size_t n) {
    struct fz_end *end = &world->members[index].ends[i];
    if (!end->up || !n || n > room(&end->in))
        return;
    memcpy(end->in.bytes + end->in.tail, bytes, n);
    end->in.tail += n;
}

uint8_t *fz_frame(struct fz_world *world, uint32_t index, uint32_t i, uint32_t k, size_t *n) {
    struct fz_pipe *pipe = &world->members[index].ends[i].in;
    if (!world->members[index].ends[i].up)
        return NULL;
    size_t at = pipe->frame;
    for (;; k--) {
        if (at < pipe->head || at + PC_HEADER_BYTES > pipe->tail)
            return NULL;
        *n = frame_bytes(pipe->bytes + at, pipe->tail - at);
        if (*n > pipe->tail - at)
            return NULL;
        if (!k)
            return pipe->bytes + at;
        at += *n;
    }
}
