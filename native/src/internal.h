/* internal: the state of one core, shared by the files that make it up (core, op, ring, view,
 * demux, mux). Ownership: core owns everything; ops own their segments; a buffer is owned by the
 * pool, by the link that receives into it, by the op it is parked at, or by the node that waits to
 * send it.
 */
#ifndef PC_INTERNAL_H
#define PC_INTERNAL_H

#include <stdbool.h>

#include "core.h"
#include "frame.h"
#include "pool.h"

#define PC_SMALL_OP_BYTES (64u << 10)
#define PC_EAGER_BYTES                                                                             \
    (64u << 10)             /* of one op, before all members are known to have submitted it */
#define PC_BATCH         16 /* frames handed to one writev */
#define PC_BATCH_BYTES   (256u << 10)
#define PC_OP_BUCKETS    1024u
#define PC_OPS_TABLE_MAX (4 * PCCL_OPS_MAX + PCCL_ENDED_NAMED_MAX)
/* What peers announce leaves room for what is submitted here. */
#define PC_OPS_ANNOUNCED_MAX (PC_OPS_TABLE_MAX - 2 * PCCL_OPS_MAX)
#define PC_ENDED_WARN        (PCCL_ENDED_NAMED_MAX / 2)
#define PC_NO_INDEX          UINT32_MAX
/* More members than that take the ring: fewer links each. */
#define PC_DIRECT_WORLD_MAX 32

/* ---- pairs: what is exchanged with one other member, over all links to it ----------------------
 */

struct pc_op;

/* A frame in a queue; its bytes are made when a link takes it. */
struct pc_entry {
    struct pc_op *op;
    uint32_t segment;
    uint8_t type; /* enum pc_frame_type */
};

struct pc_queue { /* a ring of entries that grows; bounded by the segments of the ops in flight */
    struct pc_entry *entries;
    uint32_t head, count, capacity;
};

/* Whichever link can send takes the next frame: a slow link carries less. */
struct pc_pair {
    uint64_t peer;
    uint32_t index;         /* in the ring of the view */
    struct pc_queue urgent; /* control frames and small ops */
    struct pc_queue bulk;
    uint32_t links_up;
    bool wanted;    /* there are frames and no link, and the shell has not been told */
    uint32_t eager; /* parts sent to it unasked whose final value is not back */
};

/* ---- one op ---------------------------------------------------------------------------------- */

/* A segment's life: INTACT (the input is as submitted) -> FINAL (the value is in the destination)
 * -> MARKED (every member holds it). A view change takes nothing back. */
enum pc_segment_state { PC_INTACT = 0, PC_FINAL = 1, PC_MARKED = 2 };

struct pc_segment {
    uint8_t state;
    bool started; /* this peer has put it on its way in this view */
    bool counted; /* it takes a place in the window */
    bool eager;   /* counted against the eager share */
    bool open;    /* star, owner: parts are asked for, the value is not there yet */
    uint16_t contributors;
    int32_t holder;           /* PCCL_HOLDER_REDO, or the ring index of the owner that serves it */
    bool copied;              /* the copy has arrived in this view */
    bool sum_queued;          /* ring: its partial sum waits to be sent, or is half sent */
    uint16_t parts_done;      /* star: inputs in the value so far, the owner's own included */
    uint16_t acks;            /* star, owner: members that hold it */
    struct pc_buffer *buffer; /* ring: the partial sum to pass on; star: the value so far */
    struct pc_buffer *early;  /* star, owner: inputs that are not next in order */
};

enum pc_op_state {
    PC_FOREIGN = 0, /* a peer has spoken of it, this one has not submitted it */
    PC_RUNNING = 1,
    PC_STABLE = 2, /* ended well, every member holds it; remembered until all know */
    PC_RAISED = 3  /* ended with an error; remembered until all have raised it */
};

struct pc_op {
    uint64_t id;
    struct pc_op *hash_next;
    struct pc_op *prev, *next; /* all ops, oldest first */
    struct pc_op *event_next;
    struct pc_op *start_next;
    uint8_t state;
    bool starting;   /* in the start list */
    bool mismatched; /* a peer's descriptor differs: nobody's frames are added */
    bool timed_out;
    uint8_t events; /* which events wait, bits PC_OP_EVENT_* */
    bool event_queued;
    uint32_t queued_count;  /* frames of it in the links' queues */
    uint32_t values_queued; /* those of them that carry a payload: they point into its memory */

    /* known from others, in this view */
    uint8_t known[PCCL_MEMBERS_MAX / 8]; /* ring indices whose descriptor is here */
    uint32_t known_count;
    struct pc_desc desc_first,
        desc_odd;                  /* the first to arrive, and the first that differs from it */
    uint32_t first_from, odd_from; /* ring indices; PC_NO_INDEX: none */
    uint32_t next_run; /* ring: members known to have submitted, counted from the successor on */
    uint8_t ready_queued[PCCL_MEMBERS_MAX / 8]; /* ring indices to whom an announcement waits */
    struct pc_buffer *parked;
    struct pc_buffer **parked_tail;

    /* once submitted */
    struct pc_desc desc;
    uint8_t *data;
    uint8_t *undo; /* strict: what finals have overwritten */
    size_t element_bytes;
    uint64_t segment_elements;
    uint32_t segment_count;
    struct pc_segment *segments;
    uint32_t final_count;
    uint32_t marked_count;
    uint32_t cursor;        /* next segment to look at for starting */
    uint32_t opened;        /* star: of this peer's own segments, the first that is not open */
    uint32_t *part_cursors; /* star: per owner, the next of its segments to send a part of */
    uint32_t *opened_by;    /* star: per owner, the first of its segments that is not open */
    uint32_t owner_count;
    uint8_t *acked; /* star, owner: which members hold which segment, world bits each; or NULL */
    uint64_t eager_bytes;
    uint32_t plan_left; /* segments the plan promised that are not final here */
    uint64_t submitted_ns;
    uint64_t deadline_ns;
    uint64_t timeout_ns;
    struct pccl_result result;
    uint32_t mismatch_from;
    struct pc_desc mismatch_desc;
};

#define PC_OP_EVENT_ENDED    1
#define PC_OP_EVENT_TIMEOUT  2
#define PC_OP_EVENT_MISMATCH 4

/* ---- links ----------------------------------------------------------------------------------- */

enum pc_rx_target { PC_RX_NOWHERE, PC_RX_BUFFER, PC_RX_SMALL };

struct pc_slot { /* one frame handed to the shell */
    uint8_t header[PC_HEADER_BYTES];
    uint8_t small[PC_DESC_BYTES];
    const uint8_t *payload;
    uint32_t length;
    struct pc_entry entry; /* op NULL: nobody waits for its end */
};

struct pc_link { /* one byte stream each way */
    uint64_t peer;
    struct pc_pair *pair; /* NULL: the peer is not in the view */
    bool held;
    bool bad;
    bool bad_told;
    const char *bad_why;
    /* receiving */
    uint8_t header_bytes[PC_HEADER_BYTES];
    uint32_t header_have;
    bool in_payload;
    struct pc_header header;
    uint32_t payload_have;
    uint32_t crc;
    enum pc_rx_target target;
    struct pc_buffer *buffer;
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
    bool cut;           /* some link of the view is broken: the ring avoids it, stars would not */
    uint32_t stable;    /* of the last view */
    uint32_t submitted; /* unnamed ops submitted in this line */
    struct pc_verdict_copy *verdicts;
    uint32_t verdict_count;

    uint32_t window, in_flight, eager_in_flight; /* ring: segments that this peer has started */
    uint32_t open_window, open_in_flight;        /* star: own segments that wait for parts */
    uint32_t open_unready; /* those of them of ops not known to be submitted by all */
    uint32_t eager_window; /* star: parts sent unasked to one owner */
    uint32_t copy_window, copies_in_flight; /* star: copies of this owner that started whole */
    uint32_t plan_left;
    bool repaired_pending, repaired_told;
    bool full_pending, full_told;
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

struct pc_op *pc_op_find(const pc_core *core, uint64_t id);
/* Finds or makes (PC_FOREIGN), with at most `others` in the table before; NULL beyond that or when
 * memory is out. */
struct pc_op *pc_op_get(pc_core *core, uint64_t id, uint32_t others);
void pc_op_forget(pc_core *core, struct pc_op *op);
/* Makes the cursors of a view's owners. false: out of memory. */
bool pc_op_owners(struct pc_op *op, uint32_t world);
/* Turns a foreign op into a running one with `desc` over `data`. false: out of memory. */
bool pc_op_start_running(pc_core *core, struct pc_op *op, const struct pccl_op *args,
                         uint64_t now_ns);
void pc_op_end(pc_core *core, struct pc_op *op, int status, const char *text);
void pc_op_post(pc_core *core, struct pc_op *op, uint8_t event);
void pc_op_unpost(pc_core *core, struct pc_op *op);
/* Forgets ended unnamed ops that every member is known to hold. */
void pc_op_sweep(pc_core *core);
uint8_t *pc_op_address(const struct pc_op *op, uint32_t segment);
uint64_t pc_op_elements(const struct pc_op *op, uint32_t segment);
size_t pc_op_bytes(const struct pc_op *op, uint32_t segment);
bool pc_op_small(const struct pc_op *op);
/* true: the op was submitted here and has ended, or will never be known: frames of it are late. */
bool pc_op_is_past(const pc_core *core, uint64_t id);
/* Every unnamed op up to this number has ended well here and nothing below is remembered raised. */
uint32_t pc_op_stable(const pc_core *core);
void pc_op_undo(struct pc_op *op);

/* ---- pair.c ------------------------------------------------------------------------------------
 */

/* Makes the pairs of a view, keeping those of peers that stay; queues are emptied. false: memory.
 */
bool pc_pairs_enter_view(pc_core *core, const uint64_t *peers, uint32_t world, uint32_t self);
void pc_pairs_free(pc_core *core);
void pc_queue_push(struct pc_queue *queue, struct pc_entry entry);
bool pc_queue_pop(struct pc_queue *queue, struct pc_entry *entry);
/* true: the frame's payload is read where the op's memory or a segment's scratch lies. */
static inline bool pc_carries_value(uint8_t type) {
    return type == PC_SUM || type == PC_COPY || type == PC_PART;
}
/* Queues a frame to a member. */
void pc_pair_push(pc_core *core, uint32_t index, struct pc_op *op, uint32_t segment, uint8_t type);
/* The same to every other member. */
void pc_pair_push_all(pc_core *core, struct pc_op *op, uint32_t segment, uint8_t type);

/* ---- mux.c -------------------------------------------------------------------------------------
 */

void pc_mux_new_stream(struct pc_link *link); /* nothing half sent */
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
void pc_announce_to(pc_core *core, struct pc_op *op, uint32_t index);
void pc_submitted(pc_core *core, struct pc_op *op); /* announce, take what was parked */
bool pc_all_ready(const pc_core *core, const struct pc_op *op);
bool pc_is_known(const struct pc_op *op, uint32_t index);

/* ---- segment.c ---------------------------------------------------------------------------------
 */

/* The route that an op takes in this view: PCCL_ROUTE_RING, _STAR or _DIRECT. */
int pc_route(const pc_core *core, const struct pc_op *op);
uint32_t pc_ring_index(const pc_core *core, uint64_t peer);
static inline uint32_t pc_after(const pc_core *core, uint32_t index) {
    return index + 1 == core->world ? 0 : index + 1;
}
static inline uint32_t pc_before(const pc_core *core, uint32_t index) {
    return index ? index - 1 : core->world - 1;
}
uint32_t pc_turn(const pc_core *core, const struct pc_op *op);
uint32_t pc_owner(const pc_core *core, const struct pc_op *op, uint32_t segment);
/* true: the value exists at the owner and is only copied (broadcast, or a holder serves it). */
bool pc_copy_only(const struct pc_op *op, uint32_t segment);
void pc_now_final(pc_core *core, struct pc_op *op, uint32_t segment, uint16_t contributors);
void pc_now_marked(pc_core *core, struct pc_op *op, uint32_t segment);
void pc_check_end(pc_core *core, struct pc_op *op);
void pc_keep_undo(struct pc_op *op, uint32_t segment);
void pc_startable(pc_core *core, struct pc_op *op);
void pc_start(pc_core *core); /* start what the windows allow */
void pc_alone(pc_core *core, struct pc_op *op);
void pc_root_final(struct pc_op *op);

/* ---- ring.c, star.c: start at most one segment (1: started, 0: not now, -1: none left); a data
 * frame of a running op from a known sender (NULL, or what is wrong with it)
 * ----------------------- */

int pc_ring_start_one(pc_core *core, struct pc_op *op);
const char *pc_ring_frame(pc_core *core, struct pc_op *op, uint32_t from,
                          const struct pc_header *header, struct pc_buffer *buffer);
int pc_star_start_one(pc_core *core, struct pc_op *op);
void pc_star_open(pc_core *core, struct pc_op *op); /* before the first announcement */
const char *pc_star_frame(pc_core *core, struct pc_op *op, uint32_t from,
                          const struct pc_header *header, struct pc_buffer *buffer);

/* ---- view.c -----------------------------------------------------------------------------------
 */

const struct pc_verdict_copy *pc_view_verdict(const pc_core *core, uint64_t id);
/* Applies the view's verdict to an op that runs here; true if it ended. */
bool pc_view_apply(pc_core *core, struct pc_op *op);
void pc_view_check_repaired(pc_core *core);

#endif
