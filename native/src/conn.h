/* conn: the connections of one io shell, until they carry frames: calling, accepting, handshakes,
 * which connection serves which link of the core, and what is said when one breaks. The predecessor
 * calls its successor; an accepted connection that no view needs yet waits. All pccl-io only. */
#ifndef PC_CONN_H
#define PC_CONN_H

#include "io.h"

/* What epoll watches this connection for. */
void pc_conn_watch(struct pc_io *io, struct pc_conn *conn, uint32_t events);
void pc_conn_close(struct pc_io *io, struct pc_conn *conn);
/* The connection that serves a link, or NULL. */
struct pc_conn *pc_conn_of_link(struct pc_io *io, int which);

/* The link in use is gone: what was in flight on it is lost, so only a new view mends it. */
void pc_conn_link_broke(struct pc_io *io, struct pc_conn *conn, const char *reason);
/* A connection in any state fails; an outbound one is called again later. */
void pc_conn_failed(struct pc_io *io, struct pc_conn *conn, const char *reason);
void pc_errno_text(char *out, size_t n, const char *what, long negative_errno);

/* Calls the successor. */
void pc_conn_call(struct pc_io *io);
/* The successor's port answered, well or not. */
void pc_conn_connected(struct pc_io *io, struct pc_conn *conn);
void pc_conn_accept_all(struct pc_io *io);
/* Sends what is left of our handshake; false: it failed and is closed. */
bool pc_conn_send_shake(struct pc_io *io, struct pc_conn *conn);
/* Reads the other's handshake and judges it when whole. */
void pc_conn_shake(struct pc_io *io, struct pc_conn *conn);
/* Makes a waiting connection from the predecessor the link, if there is one. */
void pc_conn_claim_waiting(struct pc_io *io);

#endif
