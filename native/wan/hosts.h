/* hosts: network namespaces without a name, each with a TUN device that the link reads and writes.
 *
 * A namespace lives as long as its file descriptor here or a process inside, so nothing is left
 * behind when the link dies. Others enter by /proc/PID/fd/N. Knows nothing of packets.
 */
#ifndef WAN_HOSTS_H
#define WAN_HOSTS_H

#include <stdint.h>

struct wan_host {
    int namespace_fd;
    int tun_fd; /* non-blocking; frames with a virtio_net_hdr */
};

/* Makes host `index` with addresses 10.77.0.(index+1) and fd77::(index+1) on the device wan0, and
 * writes `settings` ("net/ipv4/tcp_rmem=4096 131072 1048576") to its /proc/sys. Returns NULL or the
 * step that failed, with errno set. The caller is in its own namespace before and after. */
const char *wan_host_make(struct wan_host *host, uint32_t index, uint32_t mtu_bytes,
                          char *const *settings);

/* Kills every process found inside. Returns how many; one that was forking may need another
 * call. */
uint32_t wan_host_kill(const struct wan_host *hosts, uint32_t count);

void wan_host_close(const struct wan_host *hosts, uint32_t count);

#endif
