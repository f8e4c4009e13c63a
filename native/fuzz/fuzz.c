/* fuzz: see fuzz.h. */
#include "fuzz.h"

#include <string.h>

#include "frame.h"
#include "pccl.h"

struct fz_reader fz_reader(const uint8_t *data, size_t size) {
    return (struct fz_reader){.at = data, .end = data + size};
}

size_t fz_left(const struct fz_reader *bytes) {
    return (size_t)(bytes->end - bytes->at);
}

uint8_t fz_u8(struct fz_reader *bytes) {
    return fz_left(bytes) ? *bytes->at++ : 0;
}

uint16_t fz_u16(struct fz_reader *bytes) {
    uint16_t low = fz_u8(bytes);
    return (uint16_t)(low | fz_u8(bytes) << 8);
}

uint32_t fz_u32(struct fz_reader *bytes) {
    uint32_t low = fz_u16(bytes);
    return low | (uint32_t)fz_u16(bytes) << 16;
}

bool fz_next(struct fz_reader *input, struct fz_record *record) {
    if (fz_left(input) < FZ_RECORD_BYTES)
        return false;
    record->what = fz_u8(input);
    record->where = fz_u8(input);
    uint8_t times = fz_u8(input);
    record->times = times < 224 ? 1 : (uint32_t)(times - 223) * 8;
    size_t length = fz_u16(input);
    if (length > fz_left(input))
        length = fz_left(input);
    record->bytes = fz_reader(input->at, length);
    input->at += length;
    return true;
}

uint32_t fz_random(uint64_t *state) {
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33);
}

struct pc_header fz_header(const uint8_t *bytes, size_t n) {
    uint8_t own[PC_HEADER_BYTES + PC_RELAY_BYTES] = {0};
    memcpy(own, bytes, n < sizeof own ? n : sizeof own);
    own[0] = PCCL_WIRE_VERSION;
    struct pc_header header = {0};
    (void)pc_header_get(own, &header); /* the fields; what is wrong with them is the point */
    return header;
}

void fz_seal(uint8_t *frame, size_t n, enum fz_honesty honesty, uint32_t epoch) {
    if (honesty == FZ_RAW || n < PC_HEADER_BYTES)
        return;
    struct pc_header header = fz_header(frame, n);
    if (honesty == FZ_FITTED)
        header.flags &= PC_FLAG_NAMED | PC_FLAG_PAYLOAD_CRC | PC_FLAG_RELAY;
    size_t head = pc_header_size(header.flags);
    if (head > n) {
        header.flags = (uint8_t)(header.flags & ~PC_FLAG_RELAY);
        head = PC_HEADER_BYTES;
    }
    if (honesty == FZ_FITTED) {
        header.length = (uint32_t)(n - head);
        header.epoch = epoch;
    }
    if (header.length > n - head)
        header.flags = (uint8_t)(header.flags & ~PC_FLAG_PAYLOAD_CRC);
    uint8_t out[PC_HEADER_BYTES + PC_RELAY_BYTES];
    pc_header_put(out, &header, frame + head);
    memcpy(frame, out, head);
}

/* Asked by the sanitizers as they start; the environment may say otherwise. Little memory is kept
 * aside, and short stacks of allocations: inputs are many and small. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) {
    return "abort_on_error=1:malloc_context_size=4:quarantine_size_mb=8";
}

const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void) {
    return "abort_on_error=1:print_stacktrace=1";
}

bool fz_is_beat(size_t at, uint8_t byte) {
    uint8_t beat[PC_HEADER_BYTES + PC_RELAY_BYTES];
    struct pc_header header = {.type = PC_MARK};
    pc_header_put(beat, &header, NULL);
    return byte == beat[at % PC_HEADER_BYTES];
}
