/* What the ceiling's files share: `shape.c` which traffic an op makes, `ring.c` the traffic,
 * `values.c` what the buffers hold, `ceiling.c` the parent's lines. */
#ifndef CEILING_H
#define CEILING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SEGMENT_MAX ((size_t)4 << 20)

enum op { ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, BROADCAST, REDUCE, OPS };

/* An op as this rank's steps. In step s the rank sends a chunk (all that it sends after step 0 it
 * took in step s - 1) and takes the one that it sends in step s + 1. */
struct shape {
    unsigned sent_from, sent_to;  /* the steps in which it sends */
    unsigned taken_to;            /* it takes in all steps before */
    unsigned adds;                /* what is taken before this step is added, else copied */
    unsigned turn;                /* its first chunk is that of rank + turn */
    bool is_whole;                /* one chunk, the whole */
    size_t input_at, input_count; /* where the input lies in the target, elements */
    bool copies;                  /* out of place it first copies its source to the target */
};

struct ring {
    unsigned rank, world;
    int in, out; /* one socket when there is one neighbour */
    float *source, *target, *scratch;
    size_t count, segment; /* elements; the most bytes of one receive or send */
    enum op op;
    struct shape shape;
};

void die(const char *what);

/* The op of a name; OPS if there is none. */
enum op op_named(const char *name);
struct shape shape_of(enum op op, unsigned rank, unsigned world, size_t count);

void fill(float *into, size_t count, unsigned rank);
/* Elements of the target that are not what the op must leave there. */
size_t count_wrong(const struct ring *ring);
uint64_t hash(const float *values, size_t count);

/* The first element of a rank's chunk. */
size_t chunk_start(const struct ring *ring, unsigned chunk);
void run_op(struct ring *ring);

int listen_on(unsigned *port);
/* To the next member, from the one before; two members share one connection. */
void join_ring(struct ring *ring, int listener, unsigned next_port);

#endif
