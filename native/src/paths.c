/* paths: see paths.h. */
#include "paths.h"

#include <stdlib.h>

#include "conn.h"
#include "io.h"
#include "net.h"

/* What is new since the last pass: the sum over a pair's links of what each delivers. */
struct pass {
    uint32_t rtt_us;
    uint64_t rate;
};

static void look(int fd, struct pass *pass) {
    struct pc_net_path path;
    pc_net_path(fd, &path);
    uint32_t rtt_us = path.rtt_us_min;
    if (rtt_us && rtt_us != UINT32_MAX && (!pass->rtt_us || rtt_us < pass->rtt_us))
        pass->rtt_us = rtt_us;
    pass->rate += path.rate;
}

/* By more than an eighth. */
static bool differs(uint64_t a, uint64_t b) {
    uint64_t low = a < b ? a : b, high = a < b ? b : a;
    return high - low > low / 8;
}

static uint64_t believed(const struct pc_path *path) {
    return path->samples >= PC_PATHS_RATE_SAMPLES ? path->rate : 0;
}

/* true: something is new. */
static bool take(struct pc_path *path, const struct pass *pass) {
    if (pass->rtt_us)
        path->rtt_us = pass->rtt_us;
    if (path->used && pass->rate) {
        path->samples += path->samples < PC_PATHS_RATE_SAMPLES;
        path->rate = pass->rate > path->rate ? pass->rate : path->rate;
    }
    path->used = false;
    if (!differs(path->rtt_us, path->told_us) && !differs(believed(path), path->told_rate))
        return false;
    path->told_us = path->rtt_us;
    path->told_rate = believed(path);
    return true;
}

/* Per place in the view, over its links. NULL: out of memory. */
static struct pass *look_at_all(struct pc_io *io) {
    struct pass *passes = calloc(io->mate_count ? io->mate_count : 1, sizeof *passes);
    for (int i = 0; passes && i < io->conns_high; i++) {
        const struct pc_conn *conn = &io->conns[i];
        const struct pc_mate *mate =
            conn->state == PC_CONN_LINKED ? pc_mate_of(io, conn->peer) : NULL;
        if (mate)
            look(conn->fd, &passes[mate - io->mates]);
    }
    return passes;
}

static void take_sample(struct pc_io *io, uint64_t now_ns) {
    if (!io->paths_ns || now_ns < io->paths_ns)
        return;
    io->paths_ns = 0;
    struct pass *passes = look_at_all(io);
    struct pccl_path *rows = calloc(io->mate_count ? io->mate_count : 1, sizeof *rows);
    uint32_t count = 0;
    bool news = false;
    for (uint32_t i = 0; passes && rows && i < io->mate_count; i++) {
        struct pc_path *path = &io->mates[i].path;
        if (i == io->self)
            continue;
        news |= take(path, &passes[i]);
        if (path->rtt_us)
            rows[count++] = (struct pccl_path){io->mates[i].peer, path->rtt_us, believed(path)};
    }
    free(passes);
    if (!news) {
        free(rows);
        return;
    }
    pc_engine_take_paths(io->engine, rows, count);
    struct pccl_event event = {.type = PCCL_EVENT_PATHS, .epoch = pc_core_epoch(io->core)};
    pc_engine_post(io->engine, &event);
}

/* ---- the pace of long paths: see pace.h --------------------------------------------------------
 */

/* What was done since the last interval began; the next begins. Returns the longest round trip. */
static uint64_t sample_links(struct pc_io *io, struct pc_pace_sample *sample, uint32_t *busy) {
    uint64_t longest_us = 0, links = 0, delivered[PC_CONNS_MAX];
    for (int i = 0; i < io->conns_high; i++) {
        struct pc_conn *conn = &io->conns[i];
        if (conn->state != PC_CONN_LINKED || !conn->is_long)
            continue;
        struct pc_net_path before = conn->path;
        pc_net_path(conn->fd, &conn->path);
        uint32_t packets = conn->path.delivered - before.delivered;
        delivered[links++] = (uint64_t)packets * conn->path.mss;
        sample->delivered += delivered[links - 1];
        sample->again += conn->path.again - before.again;
        sample->rtt_us += conn->path.rtt_us;
        sample->rtt_us_min += conn->path.rtt_us_min;
        longest_us = conn->path.rtt_us_min > longest_us ? conn->path.rtt_us_min : longest_us;
    }
    for (uint64_t i = 0; i < links; i++) /* acknowledgements alone are no share */
        *busy += delivered[i] >= sample->delivered / links / 8;
    sample->rtt_us /= links ? links : 1;
    sample->rtt_us_min /= links ? links : 1;
    return longest_us;
}

static void bound_links(struct pc_io *io, uint32_t busy) {
    uint64_t rate = io->pace.rate / (busy ? busy : 1);
    for (int i = 0; i < io->conns_high; i++) {
        struct pc_conn *conn = &io->conns[i];
        if (conn->state != PC_CONN_LINKED || !conn->is_long || conn->bound == rate)
            continue;
        conn->bound = rate;
        pc_net_bound(conn->fd, rate);
    }
}

static void end_interval(struct pc_io *io, uint64_t now_ns) {
    struct pc_pace_sample sample = {.ns = now_ns - io->pace_from_ns};
    uint32_t busy = 0;
    uint64_t rtt_us = sample_links(io, &sample, &busy);
    bool running = io->pace_ns != 0;
    io->pace_from_ns = now_ns;
    io->pace_ns = rtt_us && (!running || sample.delivered) ? now_ns + rtt_us * 1000 : 0;
    if (!running)
        return; /* what was counted was idleness */
    pc_pace(&io->pace, &sample);
    if (busy)
        bound_links(io, busy);
}

void pc_paths_sent(struct pc_io *io, const struct pc_conn *conn, uint64_t n) {
    struct pc_mate *mate = pc_mate_of(io, conn->peer);
    if (conn->is_long && !io->pace_ns)
        end_interval(io, pc_now_ns());
    if (!mate)
        return;
    mate->path.used = true;
    if (!io->paths_ns)
        io->paths_ns = pc_now_ns() + PC_PATHS_INTERVAL_NS;
    if (io->config.links)
        return;
    mate->growth.bytes += n;
    if (!io->grow_ns)
        io->grow_ns = pc_now_ns() + PC_GROW_INTERVAL_NS;
}

void pc_paths_blocked(struct pc_io *io, const struct pc_conn *conn) {
    struct pc_mate *mate = pc_mate_of(io, conn->peer);
    if (mate)
        mate->growth.blocked = true;
}

/* ---- more links: see grow.h --------------------------------------------------------------------
 */

/* The slowest of the pair's links, as the kernel measures it. */
static uint32_t rtt_of(struct pc_io *io, uint64_t peer) {
    uint32_t rtt_us = 0;
    for (int i = 0; i < io->conns_high; i++) {
        const struct pc_conn *conn = &io->conns[i];
        if (conn->state != PC_CONN_LINKED || conn->peer != peer)
            continue;
        struct pc_net_path path;
        pc_net_path(conn->fd, &path);
        rtt_us = path.rtt_us > rtt_us ? path.rtt_us : rtt_us;
    }
    return rtt_us;
}

/* Adds links to pairs that more links make faster. Only one end of a pair does. */
static void grow_links(struct pc_io *io, uint64_t now_ns) {
    if (!io->grow_ns || now_ns < io->grow_ns)
        return;
    io->grow_ns = 0;
    for (uint32_t i = 0; i < io->mate_count; i++) {
        struct pc_mate *mate = &io->mates[i];
        if (!mate->linked || io->config.links || !mate->growth.bytes ||
            mate->peer < io->config.peer) /* one end of a pair adds links, not both */
            continue;
        uint32_t links = mate->linked + mate->calling;
        uint32_t want = pc_grow(&mate->growth, links, rtt_of(io, mate->peer));
        for (; links < want && !mate->retry_ns; links++)
            pc_conn_call(io, mate);
    }
}

/* ---- time --------------------------------------------------------------------------------------
 */

uint64_t pc_paths_deadline(const struct pc_io *io, uint64_t at) {
    if (io->pace_ns && io->pace_ns < at)
        at = io->pace_ns;
    if (io->paths_ns && io->paths_ns < at)
        at = io->paths_ns;
    return io->grow_ns && io->grow_ns < at ? io->grow_ns : at;
}

void pc_paths_on_time(struct pc_io *io, uint64_t now_ns) {
    if (io->pace_ns && now_ns >= io->pace_ns)
        end_interval(io, now_ns);
    grow_links(io, now_ns);
    take_sample(io, now_ns);
}
