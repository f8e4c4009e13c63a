/* net: the few socket calls that the shell makes. Every descriptor is non-blocking and
 * close-on-exec. Thread: any. Errors: negative errno. */
#ifndef PC_NET_H
#define PC_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Listens on a numeric IPv4 or IPv6 address; port 0: the system's choice, stored in *port.
 * Returns the descriptor, -EINVAL for a bad address, or another negative errno. */
int pc_net_listen(const char *host, uint16_t *port);

/* Begins to connect. Returns the descriptor or a negative errno. */
int pc_net_connect(const char *host, uint16_t port);

/* The outcome of a connect that became writable: 0 or a negative errno. */
int pc_net_connected(int fd);

/* One waiting connection, or -EAGAIN, or another negative errno. */
int pc_net_accept(int fd);

/* Bytes read (0: end of stream), or -EAGAIN, or another negative errno. */
long pc_net_recv(int fd, struct iovec *slices, int count);

/* Bytes written, or -EAGAIN, or another negative errno. Never raises SIGPIPE. */
long pc_net_send(int fd, struct iovec *slices, int count);

/* What the kernel knows of a connection; all zero if it does not tell. */
struct pc_net_path {
    uint32_t rtt_us, rtt_us_min; /* smoothed, and the least of late */
    uint32_t delivered, mss; /* packets that the other kernel has told it has, wrapping; bytes */
    uint64_t again;          /* bytes sent again */
    uint64_t rate;           /* bytes a second delivered of late; 0: we did not offer enough */
};
void pc_net_path(int fd, struct pc_net_path *path);

/* A connection over a long path: BBR where this kernel has it and lets us, since what takes loss
 * for congestion cannot fill such a path. */
void pc_net_is_long(int fd);

/* Bounds what the connection sends, bytes a second; 0: no bound. */
void pc_net_bound(int fd, uint64_t rate);

/* Raises this process's limit of descriptors to what it may, 65536 at most: a member of a large
 * group has some per other member. Never lowers it. */
void pc_net_raise_descriptors(void);

/* true if `host` is a numeric address that pc_net_connect takes. */
bool pc_net_is_numeric(const char *host);

#endif
