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

void pc_paths_sample(struct pc_io *io, uint64_t now_ns) {
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
