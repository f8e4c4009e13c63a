/* pccl: the ABI of pccl.h over one io shell. It checks arguments, numbers ops, and exchanges
 * commands, results and events with pccl-io under one mutex; it decides nothing else. */
#include "pccl.h"

#include <errno.h>
#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "io.h"
#include "names.h"
#include "net.h"

#define TICKETS PCCL_OPS_MAX

enum command_type { CMD_SUBMIT, CMD_VIEW, CMD_FLUSH, CMD_FAIL, CMD_STOP };

struct command {
    struct command *next;
    enum command_type type;
    struct pccl_op op;
    uint64_t op_id;
    struct pccl_view *view; /* one block, with all it points to */
    uint32_t epoch;
    int status;
    char text[1024];
};

struct event_node {
    struct event_node *next;
    struct pccl_event event;
};

enum ticket_state { TICKET_FREE = 0, TICKET_RUNNING, TICKET_ENDED };

struct ticket {
    enum ticket_state state;
    uint32_t generation;
    uint64_t op_id;
    const uint8_t *data;
    uint64_t bytes;
    struct pccl_result result;
    pthread_cond_t ended;
};

struct pccl_engine {
    struct pc_io io;
    pthread_t thread;
    uint16_t port;
    int event_fd;
    pthread_mutex_t mutex; /* all below */
    struct command *commands, **commands_tail;
    struct event_node *events, **events_tail;
    struct ticket tickets[TICKETS];
    struct pccl_report *report;
    struct pccl_stats stats;
    struct pc_names names;
    uint32_t unnamed;
    uint64_t submitted;
    int failed;
    char failed_text[1024];
};

int pccl_version(void)
{
    return PCCL_ABI_VERSION;
}

const char *pccl_status_name(int status)
{
    switch (status) {
    case PCCL_OK: return "ok";
    case PCCL_USAGE: return "usage";
    case PCCL_PEER_LOST: return "peer lost";
    case PCCL_DEADLINE_EXCEEDED: return "deadline exceeded";
    case PCCL_EVICTED: return "evicted";
    case PCCL_COORDINATOR_LOST: return "coordinator lost";
    case PCCL_RESOURCE: return "resource";
    case PCCL_PROTOCOL: return "protocol";
    case PCCL_PENDING: return "pending";
    default: return "unknown";
    }
}

/* ---- life ------------------------------------------------------------------------------------- */

static void *thread_body(void *argument)
{
    pccl_engine *engine = argument;
    fesetenv(FE_DFL_ENV); /* not the creator's rounding or flush-to-zero: bits must not depend */
    pc_io_run(&engine->io);
    return NULL;
}

/* Signals belong to the caller's threads: pccl-io takes none. */
static int start_thread(pccl_engine *engine)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&engine->thread, NULL, thread_body, engine);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error)
        pthread_setname_np(engine->thread, "pccl-io");
    return error;
}

int pccl_engine_new(const struct pccl_config *config, pccl_engine **out, int *os_error)
{
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
    engine->commands_tail = &engine->commands;
    engine->events_tail = &engine->events;
    pc_names_init(&engine->names);
    pthread_mutex_init(&engine->mutex, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    for (int i = 0; i < TICKETS; i++)
        pthread_cond_init(&engine->tickets[i].ended, &monotonic);
    pthread_condattr_destroy(&monotonic);
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

static struct command *new_command(enum command_type type)
{
    struct command *command = calloc(1, sizeof *command);
    if (command)
        command->type = type;
    return command;
}

/* Caller holds the mutex. */
static void push(pccl_engine *engine, struct command *command)
{
    *engine->commands_tail = command;
    engine->commands_tail = &command->next;
    pc_io_wake(&engine->io);
}

static void free_commands(struct command *command)
{
    while (command) {
        struct command *next = command->next;
        free(command->view);
        free(command);
        command = next;
    }
}

void pccl_engine_free(pccl_engine *engine)
{
    if (!engine)
        return;
    struct command *stop = new_command(CMD_STOP);
    PC_ASSERT(stop);
    pthread_mutex_lock(&engine->mutex);
    push(engine, stop);
    pthread_mutex_unlock(&engine->mutex);
    pthread_join(engine->thread, NULL);
    pc_io_close(&engine->io);
    close(engine->event_fd);
    free_commands(engine->commands);
    while (engine->events) {
        struct event_node *next = engine->events->next;
        free(engine->events);
        engine->events = next;
    }
    pc_core_report_free(engine->report);
    pc_names_free(&engine->names);
    for (int i = 0; i < TICKETS; i++)
        pthread_cond_destroy(&engine->tickets[i].ended);
    pthread_mutex_destroy(&engine->mutex);
    free(engine);
}

void pccl_engine_abandon_after_fork(pccl_engine *engine)
{
    pc_io_abandon(&engine->io);
    close(engine->event_fd);
}

int pccl_engine_port(const pccl_engine *engine)
{
    return engine->port;
}

/* ---- views ------------------------------------------------------------------------------------ */

static bool view_is_sound(const pccl_engine *engine, const struct pccl_view *view)
{
    if (!view->epoch || !view->member_count || view->member_count > PCCL_MEMBERS_MAX ||
        view->self >= view->member_count ||
        view->members[view->self].peer != engine->io.config.peer)
        return false;
    for (uint32_t i = 0; i < view->member_count; i++)
        if (!memchr(view->members[i].host, 0, PCCL_HOST_MAX) ||
            !pc_net_is_numeric(view->members[i].host))
            return false;
    for (uint32_t i = 0; i < view->verdict_count; i++) {
        const struct pccl_verdict *verdict = &view->verdicts[i];
        if (verdict->outcome < PCCL_RUN || verdict->outcome > PCCL_ABORT)
            return false;
        if (verdict->outcome == PCCL_ABORT && verdict->status == PCCL_OK)
            return false;
        for (uint32_t s = 0; s < verdict->holder_count; s++)
            if (verdict->holders[s] < PCCL_HOLDER_ALL ||
                verdict->holders[s] >= (int32_t)view->member_count)
                return false;
    }
    return true;
}

static struct pccl_view *copy_view(const struct pccl_view *view)
{
    size_t bytes = sizeof *view + view->member_count * sizeof *view->members +
                   view->verdict_count * sizeof *view->verdicts;
    for (uint32_t i = 0; i < view->verdict_count; i++)
        bytes += view->verdicts[i].holder_count * sizeof(int32_t) +
                 (view->verdicts[i].text ? strnlen(view->verdicts[i].text, 1023) : 0) + 1;
    struct pccl_view *copy = calloc(1, bytes);
    if (!copy)
        return NULL;
    struct pccl_verdict *verdicts = (struct pccl_verdict *)(copy + 1);
    struct pccl_member *members = (struct pccl_member *)(verdicts + view->verdict_count);
    int32_t *holders = (int32_t *)(members + view->member_count);
    *copy = *view;
    memcpy(members, view->members, view->member_count * sizeof *members);
    for (uint32_t i = 0; i < view->verdict_count; i++) {
        verdicts[i] = view->verdicts[i];
        verdicts[i].holders = holders;
        if (verdicts[i].holder_count)
            memcpy(holders, view->verdicts[i].holders,
                   verdicts[i].holder_count * sizeof *holders);
        holders += verdicts[i].holder_count;
    }
    char *text = (char *)holders;
    for (uint32_t i = 0; i < view->verdict_count; i++) {
        const char *from = view->verdicts[i].text ? view->verdicts[i].text : "";
        size_t length = strnlen(from, 1023);
        memcpy(text, from, length);
        verdicts[i].text = text;
        text += length + 1;
    }
    copy->members = members;
    copy->verdicts = verdicts;
    return copy;
}

int pccl_engine_set_view(pccl_engine *engine, const struct pccl_view *view)
{
    if (!view_is_sound(engine, view))
        return PCCL_USAGE;
    struct command *command = new_command(CMD_VIEW);
    if (!command)
        return PCCL_RESOURCE;
    command->view = copy_view(view);
    if (!command->view) {
        free(command);
        return PCCL_RESOURCE;
    }
    pthread_mutex_lock(&engine->mutex);
    if (view->fresh) {
        engine->unnamed = 0;
        engine->submitted = 0;
        pc_names_clear(&engine->names);
    }
    push(engine, command);
    pthread_mutex_unlock(&engine->mutex);
    return PCCL_OK;
}

int pccl_engine_flush(pccl_engine *engine, uint32_t epoch)
{
    struct command *command = new_command(CMD_FLUSH);
    if (!command)
        return PCCL_RESOURCE;
    command->epoch = epoch;
    pthread_mutex_lock(&engine->mutex);
    push(engine, command);
    pthread_mutex_unlock(&engine->mutex);
    return PCCL_OK;
}

int pccl_engine_report(pccl_engine *engine, struct pccl_report **report)
{
    pthread_mutex_lock(&engine->mutex);
    *report = engine->report;
    engine->report = NULL;
    pthread_mutex_unlock(&engine->mutex);
    return *report ? PCCL_OK : PCCL_PENDING;
}

void pccl_report_free(struct pccl_report *report)
{
    pc_core_report_free(report);
}

/* ---- ops -------------------------------------------------------------------------------------- */

static bool op_is_sound(const struct pccl_op *op)
{
    size_t element = pccl_dtype_size(op->dtype);
    if (!element || op->reduce < PCCL_SUM || op->reduce > PCCL_MAX || !op->timeout_ns)
        return false;
    if (op->kind != PCCL_ALL_REDUCE && op->kind != PCCL_BROADCAST)
        return false;
    if ((op->kind == PCCL_BROADCAST) != (op->root_peer != 0))
        return false;
    if (op->count > UINT64_MAX / 64 / element)
        return false;
    return !op->count || (op->data && (uintptr_t)op->data % element == 0);
}

static bool overlaps(const pccl_engine *engine, const uint8_t *data, uint64_t bytes)
{
    if (!bytes)
        return false;
    for (int i = 0; i < TICKETS; i++) {
        const struct ticket *ticket = &engine->tickets[i];
        if (ticket->state == TICKET_RUNNING && ticket->bytes && data < ticket->data + ticket->bytes &&
            ticket->data < data + bytes)
            return true;
    }
    return false;
}

static bool id_in_use(const pccl_engine *engine, uint64_t op_id)
{
    for (int i = 0; i < TICKETS; i++)
        if (engine->tickets[i].state == TICKET_RUNNING && engine->tickets[i].op_id == op_id)
            return true;
    return false;
}

static struct ticket *free_ticket(pccl_engine *engine)
{
    for (int i = 0; i < TICKETS; i++)
        if (engine->tickets[i].state == TICKET_FREE)
            return &engine->tickets[i];
    return NULL;
}

static void end_ticket(struct ticket *ticket, int status, const char *text)
{
    ticket->result = (struct pccl_result){.op = ticket->op_id, .status = status};
    snprintf(ticket->result.text, sizeof ticket->result.text, "%s", text);
    ticket->state = TICKET_ENDED;
    pthread_cond_broadcast(&ticket->ended);
}

/* Caller holds the mutex; the command is consumed on PCCL_OK. */
static int submit_locked(pccl_engine *engine, struct command *command, uint64_t *ticket_out)
{
    const struct pccl_op *op = &command->op;
    uint64_t bytes = op->count * pccl_dtype_size(op->dtype);
    if (overlaps(engine, op->data, bytes))
        return PCCL_USAGE;
    struct ticket *ticket = free_ticket(engine);
    if (!ticket)
        return PCCL_RESOURCE;
    if (op->name) {
        uint32_t use = pc_names_use(&engine->names, op->name);
        if (!use)
            return PCCL_RESOURCE;
        command->op_id = UINT64_C(1) << 32 | pc_names_number(op->name, use);
        if (id_in_use(engine, command->op_id))
            return PCCL_USAGE;
    } else {
        command->op_id = ++engine->unnamed;
    }
    engine->submitted++;
    ticket->state = TICKET_RUNNING;
    ticket->generation++;
    ticket->op_id = command->op_id;
    ticket->data = op->data;
    ticket->bytes = bytes;
    *ticket_out = (uint64_t)ticket->generation << 16 | (uint64_t)(ticket - engine->tickets);
    if (engine->failed) {
        end_ticket(ticket, engine->failed, engine->failed_text);
        free(command);
    } else {
        push(engine, command);
    }
    return PCCL_OK;
}

int pccl_engine_submit(pccl_engine *engine, const struct pccl_op *op, uint64_t *op_id,
                       uint64_t *ticket)
{
    if (!op_is_sound(op))
        return PCCL_USAGE;
    if (pc_core_segments(engine->io.core, op->dtype, op->count) > PCCL_SEGMENTS_MAX)
        return PCCL_USAGE;
    struct command *command = new_command(CMD_SUBMIT);
    if (!command)
        return PCCL_RESOURCE;
    command->op = *op;
    pthread_mutex_lock(&engine->mutex);
    int status = submit_locked(engine, command, ticket);
    if (status == PCCL_OK)
        *op_id = engine->tickets[*ticket & 0xffff].op_id;
    pthread_mutex_unlock(&engine->mutex);
    if (status != PCCL_OK)
        free(command);
    return status;
}

static struct ticket *ticket_of(pccl_engine *engine, uint64_t number)
{
    uint64_t index = number & 0xffff;
    if (index >= TICKETS)
        return NULL;
    struct ticket *ticket = &engine->tickets[index];
    bool known = ticket->state != TICKET_FREE && ticket->generation == (uint32_t)(number >> 16);
    return known ? ticket : NULL;
}

int pccl_engine_wait(pccl_engine *engine, uint64_t number, int timeout_ms,
                     struct pccl_result *result)
{
    uint64_t until_ns = pc_now_ns() + (uint64_t)(timeout_ms > 0 ? timeout_ms : 0) * 1000000;
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000),
                             .tv_nsec = (long)(until_ns % 1000000000)};
    int status = PCCL_OK;
    pthread_mutex_lock(&engine->mutex);
    struct ticket *ticket = ticket_of(engine, number);
    int rc = 0;
    while (ticket && ticket->state == TICKET_RUNNING && timeout_ms > 0 && rc != ETIMEDOUT)
        rc = pthread_cond_timedwait(&ticket->ended, &engine->mutex, &until);
    if (!ticket) {
        status = PCCL_USAGE;
    } else if (ticket->state == TICKET_RUNNING) {
        status = PCCL_PENDING;
    } else {
        *result = ticket->result;
        ticket->state = TICKET_FREE;
    }
    pthread_mutex_unlock(&engine->mutex);
    return status;
}

uint64_t pccl_engine_submitted(pccl_engine *engine)
{
    pthread_mutex_lock(&engine->mutex);
    uint64_t submitted = engine->submitted;
    pthread_mutex_unlock(&engine->mutex);
    return submitted;
}

void pccl_engine_fail(pccl_engine *engine, int status, const char *text)
{
    struct command *command = new_command(CMD_FAIL);
    PC_ASSERT(command);
    command->status = status;
    snprintf(command->text, sizeof command->text, "%s", text);
    pthread_mutex_lock(&engine->mutex);
    push(engine, command);
    pthread_mutex_unlock(&engine->mutex);
}

/* ---- events and counters ---------------------------------------------------------------------- */

int pccl_engine_event_fd(const pccl_engine *engine)
{
    return engine->event_fd;
}

int pccl_engine_next_event(pccl_engine *engine, struct pccl_event *event)
{
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

void pccl_engine_stats(pccl_engine *engine, struct pccl_stats *stats)
{
    pthread_mutex_lock(&engine->mutex);
    *stats = engine->stats;
    pthread_mutex_unlock(&engine->mutex);
}

/* ---- called by pccl-io ------------------------------------------------------------------------ */

void pc_engine_post(pccl_engine *engine, const struct pccl_event *event)
{
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

static void ended_locked(pccl_engine *engine, const struct pccl_result *result)
{
    for (int i = 0; i < TICKETS; i++) {
        struct ticket *ticket = &engine->tickets[i];
        if (ticket->state != TICKET_RUNNING || ticket->op_id != result->op)
            continue;
        ticket->result = *result;
        ticket->state = TICKET_ENDED;
        pthread_cond_broadcast(&ticket->ended);
        return;
    }
    PC_ASSERT(!"an op ended that nobody submitted");
}

void pc_engine_ended(pccl_engine *engine, const struct pccl_result *result)
{
    pthread_mutex_lock(&engine->mutex);
    ended_locked(engine, result);
    pthread_mutex_unlock(&engine->mutex);
}

void pc_engine_publish(pccl_engine *engine, const struct pccl_stats *stats)
{
    pthread_mutex_lock(&engine->mutex);
    engine->stats = *stats;
    pthread_mutex_unlock(&engine->mutex);
}

void pc_engine_failed(pccl_engine *engine, int status, const char *text)
{
    pthread_mutex_lock(&engine->mutex);
    engine->failed = status;
    snprintf(engine->failed_text, sizeof engine->failed_text, "%s", text);
    pthread_mutex_unlock(&engine->mutex);
}

static void do_submit(pccl_engine *engine, struct pc_io *io, const struct command *command,
                      uint64_t now_ns)
{
    int status = io->failed ? engine->failed
                            : pc_core_submit(io->core, &command->op, command->op_id, now_ns);
    if (status == PCCL_OK)
        return;
    struct pccl_result result = {.op = command->op_id, .status = status};
    const char *text = io->failed ? engine->failed_text
                       : status == PCCL_USAGE
                           ? "another op name has the same hash: use another name"
                           : "out of memory, or too many ops known";
    snprintf(result.text, sizeof result.text, "%s", text);
    pc_engine_ended(engine, &result);
}

static void do_flush(pccl_engine *engine, struct pc_io *io, uint32_t epoch)
{
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

bool pc_engine_commands(pccl_engine *engine, struct pc_io *io, uint64_t now_ns)
{
    pthread_mutex_lock(&engine->mutex);
    struct command *command = engine->commands;
    engine->commands = NULL;
    engine->commands_tail = &engine->commands;
    pthread_mutex_unlock(&engine->mutex);
    bool go_on = true;
    while (command) {
        struct command *next = command->next;
        switch (command->type) {
        case CMD_SUBMIT: do_submit(engine, io, command, now_ns); break;
        case CMD_VIEW: pc_io_set_view(io, command->view); break;
        case CMD_FLUSH: do_flush(engine, io, command->epoch); break;
        case CMD_FAIL: pc_io_fail(io, command->status, command->text); break;
        case CMD_STOP: go_on = false; break;
        }
        free(command->view);
        free(command);
        command = next;
    }
    return go_on;
}
