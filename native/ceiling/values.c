/* What the buffers hold, as in values.py: small whole numbers, so that sums are exact. */
#include "ceiling.h"

#include <string.h>

#define PERIOD 4093 /* of the values; a prime, so that misplaced segments show */

static unsigned value(size_t index, unsigned rank)
{
    uint64_t j = index % PERIOD;
    uint64_t mixed = (j + 1) * 2654435761u + (rank + 1) * (j % 61 + 1) * 2654435769u;
    return (unsigned)(mixed >> 28 & 3);
}

void fill(float *into, size_t count, unsigned rank)
{
    for (size_t i = 0; i < count; i++)
        into[i] = (float)value(i, rank);
}

/* Wrong ones of `count` elements that must hold, from `start` on, the sum of ranks first … last. */
static size_t wrong_sums(const float *found, size_t count, size_t start, unsigned first,
                         unsigned last)
{
    static float expected[PERIOD];
    size_t wrong = 0;
    for (size_t j = 0; j < PERIOD; j++) {
        unsigned sum = 0;
        for (unsigned rank = first; rank <= last; rank++)
            sum += value(j, rank);
        expected[j] = (float)sum;
    }
    for (size_t i = 0; i < count; i++)
        wrong += found[i] != expected[(start + i) % PERIOD];
    return wrong;
}

size_t count_wrong(const struct ring *ring)
{
    size_t wrong = 0, block = ring->count / ring->world, mine = ring->rank * block;
    switch (ring->op) {
    case ALL_GATHER:
        for (unsigned rank = 0; rank < ring->world; rank++)
            wrong += wrong_sums(ring->target + rank * block, block, 0, rank, rank);
        return wrong;
    case REDUCE_SCATTER:
        return wrong_sums(ring->target + mine, block, mine, 0, ring->world - 1);
    case BROADCAST:
        return wrong_sums(ring->target, ring->count, 0, 0, 0);
    case REDUCE:
        if (ring->rank != 0)
            return 0;
        break;
    case ALL_REDUCE:
    case OPS:
        break;
    }
    return wrong_sums(ring->target, ring->count, 0, 0, ring->world - 1);
}

uint64_t hash(const float *values, size_t count)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        h = (h ^ bits) * 0x100000001b3u;
    }
    return h;
}
