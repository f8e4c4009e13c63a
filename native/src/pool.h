/* pool: the segment buffers of one core, all of one size, bounded in number, reused.
 *
 * A buffer belongs to whoever took it until it is put back; put_all forgets them all at once. Each
 * is counted against the member whose frame fills it: who floods us leaves the others their share.
 */
#ifndef PC_POOL_H
#define PC_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frame.h"

struct pc_buffer {
    struct pc_buffer *next;     /* free list, or the list of parked frames that holds it */
    struct pc_buffer *all_next; /* every buffer ever made */
    uint32_t from;              /* ring index of whose value it is */
    uint32_t holder;            /* ring index of whose share it is counted against */
    struct pc_header header;    /* of the frame whose payload this is */
    uint8_t *data;              /* 64-byte aligned */
};

struct pc_pool {
    struct pc_buffer *free;
    struct pc_buffer *all;
    uint32_t count;
    uint32_t count_max;
    size_t buffer_bytes;
    uint32_t *used; /* by ring index: buffers that are out; NULL: nobody is counted */
    uint32_t used_count;
    uint32_t share; /* of one member, at most */
};

void pc_pool_init(struct pc_pool *pool, size_t buffer_bytes);
void pc_pool_free(struct pc_pool *pool);

/* A new view, when no buffer is out: so many members, each with at most `share`. false: memory. */
bool pc_pool_members(struct pc_pool *pool, uint32_t members);

/* For a member of the view. NULL when its share or count_max buffers are out, or memory is. */
struct pc_buffer *pc_pool_take(struct pc_pool *pool, uint32_t holder);
void pc_pool_put(struct pc_pool *pool, struct pc_buffer *buffer);
void pc_pool_put_all(struct pc_pool *pool);

#endif
