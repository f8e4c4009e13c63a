/* world: a few real cores in one process, joined by byte streams that lose nothing, overtake each
 * other, and go on in pieces of any length; the smallest coordinator there can be; and what must
 * hold after every call, whatever was fed (FZ_CHECK).
 *
 * Written against core.h and frame.h alone. A member may have no core: its place in the ring is
 * that of whoever speaks for it. Used by the targets demux and core, and by seeds.c. */
#ifndef FZ_WORLD_H
#define FZ_WORLD_H

#include "core.h"
#include "fuzz.h"

#define FZ_MEMBERS_MAX   4
#define FZ_OPS_MAX       48 /* submitted by one member in one input */
#define FZ_PLANS_MAX     24
#define FZ_ENDS_MAX      12 /* links of one member at a time */
#define FZ_PIPE_MAX      (64u << 10)
#define FZ_SEGMENT_BYTES 64
#define FZ_SCRATCH_BYTES (1u << 14)
#define FZ_ELEMENTS_MAX  600
#define FZ_NAMED         (UINT64_C(1) << 32) /* in an op id */
#define FZ_SUBGROUPS     3                   /* contexts 1..3 */
#define FZ_PAIRS         8                   /* contexts from here on: from one member to another */
#define FZ_CONTEXTS      (FZ_PAIRS + FZ_MEMBERS_MAX * FZ_MEMBERS_MAX)

/* An op as the program has it on all members; those that deviate differ in one field. */
struct fz_wish {
    struct pccl_op args; /* without memory and peers */
    uint8_t among;       /* bits of members; 0: all that the submitter's view has */
    uint8_t uneven;      /* makes blocks differ in size */
    bool apart;          /* input and result are not one memory */
};

struct fz_plan {
    uint64_t id;
    struct fz_wish wish;
};

enum fz_op_state { FZ_UNUSED = 0, FZ_RUNNING, FZ_ENDED };

/* A tensor of an op. What is only read must be as it was. */
struct fz_tensor {
    uint8_t *bytes; /* until the op has ended: then it is the caller's, and is freed */
    size_t n;
    bool written;
    uint32_t digest; /* of what it was filled with */
    uint8_t pattern; /* what each byte is to be at the end; 0: that depends */
};

#define FZ_TENSORS_MAX (2 * FZ_MEMBERS_MAX)

struct fz_op {
    enum fz_op_state state;
    uint64_t id;
    struct pccl_op args;
    uint64_t peers[FZ_MEMBERS_MAX];
    struct pccl_block sends[FZ_MEMBERS_MAX], receives[FZ_MEMBERS_MAX];
    struct fz_tensor tensors[FZ_TENSORS_MAX];
    uint32_t tensor_count;
    uint64_t due_ns;
    bool told_late; /* its deadline has passed and been told, in this view */
    int status;
    uint32_t digest; /* of what it wrote */
    uint32_t contributors_min, contributors_max;
};

struct fz_pipe {
    uint8_t *bytes;
    size_t head, tail;
    size_t frame; /* where the first whole frame at or after head begins */
};

/* One member's end of a link. */
struct fz_end {
    bool up, broken;
    int id; /* the core's */
    uint32_t far, far_end;
    struct fz_pipe in;
};

struct fz_member {
    pc_core *core; /* NULL: nobody, or gone */
    uint64_t peer;
    bool evil; /* says what it likes: nothing is asked of it but to live */
    struct fz_end ends[FZ_ENDS_MAX];
    struct fz_op ops[FZ_OPS_MAX];
    uint32_t op_count;
    uint32_t unnamed[FZ_CONTEXTS]; /* submitted in this line, by context */
    uint8_t ring;                  /* bits of the members of its view */
    uint32_t epoch;
    bool flushed;
};

/* What a coordinator would have decided, for those that have not installed it yet. */
struct fz_view {
    struct pccl_view view;
    struct pccl_member members[FZ_MEMBERS_MAX];
    uint32_t ring[FZ_MEMBERS_MAX]; /* indices of members, in the ring's order */
    struct pccl_edge cut;
    struct pccl_verdict *verdicts;
};

struct fz_world {
    uint32_t count;
    struct fz_member members[FZ_MEMBERS_MAX];
    struct fz_view now;
    struct fz_plan plans[FZ_PLANS_MAX];
    uint32_t plan_count;
    uint64_t now_ns;
    uint64_t random;
    bool honest;  /* nobody has lied, so values are what they should be and no link is at fault */
    bool twisted; /* a view was not what the reports say */
    bool relays;  /* something took the ring, or went over a third member */
    uint64_t disputed[FZ_PLANS_MAX]; /* ops whose descriptors were seen to differ */
    uint32_t disputed_count;
    uint64_t ended_well, ended_ill, links_bad; /* for the summary */
};

struct fz_setup {
    uint32_t count;
    bool checksum;
    bool cut;        /* the first two members reach each other over others only */
    uint32_t nobody; /* bits: members without a core */
    uint64_t random;
};

/* Opens the world in its first view, without links. */
void fz_world_open(struct fz_world *world, const struct fz_setup *setup);
void fz_world_close(struct fz_world *world);

/* A link between two members, also where one has no core. false: they have enough. */
bool fz_link(struct fz_world *world, uint32_t a, uint32_t b);
void fz_unlink(struct fz_world *world, uint32_t member, uint32_t end);
/* Up to `limit` bytes out of a core into the link; into a core out of the link. Return bytes. */
size_t fz_transmit(struct fz_world *world, uint32_t member, uint32_t end, size_t limit);
size_t fz_deliver(struct fz_world *world, uint32_t member, uint32_t end, size_t limit);
/* Bytes from nowhere, at the end of what is on its way to a member. */
void fz_inject(struct fz_world *world, uint32_t member, uint32_t end, const uint8_t *bytes,
               size_t n);
/* The k-th whole frame on its way and how long it is; NULL: there is none. */
uint8_t *fz_frame(struct fz_world *world, uint32_t member, uint32_t end, uint32_t k, size_t *n);

/* What the shell would let pass, from any bytes. */
struct fz_wish fz_wish(const struct fz_world *world, struct fz_reader *bytes);
/* The next op id of a member for such a wish. */
uint64_t fz_next_id(const struct fz_world *world, uint32_t member, const struct fz_wish *wish);
/* The plan of an op id: the one there is, or `wish` from now on. NULL: too many. */
const struct fz_plan *fz_plan(struct fz_world *world, uint64_t id, const struct fz_wish *wish);
/* Submits with memory of its own. false: nothing was submitted, if only since it is not its op. */
bool fz_submit(struct fz_world *world, uint32_t member, uint64_t id, const struct fz_wish *wish);

/* tensor.c: the memory of an op, by kind; and what must hold of it at the end. */
bool fz_tensors_make(struct fz_world *world, uint32_t member, struct fz_op *op,
                     const struct fz_wish *wish);
void fz_tensors_free(struct fz_op *op);
void fz_tensors_check(const struct fz_world *world, struct fz_op *op);
void fz_advance(struct fz_world *world, uint64_t ns);
void fz_fail(struct fz_world *world, uint32_t member);
void fz_kill(struct fz_world *world, uint32_t member);

/* Flushes the living and decides the next view; members get it by fz_install, or at the latest
 * before the one after. twist: bytes that make of right verdicts wrong ones, or none. */
void fz_view(struct fz_world *world, struct fz_reader *twist);
void fz_install(struct fz_world *world, uint32_t member);
void fz_install_all(struct fz_world *world);
void fz_view_free(struct fz_view *view);

/* Until nothing moves. */
void fz_pump(struct fz_world *world);
/* Without the evil, with everything submitted everywhere and a few views: every op must end. */
void fz_settle(struct fz_world *world);
/* Afterwards: one more op of all that are left, whose values are right. */
void fz_prove(struct fz_world *world);
/* What must hold after each call: called by all of the above. What is dear to look at: by the
 * targets, after each record. */
void fz_check(struct fz_world *world, uint32_t member);
void fz_check_all(struct fz_world *world);

#endif
