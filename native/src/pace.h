/* pace: a bound on what an engine sends over long paths, all its links together. Pure.
 *
 * Several flows through one bottleneck overshoot it together, whatever each does alone: what is
 * dropped then holds up the segments behind it, and one flow's luck is another one's stall. So the
 * engine remembers the best that it ever got through for some time, and has the kernel keep each
 * link to its share of that (SO_MAX_PACING_RATE). It fails safe: each flow's own congestion control
 * decides below the bound, and the bound does not fall with what gets through. One that followed
 * the present loss and round trip was tried and is not safe: both have the other direction's queue
 * and this machine's load in them, and members that wait for each other then slow each other down
 * to nothing. */
#ifndef PC_PACE_H
#define PC_PACE_H

#include <stdint.h>

/* cffi-begin */

#define PC_PACE_RECENT 16

/* What the links did in an interval of about a round trip. */
struct pc_pace_sample {
    uint64_t ns;
    uint64_t delivered;  /* bytes that the other kernels have told they have */
    uint64_t again;      /* bytes sent again */
    uint64_t rtt_us;     /* mean of what the links measure now */
    uint64_t rtt_us_min; /* the same of the least that they have seen */
};

struct pc_pace {
    uint64_t rate;                   /* the bound, bytes a second; 0: none yet */
    uint64_t best;                   /* bytes a second, the most of any PC_PACE_RECENT intervals */
    uint64_t recent[PC_PACE_RECENT]; /* bytes a second delivered in the last intervals */
    uint32_t count;                  /* intervals since slow start filled the path */
    uint32_t used;                   /* intervals in which the bound was used */
};

/* The end of an interval. */
void pc_pace(struct pc_pace *pace, const struct pc_pace_sample *sample);

/* cffi-end */

#endif
