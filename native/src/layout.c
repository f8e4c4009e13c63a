/* layout: an op's memory as blocks of segments (collectives that all know the shape of), or as
 * streams (exchanges, where only the two ends of a pair do). The size of a segment depends on the
 * tensor alone, never on the view: a repair speaks of the same segments. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "internal.h"

#define SEGMENTS_WANTED 16 /* of an op: enough to keep every member busy */

static uint64_t mix(uint64_t h, uint64_t x) {
    h = (h ^ x) * UINT64_C(0x9E3779B97F4A7C15);
    return h ^ h >> 32;
}

/* Elements per segment of an op of `count` elements, at least 1. */
static uint64_t segment_elements(const pc_core *core, int dtype, uint64_t count) {
    size_t element = pccl_dtype_size(dtype);
    uint64_t bytes = count * element / SEGMENTS_WANTED;
    if (bytes < core->config.segment_bytes_min)
        bytes = core->config.segment_bytes_min;
    if (bytes > core->config.segment_bytes_max)
        bytes = core->config.segment_bytes_max;
    uint64_t elements = bytes / element;
    return elements ? elements : 1;
}

static uint64_t segments_for(uint64_t count, uint64_t each) {
    uint64_t segments = count / each + (count % each != 0);
    return segments ? segments : 1; /* an empty tensor is one empty segment */
}

uint32_t pc_core_segments(const pc_core *core, int dtype, uint64_t count) {
    uint64_t segments = segments_for(count, segment_elements(core, dtype, count));
    return segments < UINT32_MAX ? (uint32_t)segments : UINT32_MAX;
}

/* ---- blocks ------------------------------------------------------------------------------------
 */

/* The address of an empty tensor: NULL would mean that there is none. */
static uint8_t *nowhere(struct pc_op *op) {
    return (uint8_t *)op;
}

static void one_block(struct pc_op *op, const struct pccl_op *args, uint64_t self) {
    struct pc_block *block = &op->blocks[0];
    bool gets_it = args->kind != PCCL_REDUCE || args->root_peer == self;
    block->count = args->count;
    block->out = gets_it ? args->data : NULL;
    block->in = args->input ? args->input : args->data;
    if (!args->count) {
        block->out = gets_it ? nowhere(op) : NULL;
        block->in = nowhere(op);
    }
}

static void block_per_peer(struct pc_op *op, const struct pccl_op *args, uint64_t self) {
    for (uint32_t i = 0; i < op->block_count; i++) {
        struct pc_block *block = &op->blocks[i];
        bool mine = args->peers[i] == self;
        block->peer = args->peers[i];
        if (args->kind == PCCL_ALL_GATHER) {
            block->count = args->receives[i].count;
            block->out = args->receives[i].data;
            block->in = mine ? block->out : NULL;
        } else {
            block->count = args->sends[i].count;
            block->in = args->sends[i].data;
            block->out = mine ? args->data : NULL;
        }
        if (!block->count) {
            block->in = mine || args->kind == PCCL_REDUCE_SCATTER ? nowhere(op) : NULL;
            block->out = mine || args->kind == PCCL_ALL_GATHER ? nowhere(op) : NULL;
        }
        op->desc.count += block->count;
        op->desc.layout = mix(op->desc.layout, block->count);
    }
}

static int cut_blocks(const pc_core *core, struct pc_op *op) {
    uint64_t each = segment_elements(core, op->desc.dtype, op->desc.count);
    uint64_t total = 0;
    for (uint32_t i = 0; i < op->block_count; i++) {
        struct pc_block *block = &op->blocks[i];
        uint64_t segments = segments_for(block->count, each);
        if (total + segments > PCCL_SEGMENTS_MAX)
            return PCCL_USAGE;
        block->first = (uint32_t)total;
        block->segments = (uint32_t)segments;
        block->each = (block->count + segments - 1) / segments;
        total += segments;
    }
    op->segment_count = (uint32_t)total;
    op->segments = calloc(total, sizeof *op->segments);
    if (!op->segments)
        return PCCL_RESOURCE;
    for (uint32_t b = 0; b < op->block_count; b++)
        for (uint32_t i = 0; i < op->blocks[b].segments; i++) {
            struct pc_segment *segment = &op->segments[op->blocks[b].first + i];
            segment->block = (uint16_t)b;
            segment->holder = PCCL_HOLDER_REDO;
        }
    return PCCL_OK;
}

static int blocks(const pc_core *core, struct pc_op *op, const struct pccl_op *args) {
    bool many = args->kind == PCCL_ALL_GATHER || args->kind == PCCL_REDUCE_SCATTER;
    op->block_count = many ? args->peer_count : 1;
    op->blocks = calloc(op->block_count, sizeof *op->blocks);
    if (!op->blocks)
        return PCCL_RESOURCE;
    if (many)
        block_per_peer(op, args, core->config.peer);
    else
        one_block(op, args, core->config.peer);
    op->bytes = op->desc.count * op->element_bytes;
    int status = cut_blocks(core, op);
    if (status == PCCL_OK && args->strict && args->count && !args->input) {
        op->undo = malloc(args->count * op->element_bytes);
        if (!op->undo)
            return PCCL_RESOURCE;
    }
    return status;
}

/* ---- streams -----------------------------------------------------------------------------------
 */

static uint64_t stream_each(const pc_core *core, const struct pc_op *op) {
    return core->config.segment_bytes_max / op->element_bytes;
}

uint64_t pc_stream_elements(const pc_core *core, const struct pc_op *op, uint64_t count,
                            uint32_t segment) {
    uint64_t each = stream_each(core, op), first = segment * each;
    if (first >= count)
        return 0;
    return count - first < each ? count - first : each;
}

size_t pc_stream_offset(const pc_core *core, const struct pc_op *op, uint32_t segment) {
    return segment * stream_each(core, op) * op->element_bytes;
}

static int streams(const pc_core *core, struct pc_op *op, const struct pccl_op *args) {
    uint64_t each = stream_each(core, op), total = 0;
    op->stream_count = args->peer_count;
    op->streams = calloc(op->stream_count, sizeof *op->streams);
    if (!op->streams)
        return PCCL_RESOURCE;
    for (uint32_t i = 0; i < op->stream_count; i++) {
        struct pc_stream *stream = &op->streams[i];
        stream->peer = args->peers[i];
        stream->place = PC_NO_INDEX;
        if (stream->peer == core->config.peer)
            continue; /* copied at submit */
        if (args->sends) {
            stream->out = args->sends[i].data;
            stream->out_count = args->sends[i].count;
        }
        if (args->receives) {
            stream->in = args->receives[i].data;
            stream->in_count = args->receives[i].count;
        }
        uint64_t out = stream->out_count ? segments_for(stream->out_count, each) : 0;
        uint64_t in = stream->in_count ? segments_for(stream->in_count, each) : 0;
        total += out + in;
        if (total > PCCL_SEGMENTS_MAX)
            return PCCL_USAGE;
        stream->out_segments = (uint32_t)out;
        stream->in_segments = stream->in_left = (uint32_t)in;
        stream->landed = calloc(in ? in : 1, 1);
        if (!stream->landed)
            return PCCL_RESOURCE;
        op->own_left += in != 0;
        op->bytes += (stream->out_count + stream->in_count) * op->element_bytes;
    }
    return PCCL_OK;
}

int pc_layout(const pc_core *core, struct pc_op *op, const struct pccl_op *args) {
    op->desc = (struct pc_desc){.count = args->count,
                                .name = args->name,
                                .root_peer = args->root_peer,
                                .kind = (uint8_t)args->kind,
                                .dtype = (uint8_t)args->dtype,
                                .reduce = (uint8_t)args->reduce,
                                .strict = (uint8_t)(args->strict != 0),
                                .route = (uint8_t)args->route,
                                .weight = args->weight};
    if (args->kind == PCCL_RECV)
        op->desc.kind = PCCL_SEND; /* two ends of one op */
    if (args->kind >= PCCL_ALL_GATHER)
        op->desc.count = 0;
    /* Where a loss is repaired, some may have heard of it before they submit, others not; and whom
     * else the source of a scatter serves is nobody's business. */
    bool fixed = args->kind >= PCCL_ALL_GATHER && args->kind != PCCL_SCATTER;
    for (uint32_t i = 0; fixed && i < args->peer_count; i++)
        op->desc.members = mix(op->desc.members, args->peers[i]);
    op->element_bytes = pccl_dtype_size(args->dtype);
    int status = pc_is_exchange(args->kind) ? streams(core, op, args) : blocks(core, op, args);
    op->small = op->bytes <= core->config.small_bytes;
    op->brief = op->bytes <= (uint64_t)PC_BRIEF_SMALLS * core->config.small_bytes;
    return status;
}
