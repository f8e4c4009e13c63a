/* check.h: assertions. A failed one is our bug: it ends the process with file, line and text, in
 * release builds too. Never used for input from outside. */
#ifndef PC_CHECK_H
#define PC_CHECK_H

/* Writes "file:line: text" to stderr and aborts. */
_Noreturn void pc_panic(const char *file, int line, const char *text);

#define PC_ASSERT(condition)                                                                       \
    ((condition) ? (void)0 : pc_panic(__FILE__, __LINE__, "assertion failed: " #condition))

/* For the branch that no value reaches: after a switch over a closed enum. */
#define PC_UNREACHABLE() pc_panic(__FILE__, __LINE__, "unreachable")

#endif
