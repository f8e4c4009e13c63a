/* path: where each packet is and when it moves on. Decides delay, rate, loss, queues and cuts;
 * makes no system call, and time is an argument.
 *
 * A packet passes four stages, each entered at a known time:
 *
 *   offer -> flow (cap per 5-tuple) -> uplink of src -> [loss, delay, jitter] -> downlink of dst
 *         -> delivered by wan_path_take
 *
 * Flow, uplink and downlink are FIFO servers on bytes. A server is one number, the time at which it
 * is free, so a packet's times at a stage are known when it enters; rates changed later apply to
 * packets that enter later. A super-segment moves like the train of packets it stands for: its
 * first piece enters the next stage while its last is still in this one (first_ns, last_ns).
 */
#ifndef WAN_PATH_H
#define WAN_PATH_H

#include "packet.h"

/* Frames above this get a buffer of WAN_FRAME_MAX, which is used again. */
enum { WAN_SMALL_BYTES = 2048 };

struct wan_packet {
    struct wan_shape shape;
    uint64_t first_ns; /* the first piece is through the current stage */
    uint64_t last_ns;  /* the last piece is */
    uint32_t src;
    uint32_t stage;
    uint32_t room_bytes; /* of frame */
    uint8_t *frame;
};

struct wan_host_stats { /* wire packets and bytes, that is by piece */
    uint64_t sent_packets, sent_bytes;
    uint64_t delivered_packets, delivered_bytes;
    uint64_t lost_packets; /* by chance, sent by this host; likewise the next two */
    uint64_t queue_dropped_packets;
    uint64_t cut_packets;
};

struct wan_pair {
    uint64_t delay_ns;
    uint64_t jitter_ns;
    double loss; /* probability by piece */
    bool cut;
    uint64_t random; /* state */
    double until_loss; /* pieces that still pass */
    /* Jitter moves in straight lines from bend to bend, so that it never reorders. */
    uint64_t bend_from_ns, bend_to_ns;
    double bend_from, bend_to;
};

struct wan_path;

/* `hosts` of them, at most WAN_HOSTS_MAX, all joined with no delay, rate, loss or bound yet. NULL
 * without memory. Equal seeds lose the same packets by pair and number. */
struct wan_path *wan_path_new(uint32_t hosts, uint64_t seed);
void wan_path_free(struct wan_path *path);

/* Settings; rates are bits/s of IP packets, 0 is unlimited. */
void wan_path_set_up(struct wan_path *path, uint32_t host, double bits_per_s);
void wan_path_set_down(struct wan_path *path, uint32_t host, double bits_per_s);
void wan_path_set_flow(struct wan_path *path, double bits_per_s);
void wan_path_set_queue(struct wan_path *path, uint64_t queue_ns); /* each server's bound */
void wan_path_set_delay(struct wan_path *path, uint32_t src, uint32_t dst, uint64_t delay_ns);
void wan_path_set_jitter(struct wan_path *path, uint32_t src, uint32_t dst, uint64_t jitter_ns);
void wan_path_set_loss(struct wan_path *path, uint32_t src, uint32_t dst, double loss);
void wan_path_set_cut(struct wan_path *path, uint32_t src, uint32_t dst, bool cut);

/* A packet that can hold `frame_bytes`, NULL when there is no memory or IN_FLIGHT_BYTES_MAX is
 * reached. Owned by the caller until offered; wan_path_release takes it back. */
struct wan_packet *wan_path_packet(struct wan_path *path, uint32_t frame_bytes);
void wan_path_release(struct wan_path *path, struct wan_packet *packet);

/* Takes over a packet whose frame, shape (with dst < hosts) and src are set. */
void wan_path_offer(struct wan_path *path, struct wan_packet *packet, uint64_t now_ns);

/* The next packet due at or before now_ns (release it), or NULL. */
struct wan_packet *wan_path_take(struct wan_path *path, uint64_t now_ns);

/* When take has something to do, UINT64_MAX for never. */
uint64_t wan_path_next_ns(const struct wan_path *path);

uint32_t wan_path_hosts(const struct wan_path *path);
uint64_t wan_path_frames_bytes(const struct wan_path *path); /* memory of packets in flight */
struct wan_host_stats *wan_path_stats(struct wan_path *path, uint32_t host);

#endif
