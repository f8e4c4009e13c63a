/* frame: see frame.h and PROTOCOL.md. */
#include "frame.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "crc.h"
#include "pccl.h"

#define PC_MAGIC 0x4c434350u /* "PCCL" */

uint32_t pc_header_crc(const uint8_t in[PC_HEADER_BYTES + PC_RELAY_BYTES]) {
    static const uint8_t zero[4] = {0};
    uint32_t crc = pc_crc32c(pc_crc32c(0, in, PC_HEADER_BYTES - 4), zero, 4);
    return in[2] & PC_FLAG_RELAY ? pc_crc32c(crc, in + PC_HEADER_BYTES, PC_RELAY_BYTES) : crc;
}

void pc_header_put(uint8_t out[PC_HEADER_BYTES + PC_RELAY_BYTES], const struct pc_header *header,
                   const void *payload) {
    out[0] = PCCL_WIRE_VERSION;
    out[1] = header->type;
    out[2] = header->flags;
    pc_put_u24(out + 3, header->length);
    pc_put_u16(out + 6, header->contributors);
    pc_put_u32(out + 8, header->epoch);
    pc_put_u32(out + 12, header->context);
    pc_put_u32(out + 16, header->op);
    pc_put_u32(out + 20, header->segment);
    pc_put_u32(out + 24, header->held);
    if (header->flags & PC_FLAG_RELAY) {
        pc_put_u16(out + PC_HEADER_BYTES, header->from);
        pc_put_u16(out + PC_HEADER_BYTES + 2, header->to);
    }
    uint32_t crc = pc_header_crc(out);
    if (header->flags & PC_FLAG_PAYLOAD_CRC)
        crc = pc_crc32c(crc, payload, header->length);
    pc_put_u32(out + 28, crc);
}

const char *pc_header_get(const uint8_t in[PC_HEADER_BYTES + PC_RELAY_BYTES],
                          struct pc_header *header) {
    if (in[0] != PCCL_WIRE_VERSION)
        return "frame of another wire version";
    header->type = in[1];
    header->flags = in[2];
    header->length = pc_get_u24(in + 3);
    header->contributors = pc_get_u16(in + 6);
    header->epoch = pc_get_u32(in + 8);
    header->context = pc_get_u32(in + 12);
    header->op = pc_get_u32(in + 16);
    header->segment = pc_get_u32(in + 20);
    header->held = pc_get_u32(in + 24);
    header->crc = pc_get_u32(in + 28);
    if (header->type < PC_SUM || header->type > PC_CREDIT)
        return "frame of unknown type";
    if (header->flags & ~(PC_FLAG_NAMED | PC_FLAG_PAYLOAD_CRC | PC_FLAG_RELAY))
        return "frame with unknown flags";
    if (header->flags & PC_FLAG_RELAY) {
        header->from = pc_get_u16(in + PC_HEADER_BYTES);
        header->to = pc_get_u16(in + PC_HEADER_BYTES + 2);
    }
    if (header->context >> 31)
        return "frame of an impossible context";
    if (header->length > PC_PAYLOAD_MAX)
        return "frame longer than allowed";
    if (!(header->flags & PC_FLAG_PAYLOAD_CRC) && header->crc != pc_header_crc(in))
        return "wrong checksum";
    return NULL;
}

uint64_t pc_op_id(const struct pc_header *header) {
    uint64_t named = header->flags & PC_FLAG_NAMED ? UINT64_C(1) << 32 : 0;
    return (uint64_t)header->context << 33 | named | header->op;
}

void pc_desc_put(uint8_t out[PC_DESC_BYTES], const struct pc_desc *desc) {
    pc_put_u64(out, desc->count);
    pc_put_u64(out + 8, desc->name);
    pc_put_u64(out + 16, desc->root_peer);
    pc_put_u64(out + 24, desc->members);
    pc_put_u64(out + 32, desc->layout);
    out[40] = desc->kind;
    out[41] = desc->dtype;
    out[42] = desc->reduce;
    out[43] = desc->strict;
    out[44] = desc->route;
    out[45] = out[46] = out[47] = 0;
    uint64_t weight;
    memcpy(&weight, &desc->weight, sizeof weight);
    pc_put_u64(out + 48, weight);
    pc_put_u64(out + 56, desc->for_you);
}

bool pc_desc_get(const uint8_t in[PC_DESC_BYTES], struct pc_desc *desc) {
    desc->count = pc_get_u64(in);
    desc->name = pc_get_u64(in + 8);
    desc->root_peer = pc_get_u64(in + 16);
    desc->members = pc_get_u64(in + 24);
    desc->layout = pc_get_u64(in + 32);
    desc->kind = in[40];
    desc->dtype = in[41];
    desc->reduce = in[42];
    desc->strict = in[43];
    desc->route = in[44];
    uint64_t weight = pc_get_u64(in + 48);
    memcpy(&desc->weight, &weight, sizeof weight);
    desc->for_you = pc_get_u64(in + 56);
    return !in[45] && !in[46] && !in[47] && isfinite(desc->weight) && desc->weight >= 0;
}

static const char *const kind_names[] = {"all_reduce",     "broadcast", "reduce",  "all_gather",
                                         "reduce_scatter", "gather",    "scatter", "all_to_all",
                                         "send",           "recv"};
static const char *const dtype_names[] = {"uint8",   "int8",     "int16",   "int32",  "int64",
                                          "float16", "bfloat16", "float32", "float64"};
static const char *const route_names[] = {"auto", "ring", "star", "direct"};
static const char *const reduce_names[] = {"sum", "avg", "prod", "min", "max"};

#define NAME_OF(table, i) ((i) < sizeof(table) / sizeof(*(table)) ? (table)[i] : "unknown")

const char *pc_desc_differ(const struct pc_desc *a, const struct pc_desc *b, char *a_text,
                           char *b_text, size_t text_bytes) {
    if (a->kind != b->kind) {
        snprintf(a_text, text_bytes, "%s", NAME_OF(kind_names, a->kind));
        snprintf(b_text, text_bytes, "%s", NAME_OF(kind_names, b->kind));
        return "kind";
    }
    if (a->name != b->name) {
        snprintf(a_text, text_bytes, "%016" PRIx64, a->name);
        snprintf(b_text, text_bytes, "%016" PRIx64, b->name);
        return "name";
    }
    if (a->members != b->members) {
        snprintf(a_text, text_bytes, "%016" PRIx64, a->members);
        snprintf(b_text, text_bytes, "%016" PRIx64, b->members);
        return "members";
    }
    if (a->dtype != b->dtype) {
        snprintf(a_text, text_bytes, "%s", NAME_OF(dtype_names, a->dtype));
        snprintf(b_text, text_bytes, "%s", NAME_OF(dtype_names, b->dtype));
        return "dtype";
    }
    if (a->count != b->count) {
        snprintf(a_text, text_bytes, "%" PRIu64, a->count);
        snprintf(b_text, text_bytes, "%" PRIu64, b->count);
        return "count";
    }
    if (a->layout != b->layout) {
        snprintf(a_text, text_bytes, "%016" PRIx64, a->layout);
        snprintf(b_text, text_bytes, "%016" PRIx64, b->layout);
        return "block sizes";
    }
    if (a->reduce != b->reduce) {
        snprintf(a_text, text_bytes, "%s", NAME_OF(reduce_names, a->reduce));
        snprintf(b_text, text_bytes, "%s", NAME_OF(reduce_names, b->reduce));
        return "op";
    }
    if (a->root_peer != b->root_peer) {
        snprintf(a_text, text_bytes, "%016" PRIx64, a->root_peer);
        snprintf(b_text, text_bytes, "%016" PRIx64, b->root_peer);
        bool source = a->kind == PCCL_BROADCAST || a->kind == PCCL_SCATTER;
        return source ? "src" : "dst";
    }
    if (a->route != b->route) {
        snprintf(a_text, text_bytes, "%s", NAME_OF(route_names, a->route));
        snprintf(b_text, text_bytes, "%s", NAME_OF(route_names, b->route));
        return "route";
    }
    if (a->strict != b->strict) {
        snprintf(a_text, text_bytes, "%s", a->strict ? "True" : "False");
        snprintf(b_text, text_bytes, "%s", b->strict ? "True" : "False");
        return "strict";
    }
    return NULL;
}

void pc_handshake_put(uint8_t out[PC_HANDSHAKE_BYTES], const struct pc_handshake *shake) {
    memset(out, 0, PC_HANDSHAKE_BYTES);
    pc_put_u32(out, PC_MAGIC);
    pc_put_u16(out + 4, PCCL_WIRE_VERSION);
    pc_put_u64(out + 8, shake->run);
    pc_put_u64(out + 16, shake->from);
    pc_put_u64(out + 24, shake->to);
    pc_put_u32(out + 32, shake->epoch);
    pc_put_u32(out + 36, shake->capabilities);
    memcpy(out + 40, shake->nonce, 16);
    memcpy(out + 56, shake->proof, 32);
    pc_put_u32(out + 88, shake->beat_ms);
    pc_put_u32(out + 92, pc_crc32c(0, out, 92));
}

const char *pc_handshake_get(const uint8_t in[PC_HANDSHAKE_BYTES], struct pc_handshake *shake) {
    if (pc_get_u32(in) != PC_MAGIC)
        return "not a pccl link";
    if (pc_get_u16(in + 4) != PCCL_WIRE_VERSION)
        return "another wire version";
    if (pc_get_u32(in + 92) != pc_crc32c(0, in, 92))
        return "handshake with a wrong checksum";
    shake->run = pc_get_u64(in + 8);
    shake->from = pc_get_u64(in + 16);
    shake->to = pc_get_u64(in + 24);
    shake->epoch = pc_get_u32(in + 32);
    shake->capabilities = pc_get_u32(in + 36);
    memcpy(shake->nonce, in + 40, 16);
    memcpy(shake->proof, in + 56, 32);
    shake->beat_ms = pc_get_u32(in + 88);
    return NULL;
}
