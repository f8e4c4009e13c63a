/* pair: what waits to be sent to each other member, and who those are in this view. */
#include <stdlib.h>

#include "check.h"
#include "internal.h"

/* ---- queues ------------------------------------------------------------------------------------
 */

void pc_queue_push(struct pc_queue *queue, struct pc_entry entry) {
    if (queue->count == queue->capacity) {
        uint32_t capacity = queue->capacity ? queue->capacity * 2 : 64;
        struct pc_entry *entries = calloc(capacity, sizeof *entries);
        PC_ASSERT(entries); /* a few hundred kilobytes at most: the machine is done for */
        for (uint32_t i = 0; i < queue->count; i++)
            entries[i] = queue->entries[(queue->head + i) & (queue->capacity - 1)];
        free(queue->entries);
        queue->entries = entries;
        queue->head = 0;
        queue->capacity = capacity;
    }
    queue->entries[(queue->head + queue->count) & (queue->capacity - 1)] = entry;
    queue->count++;
}

bool pc_queue_pop(struct pc_queue *queue, struct pc_entry *entry) {
    if (!queue->count)
        return false;
    *entry = queue->entries[queue->head];
    queue->head = (queue->head + 1) & (queue->capacity - 1);
    queue->count--;
    return true;
}

/* ---- pairs -------------------------------------------------------------------------------------
 */

static void free_pair(struct pc_pair *pair) {
    if (!pair)
        return;
    free(pair->urgent.entries);
    free(pair->bulk.entries);
    free(pair->parts.entries);
    free(pair->lazy.entries);
    free(pair);
}

static struct pc_pair *take_old(pc_core *core, uint64_t peer) {
    for (uint32_t i = 0; core->pairs && i < core->world; i++) {
        struct pc_pair *pair = core->pairs[i];
        if (pair && pair->peer == peer) {
            core->pairs[i] = NULL;
            return pair;
        }
    }
    return NULL;
}

static void empty(struct pc_pair *pair, uint32_t index) {
    pair->index = index;
    pair->urgent.count = pair->bulk.count = pair->parts.count = pair->lazy.count = 0;
    pair->parts_ahead = pair->told = 0;
    pair->eager = 0;
    pair->wanted = false;
    pair->via = index;
    pair->credit = PC_RELAY_CREDIT;
    pair->carried = 0;
}

static void join_pair(struct pc_link *link) {
    link->pair->links_up++;
    link->pair->is_long |= link->is_long;
}

bool pc_pairs_enter_view(pc_core *core, const uint64_t *peers, uint32_t world, uint32_t self) {
    struct pc_pair **pairs = calloc(world, sizeof *pairs);
    struct pc_pair **fresh = calloc(world, sizeof *fresh);
    bool enough = pairs && fresh;
    for (uint32_t i = 0; enough && i < world; i++) { /* all the memory first, then the changes */
        fresh[i] = i == self ? NULL : calloc(1, sizeof **fresh);
        enough = i == self || fresh[i];
    }
    for (uint32_t i = 0; enough && i < world; i++) {
        if (i == self)
            continue;
        pairs[i] = take_old(core, peers[i]);
        if (!pairs[i]) {
            pairs[i] = fresh[i];
            fresh[i] = NULL;
            pairs[i]->peer = peers[i];
        }
        empty(pairs[i], i);
    }
    for (uint32_t i = 0; fresh && i < world; i++)
        free_pair(fresh[i]);
    free(fresh);
    if (!enough) {
        free(pairs);
        return false;
    }
    pc_pairs_free(core);
    core->pairs = pairs;
    for (int id = 0; id < PC_LINKS_MAX; id++) {
        struct pc_link *link = core->links[id];
        if (!link)
            continue;
        link->pair = NULL;
        for (uint32_t i = 0; i < world; i++)
            if (pairs[i] && pairs[i]->peer == link->peer)
                link->pair = pairs[i];
    }
    for (uint32_t i = 0; i < world; i++)
        if (pairs[i])
            pairs[i]->links_up = pairs[i]->is_long = 0;
    for (int id = 0; id < PC_LINKS_MAX; id++)
        if (core->links[id] && core->links[id]->pair)
            join_pair(core->links[id]);
    return true;
}

void pc_pairs_free(pc_core *core) {
    for (uint32_t i = 0; core->pairs && i < core->world; i++)
        free_pair(core->pairs[i]);
    free(core->pairs);
    core->pairs = NULL;
}

/* Frames wait for it: somebody must have a link to it, or to who passes them on. */
static void want_link(pc_core *core, struct pc_pair *pair) {
    struct pc_pair *way = pair->via == PC_NO_INDEX ? pair : core->pairs[pair->via];
    if (!way->links_up)
        way->wanted = true;
}

static struct pc_queue *queue_for(pc_core *core, struct pc_pair *pair, const struct pc_op *op,
                                  uint8_t type, bool lazily) {
    if (lazily && pair->lazy.count < PC_LAZY_MAX) {
        core->lazy = true;
        return &pair->lazy;
    }
    want_link(core, pair);
    if (!pc_carries_value(type) || op->small)
        return &pair->urgent;
    return type == PC_PART && pair->is_long ? &pair->parts : &pair->bulk;
}

static void push(pc_core *core, struct pc_op *op, uint32_t place, uint32_t segment, uint8_t type,
                 bool lazily) {
    struct pc_pair *pair = core->pairs[op->context->at[place]];
    PC_ASSERT(pair);
    struct pc_entry entry = {.op = op, .segment = segment, .type = type, .lazy = lazily};
    op->queued_count++;
    op->values_queued += pc_carries_value(type);
    if (!op->streams && type == PC_SUM)
        op->segments[segment].sum_queued = true;
    if (!op->streams && type == PC_MARK)
        entry.contributors = op->segments[segment].contributors;
    pc_queue_push(queue_for(core, pair, op, type, lazily), entry);
}

void pc_push(pc_core *core, struct pc_op *op, uint32_t place, uint32_t segment, uint8_t type) {
    push(core, op, place, segment, type, false);
}

void pc_push_lazily(pc_core *core, struct pc_op *op, uint32_t place, uint32_t segment,
                    uint8_t type) {
    push(core, op, place, segment, type, true);
}

void pc_pairs_hurry(pc_core *core) {
    core->lazy = false;
    core->lazy_ns = 0;
    for (uint32_t i = 0; core->epoch && i < core->world; i++) {
        struct pc_pair *pair = core->pairs[i];
        struct pc_entry entry;
        while (pair && pc_queue_pop(&pair->lazy, &entry)) {
            pc_queue_push(&pair->urgent, entry);
            want_link(core, pair);
        }
    }
}

void pc_push_all(pc_core *core, struct pc_op *op, uint32_t segment, uint8_t type) {
    for (uint32_t i = pc_after(op, pc_self(op)); i != pc_self(op); i = pc_after(op, i))
        pc_push(core, op, i, segment, type);
}

/* ---- relays: where the link between two members is broken, a third passes their frames on
 * --------
 */

static int by_ends(const void *one, const void *other) {
    const struct pccl_edge *a = one, *b = other;
    if (a->a != b->a)
        return a->a < b->a ? -1 : 1;
    return a->b < b->b ? -1 : a->b > b->b;
}

/* A view of a thousand members may have thousands of broken links, and each is asked for often. */
static void sort_cuts(pc_core *core) {
    for (uint32_t i = 0; i < core->cut_count; i++) {
        struct pccl_edge *cut = &core->cuts[i];
        if (cut->a > cut->b)
            *cut = (struct pccl_edge){cut->b, cut->a};
    }
    if (core->cut_count)
        qsort(core->cuts, core->cut_count, sizeof *core->cuts, by_ends);
}

bool pc_is_cut(const pc_core *core, uint32_t a, uint32_t b) {
    struct pccl_edge cut = {a < b ? a : b, a < b ? b : a};
    return core->cut_count &&
           bsearch(&cut, core->cuts, core->cut_count, sizeof cut, by_ends) != NULL;
}

uint32_t pc_relay_between(const pc_core *core, uint32_t a, uint32_t b) {
    for (uint32_t i = 0; i < core->world; i++)
        if (i != a && i != b && !pc_is_cut(core, a, i) && !pc_is_cut(core, i, b))
            return i;
    return PC_NO_INDEX;
}

void pc_pairs_find_ways(pc_core *core) {
    sort_cuts(core);
    core->relayed = 0;
    for (uint32_t i = 0; i < core->world; i++) {
        if (i == core->self || !pc_is_cut(core, core->self, i))
            continue;
        core->pairs[i]->via = pc_relay_between(core, core->self, i);
        core->relayed++;
    }
}

void pc_relay(pc_core *core, struct pc_buffer *cargo) {
    struct pc_pair *pair = core->pairs[cargo->header.to];
    struct pc_entry entry = {.cargo = cargo, .type = cargo->header.type};
    core->pairs[cargo->header.from]->carried++;
    pc_queue_push(cargo->header.length > PC_SMALL_OP_BYTES ? &pair->bulk : &pair->urgent, entry);
    want_link(core, pair);
}

void pc_relayed(pc_core *core, struct pc_buffer *cargo) {
    struct pc_pair *pair = core->pairs[cargo->header.from];
    struct pc_entry credit = {.segment = cargo->header.to, .type = PC_CREDIT};
    pair->carried--;
    pc_queue_push(&pair->urgent, credit);
    want_link(core, pair);
    pc_pool_put(&core->pool, cargo);
}

/* ---- links -------------------------------------------------------------------------------------
 */

int pc_core_link_new(pc_core *core, uint64_t peer, int is_long) {
    int id = 0;
    while (id < PC_LINKS_MAX && core->links[id])
        id++;
    if (id == PC_LINKS_MAX)
        return -1;
    struct pc_link *link = calloc(1, sizeof *link);
    if (!link)
        return -1;
    link->peer = peer;
    link->is_long = is_long != 0;
    core->links[id] = link;
    if (core->links_high <= id)
        core->links_high = id + 1;
    uint32_t index = pc_ring_index(core, peer);
    if (index != PC_NO_INDEX && index != core->self) {
        link->pair = core->pairs[index];
        join_pair(link);
        link->pair->wanted = false;
    }
    return id;
}

void pc_core_link_free(pc_core *core, int id) {
    struct pc_link *link = core->links[id];
    PC_ASSERT(link);
    pc_demux_stop(core, link);
    pc_mux_stop(core, link);
    if (link->pair)
        link->pair->links_up--;
    core->links[id] = NULL;
    free(link);
}

uint64_t pc_core_wanted(pc_core *core) {
    for (uint32_t i = 0; core->epoch && i < core->world; i++) {
        struct pc_pair *pair = core->pairs[i];
        if (pair && pair->wanted) {
            pair->wanted = false;
            return pair->peer;
        }
    }
    return 0;
}
