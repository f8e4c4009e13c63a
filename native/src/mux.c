/* mux: queued frames of one link -> bytes, in order. Urgent frames (control, small ops) overtake
 * bulk ones between frames. After a view change the rest of a half-sent frame is made up of zeros:
 * its receiver has left that epoch (it answered the flush) and drops it, but framing must hold. */
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "internal.h"

static const uint8_t zeros[64 << 10];

static void queue_init(struct pc_queue *queue) {
    queue->head = NULL;
    queue->tail = &queue->head;
}

void pc_mux_new_stream(struct pc_link *link) {
    link->slot_first = link->slot_count = 0;
    link->slot_sent = 0;
    link->zombie = 0;
}

void pc_mux_reset(struct pc_link *link) {
    queue_init(&link->urgent);
    queue_init(&link->bulk);
    pc_mux_new_stream(link);
}

void pc_mux_enter_view(struct pc_link *link) {
    struct pc_slot *first = &link->slots[link->slot_first];
    size_t owed = link->zombie;
    if (link->slot_count && link->slot_sent) {
        if (link->slot_sent < PC_HEADER_BYTES) {
            /* The header goes out whole (its slot stays readable), the payload is owed as zeros. */
            first->node = NULL;
            queue_init(&link->urgent);
            queue_init(&link->bulk);
            link->slot_count = 1;
            link->zombie += first->length;
            first->length = 0;
            return;
        }
        PC_ASSERT(!owed); /* nothing is begun while zeros are owed */
        owed = PC_HEADER_BYTES + first->length - link->slot_sent;
    }
    pc_mux_reset(link);
    link->zombie = owed;
}

void pc_mux_push(pc_core *core, int which, struct pc_node *node, struct pc_op *op, uint32_t segment,
                 uint8_t type) {
    struct pc_link *link = &core->links[which];
    if (node->queued)
        return; /* a READY that is still waiting carries the newest run when it goes */
    node->next = NULL;
    node->op = op;
    node->segment = segment;
    node->type = type;
    node->queued = true;
    op->queued_count++;
    bool urgent = type == PC_MARK || type == PC_READY || pc_op_small(op);
    struct pc_queue *queue = urgent ? &link->urgent : &link->bulk;
    *queue->tail = node;
    queue->tail = &node->next;
}

static struct pc_node *pop(struct pc_queue *queue) {
    struct pc_node *node = queue->head;
    if (!node)
        return NULL;
    queue->head = node->next;
    if (!queue->head)
        queue->tail = &queue->head;
    node->next = NULL;
    return node;
}

static void fill_slot(pc_core *core, struct pc_slot *slot, struct pc_node *node) {
    struct pc_op *op = node->op;
    struct pc_header header = {.type = node->type,
                               .epoch = core->epoch,
                               .op = pc_number(op->id),
                               .segment = node->segment,
                               .held = core->stable};
    if (pc_is_named(op->id))
        header.flags |= PC_FLAG_NAMED;
    slot->node = node;
    slot->payload = NULL;
    if (node->type == PC_READY) {
        pc_desc_put(slot->small, &op->desc);
        slot->payload = slot->small;
        header.length = PC_DESC_BYTES;
        uint32_t run = 1 + op->next_run;
        header.contributors = (uint16_t)(run < core->world ? run : core->world);
    } else {
        struct pc_segment *segment = &op->segments[node->segment];
        header.contributors = segment->contributors;
        if (node->type != PC_MARK) {
            header.length = (uint32_t)pc_op_bytes(op, node->segment);
            slot->payload = segment->buffer && node->type == PC_SUM
                                ? segment->buffer->data
                                : pc_op_address(op, node->segment);
        }
    }
    if (core->config.checksum_payload)
        header.flags |= PC_FLAG_PAYLOAD_CRC;
    slot->length = header.length;
    pc_header_put(slot->header, &header, slot->payload);
}

static void fill(pc_core *core, struct pc_link *link) {
    size_t bytes = 0;
    for (uint32_t i = 0; i < link->slot_count; i++)
        bytes += link->slots[(link->slot_first + i) % PC_BATCH].length;
    while (link->slot_count < PC_BATCH && bytes < PC_BATCH_BYTES) {
        struct pc_node *node = pop(&link->urgent);
        if (!node)
            node = pop(&link->bulk);
        if (!node)
            return;
        struct pc_slot *slot = &link->slots[(link->slot_first + link->slot_count) % PC_BATCH];
        fill_slot(core, slot, node);
        if (node->type == PC_READY) { /* wholly in the slot; a longer run is another frame */
            node->queued = false;
            node->op->queued_count--;
            slot->node = NULL;
        }
        bytes += slot->length;
        link->slot_count++;
    }
}

static void add(struct pc_slice slices[], int *count, const uint8_t *ptr, size_t len,
                size_t *skip) {
    if (*skip >= len) {
        *skip -= len;
        return;
    }
    slices[*count] = (struct pc_slice){ptr + *skip, len - *skip};
    *skip = 0;
    (*count)++;
}

int pc_core_tx(pc_core *core, int which, struct pc_slice slices[PC_SLICES_MAX]) {
    struct pc_link *link = &core->links[which];
    int count = 0;
    if (!link->up || core->stopped || link->bad)
        return 0;
    if (!link->zombie)
        fill(core, link);
    size_t skip = link->slot_sent;
    for (uint32_t i = 0; i < link->slot_count && count + 2 <= PC_SLICES_MAX; i++) {
        struct pc_slot *slot = &link->slots[(link->slot_first + i) % PC_BATCH];
        add(slices, &count, slot->header, PC_HEADER_BYTES, &skip);
        add(slices, &count, slot->payload, slot->length, &skip);
    }
    for (size_t left = link->zombie; left && count < PC_SLICES_MAX;) {
        size_t n = left < sizeof zeros ? left : sizeof zeros;
        slices[count++] = (struct pc_slice){zeros, n};
        left -= n;
    }
    return count;
}

static void finish(pc_core *core, struct pc_slot *slot) {
    struct pc_node *node = slot->node;
    core->stats.frames_sent++;
    if (!node)
        return;
    struct pc_op *op = node->op;
    node->queued = false;
    op->queued_count--;
    op->result.bytes_sent += slot->length;
    if (node->type == PC_SUM) {
        struct pc_segment *segment = &op->segments[node->segment];
        if (segment->buffer) {
            pc_pool_put(&core->pool, segment->buffer);
            segment->buffer = NULL;
        }
    }
}

void pc_core_sent(pc_core *core, int which, size_t n) {
    struct pc_link *link = &core->links[which];
    core->stats.bytes_sent += n;
    while (n && link->slot_count) {
        struct pc_slot *slot = &link->slots[link->slot_first];
        size_t left = PC_HEADER_BYTES + slot->length - link->slot_sent;
        size_t now = n < left ? n : left;
        n -= now;
        link->slot_sent += now;
        if (now < left)
            return;
        finish(core, slot);
        link->slot_sent = 0;
        link->slot_first = (link->slot_first + 1) % PC_BATCH;
        link->slot_count--;
    }
    PC_ASSERT(n <= link->zombie);
    link->zombie -= n;
}
