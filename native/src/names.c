/* names: see names.h. */
#include "names.h"

#include <stdlib.h>
#include <string.h>

static uint64_t mix(uint64_t x) {
    x ^= x >> 33;
    x *= UINT64_C(0xff51afd7ed558ccd);
    x ^= x >> 33;
    x *= UINT64_C(0xc4ceb9fe1a85ec53);
    return x ^ x >> 33;
}

void pc_names_init(struct pc_names *names) {
    *names = (struct pc_names){0};
}

void pc_names_free(struct pc_names *names) {
    free(names->keys);
    free(names->uses);
    pc_names_init(names);
}

void pc_names_clear(struct pc_names *names) {
    if (names->capacity)
        memset(names->keys, 0, names->capacity * sizeof *names->keys);
    names->count = 0;
}

static uint32_t place(const struct pc_names *names, uint64_t name) {
    uint32_t at = (uint32_t)mix(name) & (names->capacity - 1);
    while (names->keys[at] && names->keys[at] != name)
        at = (at + 1) & (names->capacity - 1);
    return at;
}

static int grow(struct pc_names *names) {
    struct pc_names bigger = {.capacity = names->capacity ? names->capacity * 2 : 64};
    bigger.keys = calloc(bigger.capacity, sizeof *bigger.keys);
    bigger.uses = calloc(bigger.capacity, sizeof *bigger.uses);
    if (!bigger.keys || !bigger.uses) {
        pc_names_free(&bigger);
        return 0;
    }
    for (uint32_t i = 0; i < names->capacity; i++)
        if (names->keys[i]) {
            uint32_t at = place(&bigger, names->keys[i]);
            bigger.keys[at] = names->keys[i];
            bigger.uses[at] = names->uses[i];
        }
    bigger.count = names->count;
    pc_names_free(names);
    *names = bigger;
    return 1;
}

uint32_t pc_names_use(struct pc_names *names, uint64_t name) {
    if (2 * (names->count + 1) > names->capacity && !grow(names))
        return 0;
    uint32_t at = place(names, name);
    if (!names->keys[at]) {
        if (names->count >= PC_NAMES_MAX)
            return 0;
        names->keys[at] = name;
        names->uses[at] = 0;
        names->count++;
    }
    return ++names->uses[at];
}

uint32_t pc_names_number(uint64_t name, uint32_t use) {
    uint32_t number = (uint32_t)mix(name + (uint64_t)use * UINT64_C(0x9E3779B97F4A7C15));
    return number ? number : 1;
}
