/* fuzz target handshake: the shell's connections until they carry frames: io.c and conn.c as they
 * are, on socket pairs, under our clock, in one thread. An input calls, says handshakes right and
 * wrong in pieces, hangs up, floods, lets time pass, installs views and answers the calls they
 * make.
 *
 * Stands for net.c (with still.c), and for pccl.c behind the functions at the end of io.h:
 * pc_engine_commands is called once per turn, and plays the next record. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "fuzz.h"
#include "io.h"
#include "net.h"

#define SELF         7u /* between the smaller and the greater ids, for who calls whom */
#define RUN          UINT64_C(0x1234)
#define HANDSHAKE_MS 10000
#define SILENCE_MS   7000
#define CALLS_MAX    160 /* at a time; more than the strangers that are let in */
#define BYTES        512

/* One connection, as the other end sees it. */
struct call {
    int fd;        /* ours; -1: free */
    int their_fd;  /* waits to be accepted; -1: it was */
    uint64_t peer; /* outbound: whom the engine calls */
    bool outbound;
    uint8_t said[PC_HANDSHAKE_BYTES];
    uint32_t said_count, heard_count;
    bool more;        /* something was said after the handshake: frames, which may be bad */
    bool may_be_gone; /* a view was installed without the peer, or its time was over */
    uint64_t born_ns, spoke_ns;
};

static const uint8_t proof[32] = "the proof of the run, 32 bytes.";
static struct call calls[CALLS_MAX];
static int listen_fd;
static bool refuse_connects;
static uint64_t now_ns, random_state, links_up, refused_here, right_ever;
static uint32_t epoch, idle, turns;
static bool members[16]; /* ids of the view, SELF left out */
static struct fz_reader script;
static enum { PLAY, LATE, LATER, DONE } phase;

static uint64_t inputs, links_made, refusals, lost_told;

int fz_clock_gettime(clockid_t clock, struct timespec *out);
int fz_clock_gettime(clockid_t clock, struct timespec *out) {
    (void)clock;
    *out = (struct timespec){.tv_sec = (time_t)(now_ns / 1000000000),
                             .tv_nsec = (long)(now_ns % 1000000000)};
    return 0;
}

/* ---- net.h ------------------------------------------------------------------------------------
 */

static struct call *free_call(void) {
    for (uint32_t i = 0; i < CALLS_MAX; i++)
        if (calls[i].fd < 0)
            return &calls[i];
    return NULL;
}

/* A connection's two ends: the call has one. Returns the other, or -1. */
static int pair_for(struct call *call) {
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) < 0)
        return -1;
    *call = (struct call){.fd = fds[0], .their_fd = -1, .born_ns = now_ns, .spoke_ns = now_ns};
    return fds[1];
}

int pc_net_listen(const char *host, uint16_t *port) {
    (void)host;
    *port = 1;
    listen_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC | EFD_SEMAPHORE);
    return listen_fd;
}

int pc_net_accept(int fd) {
    uint64_t one;
    if (read(fd, &one, sizeof one) < 0)
        return -EAGAIN;
    for (uint32_t i = 0; i < CALLS_MAX; i++)
        if (calls[i].fd >= 0 && calls[i].their_fd >= 0) {
            int accepted = calls[i].their_fd;
            calls[i].their_fd = -1;
            return accepted;
        }
    return -ECONNABORTED; /* it hung up before */
}

int pc_net_connect(const char *host, uint16_t port) {
    FZ_CHECK(strcmp(host, "127.0.0.1") == 0 && members[port % 16]);
    struct call *call = refuse_connects ? NULL : free_call();
    int fd = call ? pair_for(call) : -1;
    if (fd < 0)
        return -ECONNREFUSED;
    call->outbound = true;
    call->peer = port;
    return fd;
}

int pc_net_connected(int fd) {
    (void)fd;
    return refuse_connects ? -ETIMEDOUT : 0;
}

long pc_net_recv(int fd, struct iovec *slices, int count) {
    FZ_CHECK(count > 0);
    if (fz_random(&random_state) % 3 == 0) { /* a piece */
        size_t piece = 1 + fz_random(&random_state) % 40;
        slices[0].iov_len = piece < slices[0].iov_len ? piece : slices[0].iov_len;
        count = 1;
    }
    ssize_t got = readv(fd, slices, count);
    return got < 0 ? -(long)errno : (long)got;
}

long pc_net_send(int fd, struct iovec *slices, int count) {
    if (fz_random(&random_state) % 4 == 0)
        return -EAGAIN;
    FZ_CHECK(count > 0);
    size_t piece = 1 + fz_random(&random_state) % 100;
    piece = piece < slices[0].iov_len ? piece : slices[0].iov_len;
    ssize_t sent = send(fd, slices[0].iov_base, piece, MSG_NOSIGNAL);
    return sent < 0 ? -(long)errno : (long)sent;
}

/* ---- what must hold ---------------------------------------------------------------------------
 */

static void forget(struct call *call) {
    close(call->fd);
    if (call->their_fd >= 0)
        close(call->their_fd);
    call->fd = call->their_fd = -1;
}

/* PROTOCOL.md 1.1, once more. Returns whom it is from, or 0. */
static uint64_t right_shake(const struct call *call) {
    struct pc_handshake shake;
    if (call->said_count < PC_HANDSHAKE_BYTES || pc_handshake_get(call->said, &shake))
        return 0;
    bool right = shake.run == RUN && shake.to == SELF && shake.from != SELF &&
                 memcmp(shake.proof, proof, sizeof proof) == 0;
    return right && (!call->outbound || shake.from == call->peer) ? shake.from : 0;
}

static bool wants_beats(const struct call *call) {
    struct pc_handshake shake;
    return right_shake(call) && !pc_handshake_get(call->said, &shake) && shake.beat_ms;
}

/* Takes what the engine says: its handshake, heartbeats. true: it has closed the connection. */
static bool hear(struct call *call) {
    uint8_t bytes[4096];
    for (;;) {
        ssize_t n = recv(call->fd, bytes, sizeof bytes, MSG_DONTWAIT);
        if (n <= 0)
            return n == 0 || errno != EAGAIN;
        for (ssize_t i = 0; i < n; i++, call->heard_count++)
            if (call->heard_count >= PC_HANDSHAKE_BYTES)
                FZ_CHECK(wants_beats(call) && fz_is_beat(call->heard_count, bytes[i]));
    }
}

/* What is refused hears nothing; who has been answered stays, unless it has spoken on. */
static void check_calls(bool time_is_over) {
    uint32_t strangers = 0, right = 0;
    for (uint32_t i = 0; i < CALLS_MAX; i++) {
        struct call *call = &calls[i];
        if (call->fd < 0 || call->their_fd >= 0)
            continue;
        bool gone = hear(call);
        uint64_t from = right_shake(call);
        right += from && !gone;
        FZ_CHECK(call->outbound || from || !call->heard_count);
        FZ_CHECK(!time_is_over || gone || from);
        bool linked = from && call->heard_count >= PC_HANDSHAKE_BYTES;
        bool is_member = from && from < 16 && members[from];
        call->may_be_gone |= now_ns - call->spoke_ns >= SILENCE_MS * UINT64_C(1000000);
        if (linked && is_member && !call->more && !call->may_be_gone)
            FZ_CHECK(!gone);
        strangers += !call->outbound && !gone && !(linked && is_member);
        if (gone)
            forget(call);
    }
    FZ_CHECK(links_up <= (time_is_over ? right : right_ever));
    FZ_CHECK(strangers <= PC_STRANGERS_MAX + 1);
}

/* ---- the script -------------------------------------------------------------------------------
 */

static void say(struct call *call, const uint8_t *bytes, size_t n) {
    bool unfinished = call->said_count < PC_HANDSHAKE_BYTES;
    ssize_t sent = n ? send(call->fd, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT) : 0;
    for (ssize_t i = 0; i < sent; i++) {
        if (call->said_count < PC_HANDSHAKE_BYTES)
            call->said[call->said_count++] = bytes[i];
        else
            call->more = true;
    }
    call->may_be_gone |= now_ns - call->born_ns >= HANDSHAKE_MS * UINT64_C(1000000);
    call->spoke_ns = sent > 0 ? now_ns : call->spoke_ns;
    right_ever += unfinished && right_shake(call);
}

/* The whole of a handshake, or what is missing of it; all is right but what the record says. */
static void shake(struct call *call, struct fz_reader *bytes) {
    static const uint64_t from[] = {3, 5, 9, 12, 3, 9, 99, 0, SELF};
    uint8_t how = fz_u8(bytes), who = fz_u8(bytes), length = fz_u8(bytes);
    struct pc_handshake mine = {.run = how % 16 == 1 ? RUN + 1 : RUN,
                                .from = call->outbound && who < 200 ? call->peer : from[who % 9],
                                .to = how % 16 == 2 ? 9 : SELF,
                                .epoch = epoch,
                                .beat_ms = (how / 16 + who % 4u) * 100u};
    memcpy(mine.proof, proof, sizeof proof);
    if (how % 16 == 3)
        mine.proof[who % sizeof proof] ^= 1;
    uint8_t blob[PC_HANDSHAKE_BYTES];
    pc_handshake_put(blob, &mine);
    while (fz_left(bytes) >= 2) { /* left wrong, so that the checksum must see it */
        size_t at = fz_u8(bytes) % sizeof blob;
        blob[at] ^= fz_u8(bytes);
    }
    size_t done = call->said_count % PC_HANDSHAKE_BYTES;
    size_t n = length < 128 ? sizeof blob - done : length % (sizeof blob - done + 1);
    say(call, blob + done, n);
}

static void install(struct pc_io *io, uint8_t who) {
    static const uint64_t ids[] = {3, 5, SELF, 9, 12};
    struct pccl_member list[5] = {0};
    struct pccl_view view = {.epoch = ++epoch, .fresh = 1, .members = list, .hub = -1};
    bool stay[16] = {false};
    for (uint32_t i = 0; i < 5; i++) {
        bool self = ids[i] == SELF;
        if (!self && !(who >> i & 1))
            continue;
        if (self)
            view.self = view.member_count;
        else
            stay[ids[i]] = true;
        struct pccl_member *member = &list[view.member_count++];
        *member = (struct pccl_member){.peer = ids[i], .port = (uint16_t)ids[i]};
        strcpy(member->host, "127.0.0.1");
    }
    for (uint32_t i = 0; i < CALLS_MAX; i++) { /* the moment before: who goes may be hung up on */
        uint64_t from = calls[i].fd < 0 ? 0 : right_shake(&calls[i]);
        uint64_t whom = calls[i].outbound ? calls[i].peer : from;
        calls[i].may_be_gone |= !whom || whom >= 16 || !stay[whom];
    }
    memcpy(members, stay, sizeof members);
    pc_io_set_view(io, &view);
}

static void call_in(void) {
    struct call *call = free_call();
    int fd = call ? pair_for(call) : -1;
    if (fd < 0)
        return;
    call->their_fd = fd;
    uint64_t one = 1;
    FZ_CHECK(write(listen_fd, &one, sizeof one) == sizeof one);
}

static struct call *pick(uint8_t which) {
    uint32_t open = 0;
    for (uint32_t i = 0; i < CALLS_MAX; i++)
        open += calls[i].fd >= 0;
    uint32_t k = open ? which % open : 0;
    for (uint32_t i = 0; i < CALLS_MAX; i++)
        if (calls[i].fd >= 0 && !k--)
            return &calls[i];
    return NULL;
}

static void play(struct pc_io *io, struct fz_record *record) {
    struct call *call = pick(record->where);
    uint8_t blob[BYTES];
    size_t n = fz_left(&record->bytes) < BYTES ? fz_left(&record->bytes) : BYTES;
    switch (record->what % 8) {
    case 0:
        for (uint32_t i = 0; i < record->times; i++)
            call_in();
        return;
    case 1:
    case 2:
        if (call)
            shake(call, &record->bytes);
        return;
    case 3:
        if (n)
            memcpy(blob, record->bytes.at, n);
        fz_seal(blob, n, record->what / 8 % FZ_HONESTIES, epoch);
        if (call)
            say(call, blob, n);
        return;
    case 4:
        if (call)
            forget(call);
        return;
    case 5:
        now_ns += (uint64_t)fz_u16(&record->bytes) * 1000000;
        return;
    case 6:
        install(io, record->where);
        return;
    default:
        refuse_connects = record->where % 2;
        idle = record->where / 2 % 8;
    }
}

/* ---- pccl.c -----------------------------------------------------------------------------------
 */

bool pc_engine_commands(pccl_engine *engine, struct pc_io *io, uint64_t now) {
    (void)engine;
    FZ_CHECK(now == now_ns);
    pc_io_wake(io); /* our clock stands still while the loop waits */
    turns++;
    check_calls(false);
    if (idle) {
        idle--;
        return true;
    }
    struct fz_record record;
    switch (phase) {
    case PLAY:
        if (turns < 400 && fz_next(&script, &record)) {
            play(io, &record);
            return true;
        }
        refuse_connects = true;
        idle = 8; /* what was called is accepted now, 32 at a time */
        phase = LATE;
        return true;
    case LATE:
        now_ns += (HANDSHAKE_MS + 1) * UINT64_C(1000000);
        idle = 2;
        phase = LATER;
        return true;
    case LATER:
        check_calls(true);
        phase = DONE;
        return false;
    default:
        PC_UNREACHABLE();
    }
}

void pc_engine_post(pccl_engine *engine, const struct pccl_event *event) {
    (void)engine;
    FZ_CHECK(memchr(event->reason, 0, sizeof event->reason) && event->epoch <= epoch);
    if (event->type != PCCL_EVENT_LINK_LOST)
        return;
    FZ_CHECK(event->peer < 16 && members[event->peer] && event->reason[0]);
    lost_told++;
}

void pc_engine_take_paths(pccl_engine *engine, struct pccl_path *rows, uint32_t count) {
    (void)engine;
    for (uint32_t i = 0; i < count; i++)
        FZ_CHECK(rows[i].peer < 16 && members[rows[i].peer] && rows[i].rtt_us);
    free(rows);
}

void pc_engine_ended(pccl_engine *engine, const struct pccl_result *result) {
    (void)engine;
    (void)result;
    FZ_CHECK(!"an op ended that nobody submitted");
}

void pc_engine_failed(pccl_engine *engine, int status, const char *text) {
    (void)engine;
    (void)status;
    (void)text;
    FZ_CHECK(!"the engine failed");
}

void pc_engine_publish(pccl_engine *engine, const struct pccl_stats *stats) {
    (void)engine;
    links_made += stats->links_up > links_up ? stats->links_up - links_up : 0;
    links_up = stats->links_up;
    if (phase == LATER)
        refused_here = stats->links_refused;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct pc_io io;
    script = fz_reader(data, size < FZ_INPUT_MAX ? size : FZ_INPUT_MAX);
    for (uint32_t i = 0; i < CALLS_MAX; i++)
        calls[i] = (struct call){.fd = -1, .their_fd = -1};
    memset(members, 0, sizeof members);
    now_ns = 1000000000;
    random_state = fz_left(&script);
    epoch = idle = turns = 0;
    links_up = right_ever = 0;
    refuse_connects = false;
    phase = PLAY;
    struct pccl_config config = {.bind_host = "127.0.0.1",
                                 .run = RUN,
                                 .peer = SELF,
                                 .scratch_bytes = 1 << 20,
                                 .handshake_ms = HANDSHAKE_MS,
                                 .checksum_payload = 1,
                                 .silence_ms = SILENCE_MS};
    memcpy(config.proof, proof, sizeof proof);
    uint16_t port;
    int os_error;
    FZ_CHECK(pc_io_open(&io, NULL, &config, &port, &os_error) == PCCL_OK);
    pc_io_wake(&io);
    struct epoll_event events[PC_EVENTS];
    int count = 0;
    while (pc_io_turn(&io, events, count))
        count = pc_io_poll(&io, events, pc_io_ms_until(pc_io_deadline(&io)));
    pc_io_close(&io);
    for (uint32_t i = 0; i < CALLS_MAX; i++)
        if (calls[i].fd >= 0) {
            FZ_CHECK(calls[i].their_fd >= 0 || hear(&calls[i])); /* every descriptor is closed */
            forget(&calls[i]);
        }
    inputs++;
    refusals += refused_here;
    return 0;
}

void fz_summary(FILE *out) {
    fprintf(out, "inputs: %lu; links: %lu; refused: %lu; told lost: %lu\n", inputs, links_made,
            refusals, lost_told);
}
