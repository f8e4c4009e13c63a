"""`join`: from settings to a member (layer 5).

Checks what the caller and the environment say, finds the coordinator, opens the engine and the
control thread, and waits for admission. What a member then does is `communicator`'s.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets as random_source
import socket
import time

import xxhash

from pccl_py import arguments, config
from pccl_py.communicator import PROGRESS_S, Communicator, sooner
from pccl_py.dataplane.engine import Engine
from pccl_py.errors import CoordinatorLost, DeadlineExceeded, UsageError
from pccl_py.peer import address, state
from pccl_py.peer.control import Control, ControlConfig, Mailbox
from pccl_py.protocol import endpoint
from pccl_py.types import PeerId

CONNECT_S = 10.0
GREETING_S = 0.5  # who has said nothing of our protocol by then does not speak it
LINKS_MAX = 16

_log = logging.getLogger("pccl")


def join(
    coordinator: str | None = None,
    *,
    run: str | None = None,
    group: str | None = None,
    name: str | None = None,
    min_members: int = 1,
    timeout: float | None = None,
    deadline_s: float = config.DEFAULT_DEADLINE_S,
    secret: str | bytes | None = None,
    bind: str | None = None,
    advertise: str | None = None,
    transport: str = "auto",
    links: int | None = None,
) -> Communicator:
    """Joins a run and returns when this process is a member of its group.

    Args (each: argument, else environment, else default):
        coordinator: "HOST:PORT" or "[v6]:PORT"; PCCL_COORDINATOR; 127.0.0.1:48148. Several that
            serve the run in turn (`pccl coordinator --standby`) are separated by commas: the one
            that acts is found, and found again when another takes over.
        run: the run's id; PCCL_RUN; "default".
        group: collectives span one group; PCCL_GROUP; "default".
        name: what people call this peer, at most 64 bytes; w{RANK}, or host and pid.
        min_members: how many members the run's first view waits for; the largest of all wins.
        timeout: seconds to wait for admission (the members' next safe point); None waits as long as
            it takes, with a line every 10 s that says who is awaited.
        deadline_s: bounds every op from submission to its end; detection and heartbeats follow.
        secret: the run secret; PCCL_SECRET, PCCL_SECRET_FILE. Required off loopback.
        bind: where the data port listens, "HOST", "HOST:PORT"; the address of the route to the
            coordinator, any free port.
        advertise: what other peers call, if that is another address.
        transport: "auto" or "tcp"; both are TCP today.
        links: TCP connections to each other member, 1 to 16; None or 0: one on a short path, on a
            long one as many as make it faster.
    Raises UsageError (arguments, another run, a wrong secret), CoordinatorLost (unreachable),
        DeadlineExceeded (not admitted in `timeout`), ResourceError (port, descriptors).
    Blocks. Thread: any. A restarted worker joins as a new peer.
    """
    settings = config.resolve(coordinator=coordinator, run=run, group=group, secret=secret)
    timers = config.Timers(deadline_s)
    endpoints = endpoint.parse_list(settings.coordinator)
    timeout = arguments.seconds(timeout)
    _check_join(name, min_members, transport, links)
    arguments.check_text("run", settings.run, arguments.RUN_BYTES_MAX)
    arguments.check_text("group", settings.group, arguments.GROUP_BYTES_MAX)
    if not all(one.port for one in endpoints):
        raise UsageError(f"coordinator {settings.coordinator!r}: its port cannot be 0")
    began = time.monotonic()
    until = None if timeout is None else began + timeout
    reach_until = began + (CONNECT_S if timeout is None else min(CONNECT_S, timeout))
    where = address.first_reachable(endpoints, reach_until)
    listening = address.listen_on(bind, where)
    reached = address.advertised(advertise, listening, where)
    called = address.all_numeric(endpoints, where)
    if settings.secret is None and address.needs_secret(*called, listening, reached):
        raise UsageError(
            "a run secret is required off loopback: set PCCL_SECRET or PCCL_SECRET_FILE to the one "
            "that the coordinator has"
        )
    peer = PeerId(random_source.randbits(64) or 1)
    engine = Engine(
        bind_host=listening.host,
        bind_port=listening.port,
        run=xxhash.xxh3_64_intdigest(f"run\0{settings.run}".encode()),
        peer=peer,
        proof=_link_proof(settings.secret, settings.run),
        checksum_payload=settings.checksum == "full" or not listening.is_loopback,
        links=links or 0,
        handshake_ms=int(1000 * timers.handshake_s),
        silence_ms=max(1, int(1000 * timers.silence_s)),
    )
    try:
        if name is None:
            name = config.default_name(config.environment(), socket.gethostname(), os.getpid())
        first = state.initial(
            run=settings.run,
            peer=peer,
            name=name[: arguments.NAME_BYTES_MAX],
            group=settings.group,
            host=reached.host,
            port=reached.port or engine.port,
            min_members=min_members,
            detection_s=timers.detection_s,
            deadline_s=timers.deadline_s,
        )
        control = Control(ControlConfig(called, settings.secret, timers), first, engine)
    except BaseException:
        engine.close()
        raise
    comm = Communicator(peer, settings.group, engine, control, timers.deadline_s)
    try:
        control.start()
        _await_admission(control.mailbox, where, began, reach_until, until)
    except BaseException:
        comm.close()
        raise
    return comm


def _check_join(name: str | None, min_members: int, transport: str, links: int | None) -> None:
    if not arguments.is_whole(min_members, 1, 1024):
        raise UsageError(
            f"min_members={arguments.shown(min_members)} must be a number from 1 to 1024"
        )
    if transport not in ("auto", "tcp"):
        raise UsageError(f"transport={transport!r} must be 'auto' or 'tcp'")
    if links is not None and not arguments.is_whole(links, 0, LINKS_MAX):
        raise UsageError(
            f"links={arguments.shown(links)} must be a number from 1 to {LINKS_MAX}, or 0 or None "
            "for as many as help"
        )
    if name is not None:
        arguments.check_text("name", name, arguments.NAME_BYTES_MAX)


def _link_proof(secret: bytes | None, run: str) -> bytes:
    if secret is None:
        return bytes(32)
    return hmac.digest(secret, b"pccl link\0" + run.encode(), hashlib.sha256)


def _await_admission(
    mail: Mailbox, where: endpoint.Endpoint, began: float, reach_until: float, until: float | None
) -> None:
    if not mail.wait(lambda: mail.reached, reach_until):
        if time.monotonic() < began + GREETING_S:
            raise DeadlineExceeded(f"not admitted in time: {where} had no time to answer")
        raise CoordinatorLost(
            f"{where} accepts connections but does not speak pccl's control protocol: "
            "is that the coordinator's port?"
        )
    while not mail.wait(lambda: mail.record is not None, sooner(until, PROGRESS_S)):
        awaited = mail.progress or "waiting for the coordinator to answer"
        if until is not None and time.monotonic() >= until:
            raise DeadlineExceeded(f"not admitted in time: {awaited}")
        _log.warning("join: %s", awaited)
