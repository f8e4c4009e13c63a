/* opcopy: an op from the caller's memory: checked, copied whole, and the tensors that it names as
 * ranges, so that no op writes where another one looks. */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

/* ---- checks ------------------------------------------------------------------------------------
 */

static bool is_memory(const void *data, uint64_t count, size_t element) {
    if (count > UINT64_MAX / 64 / element)
        return false;
    return !count || (data && (uintptr_t)data % element == 0);
}

static uint32_t place_of(const struct pccl_op *op, uint64_t peer) {
    uint32_t i = 0;
    while (i < op->peer_count && op->peers[i] != peer)
        i++;
    return i;
}

static bool are_blocks(const struct pccl_block *blocks, uint32_t n, size_t element) {
    uint64_t total = 0;
    for (uint32_t i = 0; blocks && i < n; i++) {
        if (!is_memory(blocks[i].data, blocks[i].count, element))
            return false;
        total += blocks[i].count;
    }
    return total <= UINT64_MAX / 64 / element;
}

static bool weight_is_sound(const struct pccl_op *op) {
    if (op->weight >= 1 && op->weight <= 1)
        return true;
    bool is_float = op->dtype >= PCCL_FLOAT16 && op->dtype <= PCCL_FLOAT64;
    bool reduces =
        op->kind == PCCL_ALL_REDUCE || op->kind == PCCL_REDUCE || op->kind == PCCL_REDUCE_SCATTER;
    return op->weight >= 0 && op->weight <= 1e300 && is_float && reduces && op->reduce == PCCL_AVG;
}

static bool needs_root(int kind) {
    return kind == PCCL_BROADCAST || kind == PCCL_REDUCE || kind == PCCL_GATHER ||
           kind == PCCL_SCATTER || kind == PCCL_SEND || kind == PCCL_RECV;
}

static bool blocks_are_sound(const struct pccl_op *op, uint32_t mine) {
    if (op->kind == PCCL_ALL_GATHER)
        return op->receives && !op->sends;
    if (op->kind == PCCL_REDUCE_SCATTER)
        return op->sends && !op->receives;
    if (!op->sends || !op->receives || !op->sends[mine].count || !op->receives[mine].count)
        return true;
    return op->sends[mine].count == op->receives[mine].count;
}

bool pc_op_is_sound(const struct pccl_op *op, uint64_t self) {
    size_t element = pccl_dtype_size(op->dtype);
    if (!element || op->reduce < PCCL_SUM || op->reduce > PCCL_MAX || !op->timeout_ns)
        return false;
    if (op->kind < PCCL_ALL_REDUCE || op->kind > PCCL_RECV)
        return false;
    if (op->route < PCCL_ROUTE_AUTO || op->route > PCCL_ROUTE_DIRECT)
        return false;
    if (needs_root(op->kind) != (op->root_peer != 0) || !weight_is_sound(op))
        return false;
    if (op->context >> 31 || op->peer_count > PCCL_MEMBERS_MAX)
        return false;
    bool of_all = op->kind <= PCCL_REDUCE && !op->context;
    if ((!op->peer_count && !of_all) || (op->peer_count && place_of(op, self) == op->peer_count))
        return false;
    if (op->root_peer && op->peer_count && place_of(op, op->root_peer) == op->peer_count)
        return false;
    bool writes = op->kind != PCCL_REDUCE || op->root_peer == self;
    bool one_block = op->kind <= PCCL_REDUCE;
    if (one_block && ((writes && !is_memory(op->data, op->count, element)) ||
                      (op->input && !is_memory(op->input, op->count, element)) ||
                      (op->kind == PCCL_REDUCE && op->count && !op->input)))
        return false;
    if (one_block)
        return !op->sends && !op->receives;
    return are_blocks(op->sends, op->peer_count, element) &&
           are_blocks(op->receives, op->peer_count, element) &&
           blocks_are_sound(op, place_of(op, self));
}

/* ---- copying -----------------------------------------------------------------------------------
 */

struct pccl_op *pc_op_copy(const struct pccl_op *op) {
    size_t n = op->peer_count;
    size_t bytes = sizeof *op + n * (sizeof *op->peers + 2 * sizeof *op->sends);
    struct pccl_op *copy = calloc(1, bytes);
    if (!copy)
        return NULL;
    *copy = *op;
    uint64_t *peers = (uint64_t *)(copy + 1);
    struct pccl_block *sends = (struct pccl_block *)(peers + n);
    struct pccl_block *receives = sends + n;
    if (n)
        memcpy(peers, op->peers, n * sizeof *peers);
    if (n && op->sends)
        memcpy(sends, op->sends, n * sizeof *sends);
    if (n && op->receives)
        memcpy(receives, op->receives, n * sizeof *receives);
    copy->peers = peers;
    copy->sends = op->sends ? sends : NULL;
    copy->receives = op->receives ? receives : NULL;
    return copy;
}

void pc_op_copy_own(const struct pccl_op *op, uint64_t self) {
    uint32_t mine = place_of(op, self);
    if (mine == op->peer_count || !op->receives || !op->receives[mine].count)
        return;
    const void *from = op->kind == PCCL_ALL_GATHER ? op->input
                       : op->sends                 ? op->sends[mine].data
                                                   : NULL;
    bool wanted = from && from != op->receives[mine].data;
    if (wanted && (!op->sends || op->sends[mine].count))
        memcpy(op->receives[mine].data, from,
               op->receives[mine].count * pccl_dtype_size(op->dtype));
}

/* ---- ranges ------------------------------------------------------------------------------------
 */

static bool overlap(const struct pc_range *a, const struct pc_range *b) {
    return (a->written || b->written) && a->data < b->data + b->bytes &&
           b->data < a->data + a->bytes;
}

static const struct pc_range *rows_of(const struct pc_ranges *ranges) {
    return ranges->many ? ranges->many : ranges->few;
}

static void add(struct pc_ranges *ranges, const void *data, uint64_t bytes, bool written) {
    if (!bytes || !data)
        return;
    struct pc_range *rows = ranges->many ? ranges->many : ranges->few;
    struct pc_range *last = ranges->count ? &rows[ranges->count - 1] : NULL;
    if (last && last->written == written && last->data + last->bytes == data)
        last->bytes += bytes; /* blocks of one tensor */
    else
        rows[ranges->count++] = (struct pc_range){data, bytes, written};
}

static void add_blocks(struct pc_ranges *ranges, const struct pccl_op *op,
                       const struct pccl_block *blocks, bool written, uint32_t but) {
    for (uint32_t i = 0; blocks && i < op->peer_count; i++)
        if (i != but)
            add(ranges, blocks[i].data, blocks[i].count * pccl_dtype_size(op->dtype), written);
}

static bool clashes_with_itself(const struct pc_ranges *ranges) {
    const struct pc_range *rows = rows_of(ranges);
    for (uint32_t i = 0; i < ranges->count; i++)
        for (uint32_t j = i + 1; j < ranges->count; j++)
            if (overlap(&rows[i], &rows[j]))
                return true;
    return false;
}

int pc_op_ranges(const struct pccl_op *op, uint64_t self, struct pc_ranges *ranges) {
    size_t element = pccl_dtype_size(op->dtype);
    uint32_t mine = place_of(op, self);
    ranges->count = 0;
    ranges->many = NULL;
    if (op->sends || op->receives) {
        ranges->many = calloc(2 * (size_t)op->peer_count + PC_FEW_RANGES, sizeof *ranges->many);
        if (!ranges->many)
            return PCCL_RESOURCE;
    }
    uint64_t count = op->count;
    bool writes = true;
    if (op->kind == PCCL_BROADCAST || op->kind == PCCL_REDUCE)
        writes = (op->root_peer == self) == (op->kind == PCCL_REDUCE);
    if (op->kind == PCCL_REDUCE_SCATTER)
        count = op->sends[mine].count;
    if (op->kind != PCCL_REDUCE || writes)
        add(ranges, op->data, count * element, writes);
    if (op->kind == PCCL_ALL_GATHER) {
        if (op->input != op->receives[mine].data) /* else it lies in its place already */
            add(ranges, op->input, op->receives[mine].count * element, false);
    } else if (op->input != op->data || !writes) {
        add(ranges, op->input, count * element, false);
    }
    bool in_place = op->sends && op->receives && op->sends[mine].data == op->receives[mine].data;
    add_blocks(ranges, op, op->sends, false, in_place ? mine : UINT32_MAX);
    add_blocks(ranges, op, op->receives, true, UINT32_MAX);
    if (!clashes_with_itself(ranges))
        return PCCL_OK;
    pc_ranges_free(ranges);
    return PCCL_USAGE;
}

void pc_ranges_free(struct pc_ranges *ranges) {
    free(ranges->many);
    ranges->many = NULL;
    ranges->count = 0;
}

bool pc_ranges_clash(const struct pc_ranges *a, const struct pc_ranges *b) {
    const struct pc_range *ours = rows_of(a), *theirs = rows_of(b);
    for (uint32_t i = 0; i < a->count; i++)
        for (uint32_t j = 0; j < b->count; j++)
            if (overlap(&ours[i], &theirs[j]))
                return true;
    return false;
}
