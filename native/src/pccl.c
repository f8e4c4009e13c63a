/* pccl: the ABI of pccl.h over one io shell, but for ops (submit.c). It exchanges commands and
 * events with pccl-io under one mutex; it decides nothing. */
#include "pccl.h"

#include <errno.h>
#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "engine.h"
#include "net.h"

int pccl_version(void) {
    return PCCL_ABI_VERSION;
}

const char *pccl_status_name(int status) {
    switch (status) {
    case PCCL_OK:
        return "ok";
    case PCCL_USAGE:
        return "usage";
    case PCCL_PEER_LOST:
        return "peer lost";
    case PCCL_DEADLINE_EXCEEDED:
        return "deadline exceeded";
    case PCCL_EVICTED:
        return "evicted";
    case PCCL_COORDINATOR_LOST:
        return "coordinator lost";
    case PCCL_RESOURCE:
        return "resource";
    case PCCL_PROTOCOL:
        return "protocol";
    case PCCL_PENDING:
        return "pending";
    default:
        return "unknown";
    }
}

/* ---- life -------------------------------------------------------------------------------------
 */

static void *thread_body(void *argument) {
    pccl_engine *engine = argument;
    fesetenv(FE_DFL_ENV); /* not the creator's rounding or flush-to-zero: bits must not depend */
    pc_drive_run(engine);
    return NULL;
}

/* Signals belong to the caller's threads: pccl-io takes none. */
static int start_thread(pccl_engine *engine) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&engine->thread, NULL, thread_body, engine);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error)
        pthread_setname_np(engine->thread, "pccl-io");
    return error;
}

int pccl_engine_new(const struct pccl_config *config, pccl_engine **out, int *os_error) {
    *os_error = 0;
    *out = NULL;
    if (!config->peer || !config->bind_host || !pc_net_is_numeric(config->bind_host))
        return PCCL_USAGE;
    pccl_engine *engine = calloc(1, sizeof *engine);
    if (!engine) {
        *os_error = ENOMEM;
        return PCCL_RESOURCE;
    }
    int status = pc_io_open(&engine->io, engine, config, &engine->port, os_error);
    if (status != PCCL_OK) {
        free(engine);
        return status;
    }
    engine->io.config.bind_host = NULL; /* the caller's memory */
    atomic_init(&engine->commands, NULL);
    engine->events_tail = &engine->events;
    pc_names_init(&engine->names);
    pc_names_init(&engine->counts);
    pthread_mutex_init(&engine->mutex, NULL);
    pthread_mutex_init(&engine->stats_mutex, NULL);
    pc_tickets_init(engine);
    pc_drive_init(&engine->drive);
    engine->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    int error = engine->event_fd < 0 ? errno : start_thread(engine);
    if (error) {
        *os_error = error;
        pc_io_close(&engine->io);
        if (engine->event_fd >= 0)
            close(engine->event_fd);
        free(engine);
        return PCCL_RESOURCE;
    }
    *out = engine;
    return PCCL_OK;
}

struct command *pc_command_new(enum command_type type) {
    struct command *command = calloc(1, sizeof *command);
    if (command)
        command->type = type;
    return command;
}

void pc_command_free(struct command *command) {
    if (!command)
        return;
    free(command->view);
    free(command->op);
    free(command->text);
    free(command);
}

bool pc_command_push(pccl_engine *engine, struct command *command) {
    struct command *before = atomic_load_explicit(&engine->commands, memory_order_relaxed);
    do /* again if `before` has been taken meanwhile */
        command->next = before;
    while (!atomic_compare_exchange_weak_explicit(&engine->commands, &before, command,
                                                  memory_order_release, memory_order_relaxed));
    return !before; /* else somebody has called who drives, or is about to */
}

/* All that wait, in order. */
static struct command *take_commands(pccl_engine *engine) {
    if (!atomic_load_explicit(&engine->commands, memory_order_relaxed))
        return NULL;
    struct command *last = atomic_exchange_explicit(&engine->commands, NULL, memory_order_acquire);
    struct command *first = NULL;
    while (last) {
        struct command *before = last->next;
        last->next = first;
        first = last;
        last = before;
    }
    return first;
}

static void push_and_wake(pccl_engine *engine, struct command *command) {
    pthread_mutex_lock(&engine->mutex);
    bool wake = pc_command_push(engine, command);
    pthread_mutex_unlock(&engine->mutex);
    if (wake)
        pc_drive_call(engine);
}

void pccl_engine_free(pccl_engine *engine) {
    if (!engine)
        return;
    struct command *stop = pc_command_new(CMD_STOP);
    PC_ASSERT(stop);
    push_and_wake(engine, stop);
    pthread_join(engine->thread, NULL);
    pc_io_close(&engine->io);
    close(engine->event_fd);
    for (struct command *next, *command = take_commands(engine); command; command = next) {
        next = command->next;
        pc_command_free(command);
    }
    while (engine->events) {
        struct event_node *next = engine->events->next;
        free(engine->events);
        engine->events = next;
    }
    pc_core_report_free(engine->report);
    free(engine->paths);
    pc_names_free(&engine->names);
    pc_names_free(&engine->counts);
    pc_tickets_free(engine);
    pc_drive_free(&engine->drive);
    pthread_mutex_destroy(&engine->stats_mutex);
    pthread_mutex_destroy(&engine->mutex);
    free(engine);
}

void pccl_engine_abandon_after_fork(pccl_engine *engine) {
    pc_io_abandon(&engine->io);
    close(engine->event_fd);
}

int pccl_engine_port(const pccl_engine *engine) {
    return engine->port;
}

/* ---- views ------------------------------------------------------------------------------------
 */

int pccl_engine_set_view(pccl_engine *engine, const struct pccl_view *view) {
    if (!pc_view_is_sound(view, engine->io.config.peer))
        return PCCL_USAGE;
    struct command *command = pc_command_new(CMD_VIEW);
    if (!command)
        return PCCL_RESOURCE;
    command->view = pc_view_copy(view);
    if (!command->view) {
        free(command);
        return PCCL_RESOURCE;
    }
    pthread_mutex_lock(&engine->mutex);
    if (view->fresh) {
        engine->unnamed = 0;
        engine->submitted = 0;
        pc_names_clear(&engine->names);
        pc_names_clear(&engine->counts);
    }
    bool wake = pc_command_push(engine, command);
    pthread_mutex_unlock(&engine->mutex);
    if (wake)
        pc_drive_call(engine);
    return PCCL_OK;
}

int pccl_engine_flush(pccl_engine *engine, uint32_t epoch) {
    struct command *command = pc_command_new(CMD_FLUSH);
    if (!command)
        return PCCL_RESOURCE;
    command->epoch = epoch;
    push_and_wake(engine, command);
    return PCCL_OK;
}

int pccl_engine_report(pccl_engine *engine, struct pccl_report **report) {
    pthread_mutex_lock(&engine->mutex);
    *report = engine->report;
    engine->report = NULL;
    pthread_mutex_unlock(&engine->mutex);
    return *report ? PCCL_OK : PCCL_PENDING;
}

void pccl_report_free(struct pccl_report *report) {
    pc_core_report_free(report);
}

void pccl_engine_fail(pccl_engine *engine, int status, const char *text) {
    struct command *command = pc_command_new(CMD_FAIL);
    PC_ASSERT(command);
    command->status = status;
    command->text = strdup(text);
    PC_ASSERT(command->text);
    push_and_wake(engine, command);
}

/* ---- events and counters ----------------------------------------------------------------------
 */

int pccl_engine_event_fd(const pccl_engine *engine) {
    return engine->event_fd;
}

int pccl_engine_next_event(pccl_engine *engine, struct pccl_event *event) {
    pthread_mutex_lock(&engine->mutex);
    struct event_node *node = engine->events;
    if (node) {
        engine->events = node->next;
        if (!engine->events)
            engine->events_tail = &engine->events;
    } else {
        uint64_t count;
        ssize_t got = read(engine->event_fd, &count, sizeof count);
        (void)got; /* nothing waits: the descriptor sleeps again */
    }
    pthread_mutex_unlock(&engine->mutex);
    if (!node)
        return PCCL_PENDING;
    *event = node->event;
    free(node);
    return PCCL_OK;
}

int pccl_engine_paths(pccl_engine *engine, uint32_t capacity, struct pccl_path *paths,
                      uint32_t *count) {
    pthread_mutex_lock(&engine->mutex);
    *count = engine->path_count < capacity ? engine->path_count : capacity;
    if (*count)
        memcpy(paths, engine->paths, *count * sizeof *paths);
    pthread_mutex_unlock(&engine->mutex);
    return PCCL_OK;
}

int pccl_engine_inspect(pccl_engine *engine) {
    struct command *command = pc_command_new(CMD_INSPECT);
    if (!command)
        return PCCL_RESOURCE;
    push_and_wake(engine, command);
    return PCCL_OK;
}

int pccl_engine_inspection(pccl_engine *engine, struct pccl_inspection *inspection) {
    pthread_mutex_lock(&engine->mutex);
    bool inspected = engine->inspected;
    engine->inspected = false;
    if (inspected)
        *inspection = engine->inspection;
    pthread_mutex_unlock(&engine->mutex);
    return inspected ? PCCL_OK : PCCL_PENDING;
}

void pccl_engine_stats(pccl_engine *engine, struct pccl_stats *stats) {
    pthread_mutex_lock(&engine->stats_mutex);
    *stats = engine->stats;
    pthread_mutex_unlock(&engine->stats_mutex);
}

/* ---- called by who drives ----------------------------------------------------------------------
 */

void pc_engine_post(pccl_engine *engine, const struct pccl_event *event) {
    struct event_node *node = calloc(1, sizeof *node);
    PC_ASSERT(node); /* a lost event would be a hang */
    node->event = *event;
    pthread_mutex_lock(&engine->mutex);
    *engine->events_tail = node;
    engine->events_tail = &node->next;
    uint64_t one = 1;
    ssize_t written = write(engine->event_fd, &one, sizeof one);
    (void)written;
    pthread_mutex_unlock(&engine->mutex);
}

void pc_engine_take_paths(pccl_engine *engine, struct pccl_path *rows, uint32_t count) {
    pthread_mutex_lock(&engine->mutex);
    struct pccl_path *old = engine->paths;
    engine->paths = rows;
    engine->path_count = count;
    pthread_mutex_unlock(&engine->mutex);
    free(old);
}

void pc_engine_publish(pccl_engine *engine, const struct pccl_stats *stats) {
    pthread_mutex_lock(&engine->stats_mutex);
    engine->stats = *stats;
    pthread_mutex_unlock(&engine->stats_mutex);
}

void pc_engine_failed(pccl_engine *engine, int status, const char *text) {
    pthread_mutex_lock(&engine->mutex);
    engine->failed = status;
    snprintf(engine->failed_text, sizeof engine->failed_text, "%s", text);
    pthread_mutex_unlock(&engine->mutex);
}

static void do_submit(pccl_engine *engine, struct pc_io *io, const struct command *command,
                      uint64_t now_ns) {
    int status =
        io->failed ? engine->failed : pc_core_submit(io->core, command->op, command->op_id, now_ns);
    if (status == PCCL_OK)
        return;
    struct pccl_result result = {.op = command->op_id, .status = status};
    const char *text = io->failed ? engine->failed_text
                       : status == PCCL_USAGE
                           ? "another op name has the same hash, or the blocks are too many"
                           : "out of memory, or too many ops or sub-groups known";
    snprintf(result.text, sizeof result.text, "%s", text);
    pc_engine_ended(engine, &result);
}

static void do_flush(pccl_engine *engine, struct pc_io *io, uint32_t epoch) {
    if (io->failed || !pc_core_flush(io->core, epoch))
        return; /* another epoch's flush: its sender has moved on */
    struct pccl_report *report = pc_core_report(io->core);
    if (!report) {
        pc_io_fail(io, PCCL_RESOURCE, "out of memory while answering a flush");
        return;
    }
    pthread_mutex_lock(&engine->mutex);
    pc_core_report_free(engine->report);
    engine->report = report;
    pthread_mutex_unlock(&engine->mutex);
    struct pccl_event event = {.type = PCCL_EVENT_FLUSHED, .epoch = epoch};
    pc_engine_post(engine, &event);
}

static void do_inspect(pccl_engine *engine, const struct pc_io *io, uint64_t now_ns) {
    struct pccl_inspection found;
    pc_core_inspect(io->core, now_ns, &found);
    pthread_mutex_lock(&engine->mutex);
    engine->inspection = found;
    engine->inspected = true;
    pthread_mutex_unlock(&engine->mutex);
    struct pccl_event event = {.type = PCCL_EVENT_INSPECTED};
    pc_engine_post(engine, &event);
}

bool pc_engine_commands(pccl_engine *engine, struct pc_io *io, uint64_t now_ns) {
    bool go_on = true;
    for (struct command *next, *command = take_commands(engine); command; command = next) {
        next = command->next;
        switch (command->type) {
        case CMD_SUBMIT:
            do_submit(engine, io, command, now_ns);
            break;
        case CMD_VIEW:
            pc_io_set_view(io, command->view);
            break;
        case CMD_FLUSH:
            do_flush(engine, io, command->epoch);
            break;
        case CMD_INSPECT:
            do_inspect(engine, io, now_ns);
            break;
        case CMD_FAIL:
            pc_io_fail(io, command->status, command->text);
            break;
        case CMD_STOP:
            go_on = false;
            break;
        }
        pc_command_free(command);
    }
    return go_on;
}
