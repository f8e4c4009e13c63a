"""Engines without a coordinator: views made by hand, and strangers on the data port."""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pytest

from pccl_py.dataplane import buffers
from pccl_py.dataplane.engine import Engine, Ticket
from pccl_py.dataplane.op import Op
from pccl_py.dataplane.results import Result
from pccl_py.errors import Code, Evicted, PeerLost, ResourceError, UsageError
from pccl_py.peer.events import LinkLost, PathsMeasured
from pccl_py.types import GroupRecord, Kind, Member, Path, PeerId, Record, Route

RUN = 0x1234_5678_9ABC
PROOF = bytes(range(32))
MAGIC = 0x4C434350


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def handshake(
    *,
    run: int = RUN,
    peer: int = 99,
    to: int,
    proof: bytes = PROOF,
    version: int = 2,
    beat_ms: int = 0,
) -> bytes:
    body = struct.pack("<IHHQQQII", MAGIC, version, 0, run, peer, to, 1, 0) + bytes(16) + proof
    body += struct.pack("<I", beat_ms)
    return body + struct.pack("<I", crc32c(body))


@contextmanager
def engines(count: int, **settings: object) -> Iterator[list[Engine]]:
    with ExitStack() as stack:
        made = []
        for i in range(count):
            given = {"bind_host": "127.0.0.1", "bind_port": 0, "run": RUN, "proof": PROOF}
            given |= {"checksum_payload": True, "peer": PeerId(i + 1), **settings}
            made.append(Engine(**given))
            stack.callback(made[-1].close)
        install(made, 1)
        yield made


def install(made: list[Engine], epoch: int, **routes: object) -> None:
    members = tuple(
        Member(PeerId(i + 1), f"m{i}", "g", "127.0.0.1", engine.port)
        for i, engine in enumerate(made)
    )
    group = GroupRecord("g", tuple(m.peer for m in members), **routes)  # type: ignore[arg-type]
    for engine in made:
        engine.set_view(Record(1, epoch, epoch == 1, members, (group,)))


def submit(engine: Engine, tensor: np.ndarray, timeout_s: float = 20.0) -> Ticket:
    ticket = Ticket()
    buffer = buffers.of(tensor)
    op = Op(Kind.ALL_REDUCE, buffer.dtype, "all_reduce", out=buffer)
    engine.submit(ticket, op, timeout_s=timeout_s)
    return ticket


def finish(engine: Engine, ticket: Ticket) -> Result:
    result = engine.wait(ticket, 20_000)
    assert result is not None, "the op hangs"
    return result


def reduce_once(made: list[Engine], count: int = 1000) -> None:
    tensors = [np.full(count, float(i + 1)) for i in range(len(made))]
    tickets = [submit(engine, t) for engine, t in zip(made, tensors, strict=True)]
    for engine, ticket in zip(made, tickets, strict=True):
        assert finish(engine, ticket).error is None
    assert all((t == sum(range(len(made) + 1))).all() for t in tensors)


def refused(engine: Engine) -> int:
    return engine.stats().links_refused


def until_refused(engine: Engine, count: int, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while refused(engine) < count:
        assert time.monotonic() < end, f"{refused(engine)} of {count} strangers were refused"
        time.sleep(0.01)


def call(engine: Engine) -> socket.socket:
    return socket.create_connection(("127.0.0.1", engine.port), 5.0)


def closed_by_engine(stranger: socket.socket) -> bool:
    stranger.settimeout(5.0)
    try:
        return stranger.recv(1) == b""
    except ConnectionError:
        return True


@pytest.fixture(scope="module")
def trio() -> Iterator[list[Engine]]:
    with engines(3) as made:
        reduce_once(made)
        yield made


STRANGERS = {
    "garbage": os.urandom(4096),
    "zeros": bytes(4096),
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".ljust(96, b"x"),
    "tls": b"\x16\x03\x01\x02\x00\x01".ljust(512, b"\0"),
    "wrong run": handshake(run=RUN + 1, peer=3, to=1),
    "wrong peer": handshake(peer=3, to=2),
    "itself": handshake(peer=1, to=1),
    "nobody": handshake(peer=0, to=1),
    "wrong proof": handshake(peer=3, to=1, proof=bytes(32)),
    "another version": handshake(peer=3, to=1, version=3),
    "damaged": handshake(peer=3, to=1)[:-1] + b"\0",
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_is_refused_and_disturbs_nobody(trio: list[Engine], name: str) -> None:
    before = refused(trio[0])
    with call(trio[0]) as stranger:
        with suppress(ConnectionError):  # it may hang up on us in mid sentence
            stranger.sendall(STRANGERS[name])
        assert closed_by_engine(stranger)
    until_refused(trio[0], before + 1)
    reduce_once(trio)
    for engine in trio:
        while (event := engine.next_event()) is not None:
            assert not isinstance(event, LinkLost), "no evidence against members"


def test_a_valid_handshake_is_answered(trio: list[Engine]) -> None:
    """So the refusals above are for what they say."""
    before = refused(trio[0])
    with call(trio[0]) as stranger:
        stranger.sendall(handshake(peer=99, to=1))
        stranger.settimeout(5.0)
        answer = b""
        while len(answer) < 96:
            answer += stranger.recv(96 - len(answer))
        assert answer[:8] == handshake(to=1)[:8]
        assert struct.unpack("<QQQ", answer[8:32]) == (RUN, 1, 99)
        assert answer[56:88] == PROOF
    reduce_once(trio)
    assert refused(trio[0]) == before


def test_connect_and_close(trio: list[Engine]) -> None:
    before = refused(trio[0])
    for _ in range(10):
        call(trio[0]).close()
    half = call(trio[0])
    half.sendall(handshake(peer=3, to=1)[:50])
    half.close()
    until_refused(trio[0], before + 11)
    reduce_once(trio)


def test_who_says_nothing_is_closed_after_a_while() -> None:
    with engines(2, handshake_ms=200) as made:
        reduce_once(made)
        silent, half = call(made[0]), call(made[0])
        half.sendall(handshake(peer=2, to=1)[:95])
        began = time.monotonic()
        assert closed_by_engine(silent)
        assert closed_by_engine(half)
        assert time.monotonic() - began < 3.0
        assert refused(made[0]) == 2
        reduce_once(made)


def test_a_flood_of_connections_is_bounded(trio: list[Engine]) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    strangers = []
    stop = threading.Event()
    ops = 0
    worst: list[BaseException] = []

    def reduce_on() -> None:
        nonlocal ops
        try:
            while not stop.is_set():
                reduce_once(trio)
                ops += 1
        except BaseException as error:  # noqa: BLE001  told by the test
            worst.append(error)

    thread = threading.Thread(target=reduce_on)
    thread.start()
    try:
        for n in range(300):
            stranger = call(trio[n % 3])
            strangers.append(stranger)
            if n % 3 == 0:
                stranger.sendall(handshake(peer=1000 + n, to=1))  # known to no view: it waits
        time.sleep(0.3)
        own = len(os.listdir("/proc/self/fd")) - descriptors - len(strangers)
        assert own <= 3 * 96, "an engine holds at most 96 connections"
    finally:
        stop.set()
        thread.join(30.0)
        for stranger in strangers:
            stranger.close()
    assert not worst, worst
    assert ops > 0
    reduce_once(trio)
    deadline = time.monotonic() + 15.0
    while len(os.listdir("/proc/self/fd")) > descriptors + 8:
        assert time.monotonic() < deadline, "descriptors stay open"
        time.sleep(0.05)


def test_garbage_in_mid_flood_of_data(trio: list[Engine]) -> None:
    tensors = [np.full(4_000_000, float(i + 1)) for i in range(3)]
    tickets = [submit(engine, t) for engine, t in zip(trio, tensors, strict=True)]
    for n in range(30):
        with call(trio[n % 3]) as stranger, suppress(ConnectionError):
            stranger.sendall(os.urandom(1000))
    for engine, ticket in zip(trio, tickets, strict=True):
        assert finish(engine, ticket).error is None
    assert all((t == 6.0).all() for t in tensors)


def test_no_port() -> None:
    with engines(1) as (one,):
        given = {"run": RUN, "peer": PeerId(5), "proof": PROOF, "checksum_payload": True}
        with pytest.raises(ResourceError, match=rf"{one.port} on 127.0.0.1 is in use.*bind="):
            Engine(bind_host="127.0.0.1", bind_port=one.port, **given)
        with pytest.raises(ResourceError, match=r"not an address of this machine.*bind="):
            Engine(bind_host="192.0.2.77", bind_port=0, **given)
        with pytest.raises(UsageError, match="localhost"):
            Engine(bind_host="localhost", bind_port=0, **given)


def test_fail_ends_what_runs_and_what_comes() -> None:
    with engines(2) as made:
        x = np.ones(3)
        ticket = submit(made[0], x)
        made[0].fail(Code.PEER_LOST, "told so")
        result = finish(made[0], ticket)
        assert isinstance(result.error, PeerLost)
        assert re.fullmatch(
            r"told so \(op 1 ended here \d+\.\d s after its submission, waiting for members to "
            r"submit it, 24 bytes missing\)",
            str(result.error),
        )
        later = finish(made[0], submit(made[0], x))
        assert isinstance(later.error, PeerLost)


def test_close_ends_a_wait_in_another_thread() -> None:
    with engines(2) as made:
        ticket = submit(made[0], np.ones(3))
        found: list[Result | None] = []
        waiter = threading.Thread(target=lambda: found.append(made[0].wait(ticket, 10_000)))
        waiter.start()
        time.sleep(0.1)
        made[0].close()
        waiter.join(5.0)
        assert found
        assert found[0] is not None
        assert isinstance(found[0].error, Evicted)
        made[0].close()
        with pytest.raises(UsageError, match="closed"):
            submit(made[0], np.ones(3))


def test_a_result_is_not_lost_between_two_waits() -> None:
    """As when Ctrl-C comes after the engine gave the result away and before Python kept it."""
    with engines(1) as (one,):
        ticket = submit(one, np.ones(3))
        first = finish(one, ticket)
        assert one.wait(ticket, 0) == first


def test_paths_are_measured_while_links_are_used() -> None:
    told: tuple[Path, ...] = ()
    with engines(3) as made:
        assert made[0].paths() == ()
        end = time.monotonic() + 15.0
        while len(told) < 2:
            assert time.monotonic() < end, "no sample was taken"
            reduce_once(made)
            time.sleep(0.05)
            while (event := made[0].next_event()) is not None:
                if isinstance(event, PathsMeasured):
                    told = event.paths
        assert {path.peer for path in told} == {2, 3}
        assert {path.peer for path in made[0].paths()} == {2, 3}
    assert all(0 < path.rtt_us < 1_000_000 for path in told)


def test_small_ops_take_the_hub_and_large_ones_what_the_view_says(trio: list[Engine]) -> None:
    install(trio, 2, hub=PeerId(2), large=Route.RING)
    tensors = [np.ones(size) for size in (100, 100_000) for _ in trio]
    tickets = [submit(engine, t) for engine, t in zip(trio * 2, tensors, strict=True)]
    routes = [finish(e, t).info.route for e, t in zip(trio * 2, tickets, strict=True)]
    assert routes == ["star"] * 3 + ["ring"] * 3
