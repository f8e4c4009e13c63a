/* seeds: writes the corpus of every target into the folder given: `make fuzz-corpus`. Real traffic
 * of real cores for frame and demux, lists of calls that make sense for core, handshakes as they
 * should be and nearly. Deterministic. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core.h"
#include "frame.h"
#include "fuzz.h"
#include "scenes.h"

struct seed {
    uint8_t bytes[FZ_INPUT_MAX];
    size_t size;
};

#define FRAMES_BYTES 2000 /* of a seed of frames: the first few say it all */

static const char *folder;

/* What does not fit is no seed: traffic with a frame missing ends no op. */
static void add(struct seed *seed, uint8_t what, uint8_t where, const void *bytes, size_t n) {
    FZ_CHECK(seed->size + FZ_RECORD_BYTES + n <= sizeof seed->bytes);
    uint8_t *at = seed->bytes + seed->size;
    const uint8_t head[FZ_RECORD_BYTES] = {what, where, 0, (uint8_t)n, (uint8_t)(n >> 8)};
    memcpy(at, head, sizeof head);
    if (n)
        memcpy(at + sizeof head, bytes, n);
    seed->size += sizeof head + n;
}

static void save(const struct seed *seed, const char *target, const char *name, uint32_t number) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s/%s-%02u", folder, target, name, number);
    FILE *file = fopen(path, "wb");
    FZ_CHECK(file);
    FZ_CHECK(fwrite(seed->bytes, 1, seed->size, file) == seed->size);
    FZ_CHECK(fclose(file) == 0);
}

/* ---- demux, frame: what two of four members say to the other two -------------------------------
 */

/* The next frame that a core would send on a link, whole; 0: none. */
static size_t next_frame(struct fz_world *world, uint32_t m, uint32_t e, uint8_t *out, size_t max) {
    struct pc_slice slices[PC_SLICES_MAX];
    int count = pc_core_tx(world->members[m].core, world->members[m].ends[e].id, slices);
    if (!count)
        return 0;
    struct pc_header header = fz_header(slices[0].ptr, slices[0].len);
    size_t want = pc_header_size(header.flags) + (size_t)header.length, n = 0;
    FZ_CHECK(want <= max);
    for (int s = 0; s < count && n < want; s++) {
        size_t piece = slices[s].len < want - n ? slices[s].len : want - n;
        memcpy(out + n, slices[s].ptr, piece);
        n += piece;
    }
    return n;
}

static void add_frame(struct seed *frames, const uint8_t *blob, size_t n) {
    if (frames->size >= FRAMES_BYTES)
        return;
    add(frames, 0, FZ_RAW, blob, n);
    struct pc_header header = fz_header(blob, n);
    if (header.type == PC_READY)
        add(frames, 1, 1, blob + n - header.length, header.length);
}

/* Everything moves but what the last two have to say. */
static void pump_victims(struct fz_world *world) {
    size_t moved = 1;
    while (moved) {
        moved = 0;
        for (uint32_t m = 0; m < world->count; m++)
            for (uint32_t e = 0; e < FZ_ENDS_MAX; e++) {
                bool to_real = world->members[m].ends[e].far < FZ_DEMUX_REAL;
                if (m < FZ_DEMUX_REAL || !to_real)
                    moved += fz_transmit(world, m, e, FZ_PIPE_MAX);
                moved += fz_deliver(world, m, e, FZ_PIPE_MAX);
            }
    }
}

static void record_traffic(uint8_t how, uint8_t where, uint32_t number, struct seed *frames) {
    static struct fz_world world;
    static struct seed seed;
    seed.size = 0;
    const uint8_t random[4] = {how, 1, 2, 3};
    add(&seed, how, where, random, sizeof random);
    fz_demux_open(&world, how, where, how, true);
    bool more = true;
    while (more) {
        more = false;
        pump_victims(&world);
        for (uint32_t m = FZ_DEMUX_REAL; m < FZ_DEMUX_COUNT; m++)
            for (uint32_t e = 0; e < FZ_ENDS_MAX; e++) {
                uint8_t blob[4096];
                uint32_t to = world.members[m].ends[e].far;
                if (!world.members[m].ends[e].up || to >= FZ_DEMUX_REAL)
                    continue;
                size_t n = next_frame(&world, m, e, blob, sizeof blob);
                if (!n)
                    continue;
                more = true;
                fz_transmit(&world, m, e, n);
                add(&seed, FZ_FITTED, (uint8_t)(to | (m - FZ_DEMUX_REAL) << 1), blob, n);
                add_frame(frames, blob, n);
                pump_victims(&world);
            }
    }
    FZ_CHECK(!world.ended_ill && world.ended_well);
    save(&seed, "demux", "traffic", number);
    fz_world_close(&world);
}

/* Parts of ops that nobody has, more than there is scratch for. */
static void save_flood(void) {
    static struct seed seed;
    seed.size = 0;
    add(&seed, 0, 0, "seed", 4);
    for (uint32_t i = 0; i < 8; i++) {
        uint8_t blob[PC_HEADER_BYTES + FZ_SEGMENT_BYTES] = {0};
        struct pc_header header = {.type = PC_PART,
                                   .epoch = 1,
                                   .op = 1000 + i / 4,
                                   .segment = i,
                                   .length = FZ_SEGMENT_BYTES};
        pc_header_put(blob, &header, blob + PC_HEADER_BYTES);
        add(&seed, FZ_FITTED, i % 2 << 1, blob, sizeof blob);
        seed.bytes[seed.size - FZ_RECORD_BYTES - sizeof blob + 2] = 255; /* times */
    }
    save(&seed, "demux", "flood", 0);
}

static void save_demux_and_frame(void) {
    static const uint8_t how[] = {0, 1, 2, 3, 5, 7, 8 + 3, 16 + 1, 24 + 2, 24 + 7};
    for (uint32_t i = 0; i < sizeof how; i++) {
        static struct seed frames;
        frames.size = 0;
        record_traffic(how[i], (uint8_t)(i % 2 + (i % 3 == 2 ? 2 : 0)), i, &frames);
        frames.size = frames.size < FRAMES_BYTES ? frames.size : FRAMES_BYTES;
        save(&frames, "frame", "traffic", i);
    }
    static struct seed shakes;
    uint8_t bytes[PC_HANDSHAKE_BYTES];
    struct pc_handshake shake = {.run = 1, .from = 2, .to = 3, .epoch = 4};
    pc_handshake_put(bytes, &shake);
    add(&shakes, 2, 0, bytes, sizeof bytes);
    add(&shakes, 2, 1, bytes, sizeof bytes);
    add(&shakes, 3, 40, bytes, sizeof bytes);
    save(&shakes, "frame", "shake", 0);
}

/* ---- core: calls -------------------------------------------------------------------------------
 */

static void add_random(struct seed *seed, uint8_t what, uint8_t where, size_t n, uint64_t *random) {
    uint8_t bytes[64];
    for (size_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)fz_random(random);
    add(seed, what, where, bytes, n);
}

static void add_submits(struct seed *seed, uint32_t count, uint64_t *random) {
    for (uint32_t i = 0; i < count; i++)
        add_random(seed, FZ_SUBMIT_ALL, (uint8_t)(fz_random(random) % 252), 8, random);
}

static void add_steps(struct seed *seed, uint32_t count, uint64_t *random) {
    for (uint32_t i = 0; i < count; i++)
        add_random(seed, FZ_STEPS, (uint8_t)fz_random(random), 1, random);
}

/* A death, or a lie, or neither, in the midst of ops, and views installed while bytes move. */
static void save_calls(uint32_t number) {
    static struct seed seed;
    seed.size = 0;
    uint64_t random = number * 77 + 1;
    add_random(&seed, (uint8_t)number, (uint8_t)(number * 5), 4, &random);
    if (number % 4 == 2)
        add_random(&seed, FZ_TURN, (uint8_t)number, 0, &random);
    for (uint32_t round = 0; round < 3; round++) {
        add_submits(&seed, 1 + fz_random(&random) % 3, &random);
        add_steps(&seed, 1 + fz_random(&random) % 6, &random);
        for (uint32_t i = 0; number % 3 == 2 && i < 4; i++) {
            uint8_t call = (uint8_t)(FZ_CHANGE + fz_random(&random) % 2);
            add_random(&seed, call, (uint8_t)fz_random(&random), 4, &random);
            add_steps(&seed, 1, &random);
        }
        if (number % 4 == 1)
            add_random(&seed, FZ_KILL, (uint8_t)(number + round), 0, &random);
        if (number % 5 == 4)
            add_random(&seed, FZ_ADVANCE, 1, 4, &random);
        if (number % 8 == 6)
            add_random(&seed, FZ_UNLINK, (uint8_t)fz_random(&random), 0, &random);
        if (number % 8 == 7)
            add_random(&seed, FZ_FAIL, (uint8_t)number, 0, &random);
        add_random(&seed, FZ_VIEW, 0, number % 8 == 3 ? 4 : 0, &random);
        for (uint8_t m = 0; m < 4; m++) {
            add(&seed, FZ_INSTALL, m, NULL, 0);
            add_steps(&seed, 1, &random);
        }
        add_submits(&seed, 1, &random);
    }
    save(&seed, "core", "calls", number);
}

/* ---- handshake ---------------------------------------------------------------------------------
 */

enum { CALL = 0, SHAKE = 1, SAY = 3, HANG_UP = 4, LATER = 5, VIEW = 6, WAIT = 7 };

static void save_shakes(uint32_t number) {
    static struct seed seed;
    seed.size = 0;
    uint64_t random = number + 1;
    add(&seed, VIEW, number % 3 ? 0x1f : 9, NULL, 0);
    add(&seed, WAIT, (uint8_t)(4 | number % 2), NULL, 0);
    for (uint8_t i = 0; i < 6; i++) {
        const uint8_t right[3] = {0, i, 0}, wrong[3] = {(uint8_t)number, i, 0},
                      some[3] = {0, i, 150};
        const uint8_t bits[5] = {0, i, 0, (uint8_t)fz_random(&random), 4};
        add(&seed, CALL, 0, NULL, 0);
        if (number % 4 == 2)
            add(&seed, SHAKE, i, some, sizeof some);
        if (number % 5 == 4)
            add(&seed, SHAKE, i, bits, sizeof bits);
        add(&seed, SHAKE, i, i % 3 ? right : wrong, sizeof right);
        if (number % 4 == 3)
            add_random(&seed, SAY, i, 40, &random);
        add(&seed, WAIT, 6, NULL, 0);
    }
    if (number % 3 == 1)
        add(&seed, VIEW, 0x0a, NULL, 0);
    if (number % 6 == 5) { /* a flood */
        add(&seed, CALL, 0, NULL, 0);
        seed.bytes[seed.size - FZ_RECORD_BYTES + 2] = 240;
    }
    const uint8_t ms[2] = {(uint8_t)(number * 40), 20};
    add(&seed, LATER, 0, ms, sizeof ms);
    add(&seed, HANG_UP, 1, NULL, 0);
    add(&seed, WAIT, 4, NULL, 0);
    save(&seed, "handshake", "shakes", number);
}

int main(int argc, char **argv) {
    FZ_CHECK(argc == 2);
    folder = argv[1];
    save_demux_and_frame();
    save_flood();
    for (uint32_t i = 0; i < 24; i++)
        save_calls(i);
    for (uint32_t i = 0; i < 12; i++)
        save_shakes(i);
    return 0;
}
