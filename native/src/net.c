/* net: see net.h. */
#include "net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/tcp.h> /* newer than the C library's: what was delivered */
#include <netinet/in.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define DESCRIPTORS 65536

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

static socklen_t parse(const char *host, uint16_t port, union address *out) {
    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET, host, &out->v4.sin_addr) == 1) {
        out->v4.sin_family = AF_INET;
        out->v4.sin_port = htons(port);
        return sizeof out->v4;
    }
    if (inet_pton(AF_INET6, host, &out->v6.sin6_addr) == 1) {
        out->v6.sin6_family = AF_INET6;
        out->v6.sin6_port = htons(port);
        return sizeof out->v6;
    }
    return 0;
}

bool pc_net_is_numeric(const char *host) {
    union address address;
    return parse(host, 0, &address) != 0;
}

static int fail(int fd) {
    int error = errno;
    if (fd >= 0)
        close(fd);
    return -error;
}

int pc_net_listen(const char *host, uint16_t *port) {
    union address address;
    socklen_t length = parse(host, *port, &address);
    if (!length)
        return -EINVAL;
    int fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fail(fd);
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (address.any.sa_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(fd, &address.any, length) < 0 || listen(fd, 128) < 0)
        return fail(fd);
    length = sizeof address;
    if (getsockname(fd, &address.any, &length) < 0)
        return fail(fd);
    *port = ntohs(address.any.sa_family == AF_INET ? address.v4.sin_port : address.v6.sin6_port);
    return fd;
}

static void tune(int fd) {
    int on = 1; /* a frame that waits for more bytes costs 40 ms */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    /* What the kernel holds unsent cannot be overtaken: little, or small frames wait for large. */
    int unsent = 512 << 10;
    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
}

int pc_net_connect(const char *host, uint16_t port) {
    union address address;
    socklen_t length = parse(host, port, &address);
    if (!length)
        return -EINVAL;
    int fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fail(fd);
    tune(fd);
    if (connect(fd, &address.any, length) < 0 && errno != EINPROGRESS)
        return fail(fd);
    return fd;
}

int pc_net_connected(int fd) {
    int error = 0;
    socklen_t length = sizeof error;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0)
        return -errno;
    return -error;
}

int pc_net_accept(int fd) {
    int accepted = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (accepted < 0)
        return -errno;
    tune(accepted);
    return accepted;
}

long pc_net_recv(int fd, struct iovec *slices, int count) {
    ssize_t got;
    do
        got = readv(fd, slices, count);
    while (got < 0 && errno == EINTR);
    return got < 0 ? -(long)errno : (long)got;
}

long pc_net_send(int fd, struct iovec *slices, int count) {
    struct msghdr message = {.msg_iov = slices, .msg_iovlen = (size_t)count};
    ssize_t sent;
    do
        sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -(long)errno : (long)sent;
}

void pc_net_path(int fd, struct pc_net_path *path) {
    struct tcp_info info;
    socklen_t length = sizeof info;
    memset(&info, 0, sizeof info); /* an older kernel tells less */
    memset(path, 0, sizeof *path);
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0)
        return;
    path->rtt_us = info.tcpi_rtt;
    path->rtt_us_min = info.tcpi_min_rtt;
    path->delivered = info.tcpi_delivered;
    path->mss = info.tcpi_snd_mss;
    path->again = info.tcpi_bytes_retrans;
    path->rate = info.tcpi_delivery_rate_app_limited ? 0 : info.tcpi_delivery_rate;
}

void pc_net_is_long(int fd) {
    (void)setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "bbr", 3);
}

void pc_net_bound(int fd, uint64_t rate) {
    unsigned long bound = rate ? rate : ~0ul; /* what the kernel calls none */
    (void)setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &bound, sizeof bound);
}

void pc_net_raise_descriptors(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return;
    rlim_t most = limit.rlim_max < DESCRIPTORS ? limit.rlim_max : DESCRIPTORS;
    if (limit.rlim_cur >= most)
        return;
    limit.rlim_cur = most;
    (void)setrlimit(RLIMIT_NOFILE, &limit); /* refused: what there is has to do */
}
