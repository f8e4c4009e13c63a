/* fuzz: what the targets share: an input as a list of records, right checksums for frames that lie,
 * and a check whose failure is a finding.
 *
 * Any bytes are an input. A record is: what u8, where u8, times u8, length u16, then `length` bytes
 * (fewer at the end of the input). The first record says how the scene is set. The mutator of
 * driver.c knows records; libFuzzer does not need to. */
#ifndef FZ_FUZZ_H
#define FZ_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "check.h"
#include "frame.h"

#define FZ_RECORD_BYTES 5
#define FZ_INPUT_MAX    32768 /* recorded traffic over relays is 24 KiB */

/* Stays in every build, whatever NDEBUG says. */
#define FZ_CHECK(condition)                                                                        \
    ((condition) ? (void)0 : pc_panic(__FILE__, __LINE__, "not so: " #condition))

struct fz_reader {
    const uint8_t *at, *end;
};

struct fz_record {
    uint8_t what, where;
    uint32_t times; /* 1 nearly always; up to 256, for what must not pile up */
    struct fz_reader bytes;
};

struct fz_reader fz_reader(const uint8_t *data, size_t size);
/* The next record; false: none is left. */
bool fz_next(struct fz_reader *input, struct fz_record *record);
/* The next bytes as a number, little endian; zeros at the end. */
uint8_t fz_u8(struct fz_reader *bytes);
uint16_t fz_u16(struct fz_reader *bytes);
uint32_t fz_u32(struct fz_reader *bytes);
size_t fz_left(const struct fz_reader *bytes);

/* A small generator for lengths of pieces: deterministic, from the input alone. */
uint32_t fz_random(uint64_t *state);

/* How honest the bytes of an invented frame are made: RAW as they are; SEALED with a right version
 * and checksum; FITTED also with the length of what follows and the epoch given. */
enum fz_honesty { FZ_RAW = 0, FZ_SEALED = 1, FZ_FITTED = 2, FZ_HONESTIES = 3 };
struct pc_header fz_header(const uint8_t *bytes, size_t n); /* what it says, right or wrong */
/* Whether this byte may stand there in a stream of nothing but heartbeats. */
bool fz_is_beat(size_t at, uint8_t byte);
void fz_seal(uint8_t *frame, size_t n, enum fz_honesty honesty, uint32_t epoch);

/* Given by each target. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* What the inputs since the start came to, one line: a corpus that has gone stale shows there. */
void fz_summary(FILE *out);

#endif
