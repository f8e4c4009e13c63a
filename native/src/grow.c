/* grow: see grow.h. */
#include "grow.h"

uint32_t pc_grow(struct pc_growth *growth, uint32_t links, uint32_t rtt_us) {
    uint64_t bytes = growth->bytes;
    bool busy = growth->blocked && bytes;
    growth->bytes = 0;
    growth->blocked = false;
    if (!busy || growth->settled || rtt_us < PC_GROW_RTT_US || links >= PC_GROW_LINKS_MAX)
        return links;
    if (growth->best_bytes && bytes < growth->best_bytes + growth->best_bytes / 4) {
        growth->settled = true;
        return links;
    }
    growth->best_bytes = bytes;
    uint32_t more = links * 2;
    return more < PC_GROW_LINKS_MAX ? more : PC_GROW_LINKS_MAX;
}
