/* control: see control.h. */
#include "control.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

struct range {
    uint32_t from, to;
};

static bool range_of(const struct wan_path *path, int index, struct range *out) {
    uint32_t hosts = wan_path_hosts(path);
    if (index < -1 || index >= (int)hosts)
        return false;
    *out = index < 0 ? (struct range){0, hosts}
                     : (struct range){(uint32_t)index, (uint32_t)index + 1};
    return true;
}

static void set_pair(struct wan_path *path, const char *key, double value, uint32_t src,
                     uint32_t dst) {
    if (!strcmp(key, "delay"))
        wan_path_set_delay(path, src, dst, (uint64_t)value);
    else if (!strcmp(key, "jitter"))
        wan_path_set_jitter(path, src, dst, (uint64_t)value);
    else if (!strcmp(key, "loss"))
        wan_path_set_loss(path, src, dst, value);
    else
        wan_path_set_cut(path, src, dst, value > 0);
}

static const char *set(struct wan_path *path, const char *key, double value, struct range a,
                       struct range b) {
    bool up = !strcmp(key, "up"), down = !strcmp(key, "down");
    if (up || down) {
        for (uint32_t host = a.from; host < a.to; host++)
            (up ? wan_path_set_up : wan_path_set_down)(path, host, value);
    } else if (!strcmp(key, "flow")) {
        wan_path_set_flow(path, value);
    } else if (!strcmp(key, "queue")) {
        wan_path_set_queue(path, (uint64_t)value);
    } else if (!strcmp(key, "delay") || !strcmp(key, "jitter") || !strcmp(key, "loss") ||
               !strcmp(key, "cut")) {
        for (uint32_t src = a.from; src < a.to; src++)
            for (uint32_t dst = b.from; dst < b.to; dst++)
                set_pair(path, key, value, src, dst);
    } else {
        return "error no such setting";
    }
    return "ok";
}

static size_t append(char *answer, size_t room, size_t used, const char *text) {
    int written = snprintf(answer + used, room - used, "%s", text);
    return written < 0 || (size_t)written >= room - used ? room - 1 : used + (size_t)written;
}

static void stats(struct wan_path *path, struct wan_link_stats *link, char *answer, size_t room) {
    char line[512];
    snprintf(line, sizeof line,
             "{\"late_ns_max\": %" PRIu64 ", \"refused_packets\": %" PRIu64
             ", \"other_packets\": %" PRIu64 ", \"frames_bytes\": %" PRIu64 ", \"hosts\": [",
             link->late_ns_max, link->refused_packets, link->other_packets,
             wan_path_frames_bytes(path));
    link->late_ns_max = 0;
    size_t used = append(answer, room, 0, line);
    for (uint32_t host = 0; host < wan_path_hosts(path); host++) {
        const struct wan_host_stats *s = wan_path_stats(path, host);
        snprintf(line, sizeof line,
                 "%s{\"sent_packets\": %" PRIu64 ", \"sent_bytes\": %" PRIu64
                 ", \"delivered_packets\": %" PRIu64 ", \"delivered_bytes\": %" PRIu64
                 ", \"lost_packets\": %" PRIu64 ", \"queue_dropped_packets\": %" PRIu64
                 ", \"cut_packets\": %" PRIu64 "}",
                 host ? ", " : "", s->sent_packets, s->sent_bytes, s->delivered_packets,
                 s->delivered_bytes, s->lost_packets, s->queue_dropped_packets, s->cut_packets);
        used = append(answer, room, used, line);
    }
    append(answer, room, used, "]}");
}

void wan_control(struct wan_path *path, struct wan_link_stats *link, const char *command,
                 char *answer, size_t answer_bytes) {
    char key[16];
    double value;
    int a, b;
    struct range from, to;
    const char *reply;
    if (!strcmp(command, "stats")) {
        stats(path, link, answer, answer_bytes);
        return;
    }
    if (sscanf(command, "set %15s %lf %d %d", key, &value, &a, &b) != 4)
        reply = "error not a command";
    else if (!isfinite(value) || value < 0 || value > 1e18)
        reply = "error value out of range";
    else if ((!strcmp(key, "loss") || !strcmp(key, "cut")) && value > 1)
        reply = "error value above 1";
    else if (!range_of(path, a, &from) || !range_of(path, b, &to))
        reply = "error no such host";
    else
        reply = set(path, key, value, from, to);
    append(answer, answer_bytes, 0, reply);
}
