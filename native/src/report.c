/* report: flush (VIEWS §1, peer rule 5): the core stops and says which segments are final here. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define TEXT_MAX 255

int pc_core_flush(pc_core *core, uint32_t epoch) {
    if (epoch != core->epoch || !core->epoch)
        return 0;
    pc_note_phases(core);
    core->stopped = true;
    for (int id = 0; id < PC_LINKS_MAX; id++)
        if (core->links[id])
            pc_demux_stop(core, core->links[id]);
    return 1;
}

/* What the report says of an op: unnamed ones up to `stable` need no words. */
static bool reported(const struct pc_op *op) {
    if (op->state == PC_FOREIGN)
        return false;
    return pc_is_named(op->id) || pc_number(op->id) > op->context->stable;
}

static uint32_t bits_of(const pc_core *core, const struct pc_op *op) {
    return pc_is_exchange(op->desc.kind) ? core->world : op->segment_count;
}

static size_t among_bytes(const pc_core *core, const struct pc_op *op) {
    return op->context->peers ? (core->world + 7) / 8 : 0;
}

/* Of the error's text, terminator included. */
static size_t text_bytes(const struct pc_op *op) {
    return op->state == PC_RAISED ? strnlen(op->result.text, TEXT_MAX) + 1 : 0;
}

static void set_bit(uint8_t *bits, uint32_t i) {
    bits[i / 8] |= (uint8_t)(1u << i % 8);
}

static int on_loss(const struct pc_op *op) {
    switch (op->desc.kind) {
    case PCCL_ALL_GATHER:
    case PCCL_REDUCE_SCATTER:
        return PCCL_FIXED;
    case PCCL_ALL_TO_ALL:
        return PCCL_EXCHANGE;
    case PCCL_GATHER:
    case PCCL_SEND:
        return PCCL_TO_ROOT;
    case PCCL_SCATTER:
        return PCCL_FROM_ROOT;
    case PCCL_BROADCAST:
        return PCCL_SPREAD;
    default:
        return op->desc.strict ? PCCL_STRICT : PCCL_REPAIR;
    }
}

/* Of an exchange: from which members nothing more is to come. What is to come from who is no member
 * any more is missing here. */
static void put_exchange(const pc_core *core, const struct pc_op *op, uint8_t *bits) {
    for (uint32_t i = 0; i < core->world; i++)
        set_bit(bits, i);
    for (uint32_t s = 0; s < op->stream_count; s++) {
        const struct pc_stream *stream = &op->streams[s];
        if (!stream->in_left)
            continue;
        uint32_t index = pc_ring_index(core, stream->peer);
        if (index == PC_NO_INDEX)
            index = core->self;
        bits[index / 8] &= (uint8_t)~(1u << index % 8);
    }
}

/* A segment counts where its value is, not where one merely knows of it. */
static void put_final(const pc_core *core, const struct pc_op *op, uint8_t *bits) {
    if (op->state == PC_RUNNING && op->streams) {
        put_exchange(core, op, bits);
        return;
    }
    uint32_t count = bits_of(core, op);
    for (uint32_t i = 0; i < count; i++)
        if (op->state == PC_STABLE ||
            (op->state == PC_RUNNING && op->segments[i].state != PC_INTACT && pc_op_out(op, i)))
            set_bit(bits, i);
}

static void put_op(const pc_core *core, const struct pc_op *op, struct pccl_op_report *report,
                   uint8_t *bits) {
    *report = (struct pccl_op_report){.op = op->id,
                                      .status = op->state - PC_RUNNING,
                                      .on_loss = on_loss(op),
                                      .root_peer = op->desc.root_peer,
                                      .timed_out = op->timed_out,
                                      .code = op->state == PC_RAISED ? op->result.status : 0,
                                      .segments = bits_of(core, op),
                                      .final = bits,
                                      .among_bytes = (uint32_t)among_bytes(core, op)};
    put_final(core, op, bits);
    uint8_t *among = bits + (report->segments + 7) / 8;
    char *text = (char *)among + report->among_bytes;
    report->text = "";
    if (text_bytes(op)) {
        memcpy(text, op->result.text, text_bytes(op) - 1); /* the report's memory is zero */
        report->text = text;
    }
    if (!report->among_bytes)
        return;
    for (uint32_t place = 0; place < pc_size(op); place++)
        set_bit(among, op->context->at[place]);
    report->among = among;
}

static struct pccl_report *report_for(uint32_t ops, uint32_t contexts, size_t bitmap_bytes) {
    struct pccl_report *report;
    size_t bytes = sizeof *report + ops * sizeof *report->ops +
                   contexts * sizeof *report->contexts + bitmap_bytes;
    report = calloc(1, bytes);
    if (!report)
        return NULL;
    report->ops = (struct pccl_op_report *)(report + 1);
    report->contexts = (struct pccl_context_report *)(report->ops + ops);
    return report;
}

struct pccl_report *pc_core_report(const pc_core *core) {
    pc_contexts_take_stable(core);
    uint32_t ops = 0;
    size_t bitmap_bytes = 0;
    for (const struct pc_op *op = core->ops_head; op; op = op->next)
        if (reported(op)) {
            ops++;
            bitmap_bytes += (bits_of(core, op) + 7) / 8 + among_bytes(core, op) + text_bytes(op);
        }
    struct pccl_report *report = report_for(ops, core->context_count, bitmap_bytes);
    if (!report)
        return NULL;
    report->epoch = core->epoch;
    report->submitted = core->whole->submitted;
    report->stable = core->whole->stable;
    struct pccl_op_report *row = (struct pccl_op_report *)(report + 1);
    struct pccl_context_report *context = (struct pccl_context_report *)(row + ops);
    uint8_t *bits = (uint8_t *)(context + core->context_count);
    for (const struct pc_op *op = core->ops_head; op; op = op->next) {
        if (!reported(op))
            continue;
        put_op(core, op, row++, bits);
        bits += (bits_of(core, op) + 7) / 8 + among_bytes(core, op) + text_bytes(op);
    }
    report->op_count = ops;
    for (int b = 0; b < (int)PC_OP_BUCKETS; b++)
        for (const struct pc_context *c = core->contexts[b]; c; c = c->hash_next)
            if (c != core->whole && c->submitted)
                context[report->context_count++] = (struct pccl_context_report){c->id, c->stable};
    return report;
}

void pc_core_report_free(struct pccl_report *report) {
    free(report);
}
