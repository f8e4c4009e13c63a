/* heap: see heap.h. */
#include "heap.h"

#include <stddef.h>
#include <stdlib.h>

struct entry {
    uint64_t at_ns;
    uint64_t seq;
    struct wan_packet *packet;
};

struct wan_heap {
    struct entry *entries;
    size_t count, room;
    uint64_t seq;
};

struct wan_heap *wan_heap_new(void) {
    return calloc(1, sizeof(struct wan_heap));
}

void wan_heap_free(struct wan_heap *heap) {
    free(heap->entries);
    free(heap);
}

static bool before(const struct entry *a, const struct entry *b) {
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->seq < b->seq;
}

bool wan_heap_push(struct wan_heap *heap, uint64_t at_ns, struct wan_packet *packet) {
    if (heap->count == heap->room) {
        size_t room = heap->room ? heap->room * 2 : 1024;
        struct entry *entries = realloc(heap->entries, room * sizeof *entries);
        if (!entries)
            return false;
        heap->entries = entries;
        heap->room = room;
    }
    struct entry entry = {at_ns, heap->seq++, packet};
    size_t i = heap->count++;
    for (; i && before(&entry, &heap->entries[(i - 1) / 2]); i = (i - 1) / 2)
        heap->entries[i] = heap->entries[(i - 1) / 2];
    heap->entries[i] = entry;
    return true;
}

struct wan_packet *wan_heap_pop(struct wan_heap *heap) {
    if (!heap->count)
        return NULL;
    struct entry *entries = heap->entries;
    struct wan_packet *first = entries[0].packet;
    struct entry last = entries[--heap->count];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < heap->count; i = child) {
        if (child + 1 < heap->count && before(&entries[child + 1], &entries[child]))
            child++;
        if (!before(&entries[child], &last))
            break;
        entries[i] = entries[child];
    }
    entries[i] = last;
    return first;
}

uint64_t wan_heap_next_ns(const struct wan_heap *heap) {
    return heap->count ? heap->entries[0].at_ns : UINT64_MAX;
}
