/* half.h: float16 and bfloat16 to float32 and back, in C without branches, so that loops over them
 * vectorise. Rounding is to nearest even; the float16 pair equals F16C to the bit, but for NaN,
 * which narrows to the canonical quiet NaN. The calling thread's floating point mode must be the
 * default one (to nearest, subnormals kept): pccl-io has it, callers in tests too. */
#ifndef PC_HALF_H
#define PC_HALF_H

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define PC_F32_NAN  0x7fc00000
#define PC_F16_NAN  0x7e00u
#define PC_BF16_NAN 0x7fc0u

static inline __attribute__((always_inline)) uint32_t pc_f32_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline __attribute__((always_inline)) float pc_f32_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* After F. Giesen. The 15 bits are moved to float32's place and the exponent is biased anew; of a
 * subnormal, 2^-14 too much is then taken off again, exactly. */
static inline __attribute__((always_inline)) float pc_f16_widen(uint16_t half) {
    const uint32_t sign = ((uint32_t)half & 0x8000u) << 16;
    const uint32_t shifted = ((uint32_t)half & 0x7fffu) << 13;
    const uint32_t exponent = shifted & 0x0f800000u;
    const uint32_t normal = shifted + (112u << 23);
    const uint32_t special = shifted + (224u << 23); /* infinity and NaN */
    const uint32_t small = pc_f32_bits(pc_f32_of(normal + (1u << 23)) - pc_f32_of(113u << 23));
    const uint32_t finite = exponent == 0 ? small : normal;
    return pc_f32_of(sign | (exponent == 0x0f800000u ? special : finite));
}

/* After F. Giesen. Adding 0.5 to a magnitude below 2^-14 leaves the rounded subnormal in the low
 * bits of the sum; a normal one is rounded in integers, carrying into the exponent. */
static inline __attribute__((always_inline)) uint16_t pc_f16_narrow(float x) {
    const uint32_t bits = pc_f32_bits(x);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t size = bits & 0x7fffffffu;
    const uint32_t small = pc_f32_bits(pc_f32_of(size) + 0.5f) - pc_f32_bits(0.5f);
    const uint32_t normal = (size - (112u << 23) + 0xfffu + ((size >> 13) & 1u)) >> 13;
    uint32_t half = size < (113u << 23) ? small : normal;
    half = size >= (143u << 23) ? 0x7c00u : half;
    half |= sign;
    return (uint16_t)(size > 0x7f800000u ? PC_F16_NAN : half);
}

static inline __attribute__((always_inline)) float pc_bf16_widen(uint16_t half) {
    return pc_f32_of((uint32_t)half << 16);
}

static inline __attribute__((always_inline)) uint16_t pc_bf16_narrow(float x) {
    const uint32_t bits = pc_f32_bits(x);
    const uint32_t half = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? PC_BF16_NAN : half);
}

#endif
