/* demux: the bytes of one link -> whole frames, each checked, handed to ring.c in order. It never
 * judges what a frame means beyond where its payload belongs; rule breakers spoil the link. */
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "crc.h"
#include "internal.h"

void pc_link_spoil(struct pc_link *link, const char *why) {
    if (link->bad)
        return;
    link->bad = true;
    link->bad_why = why;
}

void pc_demux_stop(pc_core *core, struct pc_link *link) {
    if (link->buffer)
        pc_pool_put(&core->pool, link->buffer);
    link->buffer = NULL;
    if (link->direct_op)
        pc_landing_over(link->direct_op, link->from, link->header.segment);
    link->direct_op = NULL;
    link->target = PC_RX_NOWHERE;
}

static void take_buffer(pc_core *core, struct pc_link *link) {
    if (link->bad)
        return;
    if (link->header.length > core->pool.buffer_bytes) {
        pc_link_spoil(link, "segment longer than any");
        return;
    }
    link->buffer = pc_pool_take(&core->pool, link->pair->index);
    if (!link->buffer) {
        pc_link_spoil(link, "more segments in flight than the window allows");
        return;
    }
    link->target = PC_RX_BUFFER;
}

/* Frames of a member that may wait here: so many for each whom it does not reach. */
static uint32_t cargo_max(const pc_core *core, uint32_t from) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < core->cut_count; i++)
        if (core->cuts[i].a == from || core->cuts[i].b == from)
            most += PC_RELAY_CREDIT;
    return most;
}

/* A frame that is not between the two ends of the link: for us, or to be passed on by us. */
static const char *judge_relay(const pc_core *core, struct pc_link *link) {
    const struct pc_header *header = &link->header;
    if (header->from >= core->world || header->to >= core->world || header->from == header->to ||
        !pc_is_cut(core, header->from, header->to) || header->type == PC_CREDIT)
        return "a relayed frame that cannot be";
    link->from = header->from;
    if (header->to == core->self)
        return core->pairs[header->from]->via == link->pair->index
                   ? NULL
                   : "a relayed frame from who is no relay";
    if (header->from != link->pair->index ||
        pc_relay_between(core, header->from, header->to) != core->self)
        return "a relayed frame that cannot be";
    if (core->pairs[header->from]->carried >= cargo_max(core, header->from))
        return "more frames to be passed on than allowed";
    return NULL;
}

/* Decides where the payload of the frame whose header just arrived goes. */
static void route(pc_core *core, struct pc_link *link) {
    const struct pc_header *header = &link->header;
    link->target = PC_RX_NOWHERE;
    if (header->epoch < core->epoch || core->stopped || !link->pair)
        return; /* R6, R7: dropped, whole */
    if (header->flags & PC_FLAG_RELAY) {
        const char *wrong = judge_relay(core, link);
        if (wrong)
            pc_link_spoil(link, wrong);
        if (wrong || header->to != core->self) {
            take_buffer(core, link);
            return;
        }
    }
    switch (header->type) {
    case PC_READY:
        if (header->length != PC_DESC_BYTES)
            pc_link_spoil(link, "READY of a wrong length");
        link->target = PC_RX_SMALL;
        return;
    case PC_MARK:
    case PC_ACK:
    case PC_CREDIT:
        if (header->length)
            pc_link_spoil(link, "MARK or ACK with a payload");
        return;
    default:
        break;
    }
    link->direct = pc_landing(core, link->from, header, &link->direct_op);
    if (link->direct) {
        link->target = PC_RX_DIRECT;
        return;
    }
    link->direct_op = NULL;
    take_buffer(core, link);
}

static uint8_t *payload_at(struct pc_link *link) {
    if (link->target == PC_RX_BUFFER)
        return link->buffer->data + link->payload_have;
    if (link->target == PC_RX_SMALL)
        return link->small + link->payload_have;
    if (link->target == PC_RX_DIRECT)
        return link->direct + link->payload_have;
    return NULL;
}

static bool has_no_payload(uint8_t type) {
    return type == PC_MARK || type == PC_ACK || type == PC_CREDIT;
}

static void take_credit(pc_core *core, struct pc_link *link, const struct pc_header *header) {
    struct pc_pair *pair = header->segment < core->world ? core->pairs[header->segment] : NULL;
    if (!pair || pair->via != link->pair->index || pair->credit >= PC_RELAY_CREDIT)
        pc_link_spoil(link, "a credit that cannot be");
    else
        pair->credit++;
}

static void frame_done(pc_core *core, struct pc_link *link) {
    link->header_have = 0;
    link->in_payload = false;
    core->stats.frames_received++;
    struct pc_header header = link->header;
    bool late = core->stopped || header.epoch < core->epoch || !link->pair;
    if (link->target == PC_RX_NOWHERE && (late || !has_no_payload(header.type)))
        return;
    if ((header.flags & PC_FLAG_PAYLOAD_CRC) && link->crc != header.crc) {
        pc_link_spoil(link, "wrong checksum");
        return;
    }
    if (link->direct_op)
        pc_landing_over(link->direct_op, link->from, header.segment);
    link->direct_op = NULL;
    struct pc_buffer *buffer = link->buffer;
    link->buffer = NULL;
    link->target = PC_RX_NOWHERE;
    if (buffer) {
        buffer->header = header;
        buffer->from = link->from;
    }
    if (header.flags & PC_FLAG_RELAY && header.to != core->self) {
        pc_relay(core, buffer);
        return;
    }
    if (header.type == PC_CREDIT) {
        take_credit(core, link, &header);
        return;
    }
    const char *wrong = pc_frame_arrived(core, link->from, &header, buffer, link->small);
    if (wrong)
        pc_link_spoil(link, wrong);
}

static void payload_arrived(pc_core *core, struct pc_link *link, const uint8_t *bytes, size_t n) {
    if (link->header.flags & PC_FLAG_PAYLOAD_CRC && link->target != PC_RX_NOWHERE)
        link->crc = pc_crc32c(link->crc, bytes, n);
    link->payload_have += (uint32_t)n;
    if (link->payload_have == link->header.length)
        frame_done(core, link);
}

/* The header is whole. Returns false if it must wait (held) or the link turned bad. */
static bool begin(pc_core *core, struct pc_link *link) {
    const char *wrong = pc_header_get(link->header_bytes, &link->header);
    if (wrong) {
        pc_link_spoil(link, wrong);
        return false;
    }
    if (core->epoch && link->header.epoch > core->epoch + 1) {
        pc_link_spoil(link,
                      "a frame of a view that cannot be yet"); /* this peer answers each flush */
        return false;
    }
    if (link->header.epoch > core->epoch) {
        link->held = true; /* R8 */
        return false;
    }
    link->in_payload = true;
    link->payload_have = 0;
    link->from = link->pair ? link->pair->index : PC_NO_INDEX;
    link->crc = pc_header_crc(link->header_bytes);
    route(core, link);
    if (link->bad)
        return false;
    if (!link->header.length)
        frame_done(core, link);
    return !link->bad;
}

/* Bytes until the header is whole; its flags say how long it is. */
static size_t header_want(const struct pc_link *link) {
    uint32_t size = PC_HEADER_BYTES;
    if (link->header_have >= PC_HEADER_BYTES)
        size = pc_header_size(link->header_bytes[2]);
    return size - link->header_have;
}

size_t pc_core_feed(pc_core *core, int id, const uint8_t *bytes, size_t n) {
    struct pc_link *link = core->links[id];
    size_t taken = 0;
    if (link->held && link->header.epoch <= core->epoch) {
        link->held = false;
        if (!begin(core, link))
            return 0;
    }
    while (!link->bad && !link->held && taken < n) {
        size_t left = n - taken;
        if (!link->in_payload) {
            size_t want = header_want(link);
            size_t now = left < want ? left : want;
            memcpy(link->header_bytes + link->header_have, bytes + taken, now);
            link->header_have += (uint32_t)now;
            taken += now;
            if (!header_want(link) && !begin(core, link))
                break;
            continue;
        }
        size_t want = link->header.length - link->payload_have;
        size_t now = left < want ? left : want;
        uint8_t *to = payload_at(link);
        if (to)
            memcpy(to, bytes + taken, now);
        taken += now;
        payload_arrived(core, link, bytes + taken - now, now);
    }
    core->stats.bytes_received += taken;
    return taken;
}

int pc_core_held(const pc_core *core, int id) {
    const struct pc_link *link = core->links[id];
    return link->held && link->header.epoch > core->epoch;
}

size_t pc_core_rx_space(pc_core *core, int id, uint8_t **ptr) {
    struct pc_link *link = core->links[id];
    if (link->bad || link->held || !link->in_payload ||
        !(link->target == PC_RX_BUFFER || link->target == PC_RX_DIRECT))
        return 0;
    *ptr = payload_at(link);
    return link->header.length - link->payload_have;
}

void pc_core_rx_done(pc_core *core, int id, size_t n) {
    struct pc_link *link = core->links[id];
    PC_ASSERT(link->in_payload && payload_at(link));
    core->stats.bytes_received += n;
    payload_arrived(core, link, payload_at(link), n);
}
