/* link: the process that joins the hosts of an emulated wide-area network.
 *
 *   link CONTROL_FD HOSTS MTU SEED [SYSCTL=VALUE ...]
 *
 * Makes the hosts, says "ready FD ..." (their namespaces, as /proc/PID/fd/FD) or "error ..." on the
 * control socket (SOCK_SEQPACKET), then carries packets and answers commands (control.h) until the
 * socket closes, and kills what still runs inside. One thread, one ppoll with deadlines in ns.
 */
#include "control.h"
#include "hosts.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    READ_BATCH = 32,
    BUSY_FRAMES = 4, /* in one round */
    ROUND_NS = 100000,
    ROUNDS_MAX = 1000, /* of winding up */
    QUIET_ROUNDS = 3,
    ANSWER_BYTES = 64 * 1024,
    COMMAND_BYTES = 256
};

struct link {
    struct wan_path *path;
    struct wan_host hosts[WAN_HOSTS_MAX];
    uint32_t count;
    int control_fd;
    struct wan_link_stats stats;
    struct wan_packet *spare; /* the next frame is read into it */
    char answer[ANSWER_BYTES];
};

static uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void say(const struct link *link, const char *text) {
    if (send(link->control_fd, text, strlen(text), MSG_NOSIGNAL) < 0 && errno != EPIPE)
        perror("link: control");
}

/* Hands over what is due at due_ns. Returns how many frames. */
static uint32_t deliver(struct link *link, uint64_t due_ns) {
    uint32_t frames = 0;
    for (struct wan_packet *packet; (packet = wan_path_take(link->path, due_ns));) {
        int fd = link->hosts[packet->shape.dst].tun_fd;
        if (due_ns - packet->last_ns > link->stats.late_ns_max)
            link->stats.late_ns_max = due_ns - packet->last_ns;
        if (write(fd, packet->frame, packet->shape.frame_bytes) < 0)
            link->stats.refused_packets += packet->shape.pieces;
        wan_path_release(link->path, packet);
        frames++;
    }
    return frames;
}

/* Offers the frame in link->spare: the spare itself when it is big, a copy when it is small. */
static void accept_frame(struct link *link, uint32_t src, const struct wan_shape *shape) {
    struct wan_packet *packet = link->spare;
    if (shape->frame_bytes <= WAN_SMALL_BYTES) {
        packet = wan_path_packet(link->path, shape->frame_bytes);
        if (packet)
            memcpy(packet->frame, link->spare->frame, shape->frame_bytes);
    } else {
        link->spare = NULL;
    }
    if (!packet) {
        link->stats.other_packets += shape->pieces;
        return;
    }
    packet->shape = *shape;
    packet->src = src;
    wan_path_offer(link->path, packet, clock_ns());
}

/* Takes what host `src` sends; without memory it waits in the device's own queue. Returns how many
 * frames. */
static uint32_t collect(struct link *link, uint32_t src) {
    for (uint32_t i = 0; i < READ_BATCH; i++) {
        if (!link->spare && !(link->spare = wan_path_packet(link->path, WAN_FRAME_MAX)))
            return i;
        uint8_t *frame = link->spare->frame;
        ssize_t got = read(link->hosts[src].tun_fd, frame, WAN_FRAME_MAX);
        if (got < 0)
            return i; /* EAGAIN: the host has nothing more to say */
        struct wan_shape shape;
        if (wan_packet_read(frame, (size_t)got, &shape) && shape.dst < link->count)
            accept_frame(link, src, &shape);
        else
            link->stats.other_packets++;
    }
    return READ_BATCH;
}

/* Answers one command. False when the other side has closed. */
static bool obey(struct link *link) {
    char command[COMMAND_BYTES];
    ssize_t got = recv(link->control_fd, command, sizeof command - 1, MSG_DONTWAIT);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR;
    if (got == 0)
        return false;
    command[got] = '\0';
    wan_control(link->path, &link->stats, command, link->answer, sizeof link->answer);
    say(link, link->answer);
    return true;
}

/* Waits until there is something to take or to hand over, and not before `earliest_ns`: when much
 * happens, one waking for all of a round costs less than one for each frame. */
static void rest(struct link *link, struct pollfd *polls, uint64_t earliest_ns) {
    struct timespec wait;
    uint64_t now_ns = clock_ns(), next_ns = wan_path_next_ns(link->path);
    if (earliest_ns > now_ns) {
        wait = (struct timespec){.tv_nsec = (long)(earliest_ns - now_ns)};
        nanosleep(&wait, NULL);
        now_ns = earliest_ns;
    }
    uint64_t wait_ns = next_ns > now_ns ? next_ns - now_ns : 0;
    wait.tv_sec = (time_t)(wait_ns / 1000000000u);
    wait.tv_nsec = (long)(wait_ns % 1000000000u);
    if (ppoll(polls, link->count + 1, next_ns == UINT64_MAX ? NULL : &wait, NULL) < 0)
        for (uint32_t i = 0; i <= link->count; i++)
            polls[i].revents = 0;
}

static void carry(struct link *link) {
    struct pollfd polls[WAN_HOSTS_MAX + 1];
    for (uint32_t i = 0; i < link->count; i++)
        polls[i] = (struct pollfd){.fd = link->hosts[i].tun_fd, .events = POLLIN};
    polls[link->count] = (struct pollfd){.fd = link->control_fd, .events = POLLIN};
    bool busy = false;
    for (;;) {
        uint64_t now_ns = clock_ns();
        uint32_t frames = deliver(link, now_ns);
        rest(link, polls, busy ? now_ns + ROUND_NS : 0);
        for (uint32_t i = 0; i < link->count; i++)
            if (polls[i].revents)
                frames += collect(link, i);
        busy = frames >= BUSY_FRAMES;
        if (polls[link->count].revents && !obey(link))
            return;
    }
}

/* Kills what runs inside and goes on carrying, without delay, until nobody has anything to say:
 * the sockets of the killed learn from each other that they are gone. Otherwise each would keep its
 * buffers, and with them its namespace, for minutes of vain retransmissions. */
static void wind_up(struct link *link) {
    for (uint32_t src = 0; src < link->count; src++)
        for (uint32_t dst = 0; dst < link->count; dst++) {
            wan_path_set_cut(link->path, src, dst, false);
            wan_path_set_loss(link->path, src, dst, 0);
        }
    wan_path_set_queue(link->path, UINT64_MAX / 4);
    uint32_t quiet = 0;
    for (uint32_t round = 0; round < ROUNDS_MAX && quiet < QUIET_ROUNDS; round++) {
        uint32_t heard = wan_host_kill(link->hosts, link->count);
        for (uint32_t i = 0; i < link->count; i++)
            heard += collect(link, i);
        heard += deliver(link, UINT64_MAX - 1); /* the whole of it */
        quiet = heard ? 0 : quiet + 1;
        usleep(heard ? 200 : 4000);
    }
    wan_host_close(link->hosts, link->count);
}

/* A network does not wait for the processor of those who use it. Without the right to that, the
 * scheduler's share must do; late_ns_max tells. */
static void take_precedence(void) {
    struct sched_param parameter = {.sched_priority = 1};
    prctl(PR_SET_TIMERSLACK, 1);
    if (sched_setscheduler(0, SCHED_FIFO, &parameter) < 0 && setpriority(PRIO_PROCESS, 0, -20) < 0)
        perror("link: priority");
}

static bool make_hosts(struct link *link, uint32_t mtu_bytes, char *const *settings) {
    for (uint32_t i = 0; i < link->count; i++)
        link->hosts[i] = (struct wan_host){-1, -1};
    for (uint32_t i = 0; i < link->count; i++) {
        const char *failed = wan_host_make(&link->hosts[i], i, mtu_bytes, settings);
        if (failed) {
            snprintf(link->answer, sizeof link->answer, "error %s: %s", failed, strerror(errno));
            say(link, link->answer);
            return false;
        }
    }
    size_t used = (size_t)snprintf(link->answer, sizeof link->answer, "ready");
    for (uint32_t i = 0; i < link->count; i++)
        used += (size_t)snprintf(link->answer + used, sizeof link->answer - used, " %d",
                                 link->hosts[i].namespace_fd);
    say(link, link->answer);
    return true;
}

int main(int argc, char **argv) {
    uint32_t hosts = argc > 4 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0;
    if (hosts < 1 || hosts > WAN_HOSTS_MAX) {
        fprintf(stderr, "usage: link CONTROL_FD HOSTS(1-%d) MTU SEED [SYSCTL=VALUE ...]\n",
                WAN_HOSTS_MAX);
        return 2;
    }
    struct link *link = calloc(1, sizeof *link);
    if (!link || !(link->path = wan_path_new(hosts, strtoull(argv[4], NULL, 10)))) {
        fprintf(stderr, "link: no memory\n");
        free(link);
        return 1;
    }
    link->control_fd = (int)strtol(argv[1], NULL, 10);
    link->count = hosts;
    /* Ends only when its owner does, so that what runs inside is always ended too. */
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    bool made = make_hosts(link, (uint32_t)strtoul(argv[3], NULL, 10), argv + 5);
    if (made) {
        take_precedence();
        carry(link);
    }
    wind_up(link);
    if (link->spare)
        wan_path_release(link->path, link->spare);
    wan_path_free(link->path);
    free(link);
    return made ? 0 : 1;
}
