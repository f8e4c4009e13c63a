/* control: one text command in, one text answer out.
 *
 *   set up|down|delay|jitter|loss|cut|flow|queue NUMBER A B
 *   stats
 *
 * up, down, flow in bits/s (0: unlimited), delay, jitter, queue in ns, loss 0 to 1, cut 0 or 1.
 * A is a host (up, down) or a source, B a destination; -1 stands for all. Answers "ok", a JSON
 * object, or "error ..." with nothing changed.
 */
#ifndef WAN_CONTROL_H
#define WAN_CONTROL_H

#include "path.h"

struct wan_link_stats {
    uint64_t late_ns_max;     /* how late, at worst, a packet was handed over since the last look */
    uint64_t refused_packets; /* the kernel did not take them */
    uint64_t other_packets;   /* addressed to none of the hosts, or no memory */
};

void wan_control(struct wan_path *path, struct wan_link_stats *link, const char *command,
                 char *answer, size_t answer_bytes);

#endif
