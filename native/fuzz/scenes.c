/* scenes: see scenes.h. */
#include "scenes.h"

#define OPS 5

static void submit_ops(struct fz_world *world, uint8_t how) {
    static const uint16_t counts[OPS] = {50, 0, 130, 7, 100};
    for (uint32_t i = 0; i < OPS; i++) {
        bool named = i == OPS - 1;
        struct pccl_op args = {.kind = i == 3 ? PCCL_BROADCAST : PCCL_ALL_REDUCE,
                               .dtype = how & 4 ? PCCL_FLOAT32 : PCCL_INT64,
                               .count = counts[i],
                               .route = how % 4,
                               .name = named ? 7 : 0,
                               .strict = i == 2,
                               .timeout_ns = UINT64_C(1000000000)};
        if (args.kind == PCCL_BROADCAST)
            args.root_peer = world->members[how / 8 % FZ_DEMUX_COUNT].peer;
        uint64_t id = named ? FZ_NAMED | 7 : i + 1;
        fz_plan(world, id, &args);
        for (uint32_t m = 0; m < world->count; m++)
            fz_submit(world, m, id, &args);
    }
}

void fz_demux_open(struct fz_world *world, uint8_t how, uint8_t where, uint64_t random,
                   bool all_real) {
    struct fz_setup setup = {.count = FZ_DEMUX_COUNT, .checksum = where % 2, .random = random};
    for (uint32_t m = FZ_DEMUX_REAL; m < FZ_DEMUX_COUNT && !all_real; m++)
        setup.nobody |= 1u << m;
    fz_world_open(world, &setup);
    for (uint32_t a = 0; a < FZ_DEMUX_COUNT; a++)
        for (uint32_t b = a + 1; b < FZ_DEMUX_COUNT; b++)
            fz_link(world, a, b);
    submit_ops(world, how);
}
