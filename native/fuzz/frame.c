/* fuzz target frame: every parser of frame.h on bytes of exactly the length it may read. What one
 * accepts, it says again in the same bytes; texts end within their space. */
#include "frame.h"

#include <stdlib.h>
#include <string.h>

#include "crc.h"
#include "fuzz.h"

#define TEXT_BYTES 24

static uint64_t headers_taken, shakes_taken, descs_taken, refused;

/* The next n bytes in a block of their own, so that reading past them is seen. */
static uint8_t *take(struct fz_reader *bytes, size_t n) {
    uint8_t *own = calloc(1, n ? n : 1);
    FZ_CHECK(own);
    size_t have = fz_left(bytes) < n ? fz_left(bytes) : n;
    if (have)
        memcpy(own, bytes->at, have);
    bytes->at += have;
    return own;
}

static void on_header(struct fz_record *record) {
    size_t n = fz_left(&record->bytes);
    n = n < PC_HEADER_BYTES + PC_RELAY_BYTES ? PC_HEADER_BYTES + PC_RELAY_BYTES : n;
    uint8_t *frame = take(&record->bytes, n);
    fz_seal(frame, n, record->where % FZ_HONESTIES, 7);
    struct pc_header header = {0};
    if (pc_header_get(frame, &header)) {
        refused++;
        free(frame);
        return;
    }
    headers_taken++;
    FZ_CHECK(header.length <= PC_PAYLOAD_MAX);
    FZ_CHECK(pc_op_id(&header) >> 32 || header.op == pc_op_id(&header));
    size_t head = pc_header_size(header.flags);
    bool covered = (header.flags & PC_FLAG_PAYLOAD_CRC) != 0;
    if (!covered || header.length <= n - head) {
        uint8_t again[PC_HEADER_BYTES + PC_RELAY_BYTES];
        pc_header_put(again, &header, frame + head);
        uint32_t crc = pc_header_crc(frame);
        if (covered)
            crc = pc_crc32c(crc, frame + head, header.length);
        if (header.crc == crc) /* of a covered one the caller judges, after the payload */
            FZ_CHECK(memcmp(again, frame, head) == 0);
        else
            FZ_CHECK(covered);
    }
    free(frame);
}

static void on_descs(struct fz_record *record) {
    uint8_t *one = take(&record->bytes, PC_DESC_BYTES);
    uint8_t *two = take(&record->bytes, PC_DESC_BYTES);
    if (record->where % 2) /* the second is the first but for what follows in the record */
        for (size_t i = 0; i < PC_DESC_BYTES; i++)
            two[i] ^= one[i];
    struct pc_desc a = {0}, b = {0};
    char *a_text = malloc(TEXT_BYTES), *b_text = malloc(TEXT_BYTES);
    FZ_CHECK(a_text && b_text);
    bool taken = pc_desc_get(one, &a);
    if (taken && pc_desc_get(two, &b)) {
        descs_taken++;
        const char *field = pc_desc_differ(&a, &b, a_text, b_text, TEXT_BYTES);
        struct pc_desc twin = b; /* what each says of itself is not compared */
        twin.weight = a.weight;
        twin.for_you = a.for_you;
        pc_desc_put(two, &twin);
        FZ_CHECK(!field == (memcmp(one, two, PC_DESC_BYTES) == 0));
        if (field)
            FZ_CHECK(memchr(a_text, 0, TEXT_BYTES) && memchr(b_text, 0, TEXT_BYTES));
        FZ_CHECK(!pc_desc_differ(&a, &a, a_text, b_text, TEXT_BYTES));
    }
    if (taken) {
        uint8_t again[PC_DESC_BYTES];
        pc_desc_put(again, &a);
        FZ_CHECK(memcmp(again, one, PC_DESC_BYTES) == 0);
    } else {
        refused++;
    }
    free(a_text);
    free(b_text);
    free(one);
    free(two);
}

static void on_shake(struct fz_record *record) {
    uint8_t *bytes = take(&record->bytes, PC_HANDSHAKE_BYTES);
    struct pc_handshake shake = {0}, back = {0};
    if (record->where % 2) { /* the fields of a whole one, from bytes that need not be */
        memcpy(&shake.run, bytes, sizeof shake.run);
        memcpy(&shake.from, bytes + 16, sizeof shake.from);
        memcpy(shake.proof, bytes + 24, sizeof shake.proof);
        pc_handshake_put(bytes, &shake);
        FZ_CHECK(!pc_handshake_get(bytes, &back));
        FZ_CHECK(back.run == shake.run && back.from == shake.from && back.to == shake.to);
        FZ_CHECK(memcmp(back.proof, shake.proof, sizeof back.proof) == 0);
        size_t at = fz_u16(&record->bytes) % PC_HANDSHAKE_BYTES;
        bytes[at] ^= fz_u8(&record->bytes); /* a burst of eight bits: the checksum must see it */
    }
    uint8_t again[PC_HANDSHAKE_BYTES];
    pc_handshake_put(again, &shake);
    bool same = record->where % 2 && memcmp(again, bytes, sizeof again) == 0;
    if (pc_handshake_get(bytes, &back)) {
        refused++;
        FZ_CHECK(!same);
    } else {
        shakes_taken++;
        FZ_CHECK(same || record->where % 2 == 0);
    }
    free(bytes);
}

/* In two pieces as in one, and by each path alike. */
static void on_checksum(struct fz_record *record) {
    size_t at = record->where;
    size_t n = fz_left(&record->bytes);
    at = at < n ? at : n;
    uint8_t *bytes = take(&record->bytes, n);
    uint32_t whole = pc_crc32c(0, bytes, n);
    FZ_CHECK(pc_crc32c(pc_crc32c(0, bytes, at), bytes + at, n - at) == whole);
    for (int path = PC_CRC_TABLE; path <= PC_CRC_SSE42; path++)
        if (pc_crc_has(path))
            FZ_CHECK(pc_crc32c_path(path, 0, bytes, n) == whole);
    free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fz_reader input = fz_reader(data, size);
    struct fz_record record;
    while (fz_next(&input, &record))
        switch (record.what % 4) {
        case 0:
            on_header(&record);
            break;
        case 1:
            on_descs(&record);
            break;
        case 2:
            on_shake(&record);
            break;
        default:
            on_checksum(&record);
        }
    return 0;
}

void fz_summary(FILE *out) {
    fprintf(out, "taken: %lu headers, %lu descriptors, %lu handshakes; refused: %lu\n",
            headers_taken, descs_taken, shakes_taken, refused);
}
