/* hosts: see hosts.h. */
#include "hosts.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/if_tun.h>
#include <linux/ipv6.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEVICE "wan0"
enum { TX_PACKETS = 16384 };

static const char *write_setting(const char *setting) {
    char path[PATH_MAX];
    const char *equals = strchr(setting, '=');
    if (!equals) {
        errno = EINVAL;
        return setting;
    }
    snprintf(path, sizeof path, "/proc/sys/%.*s", (int)(equals - setting), setting);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return setting;
    ssize_t written = write(fd, equals + 1, strlen(equals + 1));
    int error = errno;
    close(fd);
    errno = error;
    return written < 0 ? setting : NULL;
}

static const char *up(int fd, const char *name) {
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
        return "SIOCGIFFLAGS";
    request.ifr_flags = (short)(request.ifr_flags | IFF_UP);
    return ioctl(fd, SIOCSIFFLAGS, &request) < 0 ? "SIOCSIFFLAGS" : NULL;
}

static const char *open_tun(int *tun_fd) {
    *tun_fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (*tun_fd < 0)
        return "open /dev/net/tun";
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    snprintf(request.ifr_name, sizeof request.ifr_name, DEVICE);
    if (ioctl(*tun_fd, TUNSETIFF, &request) < 0)
        return "TUNSETIFF";
    if (ioctl(*tun_fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) < 0)
        return "TUNSETOFFLOAD";
    return NULL;
}

static const char *address_v4(int fd, uint32_t index) {
    struct ifreq request = {0};
    struct sockaddr_in address = {.sin_family = AF_INET};
    snprintf(request.ifr_name, sizeof request.ifr_name, DEVICE);
    address.sin_addr.s_addr = htonl(0x0a4d0001u + index);
    memcpy(&request.ifr_addr, &address, sizeof address);
    if (ioctl(fd, SIOCSIFADDR, &request) < 0)
        return "SIOCSIFADDR";
    address.sin_addr.s_addr = htonl(0xffff0000u);
    memcpy(&request.ifr_netmask, &address, sizeof address);
    return ioctl(fd, SIOCSIFNETMASK, &request) < 0 ? "SIOCSIFNETMASK" : NULL;
}

static const char *address_v6(uint32_t index) {
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return errno == EAFNOSUPPORT ? NULL : "IPv6 socket"; /* a kernel without IPv6 is fine */
    struct in6_ifreq request = {.ifr6_prefixlen = 64, .ifr6_ifindex = (int)if_nametoindex(DEVICE)};
    request.ifr6_addr.s6_addr[0] = 0xfd;
    request.ifr6_addr.s6_addr[1] = 0x77;
    request.ifr6_addr.s6_addr[15] = (uint8_t)(index + 1);
    int failed = ioctl(fd, SIOCSIFADDR, &request);
    int error = errno;
    close(fd);
    errno = error;
    return failed < 0 ? "IPv6 SIOCSIFADDR" : NULL;
}

static const char *configure(int fd, uint32_t index, uint32_t mtu_bytes) {
    struct ifreq request = {0};
    const char *failed = up(fd, "lo");
    snprintf(request.ifr_name, sizeof request.ifr_name, DEVICE);
    request.ifr_mtu = (int)mtu_bytes;
    if (!failed && ioctl(fd, SIOCSIFMTU, &request) < 0)
        failed = "SIOCSIFMTU";
    request.ifr_qlen = TX_PACKETS; /* the queue that counts is the link's */
    if (!failed && ioctl(fd, SIOCSIFTXQLEN, &request) < 0)
        failed = "SIOCSIFTXQLEN";
    if (!failed)
        failed = address_v4(fd, index);
    if (!failed)
        failed = up(fd, DEVICE);
    return failed ? failed : address_v6(index);
}

static const char *furnish(struct wan_host *host, uint32_t index, uint32_t mtu_bytes,
                           char *const *settings) {
    const char *failed = open_tun(&host->tun_fd);
    if (failed)
        return failed;
    for (; *settings; settings++)
        if ((failed = write_setting(*settings)))
            return failed;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return "socket";
    failed = configure(fd, index, mtu_bytes);
    int error = errno;
    close(fd);
    errno = error;
    return failed;
}

const char *wan_host_make(struct wan_host *host, uint32_t index, uint32_t mtu_bytes,
                          char *const *settings) {
    int home_fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (home_fd < 0)
        return "open /proc/self/ns/net";
    const char *failed = NULL;
    if (unshare(CLONE_NEWNET) < 0) {
        failed = "unshare";
    } else {
        host->namespace_fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
        failed = host->namespace_fd < 0 ? "open /proc/self/ns/net"
                                        : furnish(host, index, mtu_bytes, settings);
        if (setns(home_fd, CLONE_NEWNET) < 0 && !failed)
            failed = "setns";
    }
    int error = errno;
    close(home_fd);
    errno = error;
    return failed;
}

static bool is_inside(const char *pid, const struct wan_host *hosts, uint32_t count) {
    char path[64];
    struct stat theirs, ours;
    snprintf(path, sizeof path, "/proc/%.20s/ns/net", pid);
    if (stat(path, &theirs) < 0)
        return false;
    for (uint32_t i = 0; i < count; i++)
        if (fstat(hosts[i].namespace_fd, &ours) == 0 && ours.st_ino == theirs.st_ino &&
            ours.st_dev == theirs.st_dev)
            return true;
    return false;
}

uint32_t wan_host_kill(const struct wan_host *hosts, uint32_t count) {
    uint32_t killed = 0;
    DIR *proc = opendir("/proc");
    if (!proc)
        return 0;
    for (struct dirent *entry; (entry = readdir(proc));) {
        if (!isdigit((unsigned char)entry->d_name[0]) || !is_inside(entry->d_name, hosts, count))
            continue;
        pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
        if (pid != getpid() && kill(pid, SIGKILL) == 0) /* a zombie has no namespace */
            killed++;
    }
    closedir(proc);
    return killed;
}

void wan_host_close(const struct wan_host *hosts, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        close(hosts[i].tun_fd);
        close(hosts[i].namespace_fd);
    }
}
