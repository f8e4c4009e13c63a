/* io: see io.h. One turn: read, carry out commands, let the core decide, write. */
#include "io.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "beats.h"
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
    conn->taken += (uint32_t)pc_core_feed(io->core, conn->link, conn->staging + conn->taken,
                                          conn->staged - conn->taken);
    if (conn->taken < conn->staged || pc_core_held(io->core, conn->link))
        return false;
    conn->taken = conn->staged = 0;
    return true;
}

/* A payload goes where it belongs, with the next header behind it in staging; of the payload after
 * that as little as may be, for it would be copied once more. */
static void read_link(struct pc_io *io, struct pc_conn *conn) {
    size_t budget = PC_READ_BUDGET;
    while (budget) {
        uint8_t *to;
        size_t space = pc_core_rx_space(io->core, conn->link, &to);
        size_t direct = space < budget ? space : budget;
        bool ahead = direct == space; /* to the payload's end, or there is none */
        size_t staged = !ahead ? 0 : direct || conn->bulk ? PC_PEEK_BYTES : PC_STAGING_BYTES;
        struct iovec iov[2] = {{direct ? to : NULL, direct}, {conn->staging, staged}};
        conn->bulk = direct > PC_PEEK_BYTES;
        long n = pc_net_recv(conn->fd, direct ? iov : iov + 1, direct ? 2 : 1);
        if (n == -EAGAIN)
            return;
        if (n <= 0) {
            char text[PCCL_REASON_MAX];
            pc_errno_text(text, sizeof text, "link", n ? n : -ECONNRESET);
            pc_conn_failed(io, conn, n ? text : "link closed by the other end");
            return;
        }
        conn->heard = true;
        size_t got = (size_t)n, landed = got < direct ? got : direct;
        budget -= got < budget ? got : budget;
        if (landed)
            pc_core_rx_done(io->core, conn->link, landed);
        conn->staged = (uint32_t)(got - landed);
        conn->taken = 0;
        if (conn->staged && !unstage(io, conn)) {
            pc_conn_watch(io, conn, (conn->events & EPOLLOUT) | EPOLLRDHUP);
            return;
        }
        if (got < direct + staged)
            return; /* drained, most likely; epoll tells if not */
    }
}

/* ---- writing ----------------------------------------------------------------------------------
 */

static void write_link(struct pc_io *io, struct pc_conn *conn) {
    struct pc_slice slices[PC_SLICES_MAX];
    struct iovec iov[PC_SLICES_MAX];
    uint32_t base = conn->events & ~(uint32_t)EPOLLOUT;
    if (conn->beat_sent && !pc_beats_send(io, conn))
        return;
    for (;;) {
        int count = pc_core_tx(io->core, conn->link, slices);
        if (!count && conn->beat_is_due && !pc_beats_send(io, conn))
            return;
        if (!count)
            break;
        for (int i = 0; i < count; i++)
            iov[i] = (struct iovec){(void *)(uintptr_t)slices[i].ptr, slices[i].len};
        long n = pc_net_send(conn->fd, iov, count);
        if (n == -EAGAIN) {
            pc_conn_watch(io, conn, base | EPOLLOUT);
            pc_paths_blocked(io, conn);
            return;
        }
        if (n < 0) {
            char text[PCCL_REASON_MAX];
            pc_errno_text(text, sizeof text, "link", n);
            pc_conn_failed(io, conn, text);
            return;
        }
        conn->wrote = true;
        pc_core_sent(io->core, conn->link, (size_t)n);
        pc_paths_sent(io, conn, (uint64_t)n);
    }
    pc_conn_watch(io, conn, base);
}

/* ---- commands ---------------------------------------------------------------------------------
 */

static bool is_cut(const struct pccl_view *view, uint32_t a, uint32_t b) {
    for (uint32_t i = 0; i < view->cut_count; i++)
        if ((view->cuts[i].a == a && view->cuts[i].b == b) ||
            (view->cuts[i].a == b && view->cuts[i].b == a))
            return true;
    return false;
}

/* A member, and no broken link to it is known. */
static bool is_reached(const struct pccl_view *view, uint64_t peer) {
    for (uint32_t i = 0; i < view->member_count; i++)
        if (view->members[i].peer == peer)
            return !is_cut(view, view->self, i);
    return false;
}

/* The members of a view; what is known of those that stay is kept. false: out of memory. */
static bool take_mates(struct pc_io *io, const struct pccl_view *view) {
    struct pc_mate *mates = calloc(view->member_count, sizeof *mates);
    if (!mates)
        return false;
    for (int i = 0; i < io->conns_high; i++) { /* not links to newcomers, who are no mates yet */
        struct pc_conn *conn = &io->conns[i];
        if (conn->state != PC_CONN_FREE && pc_mate_of(io, conn->peer) &&
            !is_reached(view, conn->peer))
            pc_conn_close(io, conn);
    }
    for (uint32_t i = 0; i < view->member_count; i++) {
        const struct pccl_member *member = &view->members[i];
        const struct pc_mate *old = pc_mate_of(io, member->peer);
        if (old)
            mates[i] = *old;
        mates[i].peer = member->peer;
        mates[i].port = member->port;
        mates[i].told = false;
        if (is_cut(view, view->self, i))
            mates[i].retry_ns = 0; /* nobody needs it in this view */
        memcpy(mates[i].host, member->host, sizeof mates[i].host);
    }
    for (int i = 0; i < io->conns_high; i++) { /* newcomers may have called before we knew them */
        const struct pc_conn *conn = &io->conns[i];
        if (conn->state != PC_CONN_LINKED || pc_mate_of(io, conn->peer))
            continue;
        for (uint32_t m = 0; m < view->member_count; m++)
            mates[m].linked += mates[m].peer == conn->peer;
    }
    free(io->mates);
    io->mates = mates;
    io->mate_count = view->member_count;
    io->self = view->self;
    return true;
}

/* Awaits the nearest member that can be reached, `step` by step along the ring. */
static void await_nearest(struct pc_io *io, const struct pccl_view *view, uint32_t step) {
    uint32_t count = view->member_count, other = view->self;
    for (uint32_t i = 1; i < count; i++) {
        other = (other + step) % count;
        if (is_cut(view, view->self, other))
            continue;
        pc_conn_await(io, &io->mates[other]);
        return;
    }
}

/* Where all send to all, links to all, so that the first op need not wait for them; else to the
 * ring's neighbours, so that each member's death breaks a link. Of two ends the one with the
 * smaller id calls; the other waits a while for that, or a pair would begin with two links. */
static void link_up(struct pc_io *io, const struct pccl_view *view) {
    if (view->member_count > PC_MESH_MAX) {
        await_nearest(io, view, 1);
        await_nearest(io, view, view->member_count - 1);
        return;
    }
    for (uint32_t i = 0; i < view->member_count; i++)
        if (i != view->self && !is_cut(view, view->self, i))
            pc_conn_await(io, &io->mates[i]);
}

void pc_io_set_view(struct pc_io *io, const struct pccl_view *view) {
    if (io->failed || view->epoch <= pc_core_epoch(io->core))
        return;
    uint32_t count = io->mate_count;
    if (!take_mates(io, view) || pc_core_set_view(io->core, view, pc_now_ns()) != PCCL_OK) {
        pc_io_fail(io, PCCL_RESOURCE, "out of memory while installing a view");
        return;
    }
    link_up(io, view);
    if (view->member_count != count) /* other paths, other shares */
        memset(&io->pace, 0, sizeof io->pace);
    for (int i = 0; i < io->conns_high; i++) {
        struct pc_conn *conn = &io->conns[i];
        if (conn->state == PC_CONN_LINKED && unstage(io, conn))
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
    io->mate_count = 0;
    pc_core_fail(io->core, status, text, pc_now_ns());
}

/* ---- the loop ---------------------------------------------------------------------------------
 */

static bool is_timed(const struct pc_conn *conn) {
    return conn->state == PC_CONN_CONNECTING || conn->state == PC_CONN_SHAKING;
}

uint64_t pc_io_deadline(const struct pc_io *io) {
    uint64_t at = pc_core_deadline(io->core);
    for (int i = 0; i < io->conns_high; i++)
        if (is_timed(&io->conns[i]) && io->conns[i].deadline_ns < at)
            at = io->conns[i].deadline_ns;
    for (uint32_t i = 0; i < io->mate_count; i++)
        if (io->mates[i].retry_ns && io->mates[i].retry_ns < at)
            at = io->mates[i].retry_ns;
    return pc_beats_deadline(io, pc_paths_deadline(io, at));
}

static void on_time(struct pc_io *io, uint64_t now_ns) {
    for (int i = 0; i < io->conns_high; i++) {
        struct pc_conn *conn = &io->conns[i];
        if (is_timed(conn) && now_ns >= conn->deadline_ns)
            pc_conn_failed(io, conn, "no handshake in time");
    }
    for (uint32_t i = 0; i < io->mate_count; i++)
        if (io->mates[i].retry_ns && now_ns >= io->mates[i].retry_ns)
            pc_conn_again(io, &io->mates[i]);
    pc_paths_on_time(io, now_ns);
    pc_beats_on_time(io, now_ns);
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
    case PC_CONN_LINKED:
        if (pc_core_held(io->core, conn->link)) {
            if (events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP))
                pc_conn_failed(io, conn, "link closed by the other end");
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
                pc_conn_failed(io, conn, event.event.reason);
        } else {
            pc_engine_post(io->engine, &event.event);
        }
    }
}

static void pump(struct pc_io *io) {
    for (int i = 0; i < io->conns_high; i++)
        if (io->conns[i].state == PC_CONN_LINKED)
            write_link(io, &io->conns[i]);
    for (uint64_t peer; (peer = pc_core_wanted(io->core)) != 0;) {
        struct pc_mate *mate = pc_mate_of(io, peer);
        if (mate)
            pc_conn_want(io, mate);
    }
}

int pc_io_ms_until(uint64_t at_ns) {
    if (at_ns == UINT64_MAX)
        return -1;
    uint64_t now = pc_now_ns();
    if (at_ns <= now)
        return 0;
    uint64_t ms = (at_ns - now + 999999) / 1000000;
    return ms > 60000 ? 60000 : (int)ms;
}

int pc_io_poll(const struct pc_io *io, struct epoll_event events[PC_EVENTS], int timeout_ms) {
    int count = epoll_wait(io->epoll_fd, events, PC_EVENTS, timeout_ms);
    PC_ASSERT(count >= 0 || errno == EINTR);
    return count;
}

static void on_event(struct pc_io *io, const struct epoll_event *event) {
    uint32_t tag = event->data.u32;
    if (tag == TAG_LISTEN) {
        pc_conn_accept_all(io);
    } else if (tag == TAG_WAKE) {
        uint64_t count;
        ssize_t got = read(io->wake_fd, &count, sizeof count);
        (void)got;
    } else {
        on_conn(io, &io->conns[tag], event->events);
    }
}

bool pc_io_turn(struct pc_io *io, const struct epoll_event events[], int count) {
    for (int i = 0; i < count; i++)
        on_event(io, &events[i]);
    uint64_t now = pc_now_ns();
    if (!pc_engine_commands(io->engine, io, now))
        io->stopped = true;
    if (io->stopped)
        return false;
    on_time(io, now);
    core_events(io);
    pump(io);
    core_events(io);
    struct pccl_stats stats;
    pc_core_stats(io->core, &stats);
    stats.links_refused = io->links_refused;
    pc_engine_publish(io->engine, &stats);
    return true;
}

bool pc_io_is_busy(const struct pc_io *io) {
    if (io->stopped || pc_core_is_busy(io->core))
        return true;
    for (int i = 0; i < io->conns_high; i++) {
        const struct pc_conn *conn = &io->conns[i];
        if (is_timed(conn) || (conn->state == PC_CONN_LINKED && conn->events != EPOLLIN))
            return true;
    }
    return false;
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
    pc_net_raise_descriptors();
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
    free(io->mates);
    io->mates = NULL;
    int *fds[] = {&io->listen_fd, &io->epoll_fd, &io->wake_fd};
    for (int i = 0; i < 3; i++) {
        if (*fds[i] >= 0)
            close(*fds[i]);
        *fds[i] = -1;
    }
}
