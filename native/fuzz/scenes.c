/* scenes: see scenes.h. */
#include "scenes.h"

#define OPS 8

static const struct {
    int32_t kind;
    uint16_t count;
} ops[OPS] = {{PCCL_ALL_REDUCE, 50},     {PCCL_ALL_REDUCE, 0},  {PCCL_ALL_REDUCE, 130},
              {PCCL_BROADCAST, 7},       {PCCL_ALL_REDUCE, 20}, {PCCL_ALL_GATHER, 30},
              {PCCL_REDUCE_SCATTER, 30}, {PCCL_ALL_TO_ALL, 30}};

/* The fifth is named, the third strict, the last of a sub-group. */
static void submit_ops(struct fz_world *world, uint8_t how) {
    for (uint32_t i = 0; i < OPS; i++) {
        struct fz_wish wish = {.args = {.kind = ops[i].kind,
                                        .dtype = how & 4 ? PCCL_FLOAT32 : PCCL_INT64,
                                        .count = ops[i].count,
                                        .route = how % 4,
                                        .name = i == 4 ? 7 : 0,
                                        .strict = i == 2,
                                        .weight = 1,
                                        .timeout_ns = UINT64_C(1000000000000)},
                               .uneven = how / 8};
        if (wish.args.kind == PCCL_BROADCAST)
            wish.args.root_peer = world->members[how / 8 % FZ_DEMUX_COUNT].peer;
        if (i == OPS - 1) {
            wish.args.context = 1;
            wish.among = 0x7;
        }
        for (uint32_t m = 0; m < world->count; m++) {
            uint64_t id = fz_next_id(world, m, &wish);
            fz_plan(world, id, &wish);
            fz_submit(world, m, id, &wish);
        }
    }
}

void fz_demux_open(struct fz_world *world, uint8_t how, uint8_t where, uint64_t random,
                   bool all_real) {
    struct fz_setup setup = {
        .count = FZ_DEMUX_COUNT, .checksum = where % 2, .cut = where / 2 % 2, .random = random};
    for (uint32_t m = FZ_DEMUX_REAL; m < FZ_DEMUX_COUNT && !all_real; m++)
        setup.nobody |= 1u << m;
    fz_world_open(world, &setup);
    for (uint32_t a = 0; a < FZ_DEMUX_COUNT; a++)
        for (uint32_t b = a + 1; b < FZ_DEMUX_COUNT; b++)
            fz_link(world, a, b);
    submit_ops(world, how);
}
