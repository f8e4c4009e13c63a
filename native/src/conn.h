/* conn: the connections of one io shell, until they carry frames: calling, accepting, handshakes,
 * who is linked to whom, and what is said when a link breaks. A pair may have several links, called
 * by either end. All pccl-io only. */
#ifndef PC_CONN_H
#define PC_CONN_H

#include "io.h"

/* What epoll watches this connection for. */
void pc_conn_watch(struct pc_io *io, struct pc_conn *conn, uint32_t events);
void pc_conn_close(struct pc_io *io, struct pc_conn *conn);
/* The connection that is a link of the core. */
struct pc_conn *pc_conn_of_link(struct pc_io *io, int link);
/* The member, or NULL. */
struct pc_mate *pc_mate_of(struct pc_io *io, uint64_t peer);

/* A connection in any state fails; of a link to a member this is evidence: what was in flight on it
 * is lost, so only a new view mends it. One that was being called is called again later. */
void pc_conn_failed(struct pc_io *io, struct pc_conn *conn, const char *reason);
void pc_errno_text(char *out, size_t n, const char *what, long negative_errno);

/* Calls a member once more. */
void pc_conn_call(struct pc_io *io, struct pc_mate *mate);
/* Calls a member that is not linked, or waits for its call: the smaller id calls. */
void pc_conn_await(struct pc_io *io, struct pc_mate *mate);
/* A wait is over: calls a member that lacks links still. */
void pc_conn_again(struct pc_io *io, struct pc_mate *mate);
/* Calls a member unless there is a link, or will be. */
void pc_conn_want(struct pc_io *io, struct pc_mate *mate);
/* The called port answered, well or not. */
void pc_conn_connected(struct pc_io *io, struct pc_conn *conn);
void pc_conn_accept_all(struct pc_io *io);
/* Sends what is left of our handshake; false: it failed and is closed. */
bool pc_conn_send_shake(struct pc_io *io, struct pc_conn *conn);
/* Reads the other's handshake and judges it when whole. */
void pc_conn_shake(struct pc_io *io, struct pc_conn *conn);

#endif
