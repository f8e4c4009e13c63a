/* grow: how many links a pair should have, decided from what they carry. Pure.
 *
 * On a short path one TCP connection carries what there is. On a long one a flow is held back by
 * loss, by its window, or by a cap per flow: links are added while that makes the pair faster. */
#ifndef PC_GROW_H
#define PC_GROW_H

#include <stdbool.h>
#include <stdint.h>

/* cffi-begin */

#define PC_GROW_LINKS_FIRST 4 /* on a long path */
#define PC_GROW_LINKS_MAX   8
#define PC_GROW_INTERVAL_NS 250000000
#define PC_GROW_RTT_US      2000 /* below: one link is enough */

struct pc_growth {
    uint64_t best_bytes; /* of an interval with fewer links */
    uint64_t bytes;      /* sent in this interval */
    bool blocked;        /* the kernel took no more at some time in this interval */
    bool settled;        /* more links did not help */
};

/* The end of an interval: how many links there should be, of `links` now. */
uint32_t pc_grow(struct pc_growth *growth, uint32_t links, uint32_t rtt_us);

/* cffi-end */

#endif
