/* mean: see mean.h. */
#include "mean.h"

#include <stdint.h>
#include <string.h>

#include "check.h"
#include "half.h"
#include "pccl.h"

static double canonical(double x) {
    const uint64_t bits = UINT64_C(0x7ff8000000000000);
    double nan;
    memcpy(&nan, &bits, sizeof nan);
    return x == x ? x : nan;
}

static float canonical32(double x) {
    float rounded = (float)x;
    return rounded == rounded ? rounded : pc_f32_of(PC_F32_NAN);
}

#define LOOP(type, widen, narrow)                                                                  \
    do {                                                                                           \
        type *out = to;                                                                            \
        const type *a = mean;                                                                      \
        const type *b = x;                                                                         \
        _Pragma("GCC ivdep") for (size_t i = 0; i < count; i++) out[i] =                           \
            narrow((double)widen(a[i]) * keep + (double)widen(b[i]) * take);                       \
        return;                                                                                    \
    } while (0)

static uint16_t to_f16(double value) {
    return pc_f16_narrow((float)value);
}

static uint16_t to_bf16(double value) {
    return pc_bf16_narrow((float)value);
}

void pc_mean_into(int dtype, void *to, const void *mean, const void *x, size_t count, double keep,
                  double take) {
    switch (dtype) {
    case PCCL_FLOAT16:
        LOOP(uint16_t, pc_f16_widen, to_f16);
    case PCCL_BFLOAT16:
        LOOP(uint16_t, pc_bf16_widen, to_bf16);
    case PCCL_FLOAT32:
        LOOP(float, (float), canonical32);
    case PCCL_FLOAT64:
        LOOP(double, (double), canonical);
    default:
        PC_UNREACHABLE();
    }
}
