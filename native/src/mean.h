/* mean: one step of a weighted mean, so that no sum of weights times values can overflow. Pure. */
#ifndef PC_MEAN_H
#define PC_MEAN_H

#include <stddef.h>

/* cffi-begin */

/* to[i] = mean[i] * keep + x[i] * take, in float64, rounded once to float32 and, for 16-bit floats,
 * once more to them; a NaN result is the canonical one. keep + take is 1. dtype: a float one. `to`
 * may be `mean`, `x` or neither; other overlap is a bug. */
void pc_mean_into(int dtype, void *to, const void *mean, const void *x, size_t count, double keep,
                  double take);

/* cffi-end */

#endif
