#include "check.h"

#include <stdio.h>
#include <stdlib.h>

_Noreturn void pc_panic(const char *file, int line, const char *text) {
    fprintf(stderr, "pccl: %s:%d: %s\n", file, line, text);
    abort();
}
