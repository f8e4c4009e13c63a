/* fuzz target demux: bytes from two members that are nobody, in pieces of any length, into two
 * cores that have a view and running ops with them and with each other. Whatever they say costs
 * them their links, which they may call again; without them every op ends, and another works. */
#include <string.h>

#include "core.h"
#include "fuzz.h"
#include "scenes.h"

#define REAL  FZ_DEMUX_REAL
#define COUNT FZ_DEMUX_COUNT
#define BYTES 2048

static uint64_t inputs, ended_well, ended_ill, links_bad, alone_well;

/* The victim's end of its link to that member, called again if need be. */
static uint32_t end_to(struct fz_world *world, uint32_t victim, uint32_t far) {
    for (;;) {
        for (uint32_t e = 0; e < FZ_ENDS_MAX; e++)
            if (world->members[victim].ends[e].up && world->members[victim].ends[e].far == far)
                return e;
        bool linked = fz_link(world, victim, far);
        FZ_CHECK(linked);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct fz_world world;
    struct fz_reader input = fz_reader(data, size < FZ_INPUT_MAX ? size : FZ_INPUT_MAX);
    struct fz_record record;
    if (!fz_next(&input, &record))
        return 0;
    uint32_t random = fz_u32(&record.bytes);
    fz_demux_open(&world, record.what, record.where, random, false);
    while (fz_next(&input, &record)) {
        uint32_t victim = record.where % REAL, far = REAL + record.where / 2 % (COUNT - REAL);
        uint8_t blob[BYTES];
        size_t n = fz_left(&record.bytes) < BYTES ? fz_left(&record.bytes) : BYTES;
        if (n)
            memcpy(blob, record.bytes.at, n);
        fz_seal(blob, n, record.what % FZ_HONESTIES, world.now.view.epoch);
        for (uint32_t i = 0; i < record.times; i++)
            fz_inject(&world, victim, end_to(&world, victim, far), blob, n);
        if (record.what < 192)
            fz_pump(&world);
        fz_check_all(&world);
    }
    inputs++;
    fz_pump(&world);
    alone_well += world.ended_well;
    fz_settle(&world);
    fz_prove(&world);
    ended_well += world.ended_well;
    ended_ill += world.ended_ill;
    links_bad += world.links_bad;
    fz_world_close(&world);
    return 0;
}

void fz_summary(FILE *out) {
    fprintf(out, "inputs: %lu; ops: %lu well before the view, %lu in all, %lu ill; refused: %lu\n",
            inputs, alone_well, ended_well, ended_ill, links_bad);
}
