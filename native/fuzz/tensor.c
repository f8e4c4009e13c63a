/* tensor: of world.h, the memory of an op: which tensors its kind needs, each in a block of its
 * own, what they are filled with, and what they must hold at the end.
 *
 * Where values move and are not reduced, each byte says from whom to whom it goes. Inputs of 64-bit
 * sums have one bit per member, so a result says who is in it, and how often. */
#include <stdlib.h>
#include <string.h>

#include "crc.h"
#include "world.h"

#define UNTOUCHED 0xee

static bool reduces(int kind) {
    return kind == PCCL_ALL_REDUCE || kind == PCCL_REDUCE || kind == PCCL_REDUCE_SCATTER;
}

static bool adds_bits(const struct pccl_op *args) {
    return reduces(args->kind) && args->dtype == PCCL_INT64 && args->reduce == PCCL_SUM;
}

/* What a member has for another is marked by both; 0 stands for nobody in particular. */
static uint8_t pattern_of(uint32_t from, uint32_t to) {
    return (uint8_t)(1 + from * FZ_MEMBERS_MAX + to);
}

static struct fz_tensor *add_tensor(struct fz_op *op, uint64_t count) {
    FZ_CHECK(op->tensor_count < FZ_TENSORS_MAX);
    struct fz_tensor *tensor = &op->tensors[op->tensor_count++];
    tensor->n = count * pccl_dtype_size(op->args.dtype);
    tensor->bytes = malloc(tensor->n ? tensor->n : 1);
    FZ_CHECK(tensor->bytes);
    memset(tensor->bytes, UNTOUCHED, tensor->n);
    return tensor;
}

/* Memory that is read: an input of member `self`, or what it has for another. */
static void *input(struct fz_world *world, struct fz_op *op, uint64_t count, uint32_t self,
                   uint32_t to) {
    struct fz_tensor *tensor = add_tensor(op, count);
    if (!reduces(op->args.kind))
        memset(tensor->bytes, pattern_of(self, to), tensor->n);
    for (size_t i = 0; reduces(op->args.kind) && i < tensor->n; i++)
        tensor->bytes[i] =
            adds_bits(&op->args) ? i % 8 == self : (uint8_t)fz_random(&world->random);
    tensor->digest = pc_crc32c(0, tensor->bytes, tensor->n);
    return tensor->bytes;
}

/* Memory that is written: in the end each byte is `pattern`, if that is not 0. */
static void *output(struct fz_op *op, uint64_t count, uint8_t pattern) {
    struct fz_tensor *tensor = add_tensor(op, count);
    tensor->written = true;
    tensor->pattern = pattern;
    return tensor->bytes;
}

/* Elements that one participant has for another; of a block: for nobody in particular (0). */
static uint64_t size_of(const struct fz_wish *wish, uint32_t from, uint32_t to) {
    uint64_t base = wish->args.count / 2;
    if (!wish->uneven)
        return base;
    return base * ((from * 5 + to * 3 + wish->uneven) % 4) / 3;
}

static uint32_t member_of(const struct fz_world *world, uint64_t peer) {
    uint32_t m = 0;
    while (m < world->count && world->members[m].peer != peer)
        m++;
    return m;
}

/* Who takes part, in rank order. */
static void choose_peers(const struct fz_world *world, struct fz_op *op, uint8_t among) {
    op->args.peers = op->peers;
    for (uint32_t m = 0; m < world->count; m++)
        if (among >> m & 1)
            op->peers[op->args.peer_count++] = world->members[m].peer;
}

/* ---- by kind -----------------------------------------------------------------------------------
 */

static void one_block(struct fz_world *world, uint32_t self, struct fz_op *op,
                      const struct fz_wish *wish) {
    struct pccl_op *args = &op->args;
    uint32_t root = member_of(world, args->root_peer);
    uint64_t n = args->count;
    if (args->kind == PCCL_BROADCAST) {
        args->data =
            self == root ? input(world, op, n, self, 0) : output(op, n, pattern_of(root, 0));
        return;
    }
    void *in = input(world, op, n, self, 0);
    if (args->kind == PCCL_ALL_REDUCE ? wish->apart : self == root && wish->apart) {
        args->data = output(op, n, 0);
        args->input = in;
    } else if (args->kind == PCCL_ALL_REDUCE || self == root) {
        op->tensors[0].written = true; /* in place */
        args->data = in;
        args->input = args->kind == PCCL_REDUCE ? in : NULL;
    } else {
        args->input = in;
    }
}

static void blocks(struct fz_world *world, uint32_t self, struct fz_op *op,
                   const struct fz_wish *wish) {
    struct pccl_op *args = &op->args;
    bool gather = args->kind == PCCL_ALL_GATHER;
    args->count = 0;
    *(gather ? &args->receives : &args->sends) = gather ? op->receives : op->sends;
    for (uint32_t i = 0; i < args->peer_count; i++) {
        uint32_t m = member_of(world, op->peers[i]);
        uint64_t n = size_of(wish, m, 0);
        if (!gather) {
            op->sends[i] = (struct pccl_block){input(world, op, n, self, 0), n};
            if (m == self)
                args->data = output(op, n, 0);
        } else { /* the shell has copied the own block */
            void *block =
                m == self ? input(world, op, n, self, 0) : output(op, n, pattern_of(m, 0));
            op->receives[i] = (struct pccl_block){block, n};
        }
    }
    if (!gather)
        args->count = size_of(wish, self, 0);
}

static bool sends(const struct pccl_op *args, uint64_t self, uint64_t to) {
    switch (args->kind) {
    case PCCL_SCATTER:
        return self == args->root_peer;
    case PCCL_ALL_TO_ALL:
        return true;
    default:
        return to == args->root_peer;
    }
}

static void streams(struct fz_world *world, uint32_t self, struct fz_op *op,
                    const struct fz_wish *wish) {
    struct pccl_op *args = &op->args;
    args->count = 0;
    args->sends = op->sends;
    args->receives = op->receives;
    uint64_t me = world->members[self].peer;
    for (uint32_t i = 0; i < args->peer_count; i++) {
        uint64_t peer = op->peers[i];
        uint32_t m = member_of(world, peer);
        if (m == self)
            continue; /* copied by the shell */
        if (sends(args, me, peer)) {
            uint64_t n = size_of(wish, self, m);
            op->sends[i] = (struct pccl_block){input(world, op, n, self, m), n};
        }
        if (sends(args, peer, me)) {
            uint64_t n = size_of(wish, m, self);
            op->receives[i] = (struct pccl_block){output(op, n, pattern_of(m, self)), n};
        }
    }
    if (args->kind == PCCL_SEND && me == args->root_peer)
        args->kind = PCCL_RECV;
}

bool fz_tensors_make(struct fz_world *world, uint32_t self, struct fz_op *op,
                     const struct fz_wish *wish) {
    uint8_t among = wish->among ? wish->among : world->members[self].ring;
    if (!(among >> self & 1))
        return false;
    if (wish->args.root_peer) /* it may be gone, and still be meant */
        among |= (uint8_t)(1u << member_of(world, wish->args.root_peer));
    bool one = wish->args.kind <= PCCL_REDUCE;
    if (!one || wish->args.context)
        choose_peers(world, op, among);
    if (one)
        one_block(world, self, op, wish);
    else if (wish->args.kind <= PCCL_REDUCE_SCATTER)
        blocks(world, self, op, wish);
    else
        streams(world, self, op, wish);
    return true;
}

void fz_tensors_free(struct fz_op *op) {
    for (uint32_t i = 0; i < op->tensor_count; i++)
        free(op->tensors[i].bytes);
    op->tensor_count = 0;
}

/* ---- at the end --------------------------------------------------------------------------------
 */

static void check_sum(const struct fz_world *world, const struct fz_op *op,
                      const struct fz_tensor *tensor) {
    for (size_t i = 0; i + 8 <= tensor->n; i += 8) {
        uint32_t inputs = 0;
        for (uint32_t m = 0; m < 8; m++) {
            uint8_t times = tensor->bytes[i + m];
            FZ_CHECK(times <= 1 && (!times || m < world->count));
            inputs += times;
        }
        FZ_CHECK(inputs >= op->contributors_min && inputs <= op->contributors_max);
    }
}

void fz_tensors_check(const struct fz_world *world, struct fz_op *op) {
    bool well = op->status == PCCL_OK && world->honest;
    op->digest = 0;
    for (uint32_t i = 0; i < op->tensor_count; i++) {
        const struct fz_tensor *tensor = &op->tensors[i];
        uint32_t digest = pc_crc32c(0, tensor->bytes, tensor->n);
        if (!tensor->written)
            FZ_CHECK(digest == tensor->digest);
        bool result =
            tensor->written || op->args.kind == PCCL_BROADCAST || op->args.kind == PCCL_ALL_GATHER;
        if (result)
            op->digest = pc_crc32c(op->digest, tensor->bytes, tensor->n);
        if (!well || !tensor->written)
            continue;
        for (size_t at = 0; tensor->pattern && at < tensor->n; at++)
            FZ_CHECK(tensor->bytes[at] == tensor->pattern);
        if (adds_bits(&op->args))
            check_sum(world, op, tensor);
    }
}
