"""Peers that fall silent without a word: stopped, cut off, hung; and those that are only busy.

Deadlines are short, so that each silence is several detection times; nothing else is timed.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash

from pccl_py.config import Timers
from pccl_py.protocol.messages import Answer, EvictedMsg, Flush
from stress import wan
from tests.coordinator.raw_peer import RawPeer, hello, running
from tests.crew import join_all, start
from tests.dataplane.test_engine import handshake
from tests.e2e.processes import Process

PROGRAM = Path(__file__).with_name("loops.py")
DEADLINE_S = 4.0
DETECTION_S = Timers(DEADLINE_S).detection_s
COORDINATOR = ("-m", "pccl_py", "coordinator", "--deadline", str(DEADLINE_S), "--bind")


@contextmanager
def loops(
    address: str,
    count: int,
    before: Callable[[int], Sequence[str]] = lambda number: (),
    secret: str = "",
) -> Iterator[list[Process]]:
    """Members m1, m2, … that wait for each other. before: words before each one's command."""
    with ExitStack() as stack:
        made = []
        for number in range(1, count + 1):
            words = (address, f"m{number}", str(count), str(DEADLINE_S))
            made.append(Process(*words, script=PROGRAM, before=before(number), secret=secret))
            stack.callback(made[-1].end)
        for process in made:
            process.until("joined")
        yield made


def await_ops(members: list[Process], world: int, timeout: float = 30.0) -> int:
    """Until all have ended an op among `world`; the greatest epoch seen with it."""
    return max(p.until("op", timeout, world=world, high=world)["epoch"] for p in members)


def finish(members: list[Process]) -> None:
    """All leave; each op that ended was right, none took longer than its deadline."""
    for process in members:
        process.tell("stop")
    assert [p.finish() for p in members] == [0] * len(members), [p.errors() for p in members]
    for process in members:
        assert process.events("left")
        for op in process.events("op"):
            assert op["right"], op
            assert op["seconds"] < 2 * DEADLINE_S, op


def test_stopped_is_lost_and_holding_the_gil_is_not() -> None:
    """m4 is stopped while m1 holds the GIL for some detection times, and its answer to the flush
    is waited for. m4 comes back to find itself evicted, and joins again."""
    with running(*COORDINATOR, "127.0.0.1:0") as (address, _), loops(address, 4) as members:
        busy, *others, stopped = members
        await_ops(members, 4)
        busy.tell(f"hold {2.5 * DETECTION_S}")
        busy.until("holding")
        stopped.kill(signal.SIGSTOP)
        busy.until("held", 4 * DEADLINE_S)
        await_ops([busy, *others], 3)
        stopped.kill(signal.SIGCONT)
        assert "connections" in stopped.until("evicted")["text"]
        await_ops(members, 4)
        assert not any(p.events("evicted") for p in (busy, *others))
        finish(members)


@pytest.fixture
def net() -> Iterator[wan.Network]:
    try:
        network = wan.Network(5, rtt_ms=2.0, rate_mbit=0.0).__enter__()
    except wan.WanUnavailable as missing:
        pytest.skip(str(missing))
    with ExitStack() as stack:
        stack.push(network)
        yield network


def test_packets_that_fall_into_a_hole(net: wan.Network) -> None:
    """Hosts in namespaces of their own, the coordinator on 0. First a member is cut off from all
    (nothing is reset: its connections are half open), is evicted, and joins again when it can.
    Then two living members are cut off from each other alone: that is routed around."""

    def enter(host: int) -> tuple[str, ...]:
        return ("nsenter", f"--net={net.namespace(host)}", "--")

    with ExitStack() as stack:
        bind = f"{net.address(0)}:48148"
        own = running(*COORDINATOR, bind, env={"PCCL_SECRET": "s"}, before=enter(0))
        stack.enter_context(own)
        members = stack.enter_context(loops(bind, 4, before=enter, secret="s"))
        *three, alone = members
        await_ops(members, 4)
        for host in range(4):
            net.cut(4, host)
        await_ops(three, 3)
        for host in range(4):
            net.heal(4, host)
        assert "evicted" in alone.until("evicted")["text"]
        epoch = await_ops(members, 4)

        net.cut(1, 2)
        cut_at = time.monotonic()
        while await_ops(members, 4) == epoch:
            assert time.monotonic() < cut_at + 30
        await_ops(members, 4)
        assert [len(p.events("evicted")) for p in members] == [0, 0, 0, 1]
        finish(members)


class Hollow:
    """A member whose control lives and whose engine does not: links come up, and that is all."""

    def __init__(self, address: str, stack: ExitStack, *, reads: bool, answers: bool) -> None:
        self.reads, self.answers = reads, answers
        self.listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.control = stack.enter_context(RawPeer(address))
        said = hello(run="default", name="hollow", min_members=3)
        self.me = replace(said, port=int(self.listener.getsockname()[1]))
        self.control.send(self.me)
        start(self._serve)
        self.end = start(self._live)

    def _live(self) -> str:
        while True:
            match self.control.receive(60.0):
                case Flush(epoch=epoch) if self.answers:
                    self.control.send(Answer(epoch, 0, 0, (), (), (), False))
                case EvictedMsg(reason=reason):
                    return reason
                case None:
                    raise AssertionError("nothing comes any more")

    def _serve(self) -> None:
        run = xxhash.xxh3_64_intdigest("run\0default")
        links = []
        with suppress(OSError):  # closed: the test is over
            while True:
                link = self.listener.accept()[0]
                links.append(link)
                theirs = b""
                while len(theirs) < 96:
                    theirs += link.recv(96 - len(theirs))
                who = int.from_bytes(theirs[16:24], "little")
                link.sendall(handshake(run=run, peer=self.me.peer, to=who, proof=bytes(32)))
                if self.reads:
                    start(lambda link=link: [None for _ in iter(lambda: link.recv(1 << 20), b"")])


def test_an_engine_that_stands_still() -> None:
    """Its control lives, its links take what they are given: it is lost all the same."""
    both = [start(lambda answers=answers: lose_a_hollow_one(answers)) for answers in (True, False)]
    assert [one.result(40.0) for one in both] == [
        "no route to it avoids the broken links",
        "all its data links are lost and it does not answer a flush",
    ]


def lose_a_hollow_one(answers: bool) -> str:
    """Why it is evicted."""
    count = 1_000_000
    command = (*COORDINATOR, "127.0.0.1:0")
    with ExitStack() as stack:
        address, _ = stack.enter_context(running(*command))
        hollow = Hollow(address, stack, reads=answers, answers=answers)
        duo = join_all(address, 2, min_members=3, deadline_s=DEADLINE_S)
        for comm in duo:
            stack.callback(comm.close)
        assert {comm.world_size for comm in duo} == {3}
        tensors = [np.full(count, 1.0 + i) for i in range(2)]
        infos = duo.each(lambda c: c.all_reduce(tensors[duo.index(c)]))
        assert {info.contributors_max for info in infos} == {2}
        assert all((t == 3).all() for t in tensors)
        duo.each(lambda c: c.leave())
        return hollow.end.result(10.0)
