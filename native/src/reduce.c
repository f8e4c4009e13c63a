#include "reduce.h"

#include <string.h>

#include "check.h"
#include "half.h"
#include "pccl.h"

/* One body for all paths: combine() below is inlined into one function per instruction set, and the
 * compiler vectorises its loops for that set. It cannot know that `out` is `a`, `b` or apart; ivdep
 * says that no iteration reads what another wrote, which holds in all three cases. */
#define INLINE static inline __attribute__((always_inline))

/* out[i] = expression of x = a[i] and y = b[i], for elements of `type`. */
#define LOOP(type, expression)                                                                     \
    do {                                                                                           \
        type *to = out;                                                                            \
        const type *from_a = a;                                                                    \
        const type *from_b = b;                                                                    \
        _Pragma("GCC ivdep") for (size_t i = 0; i < count; i++) {                                  \
            const type x = from_a[i];                                                              \
            const type y = from_b[i];                                                              \
            to[i] = (type)(expression);                                                            \
        }                                                                                          \
        return;                                                                                    \
    } while (0)

INLINE uint64_t f64_bits(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE double f64_of(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Which NaN an addition returns depends on the order of its operands, and compilers swap them. */
INLINE float f32_canonical(float x) {
    return x == x ? x : pc_f32_of(PC_F32_NAN);
}

INLINE double f64_canonical(double x) {
    return x == x ? x : f64_of(UINT64_C(0x7ff8000000000000));
}

/* The two selections differ only for zeros of unlike sign: or-ing the bits gives -0, and-ing +0. */
INLINE float f32_min(float x, float y) {
    float low = pc_f32_of(pc_f32_bits(x < y ? x : y) | pc_f32_bits(y < x ? y : x));
    return x == x && y == y ? low : pc_f32_of(PC_F32_NAN);
}

INLINE float f32_max(float x, float y) {
    float high = pc_f32_of(pc_f32_bits(x > y ? x : y) & pc_f32_bits(y > x ? y : x));
    return x == x && y == y ? high : pc_f32_of(PC_F32_NAN);
}

INLINE double f64_min(double x, double y) {
    double low = f64_of(f64_bits(x < y ? x : y) | f64_bits(y < x ? y : x));
    return x == x && y == y ? low : f64_of(UINT64_C(0x7ff8000000000000));
}

INLINE double f64_max(double x, double y) {
    double high = f64_of(f64_bits(x > y ? x : y) & f64_bits(y > x ? y : x));
    return x == x && y == y ? high : f64_of(UINT64_C(0x7ff8000000000000));
}

/* Sums and products wrap alike for signed and unsigned, so only the width matters; at least 32 bits
 * wide and unsigned, since the promotion of uint16_t to int would overflow. */
INLINE void integer_sum(size_t bytes, void *out, const void *a, const void *b, size_t count) {
    switch (bytes) {
    case 1:
        LOOP(uint8_t, (uint32_t)x + (uint32_t)y);
    case 2:
        LOOP(uint16_t, (uint32_t)x + (uint32_t)y);
    case 4:
        LOOP(uint32_t, x + y);
    case 8:
        LOOP(uint64_t, x + y);
    default:
        PC_UNREACHABLE();
    }
}

INLINE void integer_prod(size_t bytes, void *out, const void *a, const void *b, size_t count) {
    switch (bytes) {
    case 1:
        LOOP(uint8_t, (uint32_t)x *(uint32_t)y);
    case 2:
        LOOP(uint16_t, (uint32_t)x *(uint32_t)y);
    case 4:
        LOOP(uint32_t, x *y);
    case 8:
        LOOP(uint64_t, x *y);
    default:
        PC_UNREACHABLE();
    }
}

INLINE void integer_min(int dtype, void *out, const void *a, const void *b, size_t count) {
    switch (dtype) {
    case PCCL_UINT8:
        LOOP(uint8_t, x < y ? x : y);
    case PCCL_INT8:
        LOOP(int8_t, x < y ? x : y);
    case PCCL_INT16:
        LOOP(int16_t, x < y ? x : y);
    case PCCL_INT32:
        LOOP(int32_t, x < y ? x : y);
    case PCCL_INT64:
        LOOP(int64_t, x < y ? x : y);
    default:
        PC_UNREACHABLE();
    }
}

INLINE void integer_max(int dtype, void *out, const void *a, const void *b, size_t count) {
    switch (dtype) {
    case PCCL_UINT8:
        LOOP(uint8_t, x > y ? x : y);
    case PCCL_INT8:
        LOOP(int8_t, x > y ? x : y);
    case PCCL_INT16:
        LOOP(int16_t, x > y ? x : y);
    case PCCL_INT32:
        LOOP(int32_t, x > y ? x : y);
    case PCCL_INT64:
        LOOP(int64_t, x > y ? x : y);
    default:
        PC_UNREACHABLE();
    }
}

INLINE void f32_combine(int reduce, void *out, const void *a, const void *b, size_t count) {
    switch (reduce) {
    case PCCL_SUM:
    case PCCL_AVG:
        LOOP(float, f32_canonical(x + y));
    case PCCL_PROD:
        LOOP(float, f32_canonical(x * y));
    case PCCL_MIN:
        LOOP(float, f32_min(x, y));
    case PCCL_MAX:
        LOOP(float, f32_max(x, y));
    default:
        PC_UNREACHABLE();
    }
}

INLINE void f64_combine(int reduce, void *out, const void *a, const void *b, size_t count) {
    switch (reduce) {
    case PCCL_SUM:
    case PCCL_AVG:
        LOOP(double, f64_canonical(x + y));
    case PCCL_PROD:
        LOOP(double, f64_canonical(x * y));
    case PCCL_MIN:
        LOOP(double, f64_min(x, y));
    case PCCL_MAX:
        LOOP(double, f64_max(x, y));
    default:
        PC_UNREACHABLE();
    }
}

/* The combined values of 16-bit floats, through `widen` and `narrow`. */
#define COMBINE_16(widen, narrow)                                                                  \
    switch (reduce) {                                                                              \
    case PCCL_SUM:                                                                                 \
    case PCCL_AVG:                                                                                 \
        LOOP(uint16_t, narrow(widen(x) + widen(y)));                                               \
    case PCCL_PROD:                                                                                \
        LOOP(uint16_t, narrow(widen(x) * widen(y)));                                               \
    case PCCL_MIN:                                                                                 \
        LOOP(uint16_t, narrow(f32_min(widen(x), widen(y))));                                       \
    case PCCL_MAX:                                                                                 \
        LOOP(uint16_t, narrow(f32_max(widen(x), widen(y))));                                       \
    default:                                                                                       \
        PC_UNREACHABLE();                                                                          \
    }

INLINE void f16_combine(int reduce, void *out, const void *a, const void *b,
                        size_t count){COMBINE_16(pc_f16_widen, pc_f16_narrow)}

INLINE void bf16_combine(int reduce, void *out, const void *a, const void *b,
                         size_t count){COMBINE_16(pc_bf16_widen, pc_bf16_narrow)}

INLINE void combine(int dtype, int reduce, void *out, const void *a, const void *b, size_t count) {
    switch (dtype) {
    case PCCL_FLOAT16:
        f16_combine(reduce, out, a, b, count);
        return;
    case PCCL_BFLOAT16:
        bf16_combine(reduce, out, a, b, count);
        return;
    case PCCL_FLOAT32:
        f32_combine(reduce, out, a, b, count);
        return;
    case PCCL_FLOAT64:
        f64_combine(reduce, out, a, b, count);
        return;
    default:
        break;
    }
    size_t bytes = dtype == PCCL_INT16 ? 2 : dtype == PCCL_INT32 ? 4 : dtype == PCCL_INT64 ? 8 : 1;
    switch (reduce) {
    case PCCL_SUM:
    case PCCL_AVG:
        integer_sum(bytes, out, a, b, count);
        return;
    case PCCL_PROD:
        integer_prod(bytes, out, a, b, count);
        return;
    case PCCL_MIN:
        integer_min(dtype, out, a, b, count);
        return;
    case PCCL_MAX:
        integer_max(dtype, out, a, b, count);
        return;
    default:
        PC_UNREACHABLE();
    }
}

static void combine_plain(int dtype, int reduce, void *out, const void *a, const void *b,
                          size_t count) {
    combine(dtype, reduce, out, a, b, count);
}

/* data[i] = expression of x = data[i]. */
#define EACH(type, expression)                                                                     \
    do {                                                                                           \
        type *at = data;                                                                           \
        for (size_t i = 0; i < count; i++) {                                                       \
            const type x = at[i];                                                                  \
            at[i] = (type)(expression);                                                            \
        }                                                                                          \
        return;                                                                                    \
    } while (0)

INLINE void average(int dtype, void *data, size_t count, uint32_t contributors) {
    const float divisor = (float)contributors;
    const int64_t whole = (int64_t)contributors;
    switch (dtype) {
    case PCCL_UINT8:
        EACH(uint8_t, x / contributors);
    case PCCL_INT8:
        EACH(int8_t, x / whole);
    case PCCL_INT16:
        EACH(int16_t, x / whole);
    case PCCL_INT32:
        EACH(int32_t, x / whole);
    case PCCL_INT64:
        EACH(int64_t, x / whole);
    case PCCL_FLOAT16:
        EACH(uint16_t, pc_f16_narrow(pc_f16_widen(x) / divisor));
    case PCCL_BFLOAT16:
        EACH(uint16_t, pc_bf16_narrow(pc_bf16_widen(x) / divisor));
    case PCCL_FLOAT32:
        EACH(float, f32_canonical(x / divisor));
    case PCCL_FLOAT64:
        EACH(double, f64_canonical(x / (double)contributors));
    default:
        PC_UNREACHABLE();
    }
}

static void average_plain(int dtype, void *data, size_t count, uint32_t contributors) {
    average(dtype, data, count, contributors);
}

#if defined(__x86_64__)

#define AVX2 __attribute__((target("avx2,f16c")))

AVX2 INLINE __m128i load_8(const uint16_t *from) {
    return _mm_loadu_si128((const __m128i *)(const void *)from);
}

/* Stores r as eight float16, canonical NaN where `nan` says. */
AVX2 INLINE void store_8(uint16_t *to, __m256 r, __m256 nan) {
    r = _mm256_blendv_ps(r, _mm256_castsi256_ps(_mm256_set1_epi32(PC_F32_NAN)), nan);
    __m128i half = _mm256_cvtps_ph(r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128((__m128i *)(void *)to, half);
}

/* Eight float16 a step with the conversions of F16C; MIN and MAX as in f32_min and f32_max. */
AVX2 INLINE void f16_loop(int reduce, uint16_t *out, const uint16_t *a, const uint16_t *b,
                          size_t count) {
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256 x = _mm256_cvtph_ps(load_8(a + i));
        __m256 y = _mm256_cvtph_ps(load_8(b + i));
        __m256 r;
        switch (reduce) {
        case PCCL_PROD:
            r = _mm256_mul_ps(x, y);
            break;
        case PCCL_MIN:
            r = _mm256_or_ps(_mm256_min_ps(x, y), _mm256_min_ps(y, x));
            break;
        case PCCL_MAX:
            r = _mm256_and_ps(_mm256_max_ps(x, y), _mm256_max_ps(y, x));
            break;
        default:
            r = _mm256_add_ps(x, y);
            break;
        }
        /* NaN of infinity less infinity is in r, NaN that MIN and MAX must keep in x or y */
        __m256 either = _mm256_cmp_ps(x, y, _CMP_UNORD_Q);
        store_8(out + i, r, _mm256_or_ps(either, _mm256_cmp_ps(r, r, _CMP_UNORD_Q)));
    }
    f16_combine(reduce, out + i, a + i, b + i, count - i);
}

AVX2 static void f16_average_avx2(uint16_t *data, size_t count, uint32_t contributors) {
    const __m256 divisor = _mm256_set1_ps((float)contributors);
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256 r = _mm256_div_ps(_mm256_cvtph_ps(load_8(data + i)), divisor);
        store_8(data + i, r, _mm256_cmp_ps(r, r, _CMP_UNORD_Q));
    }
    average(PCCL_FLOAT16, data + i, count - i, contributors);
}

AVX2 static void average_avx2(int dtype, void *data, size_t count, uint32_t contributors) {
    if (dtype == PCCL_FLOAT16) {
        f16_average_avx2(data, count, contributors);
    } else {
        average(dtype, data, count, contributors);
    }
}

AVX2 static void combine_avx2(int dtype, int reduce, void *out, const void *a, const void *b,
                              size_t count) {
    if (dtype != PCCL_FLOAT16) {
        combine(dtype, reduce, out, a, b, count);
        return;
    }
    switch (reduce) { /* a constant in each call, so that the choice leaves the loop */
    case PCCL_SUM:
    case PCCL_AVG:
        f16_loop(PCCL_SUM, out, a, b, count);
        return;
    case PCCL_PROD:
        f16_loop(PCCL_PROD, out, a, b, count);
        return;
    case PCCL_MIN:
        f16_loop(PCCL_MIN, out, a, b, count);
        return;
    case PCCL_MAX:
        f16_loop(PCCL_MAX, out, a, b, count);
        return;
    default:
        PC_UNREACHABLE();
    }
}

#endif

int pc_reduce_has(int path) {
#if defined(__x86_64__)
    if (path == PC_PATH_AVX2) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") ? 1 : 0;
    }
#endif
    return path == PC_PATH_PLAIN;
}

static int best_path(void) {
    return pc_reduce_has(PC_PATH_AVX2) ? PC_PATH_AVX2 : PC_PATH_PLAIN;
}

void pc_reduce_path(int path, int dtype, int reduce, void *out, const void *a, const void *b,
                    size_t count) {
    PC_ASSERT(pc_reduce_has(path));
    PC_ASSERT(dtype >= PCCL_UINT8 && dtype <= PCCL_FLOAT64);
    PC_ASSERT(reduce >= PCCL_SUM && reduce <= PCCL_MAX);
#if defined(__x86_64__)
    if (path == PC_PATH_AVX2) {
        combine_avx2(dtype, reduce, out, a, b, count);
        return;
    }
#endif
    combine_plain(dtype, reduce, out, a, b, count);
}

void pc_reduce_into(int dtype, int reduce, void *out, const void *a, const void *b, size_t count) {
    pc_reduce_path(best_path(), dtype, reduce, out, a, b, count);
}

void pc_reduce(int dtype, int reduce, void *acc, const void *in, size_t count) {
    pc_reduce_into(dtype, reduce, acc, acc, in, count);
}

void pc_average_path(int path, int dtype, void *data, size_t count, uint32_t contributors) {
    PC_ASSERT(pc_reduce_has(path));
    PC_ASSERT(dtype >= PCCL_UINT8 && dtype <= PCCL_FLOAT64);
    PC_ASSERT(contributors > 0);
#if defined(__x86_64__)
    if (path == PC_PATH_AVX2) {
        average_avx2(dtype, data, count, contributors);
        return;
    }
#endif
    average_plain(dtype, data, count, contributors);
}

void pc_finalize_avg(int dtype, void *data, size_t count, uint32_t contributors) {
    pc_average_path(best_path(), dtype, data, count, contributors);
}
