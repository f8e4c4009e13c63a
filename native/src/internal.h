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
#define PC_ENDED_WARN    (PCCL_ENDED_NAMED_MAX / 2)
#define PC_NO_INDEX      UINT32_MAX

/* ---- a frame waiting to be sent -------------------------------------------------------------- */

struct pc_op;
struct pc_segment;

/* One frame in a link's queue; embedded in what it speaks of, so that queueing never allocates. */
struct pc_node {
    struct pc_node *next;
    struct pc_op *op;
    uint32_t segment;
    uint8_t type; /* enum pc_frame_type */
    bool queued;
};

struct pc_queue {
    struct pc_node *head;
    struct pc_node **tail;
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
    uint16_t contributors;
    int32_t holder;           /* PCCL_HOLDER_REDO, or the ring index of the owner that serves it */
    struct pc_buffer *buffer; /* the partial sum in `sum` */
    struct pc_node sum, copy, mark;
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
    bool in_plan;   /* the view's plan asks for segments of it (counts for Repaired) */
    uint8_t events; /* which events wait, bits PC_OP_EVENT_* */
    bool event_queued;
    uint32_t queued_count; /* frames of it in the links' queues */

    /* known from neighbours, in this view */
    bool desc_known[PC_LINKS];
    struct pc_desc desc_of[PC_LINKS];
    uint32_t next_run; /* members known to have submitted, counted from the successor on */
    struct pc_buffer *parked;
    struct pc_buffer **parked_tail;
    struct pc_node ready[PC_LINKS];

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
    uint32_t cursor; /* next segment to look at for starting */
    uint64_t eager_bytes;
    uint32_t plan_left; /* segments the plan promised that are not final here */
    uint64_t submitted_ns;
    uint64_t deadline_ns;
    uint64_t timeout_ns;
    struct pccl_result result;
    uint8_t mismatch_link;
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
    struct pc_node *node;
};

struct pc_link {
    bool up;
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
    struct pc_queue urgent; /* control frames and small ops */
    struct pc_queue bulk;
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
    uint64_t *peers;    /* ring order */
    uint32_t stable;    /* of the last view */
    uint32_t submitted; /* unnamed ops submitted in this line */
    struct pc_verdict_copy *verdicts;
    uint32_t verdict_count;

    uint32_t window, in_flight, eager_in_flight;
    uint32_t plan_left;
    bool repaired_pending, repaired_told;
    bool full_pending, full_told;
    uint64_t deadline_ns; /* the earliest of the running ops, or UINT64_MAX */
    struct pc_link links[PC_LINKS];
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
/* Finds or makes (PC_FOREIGN); NULL when the table is full or memory is out. */
struct pc_op *pc_op_get(pc_core *core, uint64_t id);
void pc_op_forget(pc_core *core, struct pc_op *op);
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

/* ---- mux.c ------------------------------------------------------------------------------------
 */

void pc_mux_reset(struct pc_link *link);      /* nothing queued, nothing half sent */
void pc_mux_new_stream(struct pc_link *link); /* nothing half sent; the queue stays */
void pc_mux_enter_view(struct pc_link *link); /* nothing queued; a half-sent frame is made whole */
void pc_mux_push(pc_core *core, int which, struct pc_node *node, struct pc_op *op, uint32_t segment,
                 uint8_t type);

/* ---- demux.c ----------------------------------------------------------------------------------
 */

void pc_demux_reset(struct pc_link *link);
void pc_demux_stop(pc_core *core, struct pc_link *link); /* drop what is being received */
void pc_link_spoil(struct pc_link *link, const char *why);

/* ---- ring.c -----------------------------------------------------------------------------------
 */

/* A whole frame of this epoch. `buffer` (SUM, COPY) becomes the callee's. */
void pc_ring_frame(pc_core *core, int which, const struct pc_header *header,
                   struct pc_buffer *buffer, const uint8_t *small);
void pc_ring_submitted(pc_core *core, struct pc_op *op); /* announce, take what was parked */
void pc_ring_announce(pc_core *core, struct pc_op *op);
void pc_ring_start(pc_core *core); /* start what the window allows */
void pc_ring_startable(pc_core *core, struct pc_op *op);
void pc_ring_alone(pc_core *core, struct pc_op *op); /* world of one */
void pc_ring_root_final(struct pc_op *op);
void pc_ring_check_end(pc_core *core, struct pc_op *op);
uint32_t pc_ring_owner(const pc_core *core, const struct pc_op *op, uint32_t segment);
uint32_t pc_ring_index(const pc_core *core, uint64_t peer);

/* ---- view.c -----------------------------------------------------------------------------------
 */

const struct pc_verdict_copy *pc_view_verdict(const pc_core *core, uint64_t id);
/* Applies the view's verdict to an op that runs here; true if it ended. */
bool pc_view_apply(pc_core *core, struct pc_op *op);
void pc_view_check_repaired(pc_core *core);

#endif
