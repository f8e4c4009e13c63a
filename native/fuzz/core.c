/* fuzz target core: an input is a list of calls. Two to four real cores, several links each that
 * overtake one another, ops that agree or do not, deaths, views right and wrong, time; frames of
 * one member may be changed, repeated or invented on their way. At the end the liar is gone: every
 * op of the others ends, once, and one more works. */
#include "core.h"

#include <string.h>

#include "frame.h"
#include "fuzz.h"
#include "scenes.h"

static uint64_t worlds, honest_worlds, ended_well, ended_ill, links_bad;

static uint32_t living(const struct fz_world *world) {
    uint32_t count = 0;
    for (uint32_t m = 0; m < world->count; m++)
        count += world->members[m].core != NULL && !world->members[m].evil;
    return count;
}

/* The next op in order, or a named one; now and then with another descriptor than the others. */
static void submit(struct fz_world *world, uint32_t m, uint8_t where, struct fz_reader bytes) {
    struct fz_wish wish = fz_wish(world, &bytes);
    uint64_t name = where / 8 % 16;
    wish.args.name = name >= 12 ? name : 0; /* few names, so that members meet */
    uint64_t id = fz_next_id(world, m, &wish);
    const struct fz_plan *plan = fz_plan(world, id, &wish);
    if (plan)
        fz_submit(world, m, id, where >= 252 ? &wish : &plan->wish);
}

/* One of the frames on their way from a liar says something else, or comes twice. */
static void pervert(struct fz_world *world, uint32_t m, uint32_t e) {
    const struct fz_end *end = &world->members[m].ends[e];
    uint32_t draw = fz_random(&world->random);
    size_t n;
    uint8_t *frame = fz_frame(world, end->far, end->far_end, draw % 4, &n);
    if (!frame || draw / 4 % 4)
        return;
    uint8_t twin[1024];
    if (draw / 16 % 4 == 0 && n <= sizeof twin) {
        memcpy(twin, frame, n);
        fz_inject(world, end->far, end->far_end, twin, n); /* if it was the last, in one piece */
        return;
    }
    for (uint32_t edits = 1 + draw / 64 % 3; edits; edits--) {
        uint32_t edit = fz_random(&world->random);
        size_t at = edit % 4 ? edit / 4 % (PC_HEADER_BYTES - 8) : edit / 4 % n;
        frame[at] =
            edit / 4096 % 2 ? (uint8_t)(frame[at] + edit / 8192 % 3 - 1) : (uint8_t)(edit / 8192);
    }
    fz_seal(frame, n, FZ_FITTED, world->now.view.epoch);
}

static void steps(struct fz_world *world, uint32_t count, bool whole) {
    for (uint32_t i = 0; i < count; i++) {
        uint32_t draw = fz_random(&world->random);
        uint32_t m = draw % world->count, e = draw / 8 % FZ_ENDS_MAX;
        size_t limit = whole ? FZ_PIPE_MAX : 1 + draw / 256 % 200;
        if (draw / 128 % 2 == 0)
            fz_deliver(world, m, e, limit);
        else if (fz_transmit(world, m, e, limit) && world->members[m].evil)
            pervert(world, m, e);
    }
}

/* Whether this member may lie: one of them only, and not the last. */
static bool may_lie(struct fz_world *world, uint32_t m) {
    if (world->members[m].evil)
        return true;
    for (uint32_t i = 0; i < world->count; i++)
        if (world->members[i].evil)
            return false;
    if (!world->members[m].core || living(world) < 2)
        return false;
    world->members[m].evil = true;
    world->honest = false;
    return true;
}

static void lie(struct fz_world *world, enum fz_call call, uint32_t m, uint32_t e,
                struct fz_record *record) {
    struct fz_end *end = &world->members[m].ends[e];
    if (!end->up || !may_lie(world, end->far))
        return;
    uint8_t how = fz_u8(&record->bytes);
    uint8_t blob[1024];
    size_t n = 0;
    if (call == FZ_INVENT) {
        while (fz_left(&record->bytes) && n < sizeof blob)
            blob[n++] = fz_u8(&record->bytes);
        fz_seal(blob, n, how % FZ_HONESTIES, world->now.view.epoch);
    } else {
        uint8_t *frame = fz_frame(world, m, e, how / 4 % 8, &n);
        if (!frame || n > sizeof blob)
            return;
        while (call == FZ_CHANGE && fz_left(&record->bytes)) {
            uint32_t at = fz_u16(&record->bytes);
            frame[at % (at < 0x8000 ? PC_HEADER_BYTES - 8 : n)] ^= fz_u8(&record->bytes);
        }
        if (call == FZ_CHANGE) {
            fz_seal(frame, n, how % 4 ? FZ_FITTED : FZ_SEALED, world->now.view.epoch);
            return;
        }
        for (size_t i = 0; i < n; i++)
            blob[i] = frame[i];
    }
    for (uint32_t i = 0; i < record->times; i++)
        fz_inject(world, m, e, blob, n);
}

static void flush(struct fz_world *world, uint32_t m, uint8_t value) {
    struct fz_member *member = &world->members[m];
    if (!member->core)
        return;
    uint32_t epoch = member->epoch + value % 3 - 1;
    FZ_CHECK(pc_core_flush(member->core, epoch) == (epoch == member->epoch));
    fz_check(world, m);
    struct pccl_report *report = pc_core_report(member->core);
    FZ_CHECK(report && report->epoch == member->epoch);
    pc_core_report_free(report);
}

static void carry_out(struct fz_world *world, struct fz_record *record) {
    uint32_t m = record->where % world->count;
    uint32_t e = record->where / 4 % FZ_ENDS_MAX;
    enum fz_call call = record->what % FZ_CALLS;
    switch (call) {
    case FZ_SUBMIT:
    case FZ_SUBMIT_TOO:
        submit(world, m, record->where, record->bytes);
        return;
    case FZ_SUBMIT_ALL:
        for (uint32_t i = 0; i < world->count; i++)
            submit(world, i, record->where, record->bytes);
        return;
    case FZ_SEND:
        fz_transmit(world, m, e, 1 + fz_u16(&record->bytes) % 500);
        return;
    case FZ_DELIVER:
        fz_deliver(world, m, e, 1 + fz_u16(&record->bytes) % 500);
        return;
    case FZ_STEPS:
    case FZ_STEPS_TOO:
        steps(world, fz_u8(&record->bytes) * 2, record->where % 2);
        return;
    case FZ_LINK:
        if (world->members[m].core)
            fz_link(world, m, record->where / 4 % world->count);
        return;
    case FZ_UNLINK:
        fz_unlink(world, m, e);
        return;
    case FZ_FLUSH:
        flush(world, m, fz_u8(&record->bytes));
        return;
    case FZ_VIEW:
        fz_view(world, &record->bytes);
        return;
    case FZ_INSTALL:
        fz_install(world, m);
        return;
    case FZ_ADVANCE:
        fz_advance(world, (uint64_t)fz_u32(&record->bytes) << record->where % 8);
        return;
    case FZ_FAIL:
    case FZ_KILL:
        if (world->members[m].evil || living(world) > 1)
            (call == FZ_FAIL ? fz_fail : fz_kill)(world, m);
        return;
    case FZ_INVENT:
    case FZ_CHANGE:
    case FZ_REPEAT:
        lie(world, call, m, e, record);
        return;
    case FZ_TURN:
        may_lie(world, m);
        return;
    case FZ_CALLS:
        PC_UNREACHABLE();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct fz_world world;
    struct fz_reader input = fz_reader(data, size < FZ_INPUT_MAX ? size : FZ_INPUT_MAX);
    struct fz_record record;
    if (!fz_next(&input, &record))
        return 0;
    struct fz_setup setup = {.count = 2 + record.what % (FZ_MEMBERS_MAX - 1),
                             .checksum = record.where % 2,
                             .cut = record.where >= 192};
    setup.random = fz_u32(&record.bytes);
    fz_world_open(&world, &setup);
    for (uint32_t links = 0; links < 1u + record.where / 2 % 3; links++)
        for (uint32_t a = 0; a < world.count; a++)
            for (uint32_t b = a + 1; b < world.count; b++)
                fz_link(&world, a, b);
    for (int calls = 0; calls < 300 && fz_next(&input, &record); calls++) {
        carry_out(&world, &record);
        fz_check_all(&world);
    }
    worlds++;
    honest_worlds += world.honest;
    fz_settle(&world);
    fz_prove(&world);
    ended_well += world.ended_well;
    ended_ill += world.ended_ill;
    links_bad += world.links_bad;
    fz_world_close(&world);
    return 0;
}

void fz_summary(FILE *out) {
    fprintf(out, "worlds: %lu, %lu without a liar; ops: %lu well, %lu ill; links refused: %lu\n",
            worlds, honest_worlds, ended_well, ended_ill, links_bad);
}
