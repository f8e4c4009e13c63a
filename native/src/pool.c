/* pool: see pool.h. Buffers are made on first need, so an idle engine holds none. */
#include "pool.h"

#include <stdlib.h>

#include "check.h"

void pc_pool_init(struct pc_pool *pool, size_t buffer_bytes) {
    *pool = (struct pc_pool){.buffer_bytes = buffer_bytes};
}

void pc_pool_free(struct pc_pool *pool) {
    while (pool->all) {
        struct pc_buffer *buffer = pool->all;
        pool->all = buffer->all_next;
        free(buffer->data);
        free(buffer);
    }
    free(pool->used);
    *pool = (struct pc_pool){0};
}

static struct pc_buffer *make(struct pc_pool *pool) {
    struct pc_buffer *buffer = calloc(1, sizeof *buffer);
    if (!buffer)
        return NULL;
    buffer->data = aligned_alloc(64, (pool->buffer_bytes + 63) / 64 * 64);
    if (!buffer->data) {
        free(buffer);
        return NULL;
    }
    buffer->all_next = pool->all;
    pool->all = buffer;
    pool->count++;
    return buffer;
}

bool pc_pool_members(struct pc_pool *pool, uint32_t members) {
    uint32_t *used = calloc(members, sizeof *used);
    if (!used)
        return false;
    free(pool->used);
    pool->used = used;
    pool->used_count = members;
    return true;
}

struct pc_buffer *pc_pool_take(struct pc_pool *pool, uint32_t holder) {
    PC_ASSERT(holder < pool->used_count);
    if (pool->used[holder] >= pool->share)
        return NULL;
    struct pc_buffer *buffer = pool->free;
    if (!buffer && pool->count < pool->count_max)
        buffer = make(pool);
    else if (buffer)
        pool->free = buffer->next;
    if (!buffer)
        return NULL;
    buffer->next = NULL;
    buffer->holder = holder;
    pool->used[holder]++;
    return buffer;
}

void pc_pool_put(struct pc_pool *pool, struct pc_buffer *buffer) {
    PC_ASSERT(buffer && pool->used[buffer->holder]);
    pool->used[buffer->holder]--;
    buffer->next = pool->free;
    pool->free = buffer;
}

void pc_pool_put_all(struct pc_pool *pool) {
    pool->free = NULL;
    for (uint32_t i = 0; i < pool->used_count; i++)
        pool->used[i] = 0;
    for (struct pc_buffer *buffer = pool->all; buffer; buffer = buffer->all_next) {
        buffer->next = pool->free;
        pool->free = buffer;
    }
}
