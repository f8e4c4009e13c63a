/* submit: ops from the caller's side: arguments, numbers, tickets, waiting for results. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "check.h"
#include "engine.h"

static bool clashes(const pccl_engine *engine, const struct pc_ranges *ranges) {
    for (int i = 0; i < TICKETS; i++)
        if (engine->tickets[i].state == TICKET_RUNNING &&
            pc_ranges_clash(&engine->tickets[i].ranges, ranges))
            return true;
    return false;
}

static bool id_in_use(const pccl_engine *engine, uint64_t op_id) {
    for (int i = 0; i < TICKETS; i++)
        if (engine->tickets[i].state == TICKET_RUNNING && engine->tickets[i].op_id == op_id)
            return true;
    return false;
}

static struct ticket *free_ticket(pccl_engine *engine) {
    for (int i = 0; i < TICKETS; i++)
        if (engine->tickets[i].state == TICKET_FREE)
            return &engine->tickets[i];
    return NULL;
}

static void end_ticket(struct ticket *ticket, int status, const char *text) {
    ticket->result = (struct pccl_result){.op = ticket->op_id, .status = status};
    snprintf(ticket->result.text, sizeof ticket->result.text, "%s", text);
    ticket->state = TICKET_ENDED;
    pthread_cond_broadcast(&ticket->ended);
}

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
    struct ticket *ticket = free_ticket(engine);
    int status = clashes(engine, ranges) ? PCCL_USAGE : ticket ? PCCL_OK : PCCL_RESOURCE;
    if (status == PCCL_OK) {
        ticket->state = TICKET_RUNNING;
        ticket->op_id = 0;
        ticket->ranges = *ranges;
        *out = ticket;
    }
    pthread_mutex_unlock(&engine->mutex);
    if (status != PCCL_OK)
        pc_ranges_free(ranges);
    return status;
}

static void release(struct ticket *ticket) {
    ticket->state = TICKET_FREE;
    pc_ranges_free(&ticket->ranges);
}

/* Caller holds the mutex; the command is consumed on PCCL_OK, the ticket freed otherwise. */
static int submit_locked(pccl_engine *engine, struct command *command, struct ticket *ticket,
                         uint64_t *ticket_out) {
    command->op_id = next_id(engine, command->op);
    if (!command->op_id || id_in_use(engine, command->op_id)) {
        release(ticket);
        return command->op_id ? PCCL_USAGE : PCCL_RESOURCE;
    }
    engine->submitted += !command->op->context;
    ticket->generation++;
    ticket->op_id = command->op_id;
    *ticket_out = (uint64_t)ticket->generation << 16 | (uint64_t)(ticket - engine->tickets);
    if (engine->failed) {
        end_ticket(ticket, engine->failed, engine->failed_text);
        free(command->op);
        free(command);
    } else {
        pc_command_push(engine, command);
    }
    return PCCL_OK;
}

int pccl_engine_submit(pccl_engine *engine, const struct pccl_op *op, uint64_t *op_id,
                       uint64_t *ticket_out) {
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
    struct command *command = pc_command_new(CMD_SUBMIT);
    if (command)
        command->op = pc_op_copy(op);
    struct ticket *ticket = NULL;
    if (!command || !command->op) {
        pc_ranges_free(&ranges);
        status = PCCL_RESOURCE;
    } else {
        status = reserve(engine, &ranges, &ticket);
    }
    if (status == PCCL_OK) {
        pc_op_copy_own(op, self);
        pthread_mutex_lock(&engine->mutex);
        status = submit_locked(engine, command, ticket, ticket_out);
        if (status == PCCL_OK)
            *op_id = ticket->op_id;
        pthread_mutex_unlock(&engine->mutex);
    }
    if (status != PCCL_OK && command) {
        free(command->op);
        free(command);
    }
    return status;
}

static struct ticket *ticket_of(pccl_engine *engine, uint64_t number) {
    uint64_t index = number & 0xffff;
    if (index >= TICKETS)
        return NULL;
    struct ticket *ticket = &engine->tickets[index];
    bool known = ticket->state != TICKET_FREE && ticket->generation == (uint32_t)(number >> 16);
    return known ? ticket : NULL;
}

int pccl_engine_wait(pccl_engine *engine, uint64_t number, int timeout_ms,
                     struct pccl_result *result) {
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
        release(ticket);
    }
    pthread_mutex_unlock(&engine->mutex);
    return status;
}

uint64_t pccl_engine_submitted(pccl_engine *engine) {
    pthread_mutex_lock(&engine->mutex);
    uint64_t submitted = engine->submitted;
    pthread_mutex_unlock(&engine->mutex);
    return submitted;
}

static void ended_locked(pccl_engine *engine, const struct pccl_result *result) {
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

void pc_engine_ended(pccl_engine *engine, const struct pccl_result *result) {
    pthread_mutex_lock(&engine->mutex);
    ended_locked(engine, result);
    pthread_mutex_unlock(&engine->mutex);
}
