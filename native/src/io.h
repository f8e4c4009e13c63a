/* io: the shell around one core: its sockets, its clock. Everything in struct pc_io belongs to the
 * thread that drives (drive.h), pccl-io or a user's; what other threads exchange with it is in
 * pccl.c's struct pccl_engine, under its mutex, through the functions at the end. */
#ifndef PC_IO_H
#define PC_IO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <sys/epoll.h>

#include "core.h"
#include "frame.h"
#include "grow.h"
#include "net.h"
#include "pace.h"
#include "paths.h"

#define PC_CONNS_MAX     PC_LINKS_MAX /* links, and connections that have not become one */
#define PC_STRANGERS_MAX 64           /* accepted, and no link to a member (yet) */
#define PC_EVENTS        64
#define PC_STAGING_BYTES (64u << 10)
#define PC_PEEK_BYTES    256u       /* of frames behind a payload: a few headers */
#define PC_READ_BUDGET   (1u << 20) /* bytes of one link before others get a turn */
#define PC_RETRY_NS      500000000u
#define PC_AWAIT_NS      1000000000u /* for the other end's call */
#define PC_MESH_MAX      32          /* members that all link to all from the start */
#define PC_LONG_RTT_US   2000        /* a path below is short: one link, no pace */

enum pc_conn_state {
    PC_CONN_FREE = 0,
    PC_CONN_CONNECTING, /* we called; not answered yet */
    PC_CONN_SHAKING,    /* handshake bytes are on their way */
    PC_CONN_LINKED      /* a link of the core */
};

struct pc_conn {
    enum pc_conn_state state;
    int fd;
    bool outbound;
    uint32_t events; /* what epoll watches for */
    uint64_t peer;
    int link; /* LINKED: the core's id of it */
    uint64_t deadline_ns;
    uint64_t born;
    bool is_long;            /* LINKED: over a long path */
    struct pc_net_path path; /* when the interval began */
    uint64_t bound;          /* bytes a second, as the kernel was told */
    uint8_t shake_in[PC_HANDSHAKE_BYTES], shake_out[PC_HANDSHAKE_BYTES];
    uint32_t in_have, out_sent;
    uint8_t *staging;
    bool bulk;              /* the last that was read was a payload, most likely the next is, too */
    uint32_t staged, taken; /* bytes [taken, staged) of staging wait for the core */
    uint32_t beat_ms;       /* LINKED: how often the other end wants to hear something; 0: never */
    uint32_t beat_sent;     /* bytes of a heartbeat that is half sent */
    uint32_t silent_ms;     /* nothing was heard for so long */
    bool beat_is_due, heard, wrote; /* the last two: since the last look */
};

/* Another member of the view, as the shell reaches it. */
struct pc_mate {
    uint64_t peer;
    char host[PCCL_HOST_MAX];
    uint16_t port;
    bool told;         /* LINK_LOST was sent in this view */
    uint64_t retry_ns; /* when to call again; 0: not waiting */
    uint32_t linked;   /* connections that are links */
    uint32_t calling;  /* outbound connections that are not links yet */
    struct pc_growth growth;
    struct pc_path path;
};

struct pc_io {
    pccl_engine *engine;
    struct pccl_config config;
    pc_core *core;
    int epoll_fd, listen_fd, wake_fd;
    atomic_int fds[PC_CONNS_MAX]; /* of conns, for a forked child; -1: none */
    struct pc_conn conns[PC_CONNS_MAX];
    int conns_high;        /* no connection at or beyond this place */
    struct pc_mate *mates; /* in ring order, self included */
    uint32_t mate_count, self;
    struct pc_pace pace;
    uint64_t pace_ns, pace_from_ns; /* its interval's end and beginning; 0: none runs */
    uint64_t paths_ns;              /* when paths are sampled next; 0: nothing was sent since */
    uint64_t grow_ns;               /* when links are counted next; 0: nothing to count */
    uint64_t beat_ns;               /* when links are looked at next, for silence; 0: never */
    uint32_t look_ms;               /* how long after the look before */
    uint64_t links_refused;
    uint64_t births;
    bool failed;
    bool stopped; /* by a command */
};

/* Errors: PCCL_USAGE, PCCL_RESOURCE with *os_error. *port gets the listening port. */
int pc_io_open(struct pc_io *io, pccl_engine *engine, const struct pccl_config *config,
               uint16_t *port, int *os_error);
void pc_io_close(struct pc_io *io);
void pc_io_abandon(struct pc_io *io);

/* Whoever drives: what has happened is seen to, commands are carried out, what can be sent is sent.
 * false: told to stop, now or before. */
bool pc_io_turn(struct pc_io *io, const struct epoll_event events[], int count);
uint64_t
pc_io_deadline(const struct pc_io *io);     /* the next turn, at the latest; UINT64_MAX: none */
bool pc_io_is_busy(const struct pc_io *io); /* something is under way that wants turns soon */

/* Any thread. Blocks for at most timeout_ms (-1: without end). < 0: a signal came. */
int pc_io_poll(const struct pc_io *io, struct epoll_event events[PC_EVENTS], int timeout_ms);
int pc_io_ms_until(uint64_t at_ns); /* what poll takes; at most a minute */
void pc_io_wake(const struct pc_io *io);

/* What commands do; who drives only. */
void pc_io_set_view(struct pc_io *io, const struct pccl_view *view);
void pc_io_fail(struct pc_io *io, int status, const char *text);

uint64_t pc_now_ns(void);

/* Given by pccl.c, called by who drives. */
bool pc_engine_commands(pccl_engine *engine, struct pc_io *io, uint64_t now_ns); /* false: stop */
void pc_engine_post(pccl_engine *engine, const struct pccl_event *event);
void pc_engine_ended(pccl_engine *engine, const struct pccl_result *result);
void pc_engine_failed(pccl_engine *engine, int status, const char *text); /* once */
/* rows becomes the engine's. */
void pc_engine_take_paths(pccl_engine *engine, struct pccl_path *rows, uint32_t count);
void pc_engine_publish(pccl_engine *engine, const struct pccl_stats *stats);

#endif
