/* op: the table of ops of one core: those that run here, those that a peer has announced, and those
 * that ended but must still be remembered. It keeps the table and the life of an op; how segments
 * move is ring.c's business, what a view decides is view.c's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "internal.h"

static uint32_t bucket_of(uint64_t id) {
    return (uint32_t)(id * UINT64_C(0x9E3779B97F4A7C15) >> 54) % PC_OP_BUCKETS;
}

struct pc_op *pc_op_find(const pc_core *core, uint64_t id) {
    for (struct pc_op *op = core->buckets[bucket_of(id)]; op; op = op->hash_next)
        if (op->id == id)
            return op;
    return NULL;
}

static struct pc_op *new_op(pc_core *core, uint64_t id) {
    struct pc_op *op = calloc(1, sizeof *op);
    if (!op)
        return NULL;
    if (core->epoch) {
        op->said = calloc(core->world, sizeof *op->said);
        if (!op->said) {
            free(op);
            return NULL;
        }
    }
    op->id = id;
    op->parked_tail = &op->parked;
    op->told_by = op->first_from = op->odd_from = PC_NO_INDEX;
    struct pc_op **bucket = &core->buckets[bucket_of(id)];
    op->hash_next = *bucket;
    *bucket = op;
    op->prev = core->ops_tail;
    if (core->ops_tail)
        core->ops_tail->next = op;
    else
        core->ops_head = op;
    core->ops_tail = op;
    core->op_count++;
    return op;
}

struct pc_op *pc_op_get(pc_core *core, uint64_t id) {
    struct pc_op *op = pc_op_find(core, id);
    return op || core->op_count >= PC_OPS_TABLE_MAX ? op : new_op(core, id);
}

struct pc_op *pc_op_told(pc_core *core, uint64_t id, uint32_t from) {
    struct pc_op *op = pc_op_find(core, id);
    struct pc_pair *pair = core->pairs[from];
    if (op || core->op_count >= PC_OPS_ANNOUNCED_MAX || pair->told >= PCCL_OPS_MAX)
        return op;
    op = new_op(core, id);
    if (op) {
        op->told_by = from;
        pair->told++;
    }
    return op;
}

void pc_op_unpost(pc_core *core, struct pc_op *op) {
    if (!op->event_queued)
        return;
    struct pc_op **at = &core->event_head;
    while (*at != op)
        at = &(*at)->event_next;
    *at = op->event_next;
    if (core->event_tail == &op->event_next)
        core->event_tail = at;
    op->event_queued = false;
}

void pc_op_forget(pc_core *core, struct pc_op *op) {
    PC_ASSERT(op->state != PC_RUNNING);
    PC_ASSERT(!op->starting);
    pc_op_unpost(core, op);
    if (op->state == PC_STABLE || op->state == PC_RAISED)
        core->ended_count--;
    struct pc_op **at = &core->buckets[bucket_of(op->id)];
    while (*at != op)
        at = &(*at)->hash_next;
    *at = op->hash_next;
    if (op->prev)
        op->prev->next = op->next;
    else
        core->ops_head = op->next;
    if (op->next)
        op->next->prev = op->prev;
    else
        core->ops_tail = op->prev;
    core->op_count--;
    pc_op_free(op);
}

static void free_layout(struct pc_op *op) {
    for (uint32_t i = 0; i < op->stream_count; i++)
        free(op->streams[i].landed);
    free(op->streams);
    free(op->blocks);
    free(op->segments);
    free(op->undo);
    free(op->kept);
    op->kept = NULL;
    op->streams = NULL;
    op->blocks = NULL;
    op->segments = NULL;
    op->undo = NULL;
    op->stream_count = op->block_count = 0;
}

void pc_op_free(struct pc_op *op) {
    free_layout(op);
    free(op->said);
    free(op->acked);
    free(op);
}

int pc_op_start_running(pc_core *core, struct pc_op *op, const struct pccl_op *args,
                        uint64_t now_ns) {
    PC_ASSERT(op->state == PC_FOREIGN);
    struct pc_context *context = pc_context_get(core, pc_context_id(op->id), args->peers,
                                                args->context ? args->peer_count : 0);
    int status = context ? pc_layout(core, op, args) : PCCL_RESOURCE;
    if (status != PCCL_OK) {
        free_layout(op);
        return status;
    }
    op->context = context;
    op->timeout_ns = args->timeout_ns;
    op->submitted_ns = now_ns;
    op->deadline_ns =
        args->timeout_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + args->timeout_ns;
    op->result.op = op->id;
    op->result.contributors_min = UINT32_MAX;
    op->state = PC_RUNNING;
    if (op->told_by != PC_NO_INDEX)
        core->pairs[op->told_by]->told--;
    op->told_by = PC_NO_INDEX;
    core->running_count++;
    if (op->deadline_ns < core->deadline_ns)
        core->deadline_ns = op->deadline_ns;
    return PCCL_OK;
}

/* Inputs as they were submitted. */
static void undo(struct pc_op *op) {
    if (!op->undo)
        return;
    for (uint32_t i = 0; i < op->segment_count; i++)
        if (op->segments[i].state != PC_INTACT) {
            uint8_t *out = pc_op_out(op, i);
            memcpy(out, op->undo + (out - op->blocks[0].out), pc_op_bytes(op, i));
        }
}

void pc_op_post(pc_core *core, struct pc_op *op, uint8_t event) {
    op->events |= event;
    if (op->event_queued)
        return;
    op->event_queued = true;
    op->event_next = NULL;
    *core->event_tail = op;
    core->event_tail = &op->event_next;
}

static void leave_start_list(pc_core *core, struct pc_op *op) {
    if (!op->starting)
        return;
    struct pc_op **at = &core->start_head;
    while (*at != op)
        at = &(*at)->start_next;
    *at = op->start_next;
    if (core->start_tail == &op->start_next)
        core->start_tail = at;
    op->starting = false;
}

/* What the caller is told, before the layout goes. */
static void fill_result(const pc_core *core, struct pc_op *op, int status, const char *text) {
    struct pccl_result *result = &op->result;
    result->status = status;
    result->route = core->epoch ? pc_route(core, op) : 0;
    snprintf(result->text, sizeof result->text, "%s", text);
    if (status != PCCL_OK) {
        result->contributors_min = result->contributors_max = 0;
        result->phase = op->phase;
        result->missing = pc_missing_bytes(core, op);
        return;
    }
    if (op->streams) { /* each value is of one */
        result->contributors_min = result->contributors_max = 1;
        return;
    }
    for (uint32_t i = 0; i < op->segment_count; i++) {
        uint32_t n = op->segments[i].contributors;
        if (!op->segments[i].told) /* a view ended it, and its value is another's alone */
            continue;
        if (n < result->contributors_min)
            result->contributors_min = n;
        if (n > result->contributors_max)
            result->contributors_max = n;
    }
    if (result->contributors_min > result->contributors_max)
        result->contributors_min = 0; /* told of none */
}

bool pc_returns_early(const pc_core *core, const struct pc_op *op) {
    return op->desc.kind == PCCL_ALL_REDUCE && !op->desc.strict && op->brief &&
           pc_route(core, op) != PCCL_ROUTE_RING;
}

void pc_op_return(pc_core *core, struct pc_op *op) {
    if (op->returned || core->kept_ops >= PC_KEPT_OPS ||
        core->kept_bytes + op->bytes > PC_KEPT_BYTES)
        return;
    op->kept = malloc(op->bytes ? op->bytes : 1);
    if (!op->kept)
        return; /* then it returns when all hold it */
    struct pc_block *block = &op->blocks[0];
    if (op->bytes)
        memcpy(op->kept, block->out, op->bytes);
    block->out = op->kept;
    block->in = op->kept;
    op->returned = true;
    core->kept_ops++;
    core->kept_bytes += (uint32_t)op->bytes;
    core->running_count--;
    fill_result(core, op, PCCL_OK, "");
    pc_op_post(core, op, PC_OP_EVENT_ENDED);
}

static void drop_parked(pc_core *core, struct pc_op *op) {
    while (op->parked) { /* of members that never said what they submitted */
        struct pc_buffer *buffer = op->parked;
        op->parked = buffer->next;
        pc_pool_put(&core->pool, buffer);
    }
    op->parked_tail = &op->parked;
}

void pc_op_end(pc_core *core, struct pc_op *op, int status, const char *text) {
    PC_ASSERT(op->state == PC_RUNNING);
    leave_start_list(core, op);
    if (op->returned) { /* the caller has been told, and that is how it stays */
        core->kept_ops--;
        core->kept_bytes -= (uint32_t)op->bytes;
        core->sweep = true;
        status = PCCL_OK;
    } else {
        fill_result(core, op, status, text);
        if (status != PCCL_OK)
            undo(op);
        core->running_count--;
    }
    op->state = status == PCCL_OK ? PC_STABLE : PC_RAISED;
    pc_exchange_release(core, op);
    free_layout(op); /* the memory it names is the caller's from now on */
    drop_parked(core, op);
    core->ended_count++;
    if (core->ended_count >= PC_ENDED_WARN && !core->full_told)
        core->full_pending = true;
    if (!op->returned)
        pc_op_post(core, op, PC_OP_EVENT_ENDED);
}

static size_t offset_in(const struct pc_op *op, const struct pc_block *block, uint32_t segment) {
    return (size_t)((segment - block->first) * block->each) * op->element_bytes;
}

const uint8_t *pc_op_in(const struct pc_op *op, uint32_t segment) {
    const struct pc_block *block = &op->blocks[op->segments[segment].block];
    return block->in ? block->in + offset_in(op, block, segment) : NULL;
}

uint8_t *pc_op_out(const struct pc_op *op, uint32_t segment) {
    const struct pc_block *block = &op->blocks[op->segments[segment].block];
    return block->out ? block->out + offset_in(op, block, segment) : NULL;
}

uint64_t pc_op_elements(const struct pc_op *op, uint32_t segment) {
    const struct pc_block *block = &op->blocks[op->segments[segment].block];
    uint64_t first = (segment - block->first) * block->each;
    if (first >= block->count)
        return 0;
    uint64_t left = block->count - first;
    return left < block->each ? left : block->each;
}

size_t pc_op_bytes(const struct pc_op *op, uint32_t segment) {
    return pc_op_elements(op, segment) * op->element_bytes;
}

bool pc_op_is_past(const pc_core *core, uint64_t id) {
    const struct pc_op *op = pc_op_find(core, id);
    if (op)
        return op->state == PC_STABLE || op->state == PC_RAISED;
    const struct pc_context *context = pc_context_find(core, pc_context_id(id));
    return context && !pc_is_named(id) && pc_number(id) <= context->submitted;
}

void pc_op_sweep(pc_core *core) {
    core->sweep = false;
    pc_contexts_take_stable(core);
    for (struct pc_op *op = core->ops_head, *next; op; op = next) {
        next = op->next;
        if (op->state == PC_STABLE && !pc_is_named(op->id) &&
            pc_number(op->id) <= op->context->stable && !op->event_queued && !op->queued_count)
            pc_op_forget(core, op);
    }
}
