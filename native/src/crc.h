/* crc.h: CRC32C (Castagnoli, reflected 0x82F63B78), the checksum of frames. Pure. */
#ifndef PC_CRC_H
#define PC_CRC_H

#include <stddef.h>
#include <stdint.h>

/* cffi-begin */

#define PC_CRC_TABLE 0 /* slicing by eight, any CPU */
#define PC_CRC_SSE42 1 /* the instruction of x86 */

/* Continues `crc` (0 to begin) over n bytes: crc(crc(0, a), b) = crc(0, ab). Any alignment. */
uint32_t pc_crc32c(uint32_t crc, const void *data, size_t n);

/* 1 if this CPU can take the path. */
int pc_crc_has(int path);

/* The same by one named path, which pc_crc_has allows: all give the same. */
uint32_t pc_crc32c_path(int path, uint32_t crc, const void *data, size_t n);

/* cffi-end */

#endif
