#include "crc.h"

#include "bytes.h"
#include "check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* A CRC is linear: the entry of byte i is the exclusive or of the entries of its bits. So each of
 * the eight tables (the effect of a byte that 0..7 further bytes follow) is written as its eight
 * one-bit entries, and the preprocessor makes 256 of them. tests/dataplane/test_crc.py derives the
 * same from the polynomial. */
#define BIT(i, bit, value) ((((unsigned)(i) >> (bit)) & 1u) ? (value) : 0u)
#define ENTRY(i, b0, b1, b2, b3, b4, b5, b6, b7)                                                   \
    (BIT(i, 0, b0) ^ BIT(i, 1, b1) ^ BIT(i, 2, b2) ^ BIT(i, 3, b3) ^ BIT(i, 4, b4) ^               \
     BIT(i, 5, b5) ^ BIT(i, 6, b6) ^ BIT(i, 7, b7))
#define ROW4(i, ...)                                                                               \
    ENTRY((i), __VA_ARGS__), ENTRY((i) + 1, __VA_ARGS__), ENTRY((i) + 2, __VA_ARGS__),             \
        ENTRY((i) + 3, __VA_ARGS__)
#define ROW16(i, ...)                                                                              \
    ROW4((i), __VA_ARGS__), ROW4((i) + 4, __VA_ARGS__), ROW4((i) + 8, __VA_ARGS__),                \
        ROW4((i) + 12, __VA_ARGS__)
#define ROW64(i, ...)                                                                              \
    ROW16((i), __VA_ARGS__), ROW16((i) + 16, __VA_ARGS__), ROW16((i) + 32, __VA_ARGS__),           \
        ROW16((i) + 48, __VA_ARGS__)
#define TABLE(...)                                                                                 \
    {ROW64(0, __VA_ARGS__), ROW64(64, __VA_ARGS__), ROW64(128, __VA_ARGS__),                       \
     ROW64(192, __VA_ARGS__)}

static const uint32_t table[8][256] = {
    TABLE(0xf26b8303u, 0xe13b70f7u, 0xc79a971fu, 0x8ad958cfu, 0x105ec76fu, 0x20bd8edeu, 0x417b1dbcu,
          0x82f63b78u),
    TABLE(0x13a29877u, 0x274530eeu, 0x4e8a61dcu, 0x9d14c3b8u, 0x3fc5f181u, 0x7f8be302u, 0xff17c604u,
          0xfbc3faf9u),
    TABLE(0xa541927eu, 0x4f6f520du, 0x9edea41au, 0x38513ec5u, 0x70a27d8au, 0xe144fb14u, 0xc76580d9u,
          0x8b277743u),
    TABLE(0xdd45aab8u, 0xbf672381u, 0x7b2231f3u, 0xf64463e6u, 0xe964b13du, 0xd725148bu, 0xaba65fe7u,
          0x52a0c93fu),
    TABLE(0x38116facu, 0x7022df58u, 0xe045beb0u, 0xc5670b91u, 0x8f2261d3u, 0x1ba8b557u, 0x37516aaeu,
          0x6ea2d55cu),
    TABLE(0xef306b19u, 0xdb8ca0c3u, 0xb2f53777u, 0x6006181fu, 0xc00c303eu, 0x85f4168du, 0x0e045bebu,
          0x1c08b7d6u),
    TABLE(0x68032cc8u, 0xd0065990u, 0xa5e0c5d1u, 0x4e2dfd53u, 0x9c5bfaa6u, 0x3d5b83bdu, 0x7ab7077au,
          0xf56e0ef4u),
    TABLE(0x493c7d27u, 0x9278fa4eu, 0x211d826du, 0x423b04dau, 0x847609b4u, 0x0d006599u, 0x1a00cb32u,
          0x34019664u),
};

static uint32_t crc_table(uint32_t crc, const uint8_t *p, size_t n) {
    for (; n >= 8; p += 8, n -= 8) {
        uint32_t low = crc ^ pc_get_u32(p);
        uint32_t high = pc_get_u32(p + 4);
        crc = table[7][low & 255] ^ table[6][(low >> 8) & 255] ^ table[5][(low >> 16) & 255] ^
              table[4][low >> 24] ^ table[3][high & 255] ^ table[2][(high >> 8) & 255] ^
              table[1][(high >> 16) & 255] ^ table[0][high >> 24];
    }
    for (; n > 0; p++, n--) {
        crc = (crc >> 8) ^ table[0][(crc ^ *p) & 255];
    }
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc_sse42(uint32_t crc, const uint8_t *p,
                                                            size_t n) {
    uint64_t wide = crc;
    for (; n >= 8; p += 8, n -= 8) {
        wide = _mm_crc32_u64(wide, pc_get_u64(p));
    }
    uint32_t narrow = (uint32_t)wide;
    for (; n > 0; p++, n--) {
        narrow = _mm_crc32_u8(narrow, *p);
    }
    return narrow;
}
#endif

int pc_crc_has(int path) {
#if defined(__x86_64__)
    if (path == PC_CRC_SSE42) {
        return __builtin_cpu_supports("sse4.2") ? 1 : 0;
    }
#endif
    return path == PC_CRC_TABLE;
}

uint32_t pc_crc32c_path(int path, uint32_t crc, const void *data, size_t n) {
    PC_ASSERT(pc_crc_has(path));
#if defined(__x86_64__)
    if (path == PC_CRC_SSE42) {
        return ~crc_sse42(~crc, data, n);
    }
#endif
    return ~crc_table(~crc, data, n);
}

uint32_t pc_crc32c(uint32_t crc, const void *data, size_t n) {
    return pc_crc32c_path(pc_crc_has(PC_CRC_SSE42) ? PC_CRC_SSE42 : PC_CRC_TABLE, crc, data, n);
}
