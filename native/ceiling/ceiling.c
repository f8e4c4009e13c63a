/* The ceiling of `pccl bench --vs ceiling`: what TCP and two cores give to a bare ring.
 *
 * One thread per process, one TCP connection per neighbour, receive - add - send, pipelined by
 * segments, float32 sums; no membership, no checksums, no repair. It is no part of the engine and
 * shares no code with it, so that it stays a measure. all_gather and reduce_scatter always work in
 * place. `pccl_py/bench/ceiling.py` builds it when it is asked for; it obeys the lines of
 * `pccl_py/bench/lines.py`:
 *
 *     hello ceiling RANK PORT    connect PORT -> ok      prepare OP COUNT DTYPE REDUCE -> ok
 *     fill MODE -> ok            time ceiling@SEGMENT MODE INNER START_NS -> took NS RSS_BYTES
 *     check ceiling@SEGMENT MODE -> wrong COUNT HASH - - tcp
 *
 * It ends when the parent closes the line. Usage: ceiling SOCKET RANK WORLD */
#include "ceiling.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_BYTES 256

void die(const char *what)
{
    fprintf(stderr, "ceiling: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void copy_input(struct ring *ring)
{
    struct shape shape = ring->shape;
    memcpy(ring->target + shape.input_at, ring->source, shape.input_count * sizeof(float));
}

static void load(struct ring *ring)
{
    memset(ring->target, 0, ring->count * sizeof(float));
    copy_input(ring);
}

static void run_once(struct ring *ring, bool in_place)
{
    if (!in_place && ring->shape.copies)
        copy_input(ring);
    run_op(ring);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void sleep_until(uint64_t ns)
{
    struct timespec at = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR) {
    }
}

static uint64_t peak_bytes(void)
{
    char line[LINE_MAX_BYTES];
    uint64_t kib = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "VmHWM: %" SCNu64, &kib) == 1)
            break;
    if (status)
        fclose(status);
    return kib << 10;
}

static void prepare(struct ring *ring, enum op op, size_t count)
{
    ring->op = op;
    ring->shape = shape_of(op, ring->rank, ring->world, count);
    free(ring->source);
    free(ring->target);
    ring->count = count;
    ring->source = malloc(count * sizeof(float) + 1);
    ring->target = malloc(count * sizeof(float) + 1);
    if (!ring->source || !ring->target)
        die("memory");
    fill(ring->source, count, ring->rank);
    memcpy(ring->target, ring->source, count * sizeof(float));
}

static void timed(struct ring *ring, FILE *parent, bool in_place, unsigned inner, uint64_t start)
{
    sleep_until(start);
    for (unsigned i = 0; i < inner; i++)
        run_once(ring, in_place);
    fprintf(parent, "took %" PRIu64 " %" PRIu64 "\n", now_ns() - start, peak_bytes());
}

static void checked(struct ring *ring, FILE *parent, bool in_place)
{
    load(ring);
    run_once(ring, in_place);
    fprintf(parent, "wrong %zu %016" PRIx64 " - - tcp\n", count_wrong(ring),
            hash(ring->target, ring->count));
}

static void obey(struct ring *ring, FILE *parent, int listener, const char *line)
{
    size_t count;
    unsigned port, inner;
    uint64_t start;
    char mode[8], name[24];
    if (sscanf(line, "connect %u", &port) == 1)
        join_ring(ring, listener, port);
    else if (sscanf(line, "prepare %23s %zu float32", name, &count) == 2 && op_named(name) < OPS)
        prepare(ring, op_named(name), count);
    else if (sscanf(line, "fill %7s", mode) == 1)
        load(ring);
    else if (sscanf(line, "time ceiling@%zu %7s %u %" SCNu64, &ring->segment, mode, &inner,
                    &start) == 4 && ring->segment <= SEGMENT_MAX) {
        timed(ring, parent, strcmp(mode, "in") == 0, inner, start);
        return;
    } else if (sscanf(line, "check ceiling@%zu %7s", &ring->segment, mode) == 2 &&
               ring->segment <= SEGMENT_MAX) {
        checked(ring, parent, strcmp(mode, "in") == 0);
        return;
    } else {
        fprintf(parent, "error this is none of the ceiling's lines: %s", line);
        return;
    }
    fprintf(parent, "ok\n");
}

static int reach_parent(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        die(path);
    }
    strcpy(address.sun_path, path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die(path);
    return fd;
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: ceiling SOCKET RANK WORLD\n");
        return 2;
    }
    struct ring ring = {.rank = (unsigned)atoi(argv[2]), .world = (unsigned)atoi(argv[3]), .in = -1,
                        .out = -1, .segment = 65536};
    ring.scratch = aligned_alloc(64, SEGMENT_MAX);
    if (!ring.scratch || ring.world < 1 || ring.rank >= ring.world)
        die("start");
    unsigned port;
    int listener = listen_on(&port);
    int line_fd = reach_parent(argv[1]);
    FILE *orders = fdopen(line_fd, "r"), *parent = fdopen(dup(line_fd), "w");
    if (!orders || !parent)
        die(argv[1]);
    fprintf(parent, "hello ceiling %u %u\n", ring.rank, port);
    fflush(parent);
    char line[LINE_MAX_BYTES];
    while (fgets(line, sizeof line, orders)) {
        obey(&ring, parent, listener, line);
        fflush(parent);
    }
    return 0;
}
