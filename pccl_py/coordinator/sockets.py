"""Opening the coordinator's sockets with the options they need (layer 4).

`server` calls it; it reads and writes nothing and knows no protocol rule. Errors say which port or
address and what to do.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import zmq
import zmq.asyncio

from pccl_py.config import Timers
from pccl_py.errors import ResourceError, UsageError
from pccl_py.protocol import encoding
from pccl_py.protocol.endpoint import Endpoint

SEND_HWM = 4096
RECEIVE_HWM = 64
LISTEN_BACKLOG = 1024
LINGER_MS = 300
HANDSHAKE_MS = 5000

_log = logging.getLogger("pccl.coordinator")


class PortInUse(ResourceError):
    """Another program has the port. A standby waits until it is free."""


def resolved(bind: Endpoint) -> Endpoint:
    """`bind` with a numeric host, since a zmq socket binds to no names."""
    try:
        found = socket.getaddrinfo(
            bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise UsageError(f"cannot listen on {bind}: {error.strerror}") from None
    return Endpoint(str(found[0][4][0]), bind.port)


@contextmanager
def open_router(bind: Endpoint, timers: Timers) -> Iterator[zmq.asyncio.Socket]:
    """A bound ROUTER that notices silent peers within the detection time; at the end it lingers
    just long enough for last words. Raises PortInUse, ResourceError (address not ours)."""
    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    silence_ms = max(1, int(600 * timers.detection_s))
    options = {
        zmq.ROUTER_MANDATORY: 1,
        zmq.SNDHWM: SEND_HWM,
        zmq.RCVHWM: RECEIVE_HWM,
        zmq.BACKLOG: LISTEN_BACKLOG,
        zmq.MAXMSGSIZE: encoding.MESSAGE_BYTES_MAX,
        zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
        zmq.HEARTBEAT_IVL: max(1, int(1000 * timers.heartbeat_s)),
        zmq.HEARTBEAT_TIMEOUT: silence_ms,
        zmq.HEARTBEAT_TTL: max(100, silence_ms),  # counted in tenths of a second
        zmq.LINGER: LINGER_MS,
        zmq.IPV6: int(bind.is_v6),
    }
    try:
        for option, value in options.items():
            router.setsockopt(option, value)
        _bind(router, bind)
        yield router
    finally:
        router.close()
        context.term()


def _bind(router: zmq.asyncio.Socket, bind: Endpoint) -> None:
    try:
        router.bind(bind.zmq_address)
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            text = (
                f"port {bind.port} on {bind.host} is in use: stop the coordinator that runs there "
                "(`pccl status` shows it), or choose another port with --bind"
            )
            raise PortInUse(error.errno, text) from None
        raise _refused(bind, error.errno, error.strerror) from None


@contextmanager
def hold(bind: Endpoint, wanted: bool) -> Iterator[socket.socket]:
    """Keeps the port for a standby, whom nobody may reach before it acts: bound and not listening,
    so that calls are refused. If `wanted`; close it to listen there. A port that is in use may be
    that of the coordinator it stands by for: that is a warning, and it is asked for again when that
    one is gone."""
    with _tcp(bind) as kept:
        if wanted and bind.port and not _take(kept, bind):
            _log.warning(
                "port %d on %s is in use: right if the coordinator that acts now listens there; "
                "free it otherwise, or this standby cannot take over",
                bind.port, bind.host,
            )  # fmt: skip
        yield kept


def is_free(bind: Endpoint) -> bool:
    """Whether nobody has the port now. Raises ResourceError if it can never be ours."""
    with _tcp(bind) as asked:
        return _take(asked, bind)


def _tcp(bind: Endpoint) -> socket.socket:
    return socket.socket(socket.AF_INET6 if bind.is_v6 else socket.AF_INET, socket.SOCK_STREAM)


def _take(fresh: socket.socket, bind: Endpoint) -> bool:
    """Bind it as a ROUTER does; False if the port is in use."""
    fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        fresh.bind((bind.host, bind.port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise _refused(bind, error.errno, error.strerror) from None
    return True


def _refused(bind: Endpoint, number: int | None, why: str | None) -> ResourceError:
    return ResourceError(
        number, f"cannot listen on {bind}: {why}; choose another address with --bind"
    )


@contextmanager
def open_monitor(router: zmq.asyncio.Socket) -> Iterator[zmq.asyncio.Socket]:
    """A socket that tells the file descriptor of each connection that breaks."""
    monitor = router.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    try:
        yield monitor
    finally:
        router.disable_monitor()
        monitor.close(linger=0)
