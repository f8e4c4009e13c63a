/* engine: what the user threads, the control thread and pccl-io share of one engine, under its
 * mutex. Only the files that make up the ABI (pccl.c, submit.c, viewcopy.c) see it. */
#ifndef PC_ENGINE_H
#define PC_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>

#include "drive.h"
#include "io.h"
#include "names.h"

#define TICKETS PCCL_OPS_MAX

enum command_type { CMD_SUBMIT, CMD_VIEW, CMD_FLUSH, CMD_INSPECT, CMD_FAIL, CMD_STOP };

struct command {
    struct command *next;
    enum command_type type;
    struct pccl_op *op; /* one block, with all it points to */
    uint64_t op_id;
    struct pccl_view *view; /* one block, with all it points to */
    uint32_t epoch;
    int status;
    char *text; /* CMD_FAIL: a block of its own */
};

struct event_node {
    struct event_node *next;
    struct pccl_event event;
};

/* Memory of an op in flight. */
struct pc_range {
    const uint8_t *data;
    uint64_t bytes;
    bool written;
};

#define PC_FEW_RANGES 2 /* what a reduction or a broadcast names needs no memory of its own */

struct pc_ranges {
    struct pc_range few[PC_FEW_RANGES];
    struct pc_range *many; /* NULL: they are in few */
    uint32_t count;
};

enum ticket_state { TICKET_FREE = 0, TICKET_RUNNING, TICKET_ENDED };

/* In one list: that of the free ones, or of the running ones, or (ended) in none. */
struct ticket {
    enum ticket_state state;
    uint64_t generation; /* 48 bits of it are in the number that the caller has */
    uint64_t op_id;
    struct ticket *next, *prev; /* free ones have no prev */
    struct pc_ranges ranges;
    pthread_cond_t ended;
    struct pccl_result result;
};

struct pccl_engine {
    struct pc_io io;
    struct pc_drive drive;
    pthread_t thread;
    uint16_t port;
    int event_fd;
    /* Pushed under the mutex, so in the order of op numbers; taken by who drives without it, for
     * a caller that has just woken pccl-io wants the mutex too, to wait. The last is first. */
    _Atomic(struct command *) commands;
    pthread_mutex_t stats_mutex; /* apart: pccl-io writes them each time it has worked */
    struct pccl_stats stats;
    pthread_mutex_t mutex; /* all below */
    struct event_node *events, **events_tail;
    struct ticket tickets[TICKETS];
    struct ticket *free;                   /* the last to be freed first: it is in a cache */
    struct ticket *running, *running_last; /* in order of submission, in which most end */
    struct pccl_report *report;
    struct pccl_path *paths;
    uint32_t path_count;
    struct pccl_inspection inspection;
    bool inspected;         /* it has not been fetched */
    struct pc_names names;  /* uses of each op name */
    struct pc_names counts; /* unnamed ops of each context but 0 */
    uint32_t unnamed;       /* of context 0 */
    uint64_t submitted;     /* of context 0, named ones included */
    int failed;
    char failed_text[1024];
};

/* A zeroed command, or NULL. */
struct command *pc_command_new(enum command_type type);
void pc_command_free(struct command *command);
/* Gives it to who drives. Caller holds the mutex, and when it is true calls pc_drive_call or drives
 * itself, without it. */
bool pc_command_push(pccl_engine *engine, struct command *command);

void pc_tickets_init(pccl_engine *engine);
void pc_tickets_free(pccl_engine *engine);

/* ---- opcopy.c: an op from the caller's memory -------------------------------------------------
 */

bool pc_op_is_sound(const struct pccl_op *op, uint64_t self);
/* One block with all that the op points to (but the tensors), for one free(); NULL: memory. */
struct pccl_op *pc_op_copy(const struct pccl_op *op);
/* The memory that it reads and writes, for pc_ranges_free. PCCL_OK, PCCL_RESOURCE, PCCL_USAGE: what
 * it writes overlaps what else it names. */
int pc_op_ranges(const struct pccl_op *op, uint64_t self, struct pc_ranges *ranges);
void pc_ranges_free(struct pc_ranges *ranges);
/* true: one writes where the other reads or writes. */
bool pc_ranges_clash(const struct pc_ranges *a, const struct pc_ranges *b);
/* What a participant gives to itself. */
void pc_op_copy_own(const struct pccl_op *op, uint64_t self);

/* Whether a view makes sense for this peer; nothing in it is trusted further. */
bool pc_view_is_sound(const struct pccl_view *view, uint64_t self);
/* One block with all that the view points to, for one free(); NULL: out of memory. */
struct pccl_view *pc_view_copy(const struct pccl_view *view);

#endif
