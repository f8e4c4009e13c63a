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

bool pc_op_owners(struct pc_op *op, uint32_t world) {
    uint32_t *both = calloc(world, 2 * sizeof *both);
    if (!both)
        return false;
    free(op->part_cursors);
    op->part_cursors = both;
    op->opened_by = both + world;
    op->owner_count = world;
    return true;
}

struct pc_op *pc_op_get(pc_core *core, uint64_t id, uint32_t others) {
    struct pc_op *op = pc_op_find(core, id);
    if (op)
        return op;
    if (core->op_count >= others)
        return NULL;
    op = calloc(1, sizeof *op);
    if (!op)
        return NULL;
    if (core->epoch && !pc_op_owners(op, core->world)) {
        free(op);
        return NULL;
    }
    op->id = id;
    op->parked_tail = &op->parked;
    op->first_from = op->odd_from = PC_NO_INDEX;
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
    free(op->segments);
    free(op->part_cursors);
    free(op->acked);
    free(op->undo);
    free(op);
}

bool pc_op_start_running(pc_core *core, struct pc_op *op, const struct pccl_op *args,
                         uint64_t now_ns) {
    PC_ASSERT(op->state == PC_FOREIGN);
    size_t element_bytes = pccl_dtype_size(args->dtype);
    uint32_t segments = pc_core_segments(core, args->dtype, args->count);
    free(op->segments); /* of a try that ran out of memory */
    op->segments = calloc(segments, sizeof *op->segments);
    if (!op->segments)
        return false;
    if (args->strict && args->count) {
        op->undo = malloc(args->count * element_bytes);
        if (!op->undo)
            return false;
    }
    op->desc = (struct pc_desc){.count = args->count,
                                .name = args->name,
                                .root_peer = args->root_peer,
                                .kind = (uint8_t)args->kind,
                                .dtype = (uint8_t)args->dtype,
                                .reduce = (uint8_t)args->reduce,
                                .strict = (uint8_t)(args->strict != 0),
                                .route = (uint8_t)args->route};
    op->data = args->data;
    op->element_bytes = element_bytes;
    op->segment_count = segments;
    op->segment_elements = (args->count + segments - 1) / segments;
    op->timeout_ns = args->timeout_ns;
    op->submitted_ns = now_ns;
    op->deadline_ns =
        args->timeout_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + args->timeout_ns;
    op->result.op = op->id;
    op->result.contributors_min = UINT32_MAX;
    op->state = PC_RUNNING;
    for (uint32_t i = 0; i < segments; i++)
        op->segments[i].holder = PCCL_HOLDER_REDO;
    core->running_count++;
    if (op->deadline_ns < core->deadline_ns)
        core->deadline_ns = op->deadline_ns;
    return true;
}

void pc_op_undo(struct pc_op *op) {
    if (!op->undo)
        return;
    for (uint32_t i = 0; i < op->segment_count; i++)
        if (op->segments[i].state != PC_INTACT) {
            size_t offset = (size_t)(pc_op_address(op, i) - op->data);
            memcpy(op->data + offset, op->undo + offset, pc_op_bytes(op, i));
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

void pc_op_end(pc_core *core, struct pc_op *op, int status, const char *text) {
    PC_ASSERT(op->state == PC_RUNNING);
    leave_start_list(core, op);
    if (status == PCCL_OK) {
        for (uint32_t i = 0; i < op->segment_count; i++) {
            uint32_t n = op->segments[i].contributors;
            if (n < op->result.contributors_min)
                op->result.contributors_min = n;
            if (n > op->result.contributors_max)
                op->result.contributors_max = n;
        }
    } else {
        pc_op_undo(op);
        op->result.contributors_min = op->result.contributors_max = 0;
    }
    op->result.status = status;
    op->result.route = core->epoch ? pc_route(core, op) : 0;
    snprintf(op->result.text, sizeof op->result.text, "%s", text);
    op->state = status == PCCL_OK ? PC_STABLE : PC_RAISED;
    op->data = NULL;
    while (op->parked) { /* of members that never said what they submitted */
        struct pc_buffer *buffer = op->parked;
        op->parked = buffer->next;
        pc_pool_put(&core->pool, buffer);
    }
    op->parked_tail = &op->parked;
    core->running_count--;
    core->ended_count++;
    if (core->ended_count >= PC_ENDED_WARN && !core->full_told)
        core->full_pending = true;
    pc_op_post(core, op, PC_OP_EVENT_ENDED);
}

uint8_t *pc_op_address(const struct pc_op *op, uint32_t segment) {
    return op->data + segment * op->segment_elements * op->element_bytes;
}

uint64_t pc_op_elements(const struct pc_op *op, uint32_t segment) {
    uint64_t first = segment * op->segment_elements;
    if (first >= op->desc.count)
        return 0;
    uint64_t left = op->desc.count - first;
    return left < op->segment_elements ? left : op->segment_elements;
}

size_t pc_op_bytes(const struct pc_op *op, uint32_t segment) {
    return pc_op_elements(op, segment) * op->element_bytes;
}

bool pc_op_small(const struct pc_op *op) {
    return op->desc.count * op->element_bytes <= PC_SMALL_OP_BYTES;
}

bool pc_op_is_past(const pc_core *core, uint64_t id) {
    const struct pc_op *op = pc_op_find(core, id);
    if (op)
        return op->state == PC_STABLE || op->state == PC_RAISED;
    return !pc_is_named(id) && pc_number(id) <= core->submitted;
}

uint32_t pc_op_stable(const pc_core *core) {
    uint32_t stable = core->submitted;
    for (const struct pc_op *op = core->ops_head; op; op = op->next)
        if (!pc_is_named(op->id) && (op->state == PC_RUNNING || op->state == PC_RAISED) &&
            pc_number(op->id) <= stable)
            stable = pc_number(op->id) - 1;
    return stable;
}

void pc_op_sweep(pc_core *core) {
    uint32_t stable = pc_op_stable(core);
    for (struct pc_op *op = core->ops_head, *next; op; op = next) {
        next = op->next;
        if (op->state == PC_STABLE && !pc_is_named(op->id) && pc_number(op->id) <= stable &&
            !op->event_queued && !op->queued_count)
            pc_op_forget(core, op);
    }
}
