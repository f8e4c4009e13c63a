/* mux: queued frames of a pair -> bytes of whichever of its links can send, in order per link.
 * Urgent frames (control, small ops) overtake bulk ones between frames. After a view change the
 * rest of a half-sent frame is made up of zeros: its receiver has left that epoch (it answered the
 * flush) and drops it, but framing must hold. */
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "internal.h"

static const uint8_t zeros[64 << 10];

/* Nothing is half sent. */
static void new_stream(struct pc_link *link) {
    link->slot_first = link->slot_count = 0;
    link->slot_sent = 0;
    link->zombie = 0;
}

void pc_mux_enter_view(struct pc_link *link) {
    struct pc_slot *first = &link->slots[link->slot_first];
    size_t owed = link->zombie;
    if (link->slot_count && link->slot_sent) {
        if (link->slot_sent < first->head) {
            /* The header goes out whole (its slot stays readable), the payload is owed as zeros. */
            first->entry = (struct pc_entry){0};
            link->slot_count = 1;
            link->zombie += first->length;
            first->length = 0;
            return;
        }
        PC_ASSERT(!owed); /* nothing is begun while zeros are owed */
        owed = first->head + first->length - link->slot_sent;
    }
    new_stream(link);
    link->zombie = owed;
}

/* What one end says of an op to another, and what it asks for. */
static void fill_ready(struct pc_op *op, uint32_t index, struct pc_slot *slot,
                       struct pc_header *header) {
    struct pc_desc desc = op->desc;
    uint32_t run = 1 + op->next_run;
    header->contributors = (uint16_t)(run < pc_size(op) ? run : pc_size(op));
    header->segment = op->opened;
    const struct pc_stream *stream =
        op->streams ? pc_stream_at(op, pc_place(op->context, index)) : NULL;
    if (stream) {
        desc.for_you = stream->out_count;
        header->segment = stream->in_prefix;
    }
    pc_desc_put(slot->small, &desc);
    slot->payload = slot->small;
    header->length = PC_DESC_BYTES;
    op->said[index].queued = false; /* news is announced again */
    op->queued_count--;
    slot->entry.op = NULL; /* wholly in the slot */
}

static void fill_value(const pc_core *core, const struct pc_op *op, uint32_t index,
                       struct pc_slot *slot, struct pc_header *header) {
    uint32_t i = header->segment;
    if (op->streams) {
        const struct pc_stream *stream = pc_stream_at(op, pc_place(op->context, index));
        header->contributors = 1;
        header->length =
            (uint32_t)(pc_stream_elements(core, op, stream->out_count, i) * op->element_bytes);
        slot->payload = stream->out + pc_stream_offset(core, op, i);
        return;
    }
    const struct pc_segment *segment = &op->segments[i];
    header->length = (uint32_t)pc_op_bytes(op, i);
    switch (header->type) {
    case PC_SUM:
        header->contributors = segment->parts_done;
        header->length = (uint32_t)pc_ring_sum_bytes(op, i);
        slot->payload = segment->buffer ? segment->buffer->data : pc_op_in(op, i);
        return;
    case PC_PART:
        header->contributors = 1;
        slot->payload = pc_op_in(op, i);
        if (op->desc.weight <= 0)
            header->length = 0; /* it receives only */
        return;
    default:
        header->contributors = segment->contributors;
        slot->payload = pc_op_out(op, i);
    }
}

static void finish_slot(struct pc_slot *slot, struct pc_header *header) {
    slot->length = header->length;
    slot->head = pc_header_size(header->flags);
    pc_header_put(slot->header, header, slot->payload);
}

/* A relay's own business: a frame passed on, or leave to send more. */
static void fill_relay(const pc_core *core, struct pc_slot *slot, const struct pc_entry *entry) {
    struct pc_header header = {.type = PC_CREDIT, .epoch = core->epoch, .segment = entry->segment};
    slot->entry = *entry;
    slot->payload = NULL;
    if (entry->cargo) {
        header = entry->cargo->header;
        slot->payload = entry->cargo->data;
    }
    finish_slot(slot, &header);
}

static void fill_slot(const pc_core *core, struct pc_slot *slot, const struct pc_entry *entry,
                      bool direct) {
    struct pc_op *op = entry->op;
    uint32_t index = slot->to;
    struct pc_header header = {.type = entry->type,
                               .epoch = core->epoch,
                               .context = pc_context_id(op->id),
                               .op = pc_number(op->id),
                               .segment = entry->segment,
                               .held = core->stable};
    if (pc_is_named(op->id))
        header.flags |= PC_FLAG_NAMED;
    slot->entry = *entry;
    slot->payload = NULL;
    if (entry->type == PC_READY)
        fill_ready(op, index, slot, &header);
    else if (pc_carries_value(entry->type))
        fill_value(core, op, index, slot, &header);
    else if (entry->type == PC_MARK)
        header.contributors = entry->contributors;
    if (core->config.checksum_payload)
        header.flags |= PC_FLAG_PAYLOAD_CRC;
    if (!direct) {
        header.flags |= PC_FLAG_RELAY;
        header.from = (uint16_t)core->self;
        header.to = (uint16_t)index;
    }
    finish_slot(slot, &header);
}

/* On a long path parts go first, most of the time: a part that goes late is followed by a sum, a
 * copy and an acknowledgement, each a way long, with nothing else to send; a copy only by the last.
 * Not always, or the ops to come could keep the copies of this one waiting. */
static bool next_bulk(struct pc_pair *pair, struct pc_entry *entry) {
    if ((!pair->bulk.count || pair->parts_ahead < PC_PARTS_AHEAD) &&
        pc_queue_pop(&pair->parts, entry)) {
        pair->parts_ahead++;
        return true;
    }
    pair->parts_ahead = 0;
    return pc_queue_pop(&pair->bulk, entry);
}

/* Lazy frames ride along, behind what is waited for. */
static bool next_entry(struct pc_pair *pair, bool others_go, struct pc_entry *entry) {
    if (pc_queue_pop(&pair->urgent, entry))
        return true;
    if ((others_go || pair->bulk.count || pair->parts.count) && pc_queue_pop(&pair->lazy, entry))
        return true;
    return next_bulk(pair, entry);
}

/* A frame for one whom this link's other end is to pass it on to. */
static bool next_relayed(const pc_core *core, const struct pc_pair *way, struct pc_entry *entry,
                         uint32_t *to) {
    for (uint32_t i = 0; core->relayed && i < core->world; i++) {
        struct pc_pair *pair = core->pairs[i];
        if (!pair || pair == way || pair->via != way->index || !pair->credit ||
            !next_entry(pair, true, entry))
            continue;
        pair->credit--;
        *to = i;
        return true;
    }
    return false;
}

/* What waits for a link's own member. Where that link is known to be broken it may still seem to be
 * up at one end: what it would swallow, nobody would miss (R22). */
static bool next_own(struct pc_pair *pair, bool others_go, struct pc_entry *entry) {
    bool is_way = pair->via == pair->index || pair->via == PC_NO_INDEX;
    return is_way && next_entry(pair, others_go, entry);
}

/* The link's own member and those beyond it take turns. */
static bool next_of_link(const pc_core *core, const struct pc_link *link, struct pc_entry *entry,
                         uint32_t *to) {
    struct pc_pair *pair = link->pair;
    bool others_go = link->slot_count > 0;
    *to = pair->index;
    pair->turn = core->relayed && !pair->turn;
    if (pair->turn && next_relayed(core, pair, entry, to))
        return true;
    return next_own(pair, others_go, entry) || next_relayed(core, pair, entry, to);
}

/* An announcement of what is over by now. */
static bool is_idle_talk(const struct pc_entry *entry) {
    const struct pc_op *op = entry->op;
    return entry->lazy && entry->type == PC_READY && (op->state != PC_RUNNING || op->returned);
}

static void fill(pc_core *core, struct pc_link *link) {
    size_t bytes = 0;
    for (uint32_t i = 0; i < link->slot_count; i++)
        bytes += link->slots[(link->slot_first + i) % PC_BATCH].length;
    while (link->slot_count < PC_BATCH && bytes < PC_BATCH_BYTES) {
        struct pc_slot *slot = &link->slots[(link->slot_first + link->slot_count) % PC_BATCH];
        struct pc_entry entry;
        if (!next_of_link(core, link, &entry, &slot->to))
            return;
        if (is_idle_talk(&entry)) {
            entry.op->queued_count--;
            core->pairs[slot->to]->credit += slot->to != link->pair->index;
            continue;
        }
        if (entry.op)
            fill_slot(core, slot, &entry, slot->to == link->pair->index);
        else
            fill_relay(core, slot, &entry);
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

int pc_core_tx(pc_core *core, int id, struct pc_slice slices[PC_SLICES_MAX]) {
    struct pc_link *link = core->links[id];
    int count = 0;
    if (!link->pair || core->stopped || link->bad)
        return 0;
    if (!link->zombie)
        fill(core, link);
    size_t skip = link->slot_sent;
    for (uint32_t i = 0; i < link->slot_count && count + 2 <= PC_SLICES_MAX; i++) {
        struct pc_slot *slot = &link->slots[(link->slot_first + i) % PC_BATCH];
        add(slices, &count, slot->header, slot->head, &skip);
        add(slices, &count, slot->payload, slot->length, &skip);
    }
    for (size_t left = link->zombie; left && count < PC_SLICES_MAX;) {
        size_t n = left < sizeof zeros ? left : sizeof zeros;
        slices[count++] = (struct pc_slice){zeros, n};
        left -= n;
    }
    return count;
}

/* The op and the scratch of a frame that was sent, or lost with its link, are free of it. */
static void let_go(pc_core *core, const struct pc_slot *slot) {
    struct pc_op *op = slot->entry.op;
    if (slot->entry.cargo)
        pc_relayed(core, slot->entry.cargo);
    if (!op)
        return;
    op->queued_count--;
    if (!pc_carries_value(slot->entry.type))
        return;
    op->values_queued--;
    if (op->streams) {
        pc_exchange_sent(core, op, pc_place(op->context, slot->to));
        return;
    }
    struct pc_segment *segment = &op->segments[slot->entry.segment];
    if (slot->entry.type == PC_SUM) {
        segment->sum_queued = false;
        if (segment->buffer)
            pc_pool_put(&core->pool, segment->buffer);
        segment->buffer = NULL;
    }
    pc_check_end(core, op);
}

void pc_mux_stop(pc_core *core, struct pc_link *link) {
    for (; link->slot_count && !core->stopped; link->slot_count--) {
        let_go(core, &link->slots[link->slot_first]);
        link->slot_first = (link->slot_first + 1) % PC_BATCH;
    }
}

static void finish(pc_core *core, struct pc_slot *slot) {
    core->stats.frames_sent++;
    if (slot->entry.op)
        slot->entry.op->result.bytes_sent += slot->length;
    let_go(core, slot);
}

void pc_core_sent(pc_core *core, int id, size_t n) {
    struct pc_link *link = core->links[id];
    core->stats.bytes_sent += n;
    while (n && link->slot_count) {
        struct pc_slot *slot = &link->slots[link->slot_first];
        size_t left = slot->head + slot->length - link->slot_sent;
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
