/* submit: ops from the caller's side: arguments, numbers, tickets, waiting for results. */
#include <errno.h>
#include <fenv.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "check.h"
#include "engine.h"

/* ---- tickets: the caller holds the mutex ------------------------------------------------------
 */

void pc_tickets_init(pccl_engine *engine) {
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    for (int i = TICKETS - 1; i >= 0; i--) {
        pthread_cond_init(&engine->tickets[i].ended, &monotonic);
        engine->tickets[i].next = engine->free;
        engine->free = &engine->tickets[i];
    }
    pthread_condattr_destroy(&monotonic);
}

void pc_tickets_free(pccl_engine *engine) {
    for (int i = 0; i < TICKETS; i++) {
        pthread_cond_destroy(&engine->tickets[i].ended);
        pc_ranges_free(&engine->tickets[i].ranges);
    }
}

static bool clashes(const pccl_engine *engine, const struct pc_ranges *ranges) {
    for (const struct ticket *ticket = engine->running; ticket; ticket = ticket->next)
        if (pc_ranges_clash(&ticket->ranges, ranges))
            return true;
    return false;
}

static struct ticket *running_ticket(pccl_engine *engine, uint64_t op_id) {
    struct ticket *ticket = engine->running;
    while (ticket && ticket->op_id != op_id)
        ticket = ticket->next;
    return ticket;
}

static void start_ticket(pccl_engine *engine, struct ticket *ticket,
                         const struct pc_ranges *ranges) {
    engine->free = ticket->next;
    ticket->next = NULL;
    ticket->prev = engine->running_last;
    *(ticket->prev ? &ticket->prev->next : &engine->running) = ticket;
    engine->running_last = ticket;
    ticket->state = TICKET_RUNNING;
    ticket->op_id = 0;
    ticket->ranges = *ranges;
}

static void end_ticket(pccl_engine *engine, struct ticket *ticket) {
    *(ticket->prev ? &ticket->prev->next : &engine->running) = ticket->next;
    *(ticket->next ? &ticket->next->prev : &engine->running_last) = ticket->prev;
    ticket->state = TICKET_ENDED;
}

static void free_ticket(pccl_engine *engine, struct ticket *ticket) {
    PC_ASSERT(ticket->state == TICKET_ENDED);
    ticket->state = TICKET_FREE;
    pc_ranges_free(&ticket->ranges);
    ticket->prev = NULL;
    ticket->next = engine->free;
    engine->free = ticket;
}

/* Not the kilobyte behind an empty text. */
static void copy_result(struct pccl_result *to, const struct pccl_result *from) {
    memcpy(to, from, offsetof(struct pccl_result, text));
    memcpy(to->text, from->text, strlen(from->text) + 1);
}

/* ---- waiting ----------------------------------------------------------------------------------
 */

static struct ticket *ticket_of(pccl_engine *engine, uint64_t number) {
    uint64_t index = number & 0xffff;
    if (index >= TICKETS)
        return NULL;
    struct ticket *ticket = &engine->tickets[index];
    bool known = ticket->state != TICKET_FREE && ticket->generation == number >> 16;
    return known ? ticket : NULL;
}

/* It has not ended, nor has another waiter fetched the result. Caller holds the mutex. */
static bool is_awaited(pccl_engine *engine, const struct pccl_ticket *out) {
    const struct ticket *ticket = out->ended ? NULL : ticket_of(engine, out->number);
    return ticket && ticket->state == TICKET_RUNNING;
}

/* Another thread drives. Caller holds the mutex. */
static void wait_asleep(pccl_engine *engine, const struct pccl_ticket *out, uint64_t until_ns) {
    struct ticket *ticket = ticket_of(engine, out->number);
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000),
                             .tv_nsec = (long)(until_ns % 1000000000)};
    int rc = 0;
    while (is_awaited(engine, out) && rc != ETIMEDOUT)
        rc = pthread_cond_timedwait(&ticket->ended, &engine->mutex, &until);
}

/* This thread has the wheel. Not with the caller's rounding or flush-to-zero: bits must not depend
 * on who drives. A signal ends it early, so that the caller's handler runs. */
static void wait_driving(pccl_engine *engine, const struct pccl_ticket *out, uint64_t until_ns) {
    fenv_t callers;
    fegetenv(&callers);
    fesetenv(FE_DFL_ENV);
    pc_io_turn(&engine->io, NULL, 0); /* what was submitted goes first */
    for (bool go_on = true; go_on;) {
        int left_ms = pc_io_ms_until(until_ns);
        pthread_mutex_lock(&engine->mutex);
        go_on = left_ms > 0 && is_awaited(engine, out);
        pthread_mutex_unlock(&engine->mutex);
        go_on = go_on && pc_drive_turn(engine, left_ms);
    }
    pc_drive_leave(engine);
    fesetenv(&callers);
}

static int fetch(pccl_engine *engine, struct pccl_ticket *out) {
    if (out->ended)
        return PCCL_OK;
    struct ticket *ticket = ticket_of(engine, out->number);
    if (!ticket)
        return PCCL_USAGE;
    if (ticket->state == TICKET_RUNNING)
        return PCCL_PENDING;
    copy_result(&out->result, &ticket->result);
    out->ended = 1;
    free_ticket(engine, ticket);
    return PCCL_OK;
}

/* call: a command was given and nobody has been called for it. */
static int wait_for(pccl_engine *engine, struct pccl_ticket *out, int timeout_ms, bool call) {
    uint64_t until_ns = pc_now_ns() + (uint64_t)timeout_ms * 1000000;
    bool driven = timeout_ms > 0 && pc_drive_take(engine);
    if (driven)
        wait_driving(engine, out, until_ns);
    else if (call)
        pc_drive_call(engine);
    pthread_mutex_lock(&engine->mutex);
    if (!driven && timeout_ms > 0)
        wait_asleep(engine, out, until_ns);
    int status = fetch(engine, out);
    pthread_mutex_unlock(&engine->mutex);
    return status;
}

int pccl_engine_wait(pccl_engine *engine, struct pccl_ticket *out, int timeout_ms) {
    return wait_for(engine, out, timeout_ms, false);
}

/* ---- submitting -------------------------------------------------------------------------------
 */

/* The number of the next op of this name, or of this context. 0: no room. */
static uint64_t next_id(pccl_engine *engine, const struct pccl_op *op) {
    uint64_t context = (uint64_t)op->context << 33;
    if (op->name) {
        uint64_t key = op->name ^ context * UINT64_C(0x9E3779B97F4A7C15);
        key = key ? key : 1;
        uint32_t use = pc_names_use(&engine->names, key);
        return use ? context | UINT64_C(1) << 32 | pc_names_number(key, use) : 0;
    }
    if (!op->context)
        return ++engine->unnamed;
    uint32_t number = pc_names_use(&engine->counts, op->context);
    return number ? context | number : 0;
}

/* A ticket that holds the op's memory, before anything is written there. Takes over `ranges`. */
static int reserve(pccl_engine *engine, struct pc_ranges *ranges, struct ticket **out) {
    pthread_mutex_lock(&engine->mutex);
    struct ticket *ticket = engine->free;
    int status = clashes(engine, ranges) ? PCCL_USAGE : ticket ? PCCL_OK : PCCL_RESOURCE;
    if (status == PCCL_OK) {
        start_ticket(engine, ticket, ranges);
        *out = ticket;
    }
    pthread_mutex_unlock(&engine->mutex);
    if (status != PCCL_OK)
        pc_ranges_free(ranges);
    return status;
}

/* Caller holds the mutex. PCCL_OK: the command is consumed, *wake is whether pccl-io is to be woken
 * for it; otherwise the ticket is freed. */
static int submit_locked(pccl_engine *engine, struct command *command, struct ticket *ticket,
                         struct pccl_ticket *out, bool *wake) {
    command->op_id = next_id(engine, command->op);
    if (!command->op_id || running_ticket(engine, command->op_id)) {
        end_ticket(engine, ticket);
        free_ticket(engine, ticket);
        return command->op_id ? PCCL_USAGE : PCCL_RESOURCE;
    }
    engine->submitted += !command->op->context;
    ticket->generation++;
    ticket->op_id = command->op_id;
    out->ended = 0;
    out->op = command->op_id;
    out->number = ticket->generation << 16 | (uint64_t)(ticket - engine->tickets);
    if (engine->failed) {
        ticket->result = (struct pccl_result){.op = command->op_id, .status = engine->failed};
        snprintf(ticket->result.text, sizeof ticket->result.text, "%s", engine->failed_text);
        end_ticket(engine, ticket);
        pc_command_free(command);
    } else {
        *wake = pc_command_push(engine, command);
    }
    return PCCL_OK;
}

static struct command *new_submit(const struct pccl_op *op) {
    struct command *command = pc_command_new(CMD_SUBMIT);
    if (!command)
        return NULL;
    command->op = pc_op_copy(op);
    if (command->op)
        return command;
    free(command);
    return NULL;
}

int pccl_engine_submit(pccl_engine *engine, const struct pccl_op *op, struct pccl_ticket *out,
                       int timeout_ms) {
    uint64_t self = engine->io.config.peer;
    if (!pc_op_is_sound(op, self))
        return PCCL_USAGE;
    if (op->kind <= PCCL_REDUCE &&
        pc_core_segments(engine->io.core, op->dtype, op->count) > PCCL_SEGMENTS_MAX)
        return PCCL_USAGE;
    struct pc_ranges ranges;
    int status = pc_op_ranges(op, self, &ranges);
    if (status != PCCL_OK)
        return status;
    struct command *command = new_submit(op);
    if (!command) {
        pc_ranges_free(&ranges);
        return PCCL_RESOURCE;
    }
    struct ticket *ticket = NULL;
    bool wake = false;
    status = reserve(engine, &ranges, &ticket);
    if (status == PCCL_OK) {
        pc_op_copy_own(op, self);
        pthread_mutex_lock(&engine->mutex);
        status = submit_locked(engine, command, ticket, out, &wake);
        pthread_mutex_unlock(&engine->mutex);
    }
    if (status != PCCL_OK) {
        pc_command_free(command);
        return status;
    }
    if (timeout_ms > 0)
        return wait_for(engine, out, timeout_ms, wake);
    if (wake)
        pc_drive_call(engine);
    return PCCL_PENDING;
}

uint64_t pccl_engine_submitted(pccl_engine *engine) {
    pthread_mutex_lock(&engine->mutex);
    uint64_t submitted = engine->submitted;
    pthread_mutex_unlock(&engine->mutex);
    return submitted;
}

void pc_engine_ended(pccl_engine *engine, const struct pccl_result *result) {
    pthread_mutex_lock(&engine->mutex);
    struct ticket *ticket = running_ticket(engine, result->op);
    PC_ASSERT(ticket); /* an op that nobody submitted cannot end */
    copy_result(&ticket->result, result);
    end_ticket(engine, ticket);
    pthread_mutex_unlock(&engine->mutex);
    pthread_cond_broadcast(&ticket->ended); /* without the mutex, which who is woken wants */
}
