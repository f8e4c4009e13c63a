/* The ceiling of `pccl bench --vs ceiling`: what TCP and two cores give to a bare ring all-reduce.
 *
 * One thread per process, one TCP connection per neighbour, receive - add - send, pipelined by
 * segments, float32 sums; no membership, no checksums, no repair. It is no part of the engine and
 * shares no code with it, so that it stays a measure. `pccl_py/bench/ceiling.py` builds it when it
 * is asked for; it obeys the lines of `pccl_py/bench/lines.py`:
 *
 *     hello ceiling RANK PORT    connect PORT -> ok           prepare OP COUNT DTYPE REDUCE -> ok
 *     fill -> ok                 time ceiling@SEGMENT MODE INNER START_NS -> took NS RSS_BYTES
 *     check ceiling@SEGMENT MODE -> wrong COUNT HASH - -
 *
 * It ends when the parent closes the line. Usage: ceiling SOCKET RANK WORLD */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PERIOD 4093 /* of the values, as in values.py; a prime, so that misplaced segments show */
#define SEGMENT_MAX ((size_t)4 << 20)
#define LINE_MAX_BYTES 256

struct ring {
    unsigned rank, world;
    int in, out; /* one socket when there is one neighbour */
    float *source, *target, *scratch;
    size_t count, segment; /* elements; the most bytes of one receive or send */
};

/* How far one direction has come: `done` bytes of the chunk of `step` are through. */
struct cursor {
    unsigned step;
    size_t done;
};

static void die(const char *what)
{
    fprintf(stderr, "ceiling: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* ------------------------------------------------------------ values */

static unsigned value(size_t index, unsigned rank)
{
    uint64_t j = index % PERIOD;
    uint64_t mixed = (j + 1) * 2654435761u + (rank + 1) * (j % 61 + 1) * 2654435769u;
    return (unsigned)(mixed >> 28 & 3);
}

static void fill(float *into, size_t count, unsigned rank)
{
    for (size_t i = 0; i < count; i++)
        into[i] = (float)value(i, rank);
}

static size_t count_wrong(const struct ring *ring)
{
    static float expected[PERIOD];
    size_t wrong = 0;
    for (size_t j = 0; j < PERIOD; j++) {
        unsigned sum = 0;
        for (unsigned rank = 0; rank < ring->world; rank++)
            sum += value(j, rank);
        expected[j] = (float)sum;
    }
    for (size_t i = 0; i < ring->count; i++)
        wrong += ring->target[i] != expected[i % PERIOD];
    return wrong;
}

static uint64_t hash(const float *values, size_t count)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        h = (h ^ bits) * 0x100000001b3u;
    }
    return h;
}

/* ------------------------------------------------------------ the ring */

static size_t chunk_start(const struct ring *ring, unsigned chunk)
{
    size_t rest = ring->count % ring->world;
    return ring->count / ring->world * chunk + (chunk < rest ? chunk : rest);
}

/* The chunk that is sent in `step`; it was received in the step before. */
static unsigned chunk_of(const struct ring *ring, unsigned step)
{
    return (ring->rank + 2 * ring->world - step) % ring->world;
}

static char *chunk_memory(const struct ring *ring, unsigned step, size_t *bytes)
{
    unsigned chunk = chunk_of(ring, step);
    size_t start = chunk_start(ring, chunk);
    *bytes = (chunk_start(ring, chunk + 1) - start) * sizeof(float);
    return (char *)(ring->target + start);
}

static void add(float *restrict into, const float *restrict from, size_t count)
{
    for (size_t i = 0; i < count; i++)
        into[i] += from[i];
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Bytes moved by a call of send or recv; 0 if it would block. */
static size_t moved(ssize_t result, const char *what)
{
    if (result > 0)
        return (size_t)result;
    if (result == 0)
        errno = ECONNRESET;
    else if (errno == EAGAIN || errno == EINTR)
        return 0;
    die(what);
    return 0;
}

/* Takes what has arrived: added in the first world - 1 steps, copied in the others. `carry` is the
 * part of a float that lies in scratch. Returns whether anything arrived. */
static bool take(struct ring *ring, struct cursor *cursor, size_t *carry)
{
    size_t bytes, got;
    char *memory = chunk_memory(ring, cursor->step + 1, &bytes);
    size_t left = bytes - cursor->done;
    if (cursor->step >= ring->world - 1) {
        size_t room = least(left, ring->segment);
        got = moved(recv(ring->in, memory + cursor->done, room, MSG_DONTWAIT), "recv");
        cursor->done += got;
        return got > 0;
    }
    char *scratch = (char *)ring->scratch;
    size_t room = least(left, ring->segment) - *carry;
    got = moved(recv(ring->in, scratch + *carry, room, MSG_DONTWAIT), "recv");
    size_t whole = (*carry + got) / sizeof(float) * sizeof(float);
    add((float *)(memory + cursor->done), ring->scratch, whole / sizeof(float));
    *carry = *carry + got - whole;
    memmove(scratch, scratch + whole, *carry);
    cursor->done += whole;
    return got > 0;
}

/* Bytes of the chunk being sent that are there to be sent. */
static size_t ready(const struct cursor *sent, const struct cursor *taken, size_t bytes)
{
    if (sent->step == 0 || taken->step >= sent->step)
        return bytes;
    return taken->step == sent->step - 1 ? taken->done : 0;
}

/* On to the next step that has bytes left; `ahead`: 1 for what is taken, 0 for what is sent. */
static void skip_done(const struct ring *ring, struct cursor *cursor, unsigned ahead,
                      unsigned steps)
{
    size_t bytes;
    while (cursor->step < steps) {
        chunk_memory(ring, cursor->step + ahead, &bytes);
        if (cursor->done < bytes)
            return;
        *cursor = (struct cursor){cursor->step + 1, 0};
    }
}

static void wait_for(const struct ring *ring, bool read, bool write)
{
    struct pollfd fds[2] = {{.fd = ring->in, .events = read ? POLLIN : 0},
                            {.fd = ring->out, .events = write ? POLLOUT : 0}};
    if (poll(fds, 2, -1) < 0 && errno != EINTR)
        die("poll");
}

static void all_reduce(struct ring *ring)
{
    unsigned steps = 2 * (ring->world - 1);
    struct cursor sent = {0, 0}, taken = {0, 0};
    size_t carry = 0;
    for (;;) {
        bool progress = false;
        skip_done(ring, &taken, 1, steps);
        if (taken.step < steps)
            progress |= take(ring, &taken, &carry);
        skip_done(ring, &taken, 1, steps);
        skip_done(ring, &sent, 0, steps);
        size_t there = 0;
        if (sent.step < steps) {
            size_t bytes;
            char *memory = chunk_memory(ring, sent.step, &bytes);
            there = least(ready(&sent, &taken, bytes) - sent.done, ring->segment);
            if (there) {
                int flags = MSG_DONTWAIT | MSG_NOSIGNAL;
                size_t put = moved(send(ring->out, memory + sent.done, there, flags), "send");
                sent.done += put;
                progress |= put > 0;
            }
        }
        skip_done(ring, &sent, 0, steps);
        if (sent.step == steps && taken.step == steps)
            return;
        if (!progress)
            wait_for(ring, taken.step < steps, there > 0);
    }
}

/* ------------------------------------------------------------ connections */

static struct sockaddr_in loopback(unsigned port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static int tcp_socket(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0)
        die("socket");
    return fd;
}

static void no_delay(int fd)
{
    int on = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
        die("TCP_NODELAY");
}

static int listen_on(unsigned *port)
{
    int fd = tcp_socket();
    struct sockaddr_in address = loopback(0);
    socklen_t len = sizeof address;
    if (bind(fd, (struct sockaddr *)&address, len) < 0 || listen(fd, 4) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &len) < 0)
        die("listen");
    *port = ntohs(address.sin_port);
    return fd;
}

static int call(unsigned port)
{
    int fd = tcp_socket();
    struct sockaddr_in address = loopback(port);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("connect");
    return fd;
}

static int answer(int listener)
{
    int fd = accept(listener, NULL, NULL);
    if (fd < 0)
        die("accept");
    return fd;
}

/* To the next member, from the one before; two members share one connection. */
static void join_ring(struct ring *ring, int listener, unsigned next_port)
{
    if (ring->world == 1)
        return;
    if (ring->world == 2) {
        ring->in = ring->out = ring->rank == 0 ? call(next_port) : answer(listener);
    } else {
        ring->out = call(next_port);
        ring->in = answer(listener);
    }
    no_delay(ring->in);
    no_delay(ring->out);
}

/* ------------------------------------------------------------ the parent's lines */

static void run_once(struct ring *ring, bool in_place)
{
    if (!in_place)
        memcpy(ring->target, ring->source, ring->count * sizeof(float));
    all_reduce(ring);
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

static void prepare(struct ring *ring, size_t count)
{
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
    memcpy(ring->target, ring->source, ring->count * sizeof(float));
    run_once(ring, in_place);
    fprintf(parent, "wrong %zu %016" PRIx64 " - -\n", count_wrong(ring),
            hash(ring->target, ring->count));
}

static void obey(struct ring *ring, FILE *parent, int listener, const char *line)
{
    size_t count;
    unsigned port, inner;
    uint64_t start;
    char mode[8];
    if (sscanf(line, "connect %u", &port) == 1)
        join_ring(ring, listener, port);
    else if (sscanf(line, "prepare all_reduce %zu float32 sum", &count) == 1)
        prepare(ring, count);
    else if (strcmp(line, "fill\n") == 0)
        memcpy(ring->target, ring->source, ring->count * sizeof(float));
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
