/* paths: what pccl-io does for its links beside carrying bytes: it samples what the kernel measures
 * on them while they are used (the control thread fetches that, pccl_engine_paths), keeps the pace
 * of long ones, and adds links to pairs that they make faster. pccl-io only. */
#ifndef PC_PATHS_H
#define PC_PATHS_H

#include <stdbool.h>
#include <stdint.h>

#define PC_PATHS_INTERVAL_NS  1000000000u
#define PC_PATHS_RATE_SAMPLES 4 /* a rate is believed after so many: a link starts slowly */

struct pc_io;
struct pc_conn;

/* Of one member. */
struct pc_path {
    uint32_t rtt_us;  /* 0: not known */
    uint64_t rate;    /* bytes a second, the best of all samples */
    uint32_t samples; /* of the rate */
    bool used;        /* something was sent since the last sample */
    uint32_t told_us; /* as of the last event */
    uint64_t told_rate;
};

/* So many bytes went out on a link: the clocks run. */
void pc_paths_sent(struct pc_io *io, const struct pc_conn *conn, uint64_t n);
/* The kernel took no more. */
void pc_paths_blocked(struct pc_io *io, const struct pc_conn *conn);
/* `at`, or when pc_paths_on_time has something to do before. */
uint64_t pc_paths_deadline(const struct pc_io *io, uint64_t at);
/* What is due: a sample is published, and an event posted if it says something new; long links get
 * their share of the pace; pairs get more links. */
void pc_paths_on_time(struct pc_io *io, uint64_t now_ns);

#endif
