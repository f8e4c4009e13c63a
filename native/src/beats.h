/* beats: links that stay alive, and are heard to. What a socket tells of itself is not enough: the
 * other end of a path into which packets fall, or of an engine that has stopped, resets nothing. So
 * each end says in its handshake how often it wants to hear something, is sent a heartbeat when
 * there was nothing else, and closes a link on which it has heard nothing for too long.
 *
 * Time is counted in looks, of which a process that was stopped misses all but one: a clock that
 * slept blames nobody. A link that holds a frame of the next view is not read, and not judged. All
 * pccl-io only. */
#ifndef PC_BEATS_H
#define PC_BEATS_H

#include <stdbool.h>
#include <stdint.h>

struct pc_io;
struct pc_conn;

#define PC_BEAT_SHARE  7  /* of the allowed silence: how often something is to be heard */
#define PC_BEAT_MS_MIN 10 /* nobody may ask for more */

/* What the handshake asks of the other end, in milliseconds; 0: nothing. */
uint32_t pc_beats_wanted_ms(const struct pc_io *io);
void pc_beats_linked(struct pc_io *io, struct pc_conn *conn); /* conn has become a link */
/* Sends the heartbeat that is due, between two frames; false: not all of it could be sent. */
bool pc_beats_send(struct pc_io *io, struct pc_conn *conn);

uint64_t pc_beats_deadline(const struct pc_io *io, uint64_t at);
void pc_beats_on_time(struct pc_io *io, uint64_t now_ns);

#endif
