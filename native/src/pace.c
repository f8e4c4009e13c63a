/* pace: see pace.h. */
#include "pace.h"

#include <stdbool.h>

#define ASK_EVERY 96 /* intervals; in the last ASK_FOR of them it asks for an eighth more */
#define ASK_FOR   6

/* Slow start has filled the path: half a round trip of queue, or a loss that is not by chance. */
static bool is_filled(const struct pc_pace_sample *sample) {
    return sample->again > sample->delivered / 64 ||
           sample->rtt_us > sample->rtt_us_min + sample->rtt_us_min / 2;
}

/* A long mean: in a round trip or two more is acknowledged than gets through, when a queue on the
 * way back empties. */
static uint64_t mean(const struct pc_pace *pace) {
    uint64_t sum = 0;
    for (int i = 0; i < PC_PACE_RECENT; i++)
        sum += pace->recent[i] / PC_PACE_RECENT;
    return sum;
}

void pc_pace(struct pc_pace *pace, const struct pc_pace_sample *sample) {
    if (!sample->ns || !sample->delivered || (!pace->count && !is_filled(sample)))
        return;
    uint64_t got = (uint64_t)((double)sample->delivered * 1e9 / (double)sample->ns);
    pace->recent[pace->count++ % PC_PACE_RECENT] = got;
    if (pace->count < PC_PACE_RECENT)
        return;
    if (mean(pace) > pace->best)
        pace->best = mean(pace);
    pace->used += got > pace->rate - pace->rate / 4;
    bool asks = pace->used % ASK_EVERY >= ASK_EVERY - ASK_FOR;
    pace->rate = asks ? pace->best + pace->best / 8 : pace->best - pace->best / 32;
}
