/* core: one peer's data plane, pure: bytes and calls in, bytes and events out.
 *
 * No system call, no clock, no randomness: time comes as now_ns (any monotonic origin), bytes come
 * from whoever owns the links. So n cores run in one process under a seed (tests), or one per
 * engine inside the shell (io.c). A core is used by one thread.
 *
 * Inside: pool (segment buffers), op, context, layout (what an op is, among whom, in which memory),
 * demux and mux (bytes <-> frames, per link), pair (whom they are for), announce (who has submitted
 * what), segment, ring, star, exchange (the rules by which values move), report and view (flush and
 * install), blame (how ops stand). Only core.c and view.c see all. */
#ifndef PC_CORE_H
#define PC_CORE_H

#include <stddef.h>
#include <stdint.h>

#include "pccl.h"

/* cffi-begin */

typedef struct pc_core pc_core;

#define PC_LINKS_MAX  512 /* byte streams of one core */
#define PC_PEER_LINKS 32  /* of one peer, when it calls: none may take them all */
#define PC_SLICES_MAX 32

#define PC_EVENT_ENDED    32 /* an op has ended: result */
#define PC_EVENT_LINK_BAD 33 /* the link's sender broke the rules: close it; reason says how */

struct pc_core_config {
    uint64_t peer;
    uint64_t scratch_bytes;     /* bound on segment buffers */
    uint32_t segment_bytes_min; /* 0: the default; all members must agree */
    uint32_t segment_bytes_max;
    uint32_t small_bytes; /* ops up to it are small; 0: the default; all members must agree */
    int32_t checksum_payload;
};

struct pc_core_event {
    int32_t timed_out;         /* PC_EVENT_ENDED: the op's deadline had passed before */
    int32_t which;             /* PC_EVENT_LINK_BAD: the link */
    struct pccl_event event;   /* event.type is PCCL_EVENT_* or PC_EVENT_* */
    struct pccl_result result; /* PC_EVENT_ENDED */
};

struct pc_slice {
    const uint8_t *ptr;
    size_t len;
};

/* NULL when out of memory. */
pc_core *pc_core_new(const struct pc_core_config *config);
void pc_core_free(pc_core *core);

/* Registers an op under op_id (unnamed ones in order, 1, 2, …). Errors: PCCL_RESOURCE. */
int pc_core_submit(pc_core *core, const struct pccl_op *op, uint64_t op_id, uint64_t now_ns);

/* Errors: PCCL_RESOURCE; arguments are asserted (the shell has checked them). */
int pc_core_set_view(pc_core *core, const struct pccl_view *view, uint64_t now_ns);

/* The installed view's; 0: none yet. */
uint32_t pc_core_epoch(const pc_core *core);

/* Stops in `epoch` if that is the installed one; returns 1 if stopped now, else 0. */
int pc_core_flush(pc_core *core, uint32_t epoch);

/* NULL when out of memory. */
struct pccl_report *pc_core_report(const pc_core *core);
void pc_core_report_free(struct pccl_report *report);

/* How the running ops stand. */
void pc_core_inspect(const pc_core *core, uint64_t now_ns, struct pccl_inspection *inspection);

/* Ends every op with an error. */
void pc_core_fail(pc_core *core, int status, const char *text, uint64_t now_ns);

/* Time: call tick when now >= the deadline (UINT64_MAX: none). */
uint64_t pc_core_deadline(const pc_core *core);
void pc_core_tick(pc_core *core, uint64_t now_ns);

/* The next event, oldest first; 0 if there is none. */
int pc_core_next_event(pc_core *core, struct pc_core_event *out, uint64_t now_ns);

/* A link to a peer came up: fresh byte streams both ways; any number per pair, and also to a peer
 * that is not in the view (yet). is_long: milliseconds away, and more. Returns its id, or -1: too
 * many, or out of memory. */
int pc_core_link_new(pc_core *core, uint64_t peer, int is_long);
void pc_core_link_free(pc_core *core, int id);

/* A member for which frames wait and to whom no link is up, each once; 0: none. */
uint64_t pc_core_wanted(pc_core *core);

/* Bytes that arrived. Returns how many were taken: fewer than n only when the link holds a frame of
 * a future epoch (pc_core_held) or turned bad; offer the rest again after the next set_view. */
size_t pc_core_feed(pc_core *core, int id, const uint8_t *bytes, size_t n);
int pc_core_held(const pc_core *core, int id);

/* Where the next payload bytes may be received directly: *ptr and how many; 0: use feed. */
size_t pc_core_rx_space(pc_core *core, int id, uint8_t **ptr);
void pc_core_rx_done(pc_core *core, int id, size_t n);

/* The next bytes to send, in order; 0 slices: nothing now. Valid until the next call on the core.
 */
int pc_core_tx(pc_core *core, int id, struct pc_slice slices[PC_SLICES_MAX]);
void pc_core_sent(pc_core *core, int id, size_t n);

/* How many segments an op of this size has. */
uint32_t pc_core_segments(const pc_core *core, int dtype, uint64_t count);

/* Something is under way that does not wait for what the caller does next. */
int pc_core_is_busy(const pc_core *core);
void pc_core_stats(const pc_core *core, struct pccl_stats *stats);

/* cffi-end */

#endif
