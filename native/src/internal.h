/* internal: the state of one core, shared by the files that make it up (core, context, op, segment,
 * ring, star, exchange, announce, view, demux, mux, pair). Ownership: core owns everything; ops own
 * their segments; a buffer is owned by the pool, by the link that receives into it, by the op it is
 * parked at, or by the node that waits to send it.
 */
#ifndef PC_INTERNAL_H
#define PC_INTERNAL_H

#include "ops.h"

/* ---- links ----------------------------------------------------------------------------------- */

enum pc_rx_target { PC_RX_NOWHERE, PC_RX_BUFFER, PC_RX_SMALL, PC_RX_DIRECT };

struct pc_slot { /* one frame handed to the shell */
    uint8_t header[PC_HEADER_BYTES + PC_RELAY_BYTES];
    uint32_t head; /* bytes of it */
    uint8_t small[PC_DESC_BYTES];
    const uint8_t *payload;
    uint32_t length;
    struct pc_entry entry; /* op NULL: nobody waits for its end */
    uint32_t to;           /* ring index of the member that it is for */
};

struct pc_link { /* one byte stream each way */
    uint64_t peer;
    struct pc_pair *pair; /* NULL: the peer is not in the view */
    bool is_long;
    bool held;
    bool bad;
    bool bad_told;
    const char *bad_why;
    /* receiving */
    uint8_t header_bytes[PC_HEADER_BYTES + PC_RELAY_BYTES];
    uint32_t header_have;
    bool in_payload;
    struct pc_header header;
    uint32_t from; /* ring index of the member whose frame it is */
    uint32_t payload_have;
    uint32_t crc;
    enum pc_rx_target target;
    struct pc_buffer *buffer;
    uint8_t *direct;         /* PC_RX_DIRECT: in the user's memory */
    struct pc_op *direct_op; /* whose that is */
    uint8_t small[PC_DESC_BYTES];
    /* sending */
    struct pc_slot slots[PC_BATCH];
    uint32_t slot_first, slot_count; /* slots[first .. first+count) wait, the first is half sent */
    size_t slot_sent;                /* bytes of the first slot already sent */
    size_t
        zombie; /* payload bytes owed for a frame of an old view: framing is kept, content is not */
};

/* ---- the core -------------------------------------------------------------------------------- */

struct pc_verdict_copy {
    uint64_t op;
    int32_t outcome, status;
    uint32_t holder_count;
    int32_t *holders;
    char *text;
};

struct pc_core {
    struct pc_core_config config;
    struct pc_pool pool;
    struct pc_op *buckets[PC_OP_BUCKETS];
    struct pc_op *ops_head, *ops_tail;
    uint32_t op_count;
    uint32_t running_count;
    uint32_t ended_count;
    struct pc_op *event_head, **event_tail;
    struct pc_op *start_head, **start_tail;

    uint32_t epoch; /* 0: no view yet */
    bool stopped;
    uint32_t self, world;
    struct pc_pair **pairs; /* ring order; NULL at self */
    uint64_t *peers;        /* ring order */
    struct pccl_edge *cuts; /* links of the view that are known to be broken */
    uint32_t cut_count;
    uint32_t relayed; /* members to whom another passes this peer's frames on */
    uint32_t hub;     /* the view's, in the ring; PC_NO_INDEX: it names none */
    int large;        /* enum pccl_route: of large all-reduces */
    uint32_t stable;  /* of the last view, context 0 */
    struct pc_context *contexts[PC_OP_BUCKETS]; /* by id; the whole group is one of them */
    struct pc_context *whole;
    uint32_t context_count;
    struct pc_verdict_copy *verdicts;
    uint32_t verdict_count;

    uint32_t window, in_flight, eager_in_flight; /* ring: segments that this peer has started */
    uint32_t open_window, open_in_flight;        /* star: own segments that wait for parts */
    uint32_t open_unready;   /* those of them of ops not known to be submitted by all */
    uint32_t eager_window;   /* star: parts sent unasked to one owner, of small ops */
    uint32_t unasked_window; /* of others: fewer, so that small ops find room */
    uint32_t copy_window, copies_in_flight; /* star: copies of this owner that started whole */
    uint32_t plan_left;
    bool repaired_pending, repaired_told;
    bool full_pending, full_told;
    uint32_t kept_ops, kept_bytes;
    bool sweep;           /* an op has ended, and its caller been told */
    bool lazy;            /* some pair has lazy frames */
    uint64_t lazy_ns;     /* when they go; 0: not set yet */
    uint64_t deadline_ns; /* the earliest of the running ops, or UINT64_MAX */
    struct pc_link *links[PC_LINKS_MAX];
    int links_high; /* no link at or beyond this id */
    struct pccl_stats stats;
};

/* ---- op.c -------------------------------------------------------------------------------------
 */

static inline bool pc_is_named(uint64_t id) {
    return (id >> 32 & 1) != 0;
}
static inline uint32_t pc_number(uint64_t id) {
    return (uint32_t)id;
}

/* ---- context.c --------------------------------------------------------------------------------
 */

struct pc_context *pc_context_find(const pc_core *core, uint32_t id);
/* Finds or makes; peers is copied. NULL: too many, or memory is out. */
struct pc_context *pc_context_get(pc_core *core, uint32_t id, const uint64_t *peers,
                                  uint32_t peer_count);
/* Places of a view with these members. false: out of memory (nothing has changed then). */
bool pc_contexts_enter_view(pc_core *core, const uint64_t *peers, uint32_t world, uint32_t self);
void pc_contexts_look(pc_core *core);           /* whose ring is whole */
void pc_contexts_free(pc_core *core, bool all); /* all, or all but the whole group, numbers at 0 */
/* The place of a member of the view, or PC_NO_INDEX. */
uint32_t pc_place(const struct pc_context *context, uint32_t index);
uint32_t pc_place_of_peer(const pc_core *core, const struct pc_context *context, uint64_t peer);
/* `stable` of each: every unnamed op of it up to this number has ended well here. */
void pc_contexts_take_stable(const pc_core *core);

/* ---- op.c ------------------------------------------------------------------------------------ */

static inline uint32_t pc_context_id(uint64_t id) {
    return (uint32_t)(id >> 33);
}
static inline uint32_t pc_size(const struct pc_op *op) {
    return op->context->size;
}
static inline uint32_t pc_self(const struct pc_op *op) {
    return op->context->self;
}
static inline bool pc_is_exchange(int kind) {
    return kind >= PCCL_GATHER;
}
/* Segments are sums (not values that somebody has). */
static inline bool pc_reduces(int kind) {
    return kind == PCCL_ALL_REDUCE || kind == PCCL_REDUCE || kind == PCCL_REDUCE_SCATTER;
}
/* Only the owner of a segment gets it. */
static inline bool pc_owner_only(int kind) {
    return kind == PCCL_REDUCE || kind == PCCL_REDUCE_SCATTER;
}

struct pc_op *pc_op_find(const pc_core *core, uint64_t id);
/* Finds or makes (PC_FOREIGN) the op that the caller submits. NULL: too many, or out of memory. */
struct pc_op *pc_op_get(pc_core *core, uint64_t id);
/* The same for an op that a frame of this member speaks of. One member makes known as many as it
 * may have in flight itself; the table has room for those of several, and for ours. */
struct pc_op *pc_op_told(pc_core *core, uint64_t id, uint32_t from);
void pc_op_forget(pc_core *core, struct pc_op *op);
void pc_op_free(struct pc_op *op); /* its memory alone */
/* Turns a foreign op into a running one. PCCL_OK, PCCL_RESOURCE, PCCL_USAGE (too many segments). */
int pc_op_start_running(pc_core *core, struct pc_op *op, const struct pccl_op *args,
                        uint64_t now_ns);
void pc_op_end(pc_core *core, struct pc_op *op, int status, const char *text);
/* true: an op whose caller need not wait until all hold the result, for a copy can be kept. */
bool pc_returns_early(const pc_core *core, const struct pc_op *op);
void pc_op_return(pc_core *core, struct pc_op *op); /* all is final here: tells the caller */
void pc_op_post(pc_core *core, struct pc_op *op, uint8_t event);
void pc_op_unpost(pc_core *core, struct pc_op *op);
/* Forgets ended unnamed ops that every participant is known to hold. */
void pc_op_sweep(pc_core *core);
const uint8_t *pc_op_in(const struct pc_op *op, uint32_t segment); /* NULL: no input here */
uint8_t *pc_op_out(const struct pc_op *op, uint32_t segment);      /* NULL: no destination here */
uint64_t pc_op_elements(const struct pc_op *op, uint32_t segment);
size_t pc_op_bytes(const struct pc_op *op, uint32_t segment);
/* true: the op was submitted here and has ended, or will never be known: frames of it are late. */
bool pc_op_is_past(const pc_core *core, uint64_t id);

/* ---- layout.c: an op's memory as blocks, streams and segments ---------------------------------
 */

/* PCCL_OK, PCCL_RESOURCE, PCCL_USAGE: too many segments. */
int pc_layout(const pc_core *core, struct pc_op *op, const struct pccl_op *args);

/* ---- pair.c ------------------------------------------------------------------------------------
 */

/* Makes the pairs of a view, keeping those of peers that stay; queues are emptied. false: memory.
 */
bool pc_pairs_enter_view(pc_core *core, const uint64_t *peers, uint32_t world, uint32_t self);
void pc_pairs_free(pc_core *core);
bool pc_is_cut(const pc_core *core, uint32_t a, uint32_t b);
/* Who passes on what is between two whose link is broken: the first that both reach, so that all
 * members name the same. PC_NO_INDEX: nobody can. */
uint32_t pc_relay_between(const pc_core *core, uint32_t a, uint32_t b);
void pc_pairs_find_ways(pc_core *core); /* round the links that are broken */
/* A frame of one member for another: queued, or what is wrong with it. */
void pc_relay(pc_core *core, struct pc_buffer *cargo);
void pc_relayed(pc_core *core, struct pc_buffer *cargo); /* it is on its way, or lost */
void pc_queue_push(struct pc_queue *queue, struct pc_entry entry);
bool pc_queue_pop(struct pc_queue *queue, struct pc_entry *entry);
/* true: the frame's payload is read where the op's memory or a segment's scratch lies. */
static inline bool pc_carries_value(uint8_t type) {
    return type == PC_SUM || type == PC_COPY || type == PC_PART;
}
/* Queues a frame to a participant, by place. */
void pc_push(pc_core *core, struct pc_op *op, uint32_t place, uint32_t segment, uint8_t type);
/* The same, when nobody waits for it. */
void pc_push_lazily(pc_core *core, struct pc_op *op, uint32_t place, uint32_t segment,
                    uint8_t type);
void pc_pairs_hurry(pc_core *core); /* lazy frames wait no longer */
/* The same to every other participant. */
void pc_push_all(pc_core *core, struct pc_op *op, uint32_t segment, uint8_t type);

/* ---- mux.c -------------------------------------------------------------------------------------
 */

void pc_mux_enter_view(struct pc_link *link); /* a half-sent frame is made whole with zeros */
void pc_mux_stop(pc_core *core, struct pc_link *link); /* its frames are lost */

/* ---- demux.c -----------------------------------------------------------------------------------
 */

void pc_demux_stop(pc_core *core, struct pc_link *link); /* drop what is being received */
void pc_link_spoil(struct pc_link *link, const char *why);

/* ---- announce.c --------------------------------------------------------------------------------
 */

/* A whole frame of this epoch. `buffer` becomes the callee's. Returns NULL, or what the sender did
 * wrong. */
const char *pc_frame_arrived(pc_core *core, uint32_t from, const struct pc_header *header,
                             struct pc_buffer *buffer, const uint8_t *small);
void pc_announce(pc_core *core, struct pc_op *op);
void pc_announce_all(pc_core *core, struct pc_op *op);
void pc_submitted(pc_core *core, struct pc_op *op); /* announce, take what was parked */
bool pc_all_ready(const pc_core *core, const struct pc_op *op);
/* By place. */
static inline struct pc_said *pc_said(const struct pc_op *op, uint32_t place) {
    return &op->said[op->context->at[place]];
}
/* Where the payload of a value may be received straight away, or NULL: into a buffer first. The
 * destination is then held for that link until pc_landing_over. */
uint8_t *pc_landing(pc_core *core, uint32_t from, const struct pc_header *header,
                    struct pc_op **op);
void pc_landing_over(struct pc_op *op, uint32_t from, uint32_t segment);
void pc_op_enter_view(pc_core *core, struct pc_op *op); /* who is where in the view */
/* Everybody whose block or stream the op needs is in the view. */
bool pc_is_complete(const pc_core *core, const struct pc_op *op);
/* It is not so, though nobody's verdict says what becomes of the op: asks for one. */
void pc_members_changed(pc_core *core, struct pc_op *op);
/* What this peer expects of a participant's descriptor. */
struct pc_desc pc_desc_for(const struct pc_op *op, uint32_t place);

/* ---- segment.c ---------------------------------------------------------------------------------
 */

/* The route that an op takes in this view: PCCL_ROUTE_RING, _STAR or _DIRECT. */
int pc_route(const pc_core *core, const struct pc_op *op);
/* The place of the hub of a star. */
uint32_t pc_hub(const pc_core *core, const struct pc_op *op);
/* true: a small all-reduce over a hub, which compares for all: of two that differ one differs from
 * it, so the others announce the op to nobody else, and need no link to each other. */
bool pc_goes_by_hub(const pc_core *core, const struct pc_op *op);
uint32_t pc_ring_index(const pc_core *core, uint64_t peer);
static inline uint32_t pc_after(const struct pc_op *op, uint32_t place) {
    return place + 1 == pc_size(op) ? 0 : place + 1;
}
static inline uint32_t pc_before(const struct pc_op *op, uint32_t place) {
    return place ? place - 1 : pc_size(op) - 1;
}
uint32_t pc_turn(const struct pc_op *op);
/* The place of a segment's owner; PC_NO_INDEX: it is gone. */
uint32_t pc_owner(const pc_core *core, const struct pc_op *op, uint32_t segment);
/* true: the value exists at the owner and is only copied (broadcast, or a holder serves it). */
bool pc_copy_only(const pc_core *core, const struct pc_op *op, uint32_t segment);
/* The member at this place broadcasts. */
bool pc_is_source(const pc_core *core, const struct pc_op *op, uint32_t place);
/* `to` = the value so far (`so_far`, NULL: nothing yet) and one more input of this weight; keeps
 * the segment's account of both. `to` may be `so_far`, which is written to, or `input`. */
void pc_add_input(struct pc_op *op, uint32_t segment, uint8_t *to, uint8_t *so_far,
                  const uint8_t *input, double weight);
/* All inputs are in `data`: what is left of an average. */
void pc_finish(struct pc_op *op, uint32_t segment, uint8_t *data);
/* A copy, in a buffer or landed: moved to where it belongs. NULL, or what is wrong with it. */
const char *pc_land(pc_core *core, struct pc_op *op, const struct pc_header *header,
                    const struct pc_buffer *buffer);
void pc_now_final(pc_core *core, struct pc_op *op, uint32_t segment, uint16_t contributors);
void pc_now_marked(pc_core *core, struct pc_op *op, uint32_t segment);
void pc_check_end(pc_core *core, struct pc_op *op);
void pc_keep_undo(struct pc_op *op, uint32_t segment);
bool pc_holds_all(const struct pc_op *op); /* all that is to be here is */
void pc_startable(pc_core *core, struct pc_op *op);
void pc_start(pc_core *core); /* start what the windows allow */
void pc_alone(pc_core *core, struct pc_op *op);
void pc_sources_final(struct pc_op *op, uint64_t self); /* what this peer has from the start */

/* ---- ring.c, star.c: start at most one segment (1: started, 0: not now, -1: none left); a data
 * frame of a running op from a known sender (NULL, or what is wrong with it)
 * ----------------------- */

#define PC_WEIGHT_BYTES 16 /* behind a partial mean: its weight and how many inputs count */
size_t pc_ring_sum_bytes(const struct pc_op *op, uint32_t segment); /* of the next SUM */
int pc_ring_start_one(pc_core *core, struct pc_op *op);
const char *pc_ring_frame(pc_core *core, struct pc_op *op, uint32_t from,
                          const struct pc_header *header, struct pc_buffer *buffer);
int pc_star_start_one(pc_core *core, struct pc_op *op);
void pc_star_open(pc_core *core, struct pc_op *op); /* before the first announcement */
const char *pc_star_frame(pc_core *core, struct pc_op *op, uint32_t from,
                          const struct pc_header *header, struct pc_buffer *buffer);

/* ---- exchange.c: gather, scatter, all-to-all, send ---------------------------------------------
 */

int pc_exchange_start_one(pc_core *core, struct pc_op *op);
const char *pc_exchange_frame(pc_core *core, struct pc_op *op, uint32_t from,
                              const struct pc_header *header, struct pc_buffer *buffer);
/* A participant has announced the op; `theirs` is compared with what is expected of it. */
void pc_exchange_ready(pc_core *core, struct pc_op *op, uint32_t place);
/* The view is new, or the op: who is still there, what they are told. */
void pc_exchange_enter(pc_core *core, struct pc_op *op);
struct pc_stream *pc_stream_at(const struct pc_op *op, uint32_t place);
uint64_t pc_stream_elements(const pc_core *core, const struct pc_op *op, uint64_t count,
                            uint32_t segment);
size_t pc_stream_offset(const pc_core *core, const struct pc_op *op, uint32_t segment);
void pc_exchange_release(pc_core *core, struct pc_op *op); /* it ends */
void pc_exchange_sent(pc_core *core, struct pc_op *op, uint32_t place);
void pc_exchange_check(pc_core *core, struct pc_op *op);
/* Whether a participant is to get anything: it will say when it has. */
bool pc_receives(const struct pc_op *op, uint64_t peer);

/* ---- blame.c -----------------------------------------------------------------------------------
 */

uint64_t pc_missing_bytes(const pc_core *core, const struct pc_op *op); /* not here yet */
/* The core is about to stop: what each running op waits for now. */
void pc_note_phases(const pc_core *core);
/* Who is waited for, how long, what is missing: into the event's reason. */
void pc_blame(const pc_core *core, const struct pc_op *op, uint64_t now_ns,
              struct pccl_event *event);

/* ---- view.c -----------------------------------------------------------------------------------
 */

/* Applies the view's verdict to an op that runs here; true if it ended. */
bool pc_view_apply(pc_core *core, struct pc_op *op);
void pc_view_registered(pc_core *core, struct pc_op *op); /* submitted while stopped */
void pc_view_check_repaired(pc_core *core);

#endif
