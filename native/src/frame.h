/* frame: what travels on a link, as bytes: frame header, op descriptor, link handshake.
 *
 * Layouts are in PROTOCOL.md. Pure functions over caller's memory; nothing is kept.
 */
#ifndef PC_FRAME_H
#define PC_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PC_HEADER_BYTES    32
#define PC_RELAY_BYTES     4 /* behind the header of a relayed frame: from whom, to whom */
#define PC_DESC_BYTES      64
#define PC_HANDSHAKE_BYTES 96
#define PC_PAYLOAD_MAX (4u << 20) /* no frame carries more; a longer length is a broken sender */

enum pc_frame_type {
    PC_SUM = 1,   /* a partial sum on its way to the segment's owner */
    PC_COPY = 2,  /* the final value on its way round */
    PC_MARK = 3,  /* every member holds the segment */
    PC_READY = 4, /* the sender has submitted the op; payload is its descriptor */
    PC_PART = 5,  /* star: one input, to the segment's owner */
    PC_ACK = 6,   /* star: to the owner, the sender holds the segment */
    PC_CREDIT = 7 /* from a relay: one more frame may come for member `segment` */
};

enum pc_frame_flag {
    PC_FLAG_NAMED = 1,       /* op is the hash of (name, use), not a sequence number */
    PC_FLAG_PAYLOAD_CRC = 2, /* crc covers the payload too */
    PC_FLAG_TAG = 4,         /* a 16-byte authentication tag follows: reserved, refused today */
    PC_FLAG_RELAY = 8        /* 4 bytes follow the header: it is of one member to another */
};

struct pc_header {
    uint8_t type;
    uint8_t flags;
    uint32_t epoch;
    uint32_t context;
    uint16_t contributors; /* SUM: members in the value; COPY: inputs; READY: ready in a row */
    uint32_t op;
    uint32_t segment;
    uint32_t
        held; /* COPY: all, others: the sender: hold every unnamed op of the context up to it */
    uint32_t length;
    uint32_t crc;      /* as received */
    uint16_t from, to; /* PC_FLAG_RELAY: ring indices */
};

/* What peers must agree on about an op, and, at the end, what each says of itself. */
struct pc_desc {
    uint64_t count;
    uint64_t name;
    uint64_t root_peer;
    uint64_t members; /* a hash of the participants in rank order; 0: all */
    uint64_t layout;  /* a hash of the blocks' sizes, or 0 */
    uint8_t kind;
    uint8_t dtype;
    uint8_t reduce;
    uint8_t strict;
    uint8_t route; /* as asked for: enum pccl_route */
    /* not compared */
    double weight;    /* of the sender's input */
    uint64_t for_you; /* exchanges: elements that the sender has for the receiver */
};

struct pc_handshake {
    uint64_t run;
    uint64_t from;
    uint64_t to;
    uint32_t epoch;
    uint32_t capabilities;
    uint8_t nonce[16];
    uint8_t proof[32];
    uint32_t beat_ms; /* how often the sender wants to hear something; 0: never */
};

/* What stands before a payload; known from the first 4 bytes. */
static inline uint32_t pc_header_size(uint8_t flags) {
    return PC_HEADER_BYTES + (flags & PC_FLAG_RELAY ? PC_RELAY_BYTES : 0);
}

/* Writes the header; crc is computed over it and, with PC_FLAG_PAYLOAD_CRC, over payload. */
void pc_header_put(uint8_t out[PC_HEADER_BYTES + PC_RELAY_BYTES], const struct pc_header *header,
                   const void *payload);

/* Reads and checks a header: version, known type, flags, length and, without PC_FLAG_PAYLOAD_CRC,
 * the checksum. Returns NULL, or what is wrong. With the flag set the caller goes on with
 * pc_header_crc over the payload and compares with header->crc. */
const char *pc_header_get(const uint8_t in[PC_HEADER_BYTES + PC_RELAY_BYTES],
                          struct pc_header *header);

/* CRC32C of the header with its crc field zero: the start value for the payload's checksum. */
uint32_t pc_header_crc(const uint8_t in[PC_HEADER_BYTES + PC_RELAY_BYTES]);

/* Payload bytes that a frame of this op id's segment carries are the caller's business. */
uint64_t pc_op_id(const struct pc_header *header);

void pc_desc_put(uint8_t out[PC_DESC_BYTES], const struct pc_desc *desc);
bool pc_desc_get(const uint8_t in[PC_DESC_BYTES], struct pc_desc *desc);

/* The first field in which a and b differ, or NULL; its values as text. */
const char *pc_desc_differ(const struct pc_desc *a, const struct pc_desc *b, char *a_text,
                           char *b_text, size_t text_bytes);

void pc_handshake_put(uint8_t out[PC_HANDSHAKE_BYTES], const struct pc_handshake *shake);

/* NULL, or what is wrong: magic, version, checksum. Who it is from is the caller's to judge. */
const char *pc_handshake_get(const uint8_t in[PC_HANDSHAKE_BYTES], struct pc_handshake *shake);

#endif
