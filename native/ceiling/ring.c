/* The traffic: receive - add or copy - send, pipelined by segments, one thread, one connection per
 * neighbour. */
#include "ceiling.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

/* How far one direction has come: `done` bytes of the chunk of `step` are through. */
struct cursor {
    unsigned step;
    size_t done;
};

size_t chunk_start(const struct ring *ring, unsigned chunk)
{
    size_t rest = ring->count % ring->world;
    return ring->count / ring->world * chunk + (chunk < rest ? chunk : rest);
}

/* The chunk that is sent in `step`; it was received in the step before. */
static unsigned chunk_of(const struct ring *ring, unsigned step)
{
    return (ring->rank + ring->shape.turn + 2 * ring->world - step) % ring->world;
}

static char *chunk_memory(const struct ring *ring, unsigned step, size_t *bytes)
{
    if (ring->shape.is_whole) {
        *bytes = ring->count * sizeof(float);
        return (char *)ring->target;
    }
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

/* Takes what has arrived: added in the op's adding steps, copied in the others. `carry` is the
 * part of a float that lies in scratch. Returns whether anything arrived. */
static bool take(struct ring *ring, struct cursor *cursor, size_t *carry)
{
    size_t bytes, got;
    char *memory = chunk_memory(ring, cursor->step + 1, &bytes);
    size_t left = bytes - cursor->done;
    if (cursor->step >= ring->shape.adds) {
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

/* Sends what is there to be sent; `there`: whether there was anything. Returns whether it went. */
static bool put(const struct ring *ring, struct cursor *sent, const struct cursor *taken,
                bool *there)
{
    size_t bytes, gone = 0;
    char *memory = chunk_memory(ring, sent->step, &bytes);
    size_t some = least(ready(sent, taken, bytes) - sent->done, ring->segment);
    if (some)
        gone = moved(send(ring->out, memory + sent->done, some, MSG_DONTWAIT | MSG_NOSIGNAL),
                     "send");
    sent->done += gone;
    *there = some > 0;
    return gone > 0;
}

void run_op(struct ring *ring)
{
    unsigned sent_to = ring->shape.sent_to, taken_to = ring->shape.taken_to;
    struct cursor sent = {ring->shape.sent_from, 0}, taken = {0, 0};
    size_t carry = 0;
    for (;;) {
        bool progress = false, there = false;
        skip_done(ring, &taken, 1, taken_to);
        if (taken.step < taken_to)
            progress |= take(ring, &taken, &carry);
        skip_done(ring, &taken, 1, taken_to);
        skip_done(ring, &sent, 0, sent_to);
        if (sent.step < sent_to)
            progress |= put(ring, &sent, &taken, &there);
        skip_done(ring, &sent, 0, sent_to);
        if (sent.step >= sent_to && taken.step >= taken_to)
            return;
        if (!progress)
            wait_for(ring, taken.step < taken_to, there);
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

int listen_on(unsigned *port)
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

void join_ring(struct ring *ring, int listener, unsigned next_port)
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
