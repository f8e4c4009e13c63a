"""Which ops may be in flight together, and what one that may not is told. The engine is a fake: it
takes ops, refuses those that conflict with one it has, and ends them when it is told to."""

from __future__ import annotations

import gc
from typing import cast

import numpy as np
import pytest

import pccl_py as pccl
from pccl_py.dataplane import buffers
from pccl_py.dataplane.buffers import Buffer
from pccl_py.dataplane.engine import Engine, Ticket
from pccl_py.dataplane.op import Op
from pccl_py.dataplane.results import Result
from pccl_py.flight import Flight
from pccl_py.peer.control import Mailbox
from pccl_py.types import Kind, OpInfo

INFO = OpInfo(1, 1, 0, 0, 0, 0.0, "direct", "tcp")


class FakeEngine:
    is_abandoned = False

    def __init__(self) -> None:
        self.running: dict[int, Op] = {}
        self.results: dict[int, Result] = {}
        self.timeouts: list[float] = []

    def submit(
        self, ticket: Ticket, op: Op, *, timeout_s: float, wait_ms: int = 0
    ) -> Result | None:
        if any(op.conflicts(other) for other in self.running.values()):
            raise pccl.UsageError("the buffer overlaps one that is in flight")
        self.timeouts.append(timeout_s)
        ticket.cell.number = len(self.timeouts)
        self.running[len(self.timeouts)] = op
        return None

    def wait(self, ticket: Ticket, timeout_ms: int) -> Result | None:
        return self.results.get(int(ticket.cell.number))

    def end(self, number: int, error: pccl.PcclError | None = None) -> None:
        del self.running[number]
        self.results[number] = Result(INFO, error)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def flight(engine: FakeEngine) -> Flight:
    return Flight(cast(Engine, engine), Mailbox(), 60.0)


def gathered(outs: np.ndarray, mine: np.ndarray, what: str = "all_gather") -> Op:
    """An all_gather of two."""
    whole = buffers.of(outs)
    parts: tuple[Buffer, ...] = (whole.part(0, 4), whole.part(4, 4))
    own = buffers.of(mine, writable=False)
    return Op(Kind.ALL_GATHER, own.dtype, what, input=own, receives=parts)


def test_the_deadline_is_narrowed_and_never_widened(flight: Flight, engine: FakeEngine) -> None:
    for timeout in (None, 5.0, 1e9):
        flight.start(gathered(np.zeros(8), np.zeros(4)), timeout)
    assert engine.timeouts == [60.0, 5.0, 60.0]


def test_an_input_is_read_by_several_and_written_by_none(
    flight: Flight, engine: FakeEngine
) -> None:
    mine, outs, more = np.zeros(4), np.zeros(8), np.zeros(8)
    works = [
        flight.start(gathered(outs, mine, "all_gather 'first'"), None),
        flight.start(gathered(more, mine, "all_gather 'second'"), None),
    ]
    for one, other, holder in (
        (outs, np.zeros(4), "first"),  # write on write, in the second block
        (np.zeros(8), more[5:], "second"),  # read on write
    ):
        with pytest.raises(pccl.UsageError, match=f"overlaps that of all_gather '{holder}', which"):
            flight.start(gathered(one, other), None)
    with pytest.raises(pccl.UsageError, match="all_gather 'first', which is in flight"):
        flight.start(Op(Kind.BROADCAST, buffers.of(mine).dtype, "b", out=buffers.of(mine)), None)
    for number in (1, 2):
        engine.end(number)
    assert [work.wait() for work in works] == [INFO, INFO]
    flight.start(gathered(outs, more[4:]), None)


def test_a_dropped_error_is_raised_by_the_next_start_once(
    flight: Flight, engine: FakeEngine
) -> None:
    flight.start(gathered(np.zeros(8), np.zeros(4)), None)
    gc.collect()
    engine.end(1, pccl.PeerLost("gone"))
    with pytest.raises(pccl.PeerLost, match="gone"):
        flight.start(gathered(np.zeros(8), np.zeros(4)), None)
    flight.start(gathered(np.zeros(8), np.zeros(4)), None)


def test_closed_and_failed(flight: Flight, engine: FakeEngine) -> None:
    flight.closed = "closed"
    with pytest.raises(pccl.UsageError, match="the communicator is closed"):
        flight.start(gathered(np.zeros(8), np.zeros(4)), None)
    mailbox = Mailbox()
    mailbox.put(failure=pccl.Evicted("out"))
    failed = Flight(cast(Engine, engine), mailbox, 60.0)
    with pytest.raises(pccl.Evicted):
        failed.check_usable()
    failed.check_usable(allow_failed=True)
