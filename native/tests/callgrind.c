/* callgrind: one all-reduce of four cores in one process, deterministic, for counting instructions:
 * BYTES of float32, CHECKSUM 0 or 1. Only what play() calls is counted; a memcpy of each payload
 * stands for the kernel's. Usage: callgrind BYTES CHECKSUM; prints BYTES when the sums are right.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "core.h"

#define WORLD 4

static pc_core *cores[WORLD];
static int links[WORLD][WORLD]; /* one's id of its link to the other */
static float *data[WORLD];

/* Hands `n` bytes to a core as the shell does: payloads to where they belong, the rest as pieces.
 */
static void arrive(pc_core *core, int link, const uint8_t *bytes, size_t n) {
    while (n) {
        uint8_t *into;
        size_t taken, space = pc_core_rx_space(core, link, &into);
        if (space) {
            taken = n < space ? n : space;
            memcpy(into, bytes, taken);
            pc_core_rx_done(core, link, taken);
        } else {
            taken = pc_core_feed(core, link, bytes, n < 32 ? n : 32);
        }
        PC_ASSERT(taken);
        bytes += taken;
        n -= taken;
    }
}

static size_t move(int from, int to) {
    struct pc_slice slices[PC_SLICES_MAX];
    int count = pc_core_tx(cores[from], links[from][to], slices);
    size_t sent = 0;
    for (int i = 0; i < count; i++) {
        arrive(cores[to], links[to][from], slices[i].ptr, slices[i].len);
        sent += slices[i].len;
    }
    if (sent)
        pc_core_sent(cores[from], links[from][to], sent);
    return sent;
}

/* Until all have ended; returns how many did. */
__attribute__((noinline)) static int play(uint64_t count) {
    int ended = 0;
    for (int i = 0; i < WORLD; i++) {
        struct pccl_op op = {.kind = PCCL_ALL_REDUCE,
                             .dtype = PCCL_FLOAT32,
                             .reduce = PCCL_SUM,
                             .data = data[i],
                             .count = count,
                             .weight = 1,
                             .timeout_ns = UINT64_MAX};
        PC_ASSERT(pc_core_submit(cores[i], &op, 1, 1) == PCCL_OK);
    }
    for (size_t moved = 1; moved;) {
        moved = 0;
        for (int from = 0; from < WORLD; from++)
            for (int to = 0; to < WORLD; to++)
                moved += from == to ? 0 : move(from, to);
        struct pc_core_event event;
        for (int i = 0; i < WORLD; i++)
            while (pc_core_next_event(cores[i], &event, 1))
                if (event.event.type == PC_EVENT_ENDED && event.result.status == PCCL_OK)
                    ended++;
    }
    return ended;
}

int main(int argc, char **argv) {
    PC_ASSERT(argc == 3);
    uint64_t bytes = strtoull(argv[1], NULL, 10), count = bytes / sizeof(float);
    struct pccl_member members[WORLD] = {0};
    for (int i = 0; i < WORLD; i++)
        members[i].peer = 100 + (uint64_t)i;
    for (int i = 0; i < WORLD; i++) {
        struct pc_core_config config = {
            .peer = members[i].peer, .scratch_bytes = 64 << 20, .checksum_payload = atoi(argv[2])};
        struct pccl_view view = {
            .epoch = 1, .fresh = 1, .self = (uint32_t)i, .member_count = WORLD, .members = members};
        cores[i] = pc_core_new(&config);
        data[i] = malloc(bytes);
        PC_ASSERT(cores[i] && data[i] && pc_core_set_view(cores[i], &view, 1) == PCCL_OK);
        for (uint64_t k = 0; k < count; k++)
            data[i][k] = (float)(i + 1);
    }
    for (int one = 0; one < WORLD; one++)
        for (int other = 0; other < WORLD; other++)
            if (one != other)
                links[one][other] = pc_core_link_new(cores[one], members[other].peer, 0);
    PC_ASSERT(play(count) == WORLD);
    for (int i = 0; i < WORLD; i++) {
        for (uint64_t k = 0; k < count; k++)
            PC_ASSERT(data[i][k] == WORLD * (WORLD + 1) / 2);
        pc_core_free(cores[i]);
        free(data[i]);
    }
    printf("%llu\n", (unsigned long long)bytes);
    return 0;
}
