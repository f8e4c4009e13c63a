/* drive: which thread runs io.c's loop. Only one at a time does, and it owns struct pc_io while it
 * does. A thread that waits for its op drives until the op has ended: so a small op costs no hop
 * from thread to thread, neither to begin nor to end. pccl-io drives when nobody waits; while user
 * threads come and go it stands aside, and takes over when none has driven for PC_DRIVE_QUIET_MS,
 * at once if something is under way when one leaves. */
#ifndef PC_DRIVE_H
#define PC_DRIVE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define PC_DRIVE_QUIET_MS 2

struct pccl_engine;

struct pc_drive {
    pthread_mutex_t gate; /* all below */
    pthread_cond_t freed; /* pccl-io waits for it when it stands aside */
    bool taken;           /* somebody drives */
    bool aside, asleep;   /* pccl-io stands aside; until it is woken, not just for a while */
    bool called;          /* it is wanted back at once */
    uint32_t turns;       /* of user threads */
    uint64_t until_ns;    /* when pccl-io wakes from its wait for events; 0: it does not wait */
};

void pc_drive_init(struct pc_drive *drive);
void pc_drive_free(struct pc_drive *drive);

/* pccl-io's body: until a stop command. */
void pc_drive_run(struct pccl_engine *engine);

/* A user thread takes the wheel. false: another has it. */
bool pc_drive_take(struct pccl_engine *engine);
/* Whoever took it: one turn of the loop, which waits for events for at most timeout_ms. false: a
 * signal came, or the engine was told to stop (so is pccl-io, when it drives next). */
bool pc_drive_turn(struct pccl_engine *engine, int timeout_ms);
void pc_drive_leave(struct pccl_engine *engine);

/* Any thread: whoever drives looks at the commands, and if nobody does, pccl-io. */
void pc_drive_call(struct pccl_engine *engine);

#endif
