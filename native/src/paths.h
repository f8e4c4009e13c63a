/* paths: what the kernel measures on the links to each member, sampled while they are used. The
 * control thread fetches it (pccl_engine_paths); nothing here is decided by it. pccl-io only. */
#ifndef PC_PATHS_H
#define PC_PATHS_H

#include <stdbool.h>
#include <stdint.h>

#define PC_PATHS_INTERVAL_NS  1000000000u
#define PC_PATHS_RATE_SAMPLES 4 /* a rate is believed after so many: a link starts slowly */

struct pc_io;

/* Of one member. */
struct pc_path {
    uint32_t rtt_us;  /* 0: not known */
    uint64_t rate;    /* bytes a second, the best of all samples */
    uint32_t samples; /* of the rate */
    bool used;        /* something was sent since the last sample */
    uint32_t told_us; /* as of the last event */
    uint64_t told_rate;
};

/* Takes a sample if it is time; publishes it, and posts an event if something is new. */
void pc_paths_sample(struct pc_io *io, uint64_t now_ns);

#endif
