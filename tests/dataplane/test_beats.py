"""Links on which nothing is heard, and those that only have nothing to say."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np

from pccl_py.dataplane.engine import Engine
from pccl_py.errors import Code
from pccl_py.peer.events import LinkLost
from pccl_py.types import GroupRecord, Member, PeerId, Record
from tests.crew import start, until
from tests.dataplane.test_engine import PROOF, RUN, engines, finish, install, reduce_once, submit
from tests.dataplane.test_hostile_link import LIAR, greet, view_of
from tests.sim.wire import HEADER, MARK, PART, READY, TYPES, descriptor, frame

SILENCE_MS = 560
PAUSE_S = 2.5 * SILENCE_MS / 1000


def made(peer: int, silence_ms: int = 0) -> Engine:
    return Engine(
        bind_host="127.0.0.1", bind_port=0, run=RUN, proof=PROOF, checksum_payload=True,
        peer=PeerId(peer), silence_ms=silence_ms,
    )  # fmt: skip


@contextmanager
def linked_to(engine: Engine, beat_ms: int = 0) -> Iterator[socket.socket]:
    """A raw socket that is the link of the only other member."""
    try:
        with greet(engine, beat_ms) as liar:
            until(lambda: engine.stats().links_up == 1)
            engine.set_view(view_of(engine, 1, (1, LIAR)))
            yield liar
    finally:
        engine.close()


def losses(engine: Engine) -> list[LinkLost]:
    events = []
    while (event := engine.next_event()) is not None:
        events.append(event)
    return [event for event in events if isinstance(event, LinkLost)]


def test_who_has_nothing_to_say_is_heard_all_the_same() -> None:
    """Patient and impatient ends; an idle time of several silences; then an op."""
    with engines(2, silence_ms=SILENCE_MS) as equals, engines(2) as mixed:
        mixed += [made(3, SILENCE_MS), made(4, 60_000)]
        try:
            install(mixed, 2)
            until(lambda: all(engine.stats().links_up == 3 for engine in mixed))
            time.sleep(PAUSE_S)
            for engine in (*equals, *mixed):
                assert losses(engine) == []
            reduce_once(equals)
            reduce_once(mixed)
        finally:
            for engine in mixed[2:]:
                engine.close()


def test_who_says_nothing_loses_its_link_whatever_it_takes_in(core: ModuleType) -> None:
    """One reads all and answers nothing, one reads nothing, one has even submitted the op."""

    def silent(reads: bool, says: bytes) -> LinkLost:
        engine = made(1, SILENCE_MS)
        with linked_to(engine) as liar:
            liar.sendall(says)
            tensor = np.ones(1 << 20)
            ticket = submit(engine, tensor)
            liar.settimeout(0.02)
            until_s = time.monotonic() + 10
            while not (lost := losses(engine)):
                assert time.monotonic() < until_s
                with contextlib.suppress(TimeoutError):
                    if reads:
                        liar.recv(1 << 20)
            engine.fail(Code.EVICTED, "over")
            finish(engine, ticket)
            return lost[0]

    ready = frame(core, READY, 1, payload=descriptor(1 << 20, 8), contributors=2)
    ends = [start(lambda a=a: silent(*a)) for a in ((True, b""), (False, b""), (True, ready))]
    for end in ends:
        lost = end.result(30.0)
        assert lost.other == LIAR
        assert "nothing was heard for 0.6 s" in lost.reason


def test_heartbeats_come_as_often_as_asked_and_between_frames(core: ModuleType) -> None:
    with linked_to(made(1), beat_ms=20) as liar:
        beats = b""
        while len(beats) < 10 * HEADER.size:
            beats += liar.recv(10 * HEADER.size - len(beats))
        assert beats == frame(core, MARK, 0, epoch=0) * 10


def test_who_asks_for_no_heartbeats_gets_none_and_nobody_gets_too_many() -> None:
    with linked_to(made(1, 60_000)) as content, linked_to(made(1), beat_ms=1) as greedy:
        began = time.monotonic()
        beats = 0
        while beats < 20 * HEADER.size:
            beats += len(greedy.recv(HEADER.size))
        assert time.monotonic() - began > 0.15, "every 10 ms at most"
        content.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            assert content.recv(1) == b"", "nothing was to come"


def test_between_frames_only(core: ModuleType) -> None:
    """A large op is read by fits and starts; heartbeats are due all the time."""
    engine, count = made(1), 1 << 20
    with linked_to(engine, beat_ms=10) as liar:
        liar.sendall(frame(core, READY, 1, payload=descriptor(count, 8), contributors=2,
                           segment=64))  # fmt: skip
        tensor = np.ones(count)
        ticket = submit(engine, tensor)
        data, kinds, pauses = b"", list[tuple[int, int]](), 0
        end = time.monotonic() + 20
        while (MARK, 0) not in kinds or kinds.count((PART, 1)) < 8:
            assert time.monotonic() < end, kinds
            data += liar.recv(1 << 16)
            if pauses < 10:  # the socket is full for some time, with a frame half sent
                time.sleep(0.03)
                pauses += 1
            while len(data) >= HEADER.size:
                version, kind, _, length, _, epoch, *_ = HEADER.unpack(data[: HEADER.size])
                assert (version, kind in TYPES) == (2, True), "cut in the wrong place"
                size = HEADER.size + int.from_bytes(length, "little")
                if len(data) < size:
                    break
                kinds.append((kind, epoch))
                data = data[size:]
        engine.fail(Code.EVICTED, "over")
        finish(engine, ticket)


def test_a_link_that_waits_for_the_next_view_is_not_judged() -> None:
    """One end is in a view that the other has not got yet, and does not read (R8)."""
    with engines(2, silence_ms=SILENCE_MS) as pair:
        reduce_once(pair)
        members = tuple(
            Member(PeerId(i + 1), f"m{i}", "g", "127.0.0.1", engine.port)
            for i, engine in enumerate(pair)
        )
        group = GroupRecord("g", tuple(member.peer for member in members))
        view = Record(1, 2, False, members, (group,))
        pair[0].set_view(view)
        tensors = [np.ones(5000) for _ in pair]
        tickets = [submit(engine, t) for engine, t in zip(pair, tensors, strict=True)]
        time.sleep(PAUSE_S)
        assert [losses(engine) for engine in pair] == [[], []]
        pair[1].set_view(view)
        for engine, ticket in zip(pair, tickets, strict=True):
            assert finish(engine, ticket).error is None
