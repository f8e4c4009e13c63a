/* context: the participants of ops, as places in the view's ring. The whole group is context 0; a
 * sub-group or a pair of sender and receiver is another, made when its first op is submitted, by
 * name alone: it costs no message and no connection. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "internal.h"

static uint32_t bucket_of(uint32_t id) {
    return (id * 2654435769u >> 16) % PC_OP_BUCKETS;
}

struct pc_context *pc_context_find(const pc_core *core, uint32_t id) {
    for (struct pc_context *context = core->contexts[bucket_of(id)]; context;
         context = context->hash_next)
        if (context->id == id)
            return context;
    return NULL;
}

static bool takes_part(const struct pc_context *context, uint64_t peer) {
    if (!context->peers)
        return true;
    for (uint32_t i = 0; i < context->peer_count; i++)
        if (context->peers[i] == peer)
            return true;
    return false;
}

/* Its places among these members, in `at`. */
static void find_places(struct pc_context *context, uint32_t *at, const uint64_t *peers,
                        uint32_t world, uint32_t self) {
    context->size = 0;
    context->self = PC_NO_INDEX;
    for (uint32_t i = 0; i < world; i++) {
        if (!takes_part(context, peers[i]))
            continue;
        if (i == self)
            context->self = context->size;
        at[context->size++] = i;
    }
    free(context->at);
    context->at = at;
}

static uint32_t *places_for(const struct pc_context *context, uint32_t world) {
    uint32_t most = context->peers && context->peer_count < world ? context->peer_count : world;
    return calloc(most ? most : 1, sizeof(uint32_t));
}

static bool ring_is_whole(const pc_core *core, const struct pc_context *context) {
    for (uint32_t place = 0; core->cut_count && place < context->size; place++)
        if (pc_is_cut(core, context->at[place], context->at[(place + 1) % context->size]))
            return false;
    return true;
}

void pc_contexts_look(pc_core *core) {
    for (int b = 0; b < (int)PC_OP_BUCKETS; b++)
        for (struct pc_context *c = core->contexts[b]; c; c = c->hash_next)
            c->whole_ring = ring_is_whole(core, c);
}

struct pc_context *pc_context_get(pc_core *core, uint32_t id, const uint64_t *peers,
                                  uint32_t peer_count) {
    struct pc_context *context = pc_context_find(core, id);
    if (context)
        return context;
    if (core->context_count >= PCCL_CONTEXTS_MAX)
        return NULL;
    context = calloc(1, sizeof *context);
    if (!context)
        return NULL;
    context->id = id;
    context->self = PC_NO_INDEX;
    uint32_t *at = NULL;
    if (peer_count) {
        context->peers = calloc(peer_count, sizeof *peers);
        if (!context->peers)
            goto fail;
        memcpy(context->peers, peers, peer_count * sizeof *peers);
        context->peer_count = peer_count;
    }
    if (core->epoch) {
        at = places_for(context, core->world);
        if (!at)
            goto fail;
        find_places(context, at, core->peers, core->world, core->self);
        context->whole_ring = ring_is_whole(core, context);
    }
    context->hash_next = core->contexts[bucket_of(id)];
    core->contexts[bucket_of(id)] = context;
    core->context_count++;
    return context;
fail:
    free(context->peers);
    free(context);
    return NULL;
}

bool pc_contexts_enter_view(pc_core *core, const uint64_t *peers, uint32_t world, uint32_t self) {
    uint32_t **fresh = calloc(core->context_count ? core->context_count : 1, sizeof *fresh);
    bool enough = fresh != NULL;
    uint32_t n = 0;
    for (int b = 0; enough && b < (int)PC_OP_BUCKETS; b++) /* all the memory first */
        for (struct pc_context *c = core->contexts[b]; enough && c; c = c->hash_next) {
            fresh[n] = places_for(c, world);
            enough = fresh[n++] != NULL;
        }
    if (!enough) {
        for (uint32_t i = 0; fresh && i < n; i++)
            free(fresh[i]);
        free(fresh);
        return false;
    }
    n = 0;
    for (int b = 0; b < (int)PC_OP_BUCKETS; b++)
        for (struct pc_context *c = core->contexts[b]; c; c = c->hash_next)
            find_places(c, fresh[n++], peers, world, self);
    free(fresh);
    return true;
}

void pc_contexts_free(pc_core *core, bool all) {
    for (int b = 0; b < (int)PC_OP_BUCKETS; b++)
        for (struct pc_context **at = &core->contexts[b]; *at;) {
            struct pc_context *context = *at;
            context->submitted = 0;
            if (!all && context == core->whole) {
                at = &context->hash_next;
                continue;
            }
            *at = context->hash_next;
            core->context_count--;
            free(context->peers);
            free(context->at);
            free(context);
        }
}

uint32_t pc_place(const struct pc_context *context, uint32_t index) {
    uint32_t low = 0, high = context->size;
    if (index < high && context->at[index] == index)
        return index;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (context->at[middle] < index)
            low = middle + 1;
        else
            high = middle;
    }
    return low < context->size && context->at[low] == index ? low : PC_NO_INDEX;
}

uint32_t pc_place_of_peer(const pc_core *core, const struct pc_context *context, uint64_t peer) {
    for (uint32_t place = 0; core->epoch && place < context->size; place++)
        if (core->peers[context->at[place]] == peer)
            return place;
    return PC_NO_INDEX;
}

void pc_contexts_take_stable(const pc_core *core) {
    for (int b = 0; b < (int)PC_OP_BUCKETS; b++)
        for (struct pc_context *c = core->contexts[b]; c; c = c->hash_next)
            c->stable = c->submitted;
    for (const struct pc_op *op = core->ops_head; op; op = op->next)
        if (op->context && !pc_is_named(op->id) &&
            (op->state == PC_RUNNING || op->state == PC_RAISED) &&
            pc_number(op->id) <= op->context->stable)
            op->context->stable = pc_number(op->id) - 1;
}
