/* scenes: what a target and seeds.c must agree on, so that real traffic is an input. */
#ifndef FZ_SCENES_H
#define FZ_SCENES_H

#include "world.h"

/* Target core: what a record calls. */
enum fz_call {
    FZ_SUBMIT,
    FZ_SUBMIT_TOO,
    FZ_SUBMIT_ALL,
    FZ_SEND,
    FZ_DELIVER,
    FZ_STEPS,
    FZ_STEPS_TOO,
    FZ_LINK,
    FZ_UNLINK,
    FZ_FLUSH,
    FZ_VIEW,
    FZ_INSTALL,
    FZ_ADVANCE,
    FZ_FAIL,
    FZ_KILL,
    FZ_INVENT,
    FZ_CHANGE,
    FZ_REPEAT,
    FZ_TURN, /* a member lies from now on, in all sorts of ways */
    FZ_CALLS
};

/* Target demux: two real members, then two who are nobody; the ops of a setup byte; one link each.
 */
#define FZ_DEMUX_REAL  2
#define FZ_DEMUX_COUNT 4
void fz_demux_open(struct fz_world *world, uint8_t how, uint8_t where, uint64_t random,
                   bool all_real);

#endif
