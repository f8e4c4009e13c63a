/* conn: see conn.h. */
#include "conn.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <unistd.h>

#include "beats.h"
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

struct pc_mate *pc_mate_of(struct pc_io *io, uint64_t peer) {
    for (uint32_t i = 0; i < io->mate_count; i++)
        if (io->mates[i].peer == peer && i != io->self)
            return &io->mates[i];
    return NULL;
}

void pc_conn_close(struct pc_io *io, struct pc_conn *conn) {
    if (conn->state == PC_CONN_FREE)
        return;
    struct pc_mate *mate = pc_mate_of(io, conn->peer);
    if (conn->state == PC_CONN_LINKED) {
        pc_core_link_free(io->core, conn->link);
        if (mate)
            mate->linked--;
    } else if (conn->outbound && mate) {
        mate->calling--;
    }
    atomic_store(&io->fds[conn - io->conns], -1);
    close(conn->fd);
    free(conn->staging);
    *conn = (struct pc_conn){.fd = -1};
}

struct pc_conn *pc_conn_of_link(struct pc_io *io, int link) {
    for (int i = 0; i < io->conns_high; i++) {
        struct pc_conn *conn = &io->conns[i];
        if (conn->state == PC_CONN_LINKED && conn->link == link)
            return conn;
    }
    return NULL;
}

static bool is_stranger(struct pc_io *io, const struct pc_conn *conn) {
    return !conn->outbound && !(conn->state == PC_CONN_LINKED && pc_mate_of(io, conn->peer));
}

/* A place for a new connection; when strangers hold too many, the oldest of them makes room. NULL:
 * there is no place. */
static struct pc_conn *take_conn(struct pc_io *io, int fd) {
    struct pc_conn *oldest = NULL;
    struct pc_conn *found = NULL;
    int strangers = 0;
    for (int i = 0; i < PC_CONNS_MAX; i++) {
        struct pc_conn *conn = &io->conns[i];
        if (conn->state == PC_CONN_FREE) {
            found = found ? found : conn;
        } else if (is_stranger(io, conn)) {
            strangers++;
            if (!oldest || conn->born < oldest->born)
                oldest = conn;
        }
    }
    if (oldest && (!found || strangers >= PC_STRANGERS_MAX)) {
        pc_conn_close(io, oldest);
        io->links_refused++;
        found = oldest;
    }
    if (!found) {
        close(fd);
        return NULL;
    }
    *found =
        (struct pc_conn){.fd = fd,
                         .born = ++io->births,
                         .deadline_ns = pc_now_ns() + (uint64_t)io->config.handshake_ms * 1000000};
    atomic_store(&io->fds[found - io->conns], fd);
    if (io->conns_high <= found - io->conns)
        io->conns_high = (int)(found - io->conns) + 1;
    return found;
}

static void lost(struct pc_io *io, struct pc_mate *mate, const char *reason) {
    if (!mate || mate->told)
        return;
    mate->told = true;
    struct pccl_event event = {
        .type = PCCL_EVENT_LINK_LOST, .epoch = pc_core_epoch(io->core), .peer = mate->peer};
    snprintf(event.reason, sizeof event.reason, "%s", reason);
    pc_engine_post(io->engine, &event);
}

void pc_conn_failed(struct pc_io *io, struct pc_conn *conn, const char *reason) {
    struct pc_mate *mate = pc_mate_of(io, conn->peer);
    bool outbound = conn->outbound;
    bool linked = conn->state == PC_CONN_LINKED;
    if (!outbound && conn->state == PC_CONN_SHAKING)
        io->links_refused++;
    pc_conn_close(io, conn);
    if (!mate || (!linked && !outbound))
        return;
    if (!linked && mate->linked)
        return; /* one more link could not be had: nothing was in flight on it */
    if (!linked)
        mate->retry_ns = pc_now_ns() + PC_RETRY_NS;
    lost(io, mate, reason);
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
    mine.beat_ms = pc_beats_wanted_ms(io);
    ssize_t got = getrandom(mine.nonce, sizeof mine.nonce, 0);
    PC_ASSERT(got == (ssize_t)sizeof mine.nonce);
    memcpy(mine.proof, io->config.proof, sizeof mine.proof);
    pc_handshake_put(conn->shake_out, &mine);
    conn->out_sent = 0;
}

/* As many as the caller of join said; else on a long path some at once: what a flow there is held
 * back by shows too late for the first op. */
static void call_more(struct pc_io *io, struct pc_mate *mate, bool is_long) {
    uint32_t want = io->config.links ? io->config.links : is_long ? PC_GROW_LINKS_FIRST : 1;
    while (want > mate->linked + mate->calling && !mate->retry_ns)
        pc_conn_call(io, mate);
}

static void attach(struct pc_io *io, struct pc_conn *conn) {
    struct pc_mate *mate = pc_mate_of(io, conn->peer);
    int link = -1;
    conn->staging = malloc(PC_STAGING_BYTES);
    pc_net_path(conn->fd, &conn->path);
    conn->is_long = conn->path.rtt_us_min >= PC_LONG_RTT_US;
    if (conn->staging)
        link = pc_core_link_new(io->core, conn->peer, conn->is_long);
    if (link < 0) {
        pc_conn_failed(io, conn, "no room for another link");
        return;
    }
    if (mate) {
        mate->linked++;
        mate->retry_ns = 0;
        if (conn->outbound)
            mate->calling--;
    }
    conn->state = PC_CONN_LINKED;
    conn->link = link;
    pc_conn_watch(io, conn, EPOLLIN);
    pc_beats_linked(io, conn);
    if (conn->is_long)
        pc_net_is_long(conn->fd);
    if (mate && io->config.peer < conn->peer) /* one of the two adds links, not both */
        call_more(io, mate, conn->is_long);
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

static int links_of(const struct pc_io *io, uint64_t peer) {
    int count = 0;
    for (int i = 0; i < io->conns_high; i++)
        count += io->conns[i].state == PC_CONN_LINKED && io->conns[i].peer == peer;
    return count;
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
    if (!wrong && !conn->outbound && links_of(io, theirs.from) >= PC_PEER_LINKS)
        wrong = "more links than one peer may have";
    if (wrong) {
        pc_conn_failed(io, conn, wrong);
        return;
    }
    conn->peer = theirs.from;
    conn->beat_ms = theirs.beat_ms;
    if (conn->outbound) {
        if (conn->out_sent == PC_HANDSHAKE_BYTES)
            attach(io, conn);
        return;
    }
    prepare_shake(io, conn, conn->peer);
    if (!pc_conn_send_shake(io, conn))
        return;
    if (conn->out_sent < PC_HANDSHAKE_BYTES) { /* 96 bytes always fit into a fresh socket */
        pc_conn_failed(io, conn, "handshake not taken");
        return;
    }
    attach(io, conn);
}

void pc_conn_shake(struct pc_io *io, struct pc_conn *conn) {
    while (conn->in_have < PC_HANDSHAKE_BYTES) {
        struct iovec slice = {conn->shake_in + conn->in_have, PC_HANDSHAKE_BYTES - conn->in_have};
        long n = pc_net_recv(conn->fd, &slice, 1);
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

void pc_conn_call(struct pc_io *io, struct pc_mate *mate) {
    mate->retry_ns = 0;
    char text[PCCL_REASON_MAX];
    int fd = pc_net_connect(mate->host, mate->port);
    struct pc_conn *conn = fd < 0 ? NULL : take_conn(io, fd);
    if (!conn) {
        mate->retry_ns = pc_now_ns() + PC_RETRY_NS;
        pc_errno_text(text, sizeof text, "connect", fd < 0 ? fd : -EMFILE);
        if (!mate->linked)
            lost(io, mate, text);
        return;
    }
    conn->state = PC_CONN_CONNECTING;
    conn->outbound = true;
    conn->peer = mate->peer;
    mate->calling++;
    pc_conn_watch(io, conn, EPOLLOUT);
}

static bool has_long_link(const struct pc_io *io, const struct pc_mate *mate) {
    for (int i = 0; i < io->conns_high; i++)
        if (io->conns[i].peer == mate->peer && io->conns[i].is_long)
            return true;
    return false;
}

void pc_conn_await(struct pc_io *io, struct pc_mate *mate) {
    if (io->config.peer < mate->peer && mate->linked) /* it called before we knew it */
        call_more(io, mate, has_long_link(io, mate));
    else if (io->config.peer < mate->peer)
        pc_conn_want(io, mate);
    else if (!mate->linked && !mate->calling && !mate->retry_ns)
        mate->retry_ns = pc_now_ns() + PC_AWAIT_NS;
}

void pc_conn_again(struct pc_io *io, struct pc_mate *mate) {
    mate->retry_ns = 0;
    if (!mate->linked || mate->linked + mate->calling < io->config.links)
        pc_conn_call(io, mate);
}

void pc_conn_want(struct pc_io *io, struct pc_mate *mate) {
    if (!mate->linked && !mate->calling && !mate->retry_ns)
        pc_conn_call(io, mate);
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
        if (!conn)
            continue;
        conn->state = PC_CONN_SHAKING;
        pc_conn_watch(io, conn, EPOLLIN);
    }
}
