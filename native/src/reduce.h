/* reduce.h: elementwise reduction of two buffers, and the division that ends an average. Pure.
 *
 * Numerics, the same to the bit on every CPU and path:
 * - float16 and bfloat16 are widened to float32, combined, and rounded to nearest even at each call
 *   (on the ring: at each hop). Subnormals are kept.
 * - Integers wrap; an integer average is the wrapped sum, divided, truncated toward zero.
 * - A NaN result is always the dtype's canonical quiet NaN (positive, payload 0); MIN and MAX
 *   propagate NaN; they order -0 below +0. So every operation is commutative to the bit.
 *
 * Buffers are aligned to their dtype only. */
#ifndef PC_REDUCE_H
#define PC_REDUCE_H

#include <stddef.h>
#include <stdint.h>

/* cffi-begin */

#define PC_PATH_PLAIN 0 /* C for the compiler's baseline */
#define PC_PATH_AVX2  1 /* x86 with AVX2 and F16C */

/* out[i] = a[i] (reduce) b[i] for `count` elements. dtype: enum pccl_dtype; reduce: enum
 * pccl_reduce, PCCL_AVG adds. `out` may be `a`, `b` or neither; other overlap is a bug. */
void pc_reduce_into(int dtype, int reduce, void *out, const void *a, const void *b, size_t count);

/* acc[i] = acc[i] (reduce) in[i]. */
void pc_reduce(int dtype, int reduce, void *acc, const void *in, size_t count);

/* data[i] = data[i] / contributors, which is not 0. Floats: a true division by the rounded count,
 * 16-bit ones in float32; integers: toward zero. */
void pc_finalize_avg(int dtype, void *data, size_t count, uint32_t contributors);

/* 1 if this CPU can take the path. */
int pc_reduce_has(int path);

/* pc_reduce_into and pc_finalize_avg by one named path, which pc_reduce_has allows. */
void pc_reduce_path(int path, int dtype, int reduce, void *out, const void *a, const void *b,
                    size_t count);
void pc_average_path(int path, int dtype, void *data, size_t count, uint32_t contributors);

/* cffi-end */

#endif
