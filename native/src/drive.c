/* drive: see drive.h. */
#include "drive.h"

#include <errno.h>
#include <time.h>

#include "engine.h"

void pc_drive_init(struct pc_drive *drive) {
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&drive->freed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&drive->gate, NULL);
    drive->taken = true; /* pccl-io begins */
}

void pc_drive_free(struct pc_drive *drive) {
    pthread_cond_destroy(&drive->freed);
    pthread_mutex_destroy(&drive->gate);
}

/* ---- pccl-io ----------------------------------------------------------------------------------
 */

/* Until no user thread drives, and none has for a while, or pccl-io is called. Gate is held. */
static void stand_aside(struct pc_drive *drive) {
    drive->aside = true;
    while (drive->taken || !drive->called) {
        uint32_t turns = drive->turns;
        uint64_t until_ns = pc_now_ns() + PC_DRIVE_QUIET_MS * UINT64_C(1000000);
        struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000),
                                 .tv_nsec = (long)(until_ns % 1000000000)};
        int rc = pthread_cond_timedwait(&drive->freed, &drive->gate, &until);
        if (rc != ETIMEDOUT || drive->turns != turns)
            continue;
        if (!drive->taken)
            break;
        drive->asleep = true; /* a long op: who drives it wakes us */
        pthread_cond_wait(&drive->freed, &drive->gate);
        drive->asleep = false;
    }
    drive->aside = drive->called = false;
}

/* Waits for events while anybody may drive. Then drives again; *count is 0 if others drove, for
 * what was reported may be long over (and is reported again). */
static void wait_outside(struct pc_drive *drive, const struct pc_io *io, uint64_t until_ns,
                         struct epoll_event events[PC_EVENTS], int *count) {
    pthread_mutex_lock(&drive->gate);
    uint32_t turns = drive->turns;
    drive->until_ns = until_ns;
    drive->taken = false;
    pthread_mutex_unlock(&drive->gate);
    *count = pc_io_poll(io, events, pc_io_ms_until(until_ns));
    pthread_mutex_lock(&drive->gate);
    drive->until_ns = 0;
    if (drive->taken || drive->turns != turns) {
        stand_aside(drive);
        *count = 0;
    }
    drive->taken = true;
    pthread_mutex_unlock(&drive->gate);
}

void pc_drive_run(pccl_engine *engine) {
    struct pc_io *io = &engine->io;
    struct pc_drive *drive = &engine->drive;
    struct epoll_event events[PC_EVENTS];
    int count = 0;
    while (pc_io_turn(io, events, count)) {
        wait_outside(drive, io, pc_io_deadline(io), events, &count);
        if (!count)
            count = pc_io_poll(io, events, 0);
    }
    pthread_mutex_lock(&drive->gate);
    drive->taken = false;
    pthread_mutex_unlock(&drive->gate);
}

/* ---- user threads -----------------------------------------------------------------------------
 */

bool pc_drive_take(pccl_engine *engine) {
    struct pc_drive *drive = &engine->drive;
    pthread_mutex_lock(&drive->gate);
    bool free = !drive->taken;
    if (free) {
        drive->taken = true;
        drive->called = false; /* we look at the commands now */
    }
    pthread_mutex_unlock(&drive->gate);
    return free;
}

bool pc_drive_turn(pccl_engine *engine, int timeout_ms) {
    struct pc_io *io = &engine->io;
    struct epoll_event events[PC_EVENTS];
    int ms = pc_io_ms_until(pc_io_deadline(io));
    if (ms < 0 || ms > timeout_ms)
        ms = timeout_ms;
    int count = pc_io_poll(io, events, ms);
    return count >= 0 && pc_io_turn(io, events, count);
}

void pc_drive_leave(pccl_engine *engine) {
    struct pc_drive *drive = &engine->drive;
    bool busy = pc_io_is_busy(&engine->io);
    uint64_t next_ns = pc_io_deadline(&engine->io);
    pthread_mutex_lock(&drive->gate);
    drive->taken = false;
    drive->turns++;
    drive->called = drive->called || busy;
    bool signal = drive->aside && (drive->called || drive->asleep);
    bool wake = drive->until_ns > next_ns; /* it would oversleep */
    pthread_mutex_unlock(&drive->gate);
    if (signal)
        pthread_cond_signal(&drive->freed);
    if (wake)
        pc_io_wake(&engine->io);
}

void pc_drive_call(pccl_engine *engine) {
    struct pc_drive *drive = &engine->drive;
    pc_io_wake(&engine->io);
    pthread_mutex_lock(&drive->gate);
    drive->called = true;
    bool signal = drive->aside;
    pthread_mutex_unlock(&drive->gate);
    if (signal)
        pthread_cond_signal(&drive->freed);
}
