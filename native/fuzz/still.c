/* still: for target handshake, what of net.h needs no connection. */
#include "net.h"

void pc_net_path(int fd, struct pc_net_path *path) {
    *path = (struct pc_net_path){
        .rtt_us = (uint32_t)fd * 1000, .rtt_us_min = (uint32_t)fd * 900, .mss = 1448};
}

void pc_net_is_long(int fd) {
    (void)fd;
}

void pc_net_bound(int fd, uint64_t rate) {
    (void)fd;
    (void)rate;
}

void pc_net_raise_descriptors(void) {}

bool pc_net_is_numeric(const char *host) {
    return host[0] != 0;
}
