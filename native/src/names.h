/* names: how often each op name was used in this line, so that named ops match by (name, n-th use).
 * Pure. Bounded by PC_NAMES_MAX names a line. */
#ifndef PC_NAMES_H
#define PC_NAMES_H

#include <stdint.h>

#define PC_NAMES_MAX 65536u

struct pc_names {
    uint64_t *keys; /* open addressing; 0 is empty */
    uint32_t *uses;
    uint32_t count, capacity;
};

void pc_names_init(struct pc_names *names);
void pc_names_free(struct pc_names *names);
void pc_names_clear(struct pc_names *names);

/* Counts one more use of `name` (not 0) and returns its number, from 1; 0: too many names, or out
 * of memory. */
uint32_t pc_names_use(struct pc_names *names, uint64_t name);

/* The 32-bit op number of the use-th op of a name. */
uint32_t pc_names_number(uint64_t name, uint32_t use);

#endif
