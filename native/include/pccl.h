/* pccl.h: the whole C ABI of pccl-py's data plane, and its manual.
 *
 * An engine is one peer's end of the data plane: one listening port, links to other members,
 * and the collectives in flight. It decides nothing about membership: it is given views, told to
 * flush, and reports evidence as events; the control plane (Python) talks to the coordinator.
 *
 * Depends on libc and POSIX sockets. Nothing here logs, reads the environment, installs a signal
 * handler or keeps a global; one limit of the process is changed: its descriptors are raised to
 * what is allowed, 65536 at most. All integers of the wire are little endian; see PROTOCOL.md.
 *
 * Threads. pccl_engine_new starts one thread, "pccl-io", which drives the engine: its sockets and
 * protocol state; pccl_engine_free joins it. While pccl_engine_wait or _submit waits, as long as it
 * is told, its thread drives instead, in the default floating-point environment, if no other does
 * already; a signal handled by that thread makes it return early. Every other function only
 * exchanges messages with who drives, under a mutex, and never waits for the network.
 *
 * Errors. Functions return enum pccl_status, 0 is success. Violating "Thread" or "Owned by" is a
 * bug in the caller and asserts.
 *
 * The part between the two cffi markers is what Python is given: declarations and integer defines.
 */
#ifndef PCCL_H
#define PCCL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

/* cffi-begin */

#define PCCL_ABI_VERSION  4
#define PCCL_WIRE_VERSION 2
#define PCCL_HOST_MAX     64   /* bytes of a numeric address text, terminator included */
#define PCCL_MEMBERS_MAX  1024 /* members of one group in one view */
#define PCCL_OPS_MAX      1024 /* ops submitted and not ended, per engine */
#define PCCL_ENDED_NAMED_MAX                                                                       \
    4096 /* named ops ended and remembered, per engine, see PCCL_EVENT_FULL */
#define PCCL_SEGMENTS_MAX 65536 /* segments of one op */
#define PCCL_CONTEXTS_MAX 8192  /* sub-groups and (source, destination, tag)s used in one line */
#define PCCL_REASON_MAX   160   /* bytes of a reason text, terminator included */
#define PCCL_FLIGHTS_MAX  32    /* ops that one inspection tells of */
#define PCCL_AWAITED_MAX  8     /* members that it names for each */

/* What the caller does next; the same members as pccl_py.errors.Code. */
enum pccl_status {
    PCCL_OK = 0,
    PCCL_USAGE = 1,
    PCCL_PEER_LOST = 2,
    PCCL_DEADLINE_EXCEEDED = 3,
    PCCL_EVICTED = 4,
    PCCL_COORDINATOR_LOST = 5,
    PCCL_RESOURCE = 6,
    PCCL_PROTOCOL = 7,
    PCCL_PENDING = 100 /* not an error: nothing yet */
};

/* The same members and numbers as pccl_py.types.DType. */
enum pccl_dtype {
    PCCL_UINT8 = 0,
    PCCL_INT8 = 1,
    PCCL_INT16 = 2,
    PCCL_INT32 = 3,
    PCCL_INT64 = 4,
    PCCL_FLOAT16 = 5,
    PCCL_BFLOAT16 = 6,
    PCCL_FLOAT32 = 7,
    PCCL_FLOAT64 = 8
};

/* The same members and numbers as pccl_py.types.ReduceOp. */
enum pccl_reduce { PCCL_SUM = 0, PCCL_AVG = 1, PCCL_PROD = 2, PCCL_MIN = 3, PCCL_MAX = 4 };

/* The same members and numbers as pccl_py.types.Kind. */
enum pccl_kind {
    PCCL_ALL_REDUCE = 0,
    PCCL_BROADCAST = 1,
    PCCL_REDUCE = 2,
    PCCL_ALL_GATHER = 3,
    PCCL_REDUCE_SCATTER = 4,
    PCCL_GATHER = 5, /* from here on: exchanges, whose segments only their two ends know */
    PCCL_SCATTER = 6,
    PCCL_ALL_TO_ALL = 7,
    PCCL_SEND = 8,
    PCCL_RECV = 9
};

/* What the loss of a participant does to an op; the same as pccl_py.types.OnLoss. */
enum pccl_on_loss {
    PCCL_REPAIR = 0,    /* what is final nowhere is reduced again; a root must live */
    PCCL_STRICT = 1,    /* a death that costs a segment raises */
    PCCL_FIXED = 2,     /* anybody's going that costs a segment raises */
    PCCL_EXCHANGE = 3,  /* an exchange of all with all */
    PCCL_TO_ROOT = 4,   /* all send to the root */
    PCCL_FROM_ROOT = 5, /* the root sends to all */
    PCCL_SPREAD = 6     /* the root's tensor becomes everybody's */
};

/* How segments travel. AUTO: where the view names a hub that takes part, an all-reduce of at most
 * 64 KiB goes over it, and a larger one as the view's `large` says; all else is direct up to 32
 * members, else on the ring. Exchanges are direct. Resolved in each view: where links are known to
 * be broken, everything takes the ring, if the view draws one around them; else what would take a
 * broken link goes over a member that both ends reach. */
enum pccl_route {
    PCCL_ROUTE_AUTO = 0,
    PCCL_ROUTE_RING = 1,
    PCCL_ROUTE_STAR = 2,  /* one fixed hub: the view's, else the first in the ring */
    PCCL_ROUTE_DIRECT = 3 /* rotating hubs */
};

/* What an op in flight waits for; the same as pccl_py.types.Phase. */
enum pccl_phase {
    PCCL_PHASE_NONE = 0,
    PCCL_PHASE_VIEW = 1,   /* a view: a flush is under way, or there is none yet */
    PCCL_PHASE_SUBMIT = 2, /* participants that are not known to have submitted it */
    PCCL_PHASE_REDUCE = 3, /* inputs, and what is made of them */
    PCCL_PHASE_COPY = 4,   /* values that are there elsewhere */
    PCCL_PHASE_CONFIRM = 5 /* word that others hold theirs */
};

typedef struct pccl_engine pccl_engine;

struct pccl_config {
    const char *bind_host;  /* numeric IPv4 or IPv6 address to listen on */
    uint16_t bind_port;     /* 0: the system chooses */
    uint64_t run;           /* hash of the run id: links of other runs are refused */
    uint64_t peer;          /* this peer's id, not 0 */
    uint8_t proof[32];      /* expected of and shown to every link; zero without a run secret */
    uint64_t scratch_bytes; /* bound on segment buffers, at least one segment per member is taken */
    uint32_t handshake_ms;  /* a link that has not shown a valid handshake by then is closed */
    int32_t checksum_payload; /* 1: CRC32C over header and payload; 0: header only */
    uint32_t links;           /* connections per pair, at most 16; 0: found out by measuring */
    uint32_t silence_ms;      /* a link on which nothing was heard for so long is lost; 0: never */
};

/* One member of the engine's group, in ring order. */
struct pccl_member {
    uint64_t peer;
    char host[PCCL_HOST_MAX]; /* numeric address where its engine listens */
    uint16_t port;
};

/* Two members, as indices, whose link is known to be broken. */
struct pccl_edge {
    uint32_t a, b;
};

#define PCCL_HOLDER_REDO -1
#define PCCL_HOLDER_ALL  -2

enum pccl_outcome { PCCL_RUN = 0, PCCL_DONE = 1, PCCL_ABORT = 2 };

/* The coordinator's decision on one op, part of a view. */
struct pccl_verdict {
    uint64_t op;
    int32_t outcome;        /* enum pccl_outcome */
    int32_t status;         /* PCCL_ABORT: the error */
    uint32_t holder_count;  /* PCCL_RUN: 0 (all redo) or the op's number of segments */
    const int32_t *holders; /* index into the ring, PCCL_HOLDER_REDO or PCCL_HOLDER_ALL */
    const char *text;       /* PCCL_ABORT: what the caller is told, at most 1023 bytes are kept */
};

struct pccl_view {
    uint32_t epoch;
    int32_t fresh;         /* 1: first view of a line, op numbers restart */
    uint32_t self;         /* this peer's index in `members` */
    uint32_t member_count; /* 1..PCCL_MEMBERS_MAX */
    const struct pccl_member *members;
    uint32_t cut_count;
    const struct pccl_edge *cuts;
    uint32_t stable; /* every unnamed op of the line up to this number is held by all */
    uint32_t verdict_count;
    const struct pccl_verdict *verdicts;
    int32_t hub;   /* index in `members` of whom all reach soonest, or -1: none is named */
    int32_t large; /* enum pccl_route: that of large all-reduces; AUTO: nothing is known */
};

/* A piece of memory, aligned to the op's dtype; data is NULL only if count is 0. */
struct pccl_block {
    void *data;
    uint64_t count;
};

/* Which memory an op uses, by kind (blocks are given by participant, in the order of `peers`):
 * all_reduce      data: the result, count elements; input: what is added, NULL: data itself
 * broadcast       data: read at the root, written elsewhere
 * reduce          input: what is added; data: the result, at the root, may be input itself
 * all_gather      receives: all blocks; input: this peer's, copied into its block at submit
 * reduce_scatter  sends: all blocks; data: the sum of this peer's
 * gather, scatter, all_to_all, send, recv: sends and receives; a block to oneself is copied at
 *                 submit; count 0: nothing goes that way */
struct pccl_op {
    int32_t kind;       /* enum pccl_kind */
    int32_t dtype;      /* enum pccl_dtype */
    int32_t reduce;     /* enum pccl_reduce; PCCL_SUM where nothing is reduced */
    uint64_t root_peer; /* broadcast, scatter: the source; reduce, gather, send, recv: the
                           destination; else 0 */
    void *data;
    const void *input;
    uint64_t count;
    uint32_t peer_count;   /* 0: all members (all_reduce, broadcast and reduce of context 0 only) */
    const uint64_t *peers; /* participants in rank order, this one among them */
    const struct pccl_block *sends; /* peer_count blocks, or NULL */
    const struct pccl_block *receives;
    uint32_t context; /* 0: the whole group; else 31 bits that name these participants (and tag) */
    uint64_t name;    /* 0: unnamed, matched by order; else a hash of the name, matched by (name,
                         n-th use) */
    int32_t strict;   /* all_reduce: a death that costs a segment raises PCCL_PEER_LOST */
    int32_t route;    /* enum pccl_route */
    double weight;    /* PCCL_AVG of floats: of this input, finite, 0 or more; else 1 */
    uint64_t timeout_ns; /* from now; at least 1 */
};

/* The end of one op. text is empty on success. contributors: over the segments whose value is here
 * or whose owner's mark told; 0 and 0 where there is none (an error; a reduce ended by a view, away
 * from its root). */
struct pccl_result {
    uint64_t op;
    int32_t status;
    uint32_t contributors_min;
    uint32_t contributors_max;
    uint32_t repaired; /* segments redone or fetched after a view change */
    uint64_t bytes_sent;
    uint64_t bytes_received;
    uint64_t elapsed_ns;
    int32_t route;    /* the one taken in the last view: enum pccl_route */
    int32_t phase;    /* of an error: what it waited for last, enum pccl_phase */
    uint64_t missing; /* of an error: bytes that were not here */
    char text[1024];
};

/* One op of a caller, zeroed before. */
struct pccl_ticket {
    uint64_t op;     /* its number as the coordinator knows it */
    uint64_t number; /* what wait goes by; 0: not submitted */
    int32_t ended;   /* 1: result says how */
    struct pccl_result result;
};

enum pccl_event_type {
    PCCL_EVENT_LINK_LOST = 1, /* evidence: the link in use to `peer` broke; reason says how */
    PCCL_EVENT_TIMEOUT = 2,   /* `op` passed its deadline; reason is the blame line; once per op */
    PCCL_EVENT_MISMATCH =
        3,                  /* `peer` submitted `op` with another descriptor: field, mine, theirs */
    PCCL_EVENT_FLUSHED = 4, /* engine stopped in `epoch`: fetch the report */
    PCCL_EVENT_REPAIRED = 5, /* everything the plan of view `epoch` asked of this peer is final */
    PCCL_EVENT_FULL = 6, /* the table of ended named ops is full; named submits wait for a view */
    PCCL_EVENT_SETTLED = 7,  /* `op`, which had timed out, has ended all the same */
    PCCL_EVENT_PATHS = 8,    /* paths are known that were not, or have changed: pccl_engine_paths */
    PCCL_EVENT_INSPECTED = 9 /* the answer to pccl_engine_inspect: pccl_engine_inspection */
};

struct pccl_event {
    int32_t type;
    uint32_t epoch;
    uint64_t peer;
    uint64_t op;
    char reason[PCCL_REASON_MAX];
    char field[16];
    char mine[64];
    char theirs[64];
};

#define PCCL_OP_RUNNING 0
#define PCCL_OP_STABLE  1
#define PCCL_OP_RAISED  2

/* One op of a flush report; `final` points into the report: bit i, least significant first, is
 * segment i, (segments + 7) / 8 bytes. */
struct pccl_op_report {
    uint64_t op;
    int32_t status;     /* PCCL_OP_RUNNING, _STABLE, _RAISED */
    int32_t on_loss;    /* enum pccl_on_loss */
    uint64_t root_peer; /* whose loss the op cannot survive, or 0 */
    int32_t timed_out;
    int32_t code;         /* if raised */
    const char *text;     /* if raised: what the caller was told, its first 255 bytes; else "" */
    uint32_t segments;    /* of an exchange: one per member of the ring, final: all that it is to */
    const uint8_t *final; /* send here is here */
    uint32_t among_bytes; /* 0: all members take part; else a bitmap over the ring */
    const uint8_t *among;
};

struct pccl_context_report {
    uint32_t context;
    uint32_t stable; /* every unnamed op of it up to this number is held by all its participants */
};

struct pccl_report {
    uint32_t epoch;
    uint32_t submitted; /* unnamed ops of context 0 submitted in this line */
    uint32_t stable;    /* of context 0 */
    uint32_t op_count;
    const struct pccl_op_report *ops;
    uint32_t context_count;
    const struct pccl_context_report *contexts; /* without context 0 */
};

/* What the kernel has measured on the links to one member; 0: not known (yet). */
struct pccl_path {
    uint64_t peer;
    uint32_t rtt_us; /* the least round trip of late */
    uint64_t rate;   /* bytes a second: the best delivered while the path, not we, was the limit */
};

/* How one op in flight stands here. */
struct pccl_flight {
    uint64_t op;
    int32_t kind, phase; /* enum pccl_kind, enum pccl_phase */
    int32_t timed_out;
    uint32_t awaited_count; /* members that are waited for; so many of them are named, */
    uint64_t awaited[PCCL_AWAITED_MAX]; /* PCCL_AWAITED_MAX at most */
    uint64_t bytes;                     /* of its memory */
    uint64_t missing;                   /* of them, what is to come here */
    uint64_t age_ns;                    /* since it was submitted */
};

struct pccl_inspection {
    uint32_t running; /* ops whose callers wait: `count` rows tell of the oldest */
    uint32_t count;
    struct pccl_flight rows[PCCL_FLIGHTS_MAX];
};

struct pccl_stats {
    uint64_t bytes_sent; /* payload and headers, all links */
    uint64_t bytes_received;
    uint64_t frames_sent;
    uint64_t frames_received;
    uint64_t links_refused; /* bad handshakes, garbage, strangers */
    uint64_t scratch_bytes; /* segment buffers allocated */
    uint32_t ops_running;
    uint32_t links_up;
};

/* cffi-functions */

/* PCCL_ABI_VERSION of the library. Thread: any. Never blocks. */
int pccl_version(void);

/* A status in words, static storage, never NULL. Thread: any. */
const char *pccl_status_name(int status);

/* Bytes of one element, or 0 for an unknown dtype. Thread: any. */
size_t pccl_dtype_size(int dtype);

/* Makes an engine: binds, listens, starts pccl-io. It has no view yet: submits wait for the first.
 * Thread: any; blocks only for the system calls. Owned by: the caller, who frees it with
 * pccl_engine_free; config is copied. Errors: PCCL_USAGE (address), PCCL_RESOURCE (port, memory,
 * fds; errno is set and *os_error keeps it). */
int pccl_engine_new(const struct pccl_config *config, pccl_engine **engine, int *os_error);

/* Stops pccl-io, closes every socket, ends every op with PCCL_EVICTED for waiters, frees. Buffers
 * of submitted ops are not touched afterwards. Thread: any, once, with no other call in progress;
 * blocks until the thread has ended (milliseconds). engine may be NULL. */
void pccl_engine_free(pccl_engine *engine);

/* In a forked child: closes the inherited sockets and nothing else, so that the child does not hide
 * its parent's death. The engine must not be used in the child afterwards, nor freed.
 * Thread: the child's only one. */
void pccl_engine_abandon_after_fork(pccl_engine *engine);

/* The port that the engine listens on. Thread: any. */
int pccl_engine_port(const pccl_engine *engine);

/* Installs a view; epoch must be higher than the last. Verdicts are applied, then what is left runs
 * on among the new members. Thread: control; never blocks. Owned by: view is copied.
 * Errors: PCCL_USAGE (bad counts, self, addresses), PCCL_RESOURCE (memory). */
int pccl_engine_set_view(pccl_engine *engine, const struct pccl_view *view);

/* Stops data frames of epochs up to `epoch` and produces PCCL_EVENT_FLUSHED; may be repeated.
 * Thread: control; never blocks. Errors: PCCL_RESOURCE. */
int pccl_engine_flush(pccl_engine *engine, uint32_t epoch);

/* The report of the last flush. Thread: control, after PCCL_EVENT_FLUSHED. Owned by: the caller
 * frees it with pccl_report_free. Errors: PCCL_PENDING (none yet), PCCL_RESOURCE. */
int pccl_engine_report(pccl_engine *engine, struct pccl_report **report);
void pccl_report_free(struct pccl_report *report);

/* Submits an op, fills ticket->op and ->number, and waits up to timeout_ms for its end (0: does
 * not), which spares who would wait anyway a call. PCCL_OK: it has ended, as for pccl_engine_wait;
 * PCCL_PENDING: submitted, no more is known. The op starts when all that is needed is there; a
 * submit after the engine was failed ends at once.
 * Thread: any; blocks as told (it may copy a block to oneself). Owned by: all memory that the op
 * names belongs to the engine until ticket->ended is set: what is written must not be touched, what
 * is only read may be read by others, other ops included. `op` itself and its arrays are copied.
 * Errors, and then nothing was submitted: PCCL_USAGE (arguments, memory that another op in flight
 * writes, a name whose hash meets another), PCCL_RESOURCE (PCCL_OPS_MAX ops in flight,
 * PCCL_CONTEXTS_MAX contexts, memory). */
int pccl_engine_submit(pccl_engine *engine, const struct pccl_op *op, struct pccl_ticket *ticket,
                       int timeout_ms);

/* Waits up to timeout_ms (0: asks only) for an op's end. PCCL_OK: it has ended, ticket->result says
 * how, and ->ended is set. PCCL_PENDING: not yet. Thread: any, several at once with one and the
 * same struct; blocks as told. Errors: PCCL_USAGE (no such ticket). */
int pccl_engine_wait(pccl_engine *engine, struct pccl_ticket *ticket, int timeout_ms);

/* Ops of context 0 (named ones included) submitted by this peer in this line: the safe-point
 * position. What passes in sub-groups and between two members differs from member to member.
 * Thread: any; never blocks. */
uint64_t pccl_engine_submitted(pccl_engine *engine);

/* Ends every op, now and later, with `status` and `text`; links are closed. Final for the engine.
 * Thread: any; never blocks. */
void pccl_engine_fail(pccl_engine *engine, int status, const char *text);

/* Readable while events wait. Thread: any. Owned by: the engine; do not read or close it. */
int pccl_engine_event_fd(const pccl_engine *engine);

/* The next event, oldest first. PCCL_OK or PCCL_PENDING. Thread: control; never blocks. */
int pccl_engine_next_event(pccl_engine *engine, struct pccl_event *event);

/* What is known of the paths to the other members of the view, at most one sample a second while
 * links are used: *count rows, at most `capacity` of them (PCCL_MEMBERS_MAX is always enough).
 * Thread: any; never blocks. Owned by: the caller. Errors: none. */
int pccl_engine_paths(pccl_engine *engine, uint32_t capacity, struct pccl_path *paths,
                      uint32_t *count);

/* Asks how the ops in flight stand; PCCL_EVENT_INSPECTED follows. Thread: control; never blocks.
 * Errors: PCCL_RESOURCE. */
int pccl_engine_inspect(pccl_engine *engine);

/* The latest answer, once. Thread: control; never blocks. Owned by: the caller.
 * Errors: PCCL_PENDING (none, or it was taken). */
int pccl_engine_inspection(pccl_engine *engine, struct pccl_inspection *inspection);

/* Counters since pccl_engine_new. Thread: any; never blocks. */
void pccl_engine_stats(pccl_engine *engine, struct pccl_stats *stats);

/* cffi-end */

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif
