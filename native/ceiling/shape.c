/* Which traffic an op makes: a ring's steps, or a chain from member to member. */
#include "ceiling.h"

#include <string.h>

static const char *const NAMES[OPS] = {"all_reduce", "all_gather", "reduce_scatter", "broadcast",
                                       "reduce"};

enum op op_named(const char *name)
{
    enum op op = ALL_REDUCE;
    while (op < OPS && strcmp(name, NAMES[op]) != 0)
        op++;
    return op;
}

/* The chain's member at `place` of 0 … world - 1: the first sends, the last takes. */
static struct shape chain(unsigned place, unsigned world, bool adds)
{
    struct shape shape = {.is_whole = true};
    shape.taken_to = place > 0;
    shape.adds = adds ? shape.taken_to : 0;
    shape.sent_from = shape.taken_to;
    shape.sent_to = shape.sent_from + (place + 1 < world);
    return shape;
}

struct shape shape_of(enum op op, unsigned rank, unsigned world, size_t count)
{
    unsigned round = world - 1;
    struct shape shape = {.sent_to = round, .taken_to = round};
    if (op == ALL_REDUCE)
        shape = (struct shape){.sent_to = 2 * round, .taken_to = 2 * round, .adds = round};
    else if (op == REDUCE_SCATTER) /* what it takes last is its own chunk */
        shape = (struct shape){.sent_to = round, .taken_to = round, .adds = round, .turn = round};
    else if (op == BROADCAST)
        shape = chain(rank, world, false);
    else if (op == REDUCE) /* rank 0 is the root, and the last */
        shape = chain((rank + world - 1) % world, world, true);
    shape.input_count = count;
    if (op == ALL_GATHER) {
        shape.input_count = count / world;
        shape.input_at = rank * shape.input_count;
    }
    shape.copies = op == ALL_REDUCE || op == REDUCE || (op == BROADCAST && rank == 0);
    return shape;
}
