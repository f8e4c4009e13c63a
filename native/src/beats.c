/* beats: see beats.h. */
#include "beats.h"

#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>

#include "conn.h"
#include "io.h"
#include "net.h"

uint32_t pc_beats_wanted_ms(const struct pc_io *io) {
    uint32_t ms = io->config.silence_ms / PC_BEAT_SHARE;
    return io->config.silence_ms && ms < PC_BEAT_MS_MIN ? PC_BEAT_MS_MIN : ms;
}

/* How often to look: as the most impatient wants it. 0: nobody wants anything. */
static uint32_t look_ms(const struct pc_io *io) {
    uint32_t ms = pc_beats_wanted_ms(io);
    for (int i = 0; i < io->conns_high; i++) {
        const struct pc_conn *conn = &io->conns[i];
        if (conn->state == PC_CONN_LINKED && conn->beat_ms && (!ms || conn->beat_ms < ms))
            ms = conn->beat_ms;
    }
    return ms;
}

/* Sets the next look, or makes it earlier. */
static void look_again(struct pc_io *io, uint64_t now_ns) {
    uint32_t ms = look_ms(io);
    uint64_t at = now_ns + (uint64_t)ms * 1000000;
    if (!ms || (io->beat_ns && io->beat_ns <= at))
        return;
    io->beat_ns = at;
    io->look_ms = ms;
}

void pc_beats_linked(struct pc_io *io, struct pc_conn *conn) {
    if (conn->beat_ms && conn->beat_ms < PC_BEAT_MS_MIN)
        conn->beat_ms = PC_BEAT_MS_MIN;
    conn->heard = true;
    look_again(io, pc_now_ns());
}

/* A frame of no view: whoever gets it drops it. */
static const uint8_t *heartbeat(uint8_t bytes[PC_HEADER_BYTES + PC_RELAY_BYTES]) {
    struct pc_header header = {.type = PC_MARK};
    pc_header_put(bytes, &header, NULL);
    return bytes;
}

bool pc_beats_send(struct pc_io *io, struct pc_conn *conn) {
    uint8_t bytes[PC_HEADER_BYTES + PC_RELAY_BYTES];
    struct iovec slice = {(void *)(uintptr_t)(heartbeat(bytes) + conn->beat_sent),
                          PC_HEADER_BYTES - conn->beat_sent};
    long n = pc_net_send(conn->fd, &slice, 1);
    if (n == -EAGAIN && !conn->beat_sent) { /* what fills the socket will be heard as well */
        conn->beat_is_due = false;
        return true;
    }
    if (n < 0 && n != -EAGAIN) {
        char text[PCCL_REASON_MAX];
        pc_errno_text(text, sizeof text, "link", n);
        pc_conn_failed(io, conn, text);
        return false;
    }
    conn->beat_sent += n > 0 ? (uint32_t)n : 0;
    if (conn->beat_sent < PC_HEADER_BYTES) {
        pc_conn_watch(io, conn, conn->events | EPOLLOUT);
        return false;
    }
    conn->beat_sent = 0;
    conn->wrote = true;
    conn->beat_is_due = false;
    return true;
}

uint64_t pc_beats_deadline(const struct pc_io *io, uint64_t at) {
    return io->beat_ns && io->beat_ns < at ? io->beat_ns : at;
}

/* One look at a link, `ms` after the last. */
static void look(struct pc_io *io, struct pc_conn *conn, uint32_t ms) {
    conn->beat_is_due = conn->beat_ms && (conn->beat_is_due || !conn->wrote);
    bool heard = conn->heard || pc_core_held(io->core, conn->link);
    conn->silent_ms = heard ? 0 : conn->silent_ms + ms;
    conn->wrote = conn->heard = false;
    uint32_t wanted_ms = pc_beats_wanted_ms(io);
    if (!wanted_ms || conn->silent_ms < PC_BEAT_SHARE * wanted_ms)
        return;
    char text[PCCL_REASON_MAX];
    snprintf(text, sizeof text, "link: nothing was heard for %.1f s", conn->silent_ms / 1e3);
    pc_conn_failed(io, conn, text);
}

void pc_beats_on_time(struct pc_io *io, uint64_t now_ns) {
    if (!io->beat_ns || now_ns < io->beat_ns)
        return;
    io->beat_ns = 0;
    bool any = false;
    for (int i = 0; i < io->conns_high; i++) {
        if (io->conns[i].state != PC_CONN_LINKED)
            continue;
        any = true;
        look(io, &io->conns[i], io->look_ms);
    }
    if (any)
        look_again(io, now_ns);
}
