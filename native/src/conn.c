/* conn: see conn.h. */
#include "conn.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <unistd.h>

#include "check.h"
#include "net.h"

void pc_conn_watch(struct pc_io *io, struct pc_conn *conn, uint32_t events) {
    if (conn->events == events)
        return;
    struct epoll_event event = {.events = events, .data.u32 = (uint32_t)(conn - io->conns)};
    int how = conn->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    int rc = epoll_ctl(io->epoll_fd, how, conn->fd, &event);
    PC_ASSERT(rc == 0);
    conn->events = events;
}

void pc_conn_close(struct pc_io *io, struct pc_conn *conn) {
    if (conn->state == PC_CONN_FREE)
        return;
    if (conn->state == PC_CONN_LINKED)
        pc_core_link_down(io->core, conn->which);
    atomic_store(&io->fds[conn - io->conns], -1);
    close(conn->fd);
    free(conn->staging);
    *conn = (struct pc_conn){.fd = -1};
}

struct pc_conn *pc_conn_of_link(struct pc_io *io, int which) {
    for (int i = 0; i < PC_CONNS_MAX; i++) {
        struct pc_conn *conn = &io->conns[i];
        if (conn->state == PC_CONN_LINKED && conn->which == which)
            return conn;
    }
    return NULL;
}

/* A place for a new connection; when all are taken, the oldest stranger makes room. */
static struct pc_conn *take_conn(struct pc_io *io, int fd) {
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
        pc_conn_close(io, oldest);
        io->links_refused++;
        found = oldest;
    }
    *found =
        (struct pc_conn){.fd = fd,
                         .born = ++io->births,
                         .deadline_ns = pc_now_ns() + (uint64_t)io->config.handshake_ms * 1000000};
    atomic_store(&io->fds[found - io->conns], fd);
    return found;
}

static void lost(struct pc_io *io, int which, const char *reason) {
    struct pc_neighbour *neighbour = &io->neighbours[which];
    if (!neighbour->peer || neighbour->told)
        return;
    neighbour->told = true;
    struct pccl_event event = {
        .type = PCCL_EVENT_LINK_LOST, .epoch = pc_core_epoch(io->core), .peer = neighbour->peer};
    snprintf(event.reason, sizeof event.reason, "%s", reason);
    pc_engine_post(io->engine, &event);
}

/* The link in use is gone: what was in flight on it is lost, so only a new view mends it. */
void pc_conn_link_broke(struct pc_io *io, struct pc_conn *conn, const char *reason) {
    int which = conn->which;
    pc_conn_close(io, conn);
    io->neighbours[which].broken = true;
    lost(io, which, reason);
}

void pc_conn_failed(struct pc_io *io, struct pc_conn *conn, const char *reason) {
    if (conn->state == PC_CONN_LINKED) {
        pc_conn_link_broke(io, conn, reason);
        return;
    }
    bool outbound = conn->outbound;
    int which = conn->which;
    if (!outbound && conn->state == PC_CONN_SHAKING)
        io->links_refused++;
    pc_conn_close(io, conn);
    if (outbound) {
        io->neighbours[which].retry_ns = pc_now_ns() + PC_RETRY_NS;
        lost(io, which, reason);
    }
}

void pc_errno_text(char *out, size_t n, const char *what, long negative_errno) {
    snprintf(out, n, "%s: %s", what, strerror((int)-negative_errno));
}

/* ---- handshake --------------------------------------------------------------------------------
 */

static bool equal_secret(const uint8_t *a, const uint8_t *b, size_t n) {
    uint8_t differ = 0;
    for (size_t i = 0; i < n; i++)
        differ |= a[i] ^ b[i];
    return !differ;
}

static void prepare_shake(struct pc_io *io, struct pc_conn *conn, uint64_t to) {
    struct pc_handshake mine = {
        .run = io->config.run, .from = io->config.peer, .to = to, .epoch = pc_core_epoch(io->core)};
    ssize_t got = getrandom(mine.nonce, sizeof mine.nonce, 0);
    PC_ASSERT(got == (ssize_t)sizeof mine.nonce);
    memcpy(mine.proof, io->config.proof, sizeof mine.proof);
    pc_handshake_put(conn->shake_out, &mine);
    conn->out_sent = 0;
}

static void attach(struct pc_io *io, struct pc_conn *conn, int which) {
    struct pc_conn *old = pc_conn_of_link(io, which);
    if (old)
        pc_conn_close(io, old);
    conn->staging = malloc(PC_STAGING_BYTES);
    if (!conn->staging) {
        conn->which = which;
        pc_conn_failed(io, conn, "out of memory");
        return;
    }
    conn->state = PC_CONN_LINKED;
    conn->which = which;
    pc_core_link_up(io->core, which);
    pc_conn_watch(io, conn, EPOLLIN);
}

void pc_conn_claim_waiting(struct pc_io *io) {
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
    if (newest &&
        (!pc_conn_of_link(io, PC_PREV) || pc_conn_of_link(io, PC_PREV)->born < newest->born))
        attach(io, newest, PC_PREV);
}

bool pc_conn_send_shake(struct pc_io *io, struct pc_conn *conn) {
    while (conn->out_sent < PC_HANDSHAKE_BYTES) {
        struct iovec slice = {conn->shake_out + conn->out_sent,
                              PC_HANDSHAKE_BYTES - conn->out_sent};
        long n = pc_net_send(conn->fd, &slice, 1);
        if (n == -EAGAIN) {
            pc_conn_watch(io, conn, EPOLLIN | EPOLLOUT);
            return true;
        }
        if (n < 0) {
            char text[PCCL_REASON_MAX];
            pc_errno_text(text, sizeof text, "handshake", n);
            pc_conn_failed(io, conn, text);
            return false;
        }
        conn->out_sent += (uint32_t)n;
    }
    pc_conn_watch(io, conn, EPOLLIN);
    return true;
}

static void judge_shake(struct pc_io *io, struct pc_conn *conn) {
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
        pc_conn_failed(io, conn, wrong);
        return;
    }
    conn->peer = theirs.from;
    if (conn->outbound) {
        if (conn->out_sent == PC_HANDSHAKE_BYTES)
            attach(io, conn, PC_NEXT);
        return;
    }
    prepare_shake(io, conn, conn->peer);
    if (!pc_conn_send_shake(io, conn))
        return;
    if (conn->out_sent < PC_HANDSHAKE_BYTES) { /* 96 bytes always fit into a fresh socket */
        pc_conn_failed(io, conn, "handshake not taken");
        return;
    }
    conn->state = PC_CONN_WAITING;
    pc_conn_watch(io, conn, EPOLLRDHUP);
    pc_conn_claim_waiting(io);
}

void pc_conn_shake(struct pc_io *io, struct pc_conn *conn) {
    while (conn->in_have < PC_HANDSHAKE_BYTES) {
        long n = pc_net_recv(conn->fd, conn->shake_in + conn->in_have,
                             PC_HANDSHAKE_BYTES - conn->in_have);
        if (n == -EAGAIN)
            return;
        if (n <= 0) {
            char text[PCCL_REASON_MAX];
            pc_errno_text(text, sizeof text, "handshake", n ? n : -ECONNRESET);
            pc_conn_failed(io, conn, text);
            return;
        }
        conn->in_have += (uint32_t)n;
    }
    judge_shake(io, conn);
}

void pc_conn_call(struct pc_io *io) {
    struct pc_neighbour *next = &io->neighbours[PC_NEXT];
    next->retry_ns = 0;
    char text[PCCL_REASON_MAX];
    int fd = pc_net_connect(next->host, next->port);
    if (fd < 0) {
        next->retry_ns = pc_now_ns() + PC_RETRY_NS;
        pc_errno_text(text, sizeof text, "connect", fd);
        lost(io, PC_NEXT, text);
        return;
    }
    struct pc_conn *conn = take_conn(io, fd);
    conn->state = PC_CONN_CONNECTING;
    conn->outbound = true;
    conn->which = PC_NEXT;
    conn->peer = next->peer;
    pc_conn_watch(io, conn, EPOLLOUT);
}

void pc_conn_connected(struct pc_io *io, struct pc_conn *conn) {
    int rc = pc_net_connected(conn->fd);
    if (rc < 0) {
        char text[PCCL_REASON_MAX];
        pc_errno_text(text, sizeof text, "connect", rc);
        pc_conn_failed(io, conn, text);
        return;
    }
    conn->state = PC_CONN_SHAKING;
    prepare_shake(io, conn, conn->peer);
    pc_conn_send_shake(io, conn);
}

void pc_conn_accept_all(struct pc_io *io) {
    for (int i = 0; i < 32; i++) {
        int fd = pc_net_accept(io->listen_fd);
        if (fd < 0)
            return; /* nobody, or no descriptors: the caller's own deadline speaks */
        struct pc_conn *conn = take_conn(io, fd);
        conn->state = PC_CONN_SHAKING;
        pc_conn_watch(io, conn, EPOLLIN);
    }
}
