/* planted: a reduction that is wrong in one element, linked in front of the right one: for the test
 * that the targets find what they are there to find. */
#include "reduce.h"

void __real_pc_reduce_into(int dtype, int op, void *to, const void *a, const void *b, size_t n);
void __wrap_pc_reduce_into(int dtype, int op, void *to, const void *a, const void *b, size_t n);
void __wrap_pc_reduce_into(int dtype, int op, void *to, const void *a, const void *b, size_t n) {
    __real_pc_reduce_into(dtype, op, to, a, b, n);
    if (n > 3)
        *(uint8_t *)to ^= 2;
}
