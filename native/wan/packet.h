/* packet: what a TUN device with IFF_VNET_HDR hands over, read and cut to size.
 *
 * A frame is a virtio_net_hdr followed by an IP packet. With TSO the packet may be a super-segment:
 * up to 64 KiB of one TCP stream that stand for `pieces` packets on the wire, each with headers of
 * its own. Knows nothing of time, of hosts, or of queues.
 */
#ifndef WAN_PACKET_H
#define WAN_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    WAN_VNET_BYTES = 10,
    WAN_FRAME_MAX = WAN_VNET_BYTES + 65536 + 128, /* a super-segment and its headers */
    WAN_HOSTS_MAX = 64
};

struct wan_shape {
    uint32_t pieces;       /* packets on the wire, at least 1 */
    uint32_t piece_bytes;  /* TCP payload of each piece but the last; 0 unless a super-segment */
    uint32_t header_bytes; /* IP and TCP headers of each piece; 0 unless a super-segment */
    uint32_t frame_bytes;  /* the frame as it lies in memory */
    uint32_t wire_bytes;   /* IP packets on the wire, all pieces with their headers */
    uint64_t flow;         /* hash of protocol, addresses and ports, by direction */
    uint32_t dst;          /* host index by destination address, WAN_HOSTS_MAX when none of ours */
};

/* Reads the frame's headers. False when they are not those of a whole IP packet. */
bool wan_packet_read(const uint8_t *frame, size_t frame_bytes, struct wan_shape *out);

/* Copies pieces [first, first + count) of a super-segment to `out` as a frame of its own, with
 * sequence number, lengths, flags and checksums set right. `out` holds WAN_FRAME_MAX bytes and may
 * be `frame` itself when first is 0. Needs count >= 1 and first + count <= shape->pieces. */
void wan_packet_slice(const uint8_t *frame, const struct wan_shape *shape, uint32_t first,
                      uint32_t count, uint8_t *out, struct wan_shape *out_shape);

#endif
