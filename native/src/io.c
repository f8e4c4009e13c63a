/* io: see io.h. One loop: wait, read, carry out commands, let the core decide, write. */
#include "io.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "conn.h"
#include "net.h"

#define TAG_LISTEN PC_CONNS_MAX
#define TAG_WAKE   (PC_CONNS_MAX + 1)

uint64_t pc_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

void pc_io_wake(const struct pc_io *io) {
    uint64_t one = 1;
    ssize_t written = write(io->wake_fd, &one, sizeof one);
    (void)written; /* full means awake */
}

/* ---- bytes ------------------------------------------------------------------------------------
 */

/* Offers staged bytes to the core. false: some are left (held), or the link broke. */
static bool unstage(struct pc_io *io, struct pc_conn *conn) {
    conn->taken += (uint32_t)pc_core_feed(io->core, conn->which, conn->staging + conn->taken,
                                          conn->staged - conn->taken);
    if (conn->taken < conn->staged || pc_core_held(io->core, conn->which))
        return false;
    conn->taken = conn->staged = 0;
    return true;
}

static void read_link(struct pc_io *io, struct pc_conn *conn) {
    size_t budget = PC_READ_BUDGET;
    while (budget) {
        uint8_t *to;
        size_t space = pc_core_rx_space(io->core, conn->which, &to);
        bool direct = space > 0;
        if (!direct) {
            to = conn->staging;
            space = PC_STAGING_BYTES;
        }
        if (space > budget)
            space = budget;
        long n = pc_net_recv(conn->fd, to, space);
        if (n == -EAGAIN)
            return;
        if (n <= 0) {
            char text[PCCL_REASON_MAX];
            pc_errno_text(text, sizeof text, "link", n ? n : -ECONNRESET);
            pc_conn_link_broke(io, conn, n ? text : "link closed by the other end");
            return;
        }
        budget -= (size_t)n;
        if (direct) {
            pc_core_rx_done(io->core, conn->which, (size_t)n);
        } else {
            conn->staged = (uint32_t)n;
            conn->taken = 0;
            if (!unstage(io, conn)) {
                pc_conn_watch(io, conn, (conn->events & EPOLLOUT) | EPOLLRDHUP);
                return;
            }
        }
        if ((size_t)n < space)
            return; /* drained, most likely; epoll tells if not */
    }
}

static void write_link(struct pc_io *io, struct pc_conn *conn) {
    struct pc_slice slices[PC_SLICES_MAX];
    struct iovec iov[PC_SLICES_MAX];
    uint32_t base = conn->events & ~(uint32_t)EPOLLOUT;
    for (;;) {
        int count = pc_core_tx(io->core, conn->which, slices);
        if (!count)
            break;
        for (int i = 0; i < count; i++)
            iov[i] = (struct iovec){(void *)(uintptr_t)slices[i].ptr, slices[i].len};
        long n = pc_net_send(conn->fd, iov, count);
        if (n == -EAGAIN) {
            pc_conn_watch(io, conn, base | EPOLLOUT);
            return;
        }
        if (n < 0) {
            char text[PCCL_REASON_MAX];
            pc_errno_text(text, sizeof text, "link", n);
            pc_conn_link_broke(io, conn, text);
            return;
        }
        pc_core_sent(io->core, conn->which, (size_t)n);
    }
    pc_conn_watch(io, conn, base);
}

/* ---- commands ---------------------------------------------------------------------------------
 */

static void rewire(struct pc_io *io, int which, const struct pccl_member *member) {
    struct pc_neighbour *neighbour = &io->neighbours[which];
    bool same = member && neighbour->peer == member->peer && !neighbour->broken;
    if (!same) {
        struct pc_conn *conn = pc_conn_of_link(io, which);
        if (conn)
            pc_conn_close(io, conn);
        for (int i = 0; i < PC_CONNS_MAX; i++)
            if (io->conns[i].outbound && io->conns[i].which == which &&
                io->conns[i].state != PC_CONN_FREE)
                pc_conn_close(io, &io->conns[i]);
        *neighbour = (struct pc_neighbour){0};
    }
    neighbour->told = false;
    if (!member || same)
        return;
    neighbour->peer = member->peer;
    neighbour->port = member->port;
    memcpy(neighbour->host, member->host, sizeof neighbour->host);
}

void pc_io_set_view(struct pc_io *io, const struct pccl_view *view) {
    if (io->failed || view->epoch <= pc_core_epoch(io->core))
        return;
    uint32_t n = view->member_count;
    bool alone = n < 2;
    bool same_next = io->neighbours[PC_NEXT].peer && !io->neighbours[PC_NEXT].broken;
    uint64_t old_next = same_next ? io->neighbours[PC_NEXT].peer : 0;
    rewire(io, PC_NEXT, alone ? NULL : &view->members[(view->self + 1) % n]);
    rewire(io, PC_PREV, alone ? NULL : &view->members[(view->self + n - 1) % n]);
    int status = pc_core_set_view(io->core, view, pc_now_ns());
    if (status != PCCL_OK) {
        pc_io_fail(io, status, "out of memory while installing a view");
        return;
    }
    if (!alone && io->neighbours[PC_NEXT].peer != old_next)
        pc_conn_call(io);
    pc_conn_claim_waiting(io);
    for (int which = 0; which < PC_LINKS; which++) {
        struct pc_conn *conn = pc_conn_of_link(io, which);
        if (conn && unstage(io, conn))
            pc_conn_watch(io, conn, conn->events | EPOLLIN);
    }
}

void pc_io_fail(struct pc_io *io, int status, const char *text) {
    if (io->failed)
        return;
    io->failed = true;
    pc_engine_failed(io->engine, status, text);
    for (int i = 0; i < PC_CONNS_MAX; i++)
        pc_conn_close(io, &io->conns[i]);
    memset(io->neighbours, 0, sizeof io->neighbours);
    pc_core_fail(io->core, status, text, pc_now_ns());
}

/* ---- the loop ---------------------------------------------------------------------------------
 */

static uint64_t next_deadline(const struct pc_io *io) {
    uint64_t at = pc_core_deadline(io->core);
    for (int i = 0; i < PC_CONNS_MAX; i++) {
        const struct pc_conn *conn = &io->conns[i];
        if ((conn->state == PC_CONN_CONNECTING || conn->state == PC_CONN_SHAKING) &&
            conn->deadline_ns < at)
            at = conn->deadline_ns;
    }
    uint64_t retry = io->neighbours[PC_NEXT].retry_ns;
    return retry && retry < at ? retry : at;
}

static void on_time(struct pc_io *io, uint64_t now_ns) {
    for (int i = 0; i < PC_CONNS_MAX; i++) {
        struct pc_conn *conn = &io->conns[i];
        if ((conn->state == PC_CONN_CONNECTING || conn->state == PC_CONN_SHAKING) &&
            now_ns >= conn->deadline_ns)
            pc_conn_failed(io, conn, "no handshake in time");
    }
    struct pc_neighbour *next = &io->neighbours[PC_NEXT];
    if (next->retry_ns && now_ns >= next->retry_ns)
        pc_conn_call(io);
    pc_core_tick(io->core, now_ns);
}

static void on_conn(struct pc_io *io, struct pc_conn *conn, uint32_t events) {
    switch (conn->state) {
    case PC_CONN_FREE:
        return; /* closed earlier in this round */
    case PC_CONN_CONNECTING:
        pc_conn_connected(io, conn);
        return;
    case PC_CONN_SHAKING:
        if (events & EPOLLOUT && !pc_conn_send_shake(io, conn))
            return;
        pc_conn_shake(io, conn);
        return;
    case PC_CONN_WAITING:
        pc_conn_close(io, conn); /* only its end is watched for */
        return;
    case PC_CONN_LINKED:
        if (pc_core_held(io->core, conn->which)) {
            if (events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP))
                pc_conn_link_broke(io, conn, "link closed by the other end");
            return;
        }
        if (events & (EPOLLIN | EPOLLERR | EPOLLHUP))
            read_link(io, conn);
    }
}

static void core_events(struct pc_io *io) {
    struct pc_core_event event;
    while (pc_core_next_event(io->core, &event, pc_now_ns())) {
        if (event.event.type == PC_EVENT_ENDED) {
            pc_engine_ended(io->engine, &event.result);
            event.event.type = PCCL_EVENT_SETTLED;
            if (event.timed_out)
                pc_engine_post(io->engine, &event.event);
        } else if (event.event.type == PC_EVENT_LINK_BAD) {
            struct pc_conn *conn = pc_conn_of_link(io, event.which);
            io->links_refused++;
            if (conn)
                pc_conn_link_broke(io, conn, event.event.reason);
        } else {
            pc_engine_post(io->engine, &event.event);
        }
    }
}

static void pump(struct pc_io *io) {
    for (int which = 0; which < PC_LINKS; which++) {
        struct pc_conn *conn = pc_conn_of_link(io, which);
        if (conn)
            write_link(io, conn);
    }
}

static int wait_ms(const struct pc_io *io) {
    uint64_t at = next_deadline(io), now = pc_now_ns();
    if (at == UINT64_MAX)
        return -1;
    if (at <= now)
        return 0;
    uint64_t ms = (at - now + 999999) / 1000000;
    return ms > 60000 ? 60000 : (int)ms;
}

void pc_io_run(struct pc_io *io) {
    struct epoll_event events[64];
    for (;;) {
        int n = epoll_wait(io->epoll_fd, events, 64, wait_ms(io));
        PC_ASSERT(n >= 0 || errno == EINTR);
        for (int i = 0; i < n; i++) {
            uint32_t tag = events[i].data.u32;
            if (tag == TAG_LISTEN) {
                pc_conn_accept_all(io);
            } else if (tag == TAG_WAKE) {
                uint64_t count;
                ssize_t got = read(io->wake_fd, &count, sizeof count);
                (void)got;
            } else {
                on_conn(io, &io->conns[tag], events[i].events);
            }
        }
        uint64_t now = pc_now_ns();
        if (!pc_engine_commands(io->engine, io, now))
            return;
        on_time(io, now);
        core_events(io);
        pump(io);
        core_events(io);
        struct pccl_stats stats;
        pc_core_stats(io->core, &stats);
        stats.links_refused = io->links_refused;
        pc_engine_publish(io->engine, &stats);
    }
}

/* ---- open and close ---------------------------------------------------------------------------
 */

static bool add_fd(const struct pc_io *io, int fd, uint32_t tag) {
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = tag};
    return epoll_ctl(io->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

int pc_io_open(struct pc_io *io, pccl_engine *engine, const struct pccl_config *config,
               uint16_t *port, int *os_error) {
    memset(io, 0, sizeof *io);
    io->engine = engine;
    io->config = *config;
    io->epoll_fd = io->listen_fd = io->wake_fd = -1;
    for (int i = 0; i < PC_CONNS_MAX; i++) {
        io->conns[i].fd = -1;
        atomic_init(&io->fds[i], -1);
    }
    *port = config->bind_port;
    io->listen_fd = pc_net_listen(config->bind_host, port);
    if (io->listen_fd < 0) {
        *os_error = -io->listen_fd;
        io->listen_fd = -1;
        return *os_error == EINVAL ? PCCL_USAGE : PCCL_RESOURCE;
    }
    io->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    io->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct pc_core_config core_config = {.peer = config->peer,
                                         .scratch_bytes = config->scratch_bytes,
                                         .checksum_payload = config->checksum_payload};
    io->core = pc_core_new(&core_config);
    if (io->epoll_fd < 0 || io->wake_fd < 0 || !io->core ||
        !add_fd(io, io->listen_fd, TAG_LISTEN) || !add_fd(io, io->wake_fd, TAG_WAKE)) {
        *os_error = errno;
        pc_io_close(io);
        return PCCL_RESOURCE;
    }
    return PCCL_OK;
}

void pc_io_abandon(struct pc_io *io) {
    for (int i = 0; i < PC_CONNS_MAX; i++) {
        int fd = atomic_load(&io->fds[i]);
        if (fd >= 0)
            close(fd);
    }
    close(io->listen_fd);
    close(io->epoll_fd);
    close(io->wake_fd);
}

void pc_io_close(struct pc_io *io) {
    for (int i = 0; i < PC_CONNS_MAX; i++)
        if (io->core)
            pc_conn_close(io, &io->conns[i]);
    pc_core_free(io->core);
    io->core = NULL;
    int *fds[] = {&io->listen_fd, &io->epoll_fd, &io->wake_fd};
    for (int i = 0; i < 3; i++) {
        if (*fds[i] >= 0)
            close(*fds[i]);
        *fds[i] = -1;
    }
}
