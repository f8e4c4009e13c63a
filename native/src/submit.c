/* submit: ops from the caller's side: arguments, numbers, tickets, waiting for results. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "check.h"
#include "engine.h"

static bool op_is_sound(const struct pccl_op *op) {
    size_t element = pccl_dtype_size(op->dtype);
    if (!element || op->reduce < PCCL_SUM || op->reduce > PCCL_MAX || !op->timeout_ns)
        return false;
    if (op->kind != PCCL_ALL_REDUCE && op->kind != PCCL_BROADCAST)
        return false;
    if (op->route < PCCL_ROUTE_AUTO || op->route > PCCL_ROUTE_DIRECT)
        return false;
    if ((op->kind == PCCL_BROADCAST) != (op->root_peer != 0))
        return false;
    if (op->count > UINT64_MAX / 64 / element)
        return false;
    return !op->count || (op->data && (uintptr_t)op->data % element == 0);
}

static bool overlaps(const pccl_engine *engine, const uint8_t *data, uint64_t bytes) {
    if (!bytes)
        return false;
    for (int i = 0; i < TICKETS; i++) {
        const struct ticket *ticket = &engine->tickets[i];
        if (ticket->state == TICKET_RUNNING && ticket->bytes &&
            data < ticket->data + ticket->bytes && ticket->data < data + bytes)
            return true;
    }
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

/* Caller holds the mutex; the command is consumed on PCCL_OK. */
static int submit_locked(pccl_engine *engine, struct command *command, uint64_t *ticket_out) {
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
        pc_command_push(engine, command);
    }
    return PCCL_OK;
}

int pccl_engine_submit(pccl_engine *engine, const struct pccl_op *op, uint64_t *op_id,
                       uint64_t *ticket) {
    if (!op_is_sound(op))
        return PCCL_USAGE;
    if (pc_core_segments(engine->io.core, op->dtype, op->count) > PCCL_SEGMENTS_MAX)
        return PCCL_USAGE;
    struct command *command = pc_command_new(CMD_SUBMIT);
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
        ticket->state = TICKET_FREE;
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
