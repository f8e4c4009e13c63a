/* bytes.h: integers of the wire, little endian, at any address. The only way that numbers get into
 * and out of frames: structs are never copied to the wire. */
#ifndef PC_BYTES_H
#define PC_BYTES_H

#include <stdint.h>

static inline void pc_put_u16(uint8_t *to, uint16_t value) {
    to[0] = (uint8_t)value;
    to[1] = (uint8_t)(value >> 8);
}

static inline void pc_put_u24(uint8_t *to, uint32_t value) {
    pc_put_u16(to, (uint16_t)value);
    to[2] = (uint8_t)(value >> 16);
}

static inline void pc_put_u32(uint8_t *to, uint32_t value) {
    pc_put_u16(to, (uint16_t)value);
    pc_put_u16(to + 2, (uint16_t)(value >> 16));
}

static inline void pc_put_u64(uint8_t *to, uint64_t value) {
    pc_put_u32(to, (uint32_t)value);
    pc_put_u32(to + 4, (uint32_t)(value >> 32));
}

static inline uint16_t pc_get_u16(const uint8_t *from) {
    return (uint16_t)(from[0] | (from[1] << 8));
}

static inline uint32_t pc_get_u24(const uint8_t *from) {
    return (uint32_t)pc_get_u16(from) | ((uint32_t)from[2] << 16);
}

static inline uint32_t pc_get_u32(const uint8_t *from) {
    return (uint32_t)pc_get_u16(from) | ((uint32_t)pc_get_u16(from + 2) << 16);
}

static inline uint64_t pc_get_u64(const uint8_t *from) {
    return (uint64_t)pc_get_u32(from) | ((uint64_t)pc_get_u32(from + 4) << 32);
}

#endif
