/* packet: see packet.h. */
#include "packet.h"

#include <assert.h>
#include <linux/virtio_net.h>
#include <netinet/in.h>
#include <string.h>

enum {
    V4_BYTES_MIN = 20,
    V6_BYTES = 40,
    TCP_BYTES_MIN = 20,
    TCP_FIN = 0x01,
    TCP_PSH = 0x08,
    TCP_CWR = 0x80
};

static uint32_t get16(const uint8_t *p) {
    return (uint32_t)p[0] << 8 | p[1];
}

static uint32_t get32(const uint8_t *p) {
    return get16(p) << 16 | get16(p + 2);
}

static void put16(uint8_t *p, uint32_t value) {
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static void put32(uint8_t *p, uint32_t value) {
    put16(p, value >> 16);
    put16(p + 2, value);
}

/* Ones' complement sum of `bytes` (an even number) onto `sum`, folded to 16 bits. */
static uint32_t add_words(uint32_t sum, const uint8_t *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 2)
        sum += get16(p + i);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

static uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
    return hash ^ hash >> 29;
}

static uint64_t mix_bytes(uint64_t hash, const uint8_t *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 4)
        hash = mix(hash, get32(p + i));
    return hash;
}

/* Hosts are 10.77.0.1 and up, and fd77::1 and up (hosts.c gives them out). */
static uint32_t host_v4(const uint8_t *address) {
    uint32_t index = get32(address) - 0x0a4d0001u;
    return index < WAN_HOSTS_MAX ? index : WAN_HOSTS_MAX;
}

static uint32_t host_v6(const uint8_t *address) {
    static const uint8_t prefix[12] = {0xfd, 0x77};
    uint32_t index = get32(address + 12) - 1u;
    bool ours = memcmp(address, prefix, sizeof prefix) == 0 && index < WAN_HOSTS_MAX;
    return ours ? index : WAN_HOSTS_MAX;
}

bool wan_packet_read(const uint8_t *frame, size_t frame_bytes, struct wan_shape *out) {
    memset(out, 0, sizeof *out);
    if (frame_bytes < WAN_VNET_BYTES + V4_BYTES_MIN || frame_bytes > WAN_FRAME_MAX)
        return false;
    const uint8_t *ip = frame + WAN_VNET_BYTES;
    uint32_t ip_bytes = (uint32_t)(frame_bytes - WAN_VNET_BYTES);
    bool v4 = ip[0] >> 4 == 4;
    uint32_t network_bytes = v4 ? (ip[0] & 15u) * 4 : V6_BYTES;
    if ((!v4 && ip[0] >> 4 != 6) || network_bytes < V4_BYTES_MIN || ip_bytes < network_bytes)
        return false;
    uint32_t protocol = v4 ? ip[9] : ip[6];
    bool fragment = v4 && (get16(ip + 6) & 0x1fff);
    uint64_t hash = v4 ? mix_bytes(protocol, ip + 12, 8) : mix_bytes(protocol, ip + 8, 32);
    bool ports = (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP) && !fragment;
    if (ports && ip_bytes >= network_bytes + 4)
        hash = mix(hash, get32(ip + network_bytes));
    out->flow = hash;
    out->dst = v4 ? host_v4(ip + 16) : host_v6(ip + 24);
    out->pieces = 1;
    out->frame_bytes = (uint32_t)frame_bytes;
    out->wire_bytes = ip_bytes;

    struct virtio_net_hdr vnet;
    memcpy(&vnet, frame, sizeof vnet);
    if (vnet.gso_type == VIRTIO_NET_HDR_GSO_NONE)
        return true;
    if (!ports || protocol != IPPROTO_TCP || ip_bytes < network_bytes + TCP_BYTES_MIN)
        return false; /* no other offload was offered to the kernel */
    uint32_t header_bytes = network_bytes + (uint32_t)(ip[network_bytes + 12] >> 4) * 4;
    if (!vnet.gso_size || ip_bytes <= header_bytes)
        return false;
    uint32_t payload_bytes = ip_bytes - header_bytes;
    out->piece_bytes = vnet.gso_size;
    out->header_bytes = header_bytes;
    out->pieces = (payload_bytes + vnet.gso_size - 1) / vnet.gso_size;
    out->wire_bytes = payload_bytes + out->pieces * header_bytes;
    return true;
}

/* The IP header for `tcp_bytes` behind it, `first` pieces into the super-segment. Returns where the
 * TCP header begins. */
static uint8_t *fix_network(uint8_t *ip, uint32_t header_bytes, uint32_t payload_bytes,
                            uint32_t first) {
    if (ip[0] >> 4 == 6) {
        put16(ip + 4, header_bytes - V6_BYTES + payload_bytes);
        return ip + V6_BYTES;
    }
    uint32_t network_bytes = (ip[0] & 15u) * 4;
    put16(ip + 2, header_bytes + payload_bytes);
    put16(ip + 4, get16(ip + 4) + first);
    put16(ip + 10, 0);
    put16(ip + 10, ~add_words(0, ip, network_bytes));
    return ip + network_bytes;
}

void wan_packet_slice(const uint8_t *frame, const struct wan_shape *shape, uint32_t first,
                      uint32_t count, uint8_t *out, struct wan_shape *out_shape) {
    assert(count >= 1 && first + count <= shape->pieces);
    uint32_t head_bytes = WAN_VNET_BYTES + shape->header_bytes;
    uint32_t skip = first * shape->piece_bytes;
    uint32_t payload_bytes = shape->frame_bytes - head_bytes - skip;
    bool last = first + count == shape->pieces;
    if (!last)
        payload_bytes = count * shape->piece_bytes;
    if (out != frame) {
        memcpy(out, frame, head_bytes);
        memcpy(out + head_bytes, frame + head_bytes + skip, payload_bytes);
    }
    uint8_t *ip = out + WAN_VNET_BYTES;
    uint8_t *tcp = fix_network(ip, shape->header_bytes, payload_bytes, first);
    put32(tcp + 4, get32(tcp + 4) + skip);
    if (!last)
        tcp[13] &= (uint8_t)~(TCP_FIN | TCP_PSH);
    if (first > 0)
        tcp[13] &= (uint8_t)~TCP_CWR;
    /* The kernel completes the checksum (VIRTIO_NET_HDR_F_NEEDS_CSUM); the field holds the sum of
     * the pseudo header, whose length changed. */
    uint32_t tcp_bytes = (uint32_t)(out + head_bytes - tcp) + payload_bytes;
    bool v6 = ip[0] >> 4 == 6;
    put16(tcp + 16, add_words(IPPROTO_TCP + tcp_bytes, ip + (v6 ? 8 : 12), v6 ? 32 : 8));

    struct virtio_net_hdr vnet;
    memcpy(&vnet, out, sizeof vnet);
    if (count == 1) {
        vnet.gso_type = VIRTIO_NET_HDR_GSO_NONE;
        vnet.gso_size = 0;
    }
    memcpy(out, &vnet, sizeof vnet);
    *out_shape = *shape;
    out_shape->pieces = count;
    out_shape->frame_bytes = head_bytes + payload_bytes;
    out_shape->wire_bytes = payload_bytes + count * shape->header_bytes;
}

_Static_assert(sizeof(struct virtio_net_hdr) == WAN_VNET_BYTES, "the kernel's default header");
