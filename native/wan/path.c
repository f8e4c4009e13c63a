/* path: see path.h. */
#include "path.h"

#include "heap.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { AT_FLOW, AT_UPLINK, AT_WIRE, AT_DOWNLINK, AT_END };

enum {
    FLOWS = 1 << 14,    /* a power of two */
    FLOW_WINDOW = 32,   /* places where a flow may be */
    SPARE_MAX = 1024    /* big buffers kept */
};
#define IN_FLIGHT_BYTES_MAX ((uint64_t)2 << 30)

struct server {
    double ns_per_byte; /* 0 is unlimited */
    uint64_t free_ns;
};

/* A flow whose server is free has no state worth keeping, so its place may be taken. */
struct flow {
    uint64_t key;
    uint64_t free_ns;
};

struct wan_path {
    uint32_t hosts;
    double flow_ns_per_byte;
    uint64_t queue_ns;
    struct wan_heap *heap;
    struct wan_packet *spare[SPARE_MAX];
    uint32_t spares;
    uint64_t frames_bytes;
    struct server up[WAN_HOSTS_MAX], down[WAN_HOSTS_MAX];
    struct wan_host_stats stats[WAN_HOSTS_MAX];
    struct wan_pair pairs[WAN_HOSTS_MAX * WAN_HOSTS_MAX];
    struct flow flows[FLOWS];
};

static struct wan_pair *pair_of(struct wan_path *path, uint32_t src, uint32_t dst) {
    assert(src < path->hosts && dst < path->hosts);
    return &path->pairs[src * WAN_HOSTS_MAX + dst];
}

/* splitmix64, as a number in (0, 1] */
static double uniform(struct wan_pair *pair) {
    uint64_t z = pair->random += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (double)((z >> 11) + 1) * 0x1p-53;
}

/* Pieces until the next loss: geometric, so that each is lost with the same probability. */
static void draw_loss(struct wan_pair *pair) {
    pair->until_loss = INFINITY;
    if (pair->loss >= 1)
        pair->until_loss = 0;
    else if (pair->loss > 0)
        pair->until_loss = floor(log(uniform(pair)) / log1p(-pair->loss));
}

struct wan_path *wan_path_new(uint32_t hosts, uint64_t seed) {
    assert(hosts >= 1 && hosts <= WAN_HOSTS_MAX);
    struct wan_path *path = calloc(1, sizeof *path);
    if (!path)
        return NULL;
    path->heap = wan_heap_new();
    if (!path->heap) {
        free(path);
        return NULL;
    }
    path->hosts = hosts;
    path->queue_ns = UINT64_MAX / 4;
    for (uint32_t src = 0; src < hosts; src++)
        for (uint32_t dst = 0; dst < hosts; dst++) {
            struct wan_pair *pair = pair_of(path, src, dst);
            pair->random = seed * 0x2545f4914f6cdd1du + src * WAN_HOSTS_MAX + dst;
            uniform(pair);
            draw_loss(pair);
        }
    return path;
}

static void free_packet(struct wan_packet *packet) {
    free(packet->frame);
    free(packet);
}

void wan_path_free(struct wan_path *path) {
    for (struct wan_packet *packet; (packet = wan_heap_pop(path->heap));)
        free_packet(packet);
    while (path->spares)
        free_packet(path->spare[--path->spares]);
    wan_heap_free(path->heap);
    free(path);
}

static double ns_per_byte(double bits_per_s) {
    return bits_per_s > 0 ? 8e9 / bits_per_s : 0;
}

void wan_path_set_up(struct wan_path *path, uint32_t host, double bits_per_s) {
    path->up[host].ns_per_byte = ns_per_byte(bits_per_s);
}

void wan_path_set_down(struct wan_path *path, uint32_t host, double bits_per_s) {
    path->down[host].ns_per_byte = ns_per_byte(bits_per_s);
}

void wan_path_set_flow(struct wan_path *path, double bits_per_s) {
    path->flow_ns_per_byte = ns_per_byte(bits_per_s);
}

void wan_path_set_queue(struct wan_path *path, uint64_t queue_ns) {
    path->queue_ns = queue_ns;
}

void wan_path_set_delay(struct wan_path *path, uint32_t src, uint32_t dst, uint64_t delay_ns) {
    pair_of(path, src, dst)->delay_ns = delay_ns;
}

void wan_path_set_jitter(struct wan_path *path, uint32_t src, uint32_t dst, uint64_t jitter_ns) {
    struct wan_pair *pair = pair_of(path, src, dst);
    pair->jitter_ns = jitter_ns;
    pair->bend_to_ns = 0;
}

void wan_path_set_loss(struct wan_path *path, uint32_t src, uint32_t dst, double loss) {
    struct wan_pair *pair = pair_of(path, src, dst);
    pair->loss = loss;
    draw_loss(pair);
}

void wan_path_set_cut(struct wan_path *path, uint32_t src, uint32_t dst, bool cut) {
    pair_of(path, src, dst)->cut = cut;
}

struct wan_packet *wan_path_packet(struct wan_path *path, uint32_t frame_bytes) {
    assert(frame_bytes <= WAN_FRAME_MAX);
    uint32_t room_bytes = frame_bytes > WAN_SMALL_BYTES ? WAN_FRAME_MAX : WAN_SMALL_BYTES;
    if (path->frames_bytes + room_bytes > IN_FLIGHT_BYTES_MAX)
        return NULL;
    struct wan_packet *packet = NULL;
    if (room_bytes == WAN_FRAME_MAX && path->spares)
        packet = path->spare[--path->spares];
    if (!packet) {
        packet = calloc(1, sizeof *packet);
        if (!packet || !(packet->frame = malloc(room_bytes))) {
            free(packet);
            return NULL;
        }
        packet->room_bytes = room_bytes;
    }
    path->frames_bytes += room_bytes;
    return packet;
}

void wan_path_release(struct wan_path *path, struct wan_packet *packet) {
    path->frames_bytes -= packet->room_bytes;
    if (packet->room_bytes == WAN_FRAME_MAX && path->spares < SPARE_MAX)
        path->spare[path->spares++] = packet;
    else
        free_packet(packet);
}

/* The server of a flow: its own while it has a backlog, else any free place of its window. A window
 * full of other busy flows makes the newcomer share the first one's. */
static uint64_t *flow_free_ns(struct wan_path *path, uint64_t key, uint64_t now_ns) {
    struct flow *vacant = NULL;
    for (uint32_t i = 0; i < FLOW_WINDOW; i++) {
        struct flow *flow = &path->flows[(key + i) & (FLOWS - 1)];
        if (flow->key == key)
            return &flow->free_ns;
        if (!vacant && flow->free_ns <= now_ns)
            vacant = flow;
    }
    if (!vacant)
        return &path->flows[key & (FLOWS - 1)].free_ns;
    *vacant = (struct flow){.key = key};
    return &vacant->free_ns;
}

/* Passes the packet through a server from now_ns on, dropping the pieces that would wait longer
 * than the queue's bound. False, and the packet released, when none is left. */
static bool serve(struct wan_path *path, struct wan_packet *packet, double byte_ns,
                  uint64_t *free_ns, uint64_t now_ns) {
    if (byte_ns <= 0)
        return true;
    struct wan_shape *shape = &packet->shape;
    uint64_t start_ns = *free_ns > now_ns ? *free_ns : now_ns;
    double piece_ns = byte_ns * shape->wire_bytes / shape->pieces;
    double room_ns = (double)path->queue_ns - (double)(start_ns - now_ns);
    /* A later piece waits longer than the first by what the server falls behind the arrivals. */
    double behind_ns = piece_ns;
    if (shape->pieces > 1)
        behind_ns -= (double)(packet->last_ns - packet->first_ns) / (shape->pieces - 1);
    uint32_t fit = room_ns < 0 ? 0 : shape->pieces;
    if (fit && behind_ns > 0 && room_ns / behind_ns + 1 < fit)
        fit = (uint32_t)(room_ns / behind_ns) + 1;
    path->stats[packet->src].queue_dropped_packets += shape->pieces - fit;
    if (!fit) {
        wan_path_release(path, packet);
        return false;
    }
    if (fit < shape->pieces)
        wan_packet_slice(packet->frame, shape, 0, fit, packet->frame, shape);
    uint64_t tx_ns = (uint64_t)(byte_ns * shape->wire_bytes);
    uint64_t own_ns = (uint64_t)(byte_ns * shape->wire_bytes / shape->pieces);
    uint64_t trailing_ns = packet->last_ns + own_ns;
    *free_ns = start_ns + tx_ns;
    packet->first_ns = start_ns + own_ns;
    packet->last_ns = *free_ns > trailing_ns ? *free_ns : trailing_ns;
    return true;
}

/* Jitter at now_ns, from -jitter_ns to jitter_ns, changing by at most half a ns each ns. */
static double bend(struct wan_pair *pair, uint64_t now_ns) {
    uint64_t period_ns = 4 * pair->jitter_ns;
    if (now_ns >= pair->bend_to_ns) {
        bool first = pair->bend_to_ns == 0;
        pair->bend_from = first ? 0 : pair->bend_to;
        pair->bend_from_ns = now_ns;
        pair->bend_to_ns = now_ns + period_ns;
        pair->bend_to = (2 * uniform(pair) - 1) * (double)pair->jitter_ns;
    }
    double share = (double)(now_ns - pair->bend_from_ns) / (double)period_ns;
    return pair->bend_from + share * (pair->bend_to - pair->bend_from);
}

static void push(struct wan_path *path, struct wan_packet *packet, uint32_t stage,
                 uint64_t at_ns) {
    packet->stage = stage;
    if (!wan_heap_push(path->heap, at_ns, packet)) {
        path->stats[packet->src].queue_dropped_packets += packet->shape.pieces;
        wan_path_release(path, packet);
    }
}

static void fly(struct wan_path *path, struct wan_packet *packet, uint64_t delay_ns) {
    packet->first_ns += delay_ns;
    packet->last_ns += delay_ns;
    push(path, packet, AT_DOWNLINK, packet->first_ns);
}

/* Loses pieces by chance and sends what is left across. */
static void cross(struct wan_path *path, struct wan_packet *packet, uint64_t now_ns) {
    uint32_t src = packet->src;
    struct wan_pair *pair = pair_of(path, src, packet->shape.dst);
    double delay = (double)pair->delay_ns;
    if (pair->jitter_ns)
        delay += bend(pair, now_ns);
    uint64_t delay_ns = delay > 0 ? (uint64_t)delay : 0;
    while (pair->until_loss < packet->shape.pieces) {
        struct wan_shape *shape = &packet->shape;
        uint32_t before = (uint32_t)pair->until_loss, pieces = shape->pieces;
        uint32_t after = pieces - before - 1;
        struct wan_packet *rest = NULL;
        draw_loss(pair);
        path->stats[src].lost_packets++;
        if (after && (rest = wan_path_packet(path, shape->frame_bytes))) {
            wan_packet_slice(packet->frame, shape, before + 1, after, rest->frame, &rest->shape);
            rest->src = src;
            rest->first_ns = packet->first_ns;
            rest->last_ns = packet->last_ns;
        }
        if (before) {
            wan_packet_slice(packet->frame, shape, 0, before, packet->frame, shape);
            fly(path, packet, delay_ns);
        } else {
            wan_path_release(path, packet);
        }
        if (!rest) {
            path->stats[src].queue_dropped_packets += after;
            return;
        }
        packet = rest;
    }
    pair->until_loss -= packet->shape.pieces;
    fly(path, packet, delay_ns);
}

/* Moves a packet whose time has come one stage on. */
static void advance(struct wan_path *path, struct wan_packet *packet, uint64_t now_ns) {
    struct server *up = &path->up[packet->src], *down = &path->down[packet->shape.dst];
    switch (packet->stage) {
    case AT_FLOW: {
        double byte_ns = path->flow_ns_per_byte;
        uint64_t *free_ns = byte_ns > 0 ? flow_free_ns(path, packet->shape.flow, now_ns) : NULL;
        if (serve(path, packet, byte_ns, free_ns, now_ns))
            push(path, packet, AT_UPLINK, packet->first_ns);
        return;
    }
    case AT_UPLINK:
        if (serve(path, packet, up->ns_per_byte, &up->free_ns, now_ns))
            push(path, packet, AT_WIRE, packet->first_ns);
        return;
    case AT_WIRE:
        cross(path, packet, now_ns);
        return;
    default:
        assert(packet->stage == AT_DOWNLINK);
        if (pair_of(path, packet->src, packet->shape.dst)->cut) {
            path->stats[packet->src].cut_packets += packet->shape.pieces;
            wan_path_release(path, packet);
        } else if (serve(path, packet, down->ns_per_byte, &down->free_ns, now_ns)) {
            push(path, packet, AT_END, packet->last_ns);
        }
    }
}

void wan_path_offer(struct wan_path *path, struct wan_packet *packet, uint64_t now_ns) {
    struct wan_host_stats *stats = &path->stats[packet->src];
    assert(packet->src < path->hosts && packet->shape.dst < path->hosts);
    stats->sent_packets += packet->shape.pieces;
    stats->sent_bytes += packet->shape.wire_bytes;
    packet->first_ns = packet->last_ns = now_ns;
    push(path, packet, AT_FLOW, now_ns);
}

struct wan_packet *wan_path_take(struct wan_path *path, uint64_t now_ns) {
    uint64_t at_ns;
    while ((at_ns = wan_heap_next_ns(path->heap)) <= now_ns) {
        struct wan_packet *packet = wan_heap_pop(path->heap);
        if (packet->stage == AT_END) {
            struct wan_host_stats *stats = &path->stats[packet->shape.dst];
            stats->delivered_packets += packet->shape.pieces;
            stats->delivered_bytes += packet->shape.wire_bytes;
            return packet;
        }
        advance(path, packet, at_ns);
    }
    return NULL;
}

uint64_t wan_path_next_ns(const struct wan_path *path) {
    return wan_heap_next_ns(path->heap);
}

uint32_t wan_path_hosts(const struct wan_path *path) {
    return path->hosts;
}

uint64_t wan_path_frames_bytes(const struct wan_path *path) {
    return path->frames_bytes;
}

struct wan_host_stats *wan_path_stats(struct wan_path *path, uint32_t host) {
    assert(host < path->hosts);
    return &path->stats[host];
}
