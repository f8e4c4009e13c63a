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
long pc_net_recv(int fd, void *to, size_t n);

/* Bytes written, or -EAGAIN, or another negative errno. Never raises SIGPIPE. */
long pc_net_send(int fd, struct iovec *slices, int count);

/* The kernel's smoothed round-trip time of a connection, microseconds; 0: not known. */
uint32_t pc_net_rtt_us(int fd);

/* true if `host` is a numeric address that pc_net_connect takes. */
bool pc_net_is_numeric(const char *host);

#endif
