/* heap: packets by the time at which something happens to them; equal times in order of pushing. */
#ifndef WAN_HEAP_H
#define WAN_HEAP_H

#include <stdbool.h>
#include <stdint.h>

struct wan_heap;
struct wan_packet;

struct wan_heap *wan_heap_new(void); /* NULL without memory */
void wan_heap_free(struct wan_heap *heap); /* not the packets */
bool wan_heap_push(struct wan_heap *heap, uint64_t at_ns, struct wan_packet *packet);
struct wan_packet *wan_heap_pop(struct wan_heap *heap); /* NULL when empty */
uint64_t wan_heap_next_ns(const struct wan_heap *heap); /* UINT64_MAX when empty */

#endif
