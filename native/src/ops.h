/* ops: what a core knows of an op, of its participants, and of the members it is exchanged with.
 * Part of internal.h; ops own their segments, blocks and streams. */
#ifndef PC_OPS_H
#define PC_OPS_H

#include <stdbool.h>

#include "core.h"
#include "frame.h"
#include "pool.h"

#define PC_SMALL_OP_BYTES (64u << 10)
#define PC_BRIEF_SMALLS   16 /* a brief op is as large as so many small ones, at most */
#define PC_EAGER_BYTES                                                                             \
    (64u << 10)                  /* of one op, before all members are known to have submitted it */
#define PC_LAZY_NS       3000000 /* so long what nobody waits for may lie */
#define PC_LAZY_MAX      256     /* of one pair: then it goes at once */
#define PC_UNASKED_BYTES (4u << 20) /* to one owner, of ops that are not small */
#define PC_KEPT_OPS      256        /* ops that have returned and are not known to be held by all */
#define PC_KEPT_BYTES    (4u << 20) /* of their results, kept for who may need them */
#define PC_PARTS_AHEAD   3          /* that go before something else on a long path */
#define PC_RELAY_CREDIT  16         /* frames of one member for another that wait at a relay */
#define PC_BATCH         16         /* frames handed to one writev */
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
    struct pc_op *op;        /* NULL: a relay's own business */
    struct pc_buffer *cargo; /* a frame of one member for another, passed on */
    uint32_t segment;
    uint16_t contributors; /* of a MARK: the op may have ended when it goes */
    uint8_t type;          /* enum pc_frame_type */
    bool lazy;             /* nobody waits for it */
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
    struct pc_queue parts; /* on a long path, those of large ops */
    uint32_t parts_ahead;  /* went since the last of bulk */
    struct pc_queue lazy;  /* what nobody waits for: it rides along, or goes after PC_LAZY_NS */
    uint32_t told;         /* ops that it made known and that are not submitted here */
    uint32_t links_up;
    bool is_long;   /* milliseconds away, and more */
    bool wanted;    /* there are frames and no link, and the shell has not been told */
    uint32_t eager; /* parts sent to it unasked whose final value is not back */
    /* where the link is known to be broken */
    uint32_t via;     /* the member that passes frames on; itself: none is needed */
    uint32_t credit;  /* frames that may be on their way there */
    uint32_t carried; /* frames of it that this peer passes on, and has not yet */
    bool turn;        /* of those whose relay it is, to use its links */
};

/* ---- contexts ---------------------------------------------------------------------------------
 */

/* The participants of some ops, and how many of those there were. A participant's *place* is its
 * position among those that are in the view, in the view's ring order. */
struct pc_context {
    uint32_t id; /* 0: the whole group */
    struct pc_context *hash_next;
    uint64_t *peers; /* in rank order; NULL: all members */
    uint32_t peer_count;
    uint32_t submitted; /* unnamed ops, in this line */
    uint32_t stable;    /* at the last look (pc_contexts_take_stable) */
    /* in this view */
    uint32_t size, self; /* places; self is PC_NO_INDEX if this peer is none of them */
    bool whole_ring;     /* no link of the ring that they make is known to be broken */
    uint32_t *at;        /* place -> ring index of the view, ascending */
};

/* ---- one op ---------------------------------------------------------------------------------- */

/* A segment's life: INTACT (the input is as submitted) -> FINAL (the value is in the destination,
 * where this peer is one) -> MARKED (every destination holds it). A view change takes nothing back.
 */
enum pc_segment_state { PC_INTACT = 0, PC_FINAL = 1, PC_MARKED = 2 };

struct pc_segment {
    uint8_t state;
    bool started;          /* this peer has put it on its way in this view */
    bool counted;          /* it takes a place in the window */
    bool eager;            /* counted against the eager share */
    bool open;             /* star, owner: parts are asked for, the value is not there yet */
    bool copied;           /* the copy has arrived in this view */
    bool landing;          /* a link receives the copy straight into the destination */
    bool sum_queued;       /* ring: its partial sum waits to be sent, or is half sent */
    bool mean;             /* the value so far is a weighted mean, not a sum */
    bool told;             /* `contributors` are those of the value: it is here, or was marked */
    uint16_t block;        /* of the op's blocks */
    uint16_t contributors; /* inputs that count in the value (so far) */
    uint16_t parts_done;   /* star: members whose part is in the value so far, the owner included */
    uint16_t acks;         /* star, owner: members that hold it */
    int32_t holder;        /* PCCL_HOLDER_REDO, or the place of the owner that serves it */
    double weight;         /* of the inputs in the value so far; PCCL_AVG only */
    struct pc_buffer *buffer; /* ring: the partial sum to pass on; star: the value so far */
    struct pc_buffer *early;  /* star, owner: inputs that are not next in order */
};

/* A run of segments that belong together: the whole tensor, or what one participant gives or gets.
 */
struct pc_block {
    uint64_t peer;     /* whose it is; 0: nobody's */
    const uint8_t *in; /* this peer's input of it; NULL: none */
    uint8_t *out;      /* its destination here, may be `in`; NULL: none */
    uint64_t count;
    uint64_t each;  /* elements per segment, but the last */
    uint32_t first; /* segment */
    uint32_t segments;
};

/* An exchange, as seen from one end: what goes to one participant and what comes from there. */
struct pc_stream {
    uint64_t peer;
    uint32_t place; /* in this view, or PC_NO_INDEX: gone */
    const uint8_t *out;
    uint8_t *in;
    uint64_t out_count, in_count;
    uint32_t out_segments, in_segments; /* 0: nothing goes that way */
    uint32_t out_next;                  /* the next to be queued */
    uint32_t out_queued;
    uint32_t in_prefix; /* so many are here, without a gap */
    uint32_t in_left;
    uint8_t *landed; /* per segment that comes: enum pc_landed */
    bool ready;      /* its announcement is here, and agrees */
    bool whole;      /* all that it was to get is there: its mark has come */
    uint32_t eager;  /* sent unasked */
};

enum pc_landed { PC_MISSING = 0, PC_LANDING = 1, PC_LANDED = 2 };

enum pc_op_state {
    PC_FOREIGN = 0, /* a peer has spoken of it, this one has not submitted it */
    PC_RUNNING = 1,
    PC_STABLE = 2, /* ended well, every member holds it; remembered until all know */
    PC_RAISED = 3  /* ended with an error; remembered until all have raised it */
};

/* What one member has said of an op in this view, by ring index. */
struct pc_said {
    double weight;
    uint64_t for_you;
    uint32_t opened; /* star: of its own segments, so many are open; exchange: it holds so many */
    uint32_t cursor; /* star: the next of its segments to send a part of */
    uint16_t run;    /* ring: so many members in a row have submitted, it being the first */
    uint16_t block;  /* the block that is its own */
    bool known;      /* its descriptor is here */
    bool queued;     /* an announcement to it waits */
    bool whole;      /* exchange: its mark came before this peer submitted the op */
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
    bool lacking;    /* submitted while stopped, for somebody who is not in the view any more */
    bool timed_out;
    bool returned;  /* its caller has the result; this peer keeps a copy until all hold it */
    uint8_t events; /* which events wait, bits PC_OP_EVENT_* */
    bool event_queued;
    uint32_t queued_count;  /* frames of it in the links' queues */
    uint32_t values_queued; /* those of them that carry a payload: they point into its memory */

    /* known from others, in this view */
    struct pc_said *said; /* by ring index of the view; NULL: no view yet, or ended */
    uint32_t known_count; /* participants but this one; counted once submitted */
    struct pc_desc desc_first,
        desc_odd;                  /* the first to arrive, and the first that differs from it */
    uint32_t first_from, odd_from; /* ring indices; PC_NO_INDEX: none */
    uint32_t told_by;              /* who made it known, while it is not submitted here; or none */
    uint32_t next_run; /* ring: members known to have submitted, counted from the successor on */
    struct pc_buffer *parked;
    struct pc_buffer **parked_tail;

    /* once submitted */
    struct pc_context *context;
    struct pc_desc desc;
    uint8_t *undo; /* strict: what finals have overwritten */
    uint8_t *kept; /* returned: the result */
    size_t element_bytes;
    struct pc_block *blocks;
    uint32_t block_count;
    uint32_t segment_count;
    struct pc_segment *segments;
    struct pc_stream *streams; /* exchanges: one per participant, in rank order; else NULL */
    uint32_t stream_count;
    uint32_t own_left;    /* exchanges: participants from which something is still to come */
    bool told_whole;      /* exchanges: that nothing is has been said in this view */
    uint64_t bytes;       /* of all blocks */
    bool small;           /* its frames overtake those of others */
    bool brief;           /* its result may be returned early: a copy of it costs little */
    uint32_t final_count; /* segments that are final, or marked, here */
    uint32_t marked_count;
    uint32_t cursor; /* next segment to look at for starting */
    uint32_t opened; /* star: of this peer's own segments, the first that is not open */
    uint8_t *acked;  /* star, owner: which members hold which segment, size bits each; or NULL */
    uint64_t eager_bytes;
    uint32_t plan_left; /* segments the plan promised that are not final here */
    uint64_t submitted_ns;
    uint64_t deadline_ns;
    uint64_t timeout_ns;
    struct pccl_result result;
    uint8_t phase; /* enum pccl_phase: when the core stopped last */
    uint32_t mismatch_from;
    struct pc_desc mismatch_desc;
};

#define PC_OP_EVENT_ENDED    1
#define PC_OP_EVENT_TIMEOUT  2
#define PC_OP_EVENT_MISMATCH 4

#endif
