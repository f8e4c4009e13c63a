/* io: see io.h. One loop: wait, read, carry out commands, let the core decide, write. Links are made
 * by the predecessor's call to its successor; an accepted connection that no view needs yet waits. */
#include "io.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "net.h"

#define TAG_LISTEN PC_CONNS_MAX
#define TAG_WAKE (PC_CONNS_MAX + 1)

uint64_t pc_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

void pc_io_wake(const struct pc_io *io)
{
    uint64_t one = 1;
    ssize_t written = write(io->wake_fd, &one, sizeof one);
    (void)written; /* full means awake */
}

/* ---- connections ------------------------------------------------------------------------------ */

static void watch(struct pc_io *io, struct pc_conn *conn, uint32_t events)
{
    if (conn->events == events)
        return;
    struct epoll_event event = {.events = events, .data.u32 = (uint32_t)(conn - io->conns)};
    int how = conn->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    int rc = epoll_ctl(io->epoll_fd, how, conn->fd, &event);
    PC_ASSERT(rc == 0);
    conn->events = events;
}

static void close_conn(struct pc_io *io, struct pc_conn *conn)
{
    if (conn->state == PC_CONN_FREE)
        return;
    if (conn->state == PC_CONN_LINKED)
        pc_core_link_down(io->core, conn->which);
    atomic_store(&io->fds[conn - io->conns], -1);
    close(conn->fd);
    free(conn->staging);
    *conn = (struct pc_conn){.fd = -1};
}

static struct pc_conn *link_conn(struct pc_io *io, int which)
{
    for (int i = 0; i < PC_CONNS_MAX; i++) {
        struct pc_conn *conn = &io->conns[i];
        if (conn->state == PC_CONN_LINKED && conn->which == which)
            return conn;
    }
    return NULL;
}

/* A place for a new connection; when all are taken, the oldest stranger makes room. */
static struct pc_conn *take_conn(struct pc_io *io, int fd)
{
    struct pc_conn *oldest = NULL;
    struct pc_conn *found = NULL;
    for (int i = 0; i < PC_CONNS_MAX && !found; i++) {
        struct pc_conn *conn = &io->conns[i];
        if (conn->state == PC_CONN_FREE)
            found = conn;
        else if (conn->state != PC_CONN_LINKED && !conn->outbound &&
                 (!oldest || conn->born < oldest->born))
            oldest = conn;
    }
    if (!found) {
        PC_ASSERT(oldest);
        close_conn(io, oldest);
        io->links_refused++;
        found = oldest;
    }
    *found = (struct pc_conn){.fd = fd,
                              .born = ++io->births,
                              .deadline_ns =
                                  pc_now_ns() + (uint64_t)io->config.handshake_ms * 1000000};
    atomic_store(&io->fds[found - io->conns], fd);
    return found;
}

static void lost(struct pc_io *io, int which, const char *reason)
{
    struct pc_neighbour *neighbour = &io->neighbours[which];
    if (!neighbour->peer || neighbour->told)
        return;
    neighbour->told = true;
    struct pccl_event event = {.type = PCCL_EVENT_LINK_LOST,
                               .epoch = pc_core_epoch(io->core),
                               .peer = neighbour->peer};
    snprintf(event.reason, sizeof event.reason, "%s", reason);
    pc_engine_post(io->engine, &event);
}

/* The link in use is gone: what was in flight on it is lost, so only a new view mends it. */
static void link_broke(struct pc_io *io, struct pc_conn *conn, const char *reason)
{
    int which = conn->which;
    close_conn(io, conn);
    io->neighbours[which].broken = true;
    lost(io, which, reason);
}

static void conn_failed(struct pc_io *io, struct pc_conn *conn, const char *reason)
{
    if (conn->state == PC_CONN_LINKED) {
        link_broke(io, conn, reason);
        return;
    }
    bool outbound = conn->outbound;
    int which = conn->which;
    if (!outbound && conn->state == PC_CONN_SHAKING)
        io->links_refused++;
    close_conn(io, conn);
    if (outbound) {
        io->neighbours[which].retry_ns = pc_now_ns() + PC_RETRY_NS;
        lost(io, which, reason);
    }
}

static void errno_text(char *out, size_t n, const char *what, long negative_errno)
{
    snprintf(out, n, "%s: %s", what, strerror((int)-negative_errno));
}

/* ---- handshake -------------------------------------------------------------------------------- */

static bool equal_secret(const uint8_t *a, const uint8_t *b, size_t n)
{
    uint8_t differ = 0;
    for (size_t i = 0; i < n; i++)
        differ |= a[i] ^ b[i];
    return !differ;
}

static void prepare_shake(struct pc_io *io, struct pc_conn *conn, uint64_t to)
{
    struct pc_handshake mine = {.run = io->config.run,
                                .from = io->config.peer,
                                .to = to,
                                .epoch = pc_core_epoch(io->core)};
    ssize_t got = getrandom(mine.nonce, sizeof mine.nonce, 0);
    PC_ASSERT(got == (ssize_t)sizeof mine.nonce);
    memcpy(mine.proof, io->config.proof, sizeof mine.proof);
    pc_handshake_put(conn->shake_out, &mine);
    conn->out_sent = 0;
}

static void attach(struct pc_io *io, struct pc_conn *conn, int which)
{
    struct pc_conn *old = link_conn(io, which);
    if (old)
        close_conn(io, old);
    conn->staging = malloc(PC_STAGING_BYTES);
    if (!conn->staging) {
        conn->which = which;
        conn_failed(io, conn, "out of memory");
        return;
    }
    conn->state = PC_CONN_LINKED;
    conn->which = which;
    pc_core_link_up(io->core, which);
    watch(io, conn, EPOLLIN);
}

static void claim_waiting(struct pc_io *io)
{
    struct pc_neighbour *prev = &io->neighbours[PC_PREV];
    if (!prev->peer || prev->broken)
        return;
    struct pc_conn *newest = NULL;
    for (int i = 0; i < PC_CONNS_MAX; i++) {
        struct pc_conn *conn = &io->conns[i];
        if (conn->state == PC_CONN_WAITING && conn->peer == prev->peer &&
            (!newest || conn->born > newest->born))
            newest = conn;
    }
    if (newest && (!link_conn(io, PC_PREV) || link_conn(io, PC_PREV)->born < newest->born))
        attach(io, newest, PC_PREV);
}

static bool send_shake(struct pc_io *io, struct pc_conn *conn)
{
    while (conn->out_sent < PC_HANDSHAKE_BYTES) {
        struct iovec slice = {conn->shake_out + conn->out_sent,
                              PC_HANDSHAKE_BYTES - conn->out_sent};
        long n = pc_net_send(conn->fd, &slice, 1);
        if (n == -EAGAIN) {
            watch(io, conn, EPOLLIN | EPOLLOUT);
            return true;
        }
        if (n < 0) {
            char text[PCCL_REASON_MAX];
            errno_text(text, sizeof text, "handshake", n);
            conn_failed(io, conn, text);
            return false;
        }
        conn->out_sent += (uint32_t)n;
    }
    watch(io, conn, EPOLLIN);
    return true;
}

static void judge_shake(struct pc_io *io, struct pc_conn *conn)
{
    struct pc_handshake theirs;
    const char *wrong = pc_handshake_get(conn->shake_in, &theirs);
    if (!wrong && theirs.run != io->config.run)
        wrong = "a link of another run";
    if (!wrong && (theirs.to != io->config.peer || !theirs.from || theirs.from == theirs.to))
        wrong = "a link meant for another peer";
    if (!wrong && conn->outbound && theirs.from != conn->peer)
        wrong = "another peer answers at this address";
    if (!wrong && !equal_secret(theirs.proof, io->config.proof, sizeof theirs.proof))
        wrong = "a wrong run secret";
    if (wrong) {
        conn_failed(io, conn, wrong);
        return;
    }
    conn->peer = theirs.from;
    if (conn->outbound) {
        if (conn->out_sent == PC_HANDSHAKE_BYTES)
            attach(io, conn, PC_NEXT);
        return;
    }
    prepare_shake(io, conn, conn->peer);
    if (!send_shake(io, conn))
        return;
    if (conn->out_sent < PC_HANDSHAKE_BYTES) { /* 96 bytes always fit into a fresh socket */
        conn_failed(io, conn, "handshake not taken");
        return;
    }
    conn->state = PC_CONN_WAITING;
    watch(io, conn, EPOLLRDHUP);
    claim_waiting(io);
}

static void shake(struct pc_io *io, struct pc_conn *conn)
{
    while (conn->in_have < PC_HANDSHAKE_BYTES) {
        long n = pc_net_recv(conn->fd, conn->shake_in + conn->in_have,
                             PC_HANDSHAKE_BYTES - conn->in_have);
        if (n == -EAGAIN)
            return;
        if (n <= 0) {
            char text[PCCL_REASON_MAX];
            errno_text(text, sizeof text, "handshake", n ? n : -ECONNRESET);
            conn_failed(io, conn, text);
            return;
        }
        conn->in_have += (uint32_t)n;
    }
    judge_shake(io, conn);
}

static void call(struct pc_io *io)
{
    struct pc_neighbour *next = &io->neighbours[PC_NEXT];
    next->retry_ns = 0;
    char text[PCCL_REASON_MAX];
    int fd = pc_net_connect(next->host, next->port);
    if (fd < 0) {
        next->retry_ns = pc_now_ns() + PC_RETRY_NS;
        errno_text(text, sizeof text, "connect", fd);
        lost(io, PC_NEXT, text);
        return;
    }
    struct pc_conn *conn = take_conn(io, fd);
    conn->state = PC_CONN_CONNECTING;
    conn->outbound = true;
    conn->which = PC_NEXT;
    conn->peer = next->peer;
    watch(io, conn, EPOLLOUT);
}

static void connected(struct pc_io *io, struct pc_conn *conn)
{
    int rc = pc_net_connected(conn->fd);
    if (rc < 0) {
        char text[PCCL_REASON_MAX];
        errno_text(text, sizeof text, "connect", rc);
        conn_failed(io, conn, text);
        return;
    }
    conn->state = PC_CONN_SHAKING;
    prepare_shake(io, conn, conn->peer);
    send_shake(io, conn);
}

static void accept_all(struct pc_io *io)
{
    for (int i = 0; i < 32; i++) {
        int fd = pc_net_accept(io->listen_fd);
        if (fd < 0)
            return; /* nobody, or no descriptors: the caller's own deadline speaks */
        struct pc_conn *conn = take_conn(io, fd);
        conn->state = PC_CONN_SHAKING;
        watch(io, conn, EPOLLIN);
    }
}

/* ---- bytes ------------------------------------------------------------------------------------ */

/* Offers staged bytes to the core. false: some are left (held), or the link broke. */
static bool unstage(struct pc_io *io, struct pc_conn *conn)
{
    conn->taken += (uint32_t)pc_core_feed(io->core, conn->which, conn->staging + conn->taken,
                                          conn->staged - conn->taken);
    if (conn->taken < conn->staged || pc_core_held(io->core, conn->which))
        return false;
    conn->taken = conn->staged = 0;
    return true;
}

static void read_link(struct pc_io *io, struct pc_conn *conn)
{
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
            errno_text(text, sizeof text, "link", n ? n : -ECONNRESET);
            link_broke(io, conn, n ? text : "link closed by the other end");
            return;
        }
        budget -= (size_t)n;
        if (direct) {
            pc_core_rx_done(io->core, conn->which, (size_t)n);
        } else {
            conn->staged = (uint32_t)n;
            conn->taken = 0;
            if (!unstage(io, conn)) {
                watch(io, conn, (conn->events & EPOLLOUT) | EPOLLRDHUP);
                return;
            }
        }
        if ((size_t)n < space)
            return; /* drained, most likely; epoll tells if not */
    }
}

static void write_link(struct pc_io *io, struct pc_conn *conn)
{
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
            watch(io, conn, base | EPOLLOUT);
            return;
        }
        if (n < 0) {
            char text[PCCL_REASON_MAX];
            errno_text(text, sizeof text, "link", n);
            link_broke(io, conn, text);
            return;
        }
        pc_core_sent(io->core, conn->which, (size_t)n);
    }
    watch(io, conn, base);
}

/* ---- commands --------------------------------------------------------------------------------- */

static void rewire(struct pc_io *io, int which, const struct pccl_member *member)
{
    struct pc_neighbour *neighbour = &io->neighbours[which];
    bool same = member && neighbour->peer == member->peer && !neighbour->broken;
    if (!same) {
        struct pc_conn *conn = link_conn(io, which);
        if (conn)
            close_conn(io, conn);
        for (int i = 0; i < PC_CONNS_MAX; i++)
            if (io->conns[i].outbound && io->conns[i].which == which &&
                io->conns[i].state != PC_CONN_FREE)
                close_conn(io, &io->conns[i]);
        *neighbour = (struct pc_neighbour){0};
    }
    neighbour->told = false;
    if (!member || same)
        return;
    neighbour->peer = member->peer;
    neighbour->port = member->port;
    memcpy(neighbour->host, member->host, sizeof neighbour->host);
}

void pc_io_set_view(struct pc_io *io, const struct pccl_view *view)
{
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
        call(io);
    claim_waiting(io);
    for (int which = 0; which < PC_LINKS; which++) {
        struct pc_conn *conn = link_conn(io, which);
        if (conn && unstage(io, conn))
            watch(io, conn, conn->events | EPOLLIN);
    }
}

void pc_io_fail(struct pc_io *io, int status, const char *text)
{
    if (io->failed)
        return;
    io->failed = true;
    pc_engine_failed(io->engine, status, text);
    for (int i = 0; i < PC_CONNS_MAX; i++)
        close_conn(io, &io->conns[i]);
    memset(io->neighbours, 0, sizeof io->neighbours);
    pc_core_fail(io->core, status, text, pc_now_ns());
}

/* ---- the loop --------------------------------------------------------------------------------- */

static uint64_t next_deadline(const struct pc_io *io)
{
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

static void on_time(struct pc_io *io, uint64_t now_ns)
{
    for (int i = 0; i < PC_CONNS_MAX; i++) {
        struct pc_conn *conn = &io->conns[i];
        if ((conn->state == PC_CONN_CONNECTING || conn->state == PC_CONN_SHAKING) &&
            now_ns >= conn->deadline_ns)
            conn_failed(io, conn, "no handshake in time");
    }
    struct pc_neighbour *next = &io->neighbours[PC_NEXT];
    if (next->retry_ns && now_ns >= next->retry_ns)
        call(io);
    pc_core_tick(io->core, now_ns);
}

static void on_conn(struct pc_io *io, struct pc_conn *conn, uint32_t events)
{
    switch (conn->state) {
    case PC_CONN_FREE:
        return; /* closed earlier in this round */
    case PC_CONN_CONNECTING:
        connected(io, conn);
        return;
    case PC_CONN_SHAKING:
        if (events & EPOLLOUT && !send_shake(io, conn))
            return;
        shake(io, conn);
        return;
    case PC_CONN_WAITING:
        close_conn(io, conn); /* only its end is watched for */
        return;
    case PC_CONN_LINKED:
        if (pc_core_held(io->core, conn->which)) {
            if (events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP))
                link_broke(io, conn, "link closed by the other end");
            return;
        }
        if (events & (EPOLLIN | EPOLLERR | EPOLLHUP))
            read_link(io, conn);
    }
}

static void core_events(struct pc_io *io)
{
    struct pc_core_event event;
    while (pc_core_next_event(io->core, &event, pc_now_ns())) {
        if (event.event.type == PC_EVENT_ENDED) {
            pc_engine_ended(io->engine, &event.result);
        } else if (event.event.type == PC_EVENT_LINK_BAD) {
            struct pc_conn *conn = link_conn(io, event.which);
            io->links_refused++;
            if (conn)
                link_broke(io, conn, event.event.reason);
        } else {
            pc_engine_post(io->engine, &event.event);
        }
    }
}

static void pump(struct pc_io *io)
{
    for (int which = 0; which < PC_LINKS; which++) {
        struct pc_conn *conn = link_conn(io, which);
        if (conn)
            write_link(io, conn);
    }
}

static int wait_ms(const struct pc_io *io)
{
    uint64_t at = next_deadline(io), now = pc_now_ns();
    if (at == UINT64_MAX)
        return -1;
    if (at <= now)
        return 0;
    uint64_t ms = (at - now + 999999) / 1000000;
    return ms > 60000 ? 60000 : (int)ms;
}

void pc_io_run(struct pc_io *io)
{
    struct epoll_event events[64];
    for (;;) {
        int n = epoll_wait(io->epoll_fd, events, 64, wait_ms(io));
        PC_ASSERT(n >= 0 || errno == EINTR);
        for (int i = 0; i < n; i++) {
            uint32_t tag = events[i].data.u32;
            if (tag == TAG_LISTEN) {
                accept_all(io);
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

/* ---- open and close --------------------------------------------------------------------------- */

static bool add_fd(const struct pc_io *io, int fd, uint32_t tag)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = tag};
    return epoll_ctl(io->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

int pc_io_open(struct pc_io *io, pccl_engine *engine, const struct pccl_config *config,
               uint16_t *port, int *os_error)
{
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

void pc_io_abandon(struct pc_io *io)
{
    for (int i = 0; i < PC_CONNS_MAX; i++) {
        int fd = atomic_load(&io->fds[i]);
        if (fd >= 0)
            close(fd);
    }
    close(io->listen_fd);
    close(io->epoll_fd);
    close(io->wake_fd);
}

void pc_io_close(struct pc_io *io)
{
    for (int i = 0; i < PC_CONNS_MAX; i++)
        if (io->core)
            close_conn(io, &io->conns[i]);
    pc_core_free(io->core);
    io->core = NULL;
    int *fds[] = {&io->listen_fd, &io->epoll_fd, &io->wake_fd};
    for (int i = 0; i < 3; i++) {
        if (*fds[i] >= 0)
            close(*fds[i]);
        *fds[i] = -1;
    }
}
