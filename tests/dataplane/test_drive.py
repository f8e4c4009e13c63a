"""Whichever thread drives an engine: its bits, its end, and what others ask of it meanwhile."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from pccl_py.dataplane import buffers
from pccl_py.dataplane.engine import Engine, Ticket
from pccl_py.dataplane.op import Op
from pccl_py.dataplane.results import Result
from pccl_py.peer.events import Flushed
from pccl_py.types import Kind
from tests.crew import start
from tests.dataplane.test_engine import engines, submit

UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}[platform.machine()]  # FE_UPWARD of <fenv.h>
TENTHS = np.full(100_000, 0.1, dtype=np.float32)
WAIT_S = 20.0


@contextmanager
def rounding_upward() -> Iterator[ctypes.CDLL]:
    """This thread's sums are rounded up."""
    libm = ctypes.CDLL("libm.so.6")
    before = libm.fegetround()
    assert libm.fesetround(UPWARD) == 0
    try:
        yield libm
    finally:
        libm.fesetround(before)


def all_reduce(engine: Engine, tensor: np.ndarray) -> Result | None:
    """Submitted and waited for in one call."""
    ticket = Ticket()
    buffer = buffers.of(tensor)
    op = Op(Kind.ALL_REDUCE, buffer.dtype, "all_reduce", out=buffer)
    return engine.submit(ticket, op, timeout_s=WAIT_S, wait_ms=int(1000 * WAIT_S))


def event(engine: Engine, kind: type) -> object:
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        found = engine.next_event()
        if isinstance(found, kind):
            return found
        time.sleep(0.002 if found is None else 0)
    raise AssertionError(f"no {kind.__name__} within {WAIT_S} s")


def test_bits_do_not_depend_on_how_the_waiting_thread_rounds() -> None:
    values = [TENTHS * (i + 1) for i in range(3)]

    def reduced(engine: Engine, tensor: np.ndarray) -> np.ndarray:
        assert all_reduce(engine, tensor) is not None
        return tensor

    def upward(engine: Engine, tensor: np.ndarray) -> np.ndarray:
        with rounding_upward() as libm:
            found = reduced(engine, tensor)
            assert libm.fegetround() == UPWARD  # the thread has its own back
        return found

    with engines(3) as made:
        plain = [start(lambda i=i: reduced(made[i], values[i].copy())) for i in range(3)]
        expected = [future.result(WAIT_S) for future in plain]
        other = [start(lambda i=i: upward(made[i], values[i].copy())) for i in range(3)]
        assert all((future.result(WAIT_S) == expected[0]).all() for future in other)
    with rounding_upward():
        up = values[1] + values[2] + values[0]
    assert (up != expected[0]).any()  # or the test would show nothing


def test_what_is_under_way_goes_on_when_nobody_waits() -> None:
    with engines(2) as made:
        large = [np.ones(1 << 21, dtype=np.float32) for _ in made]
        tickets = [submit(engine, tensor) for engine, tensor in zip(made, large, strict=True)]
        for _ in range(20):  # whoever waits for these also drives the large ones, and leaves
            ends = [start(lambda e=engine: all_reduce(e, np.ones(4))) for engine in made]
            assert all(end.result(WAIT_S) for end in ends)
        until = time.monotonic() + WAIT_S
        while not all(engine.wait(t, 0) for engine, t in zip(made, tickets, strict=True)):
            assert time.monotonic() < until
            time.sleep(0.002)
        assert all((tensor == 2).all() for tensor in large)


def test_commands_reach_an_engine_that_a_waiting_thread_drives() -> None:
    with engines(2) as made:
        waiting = start(lambda: all_reduce(made[0], np.ones(4)))
        while not made[0].submitted():
            time.sleep(0.002)
        time.sleep(0.05)
        made[0].flush(1)
        flushed = event(made[0], Flushed)
        assert isinstance(flushed, Flushed)
        assert [op.op for op in flushed.ops] == [1]
        assert not waiting.done()
        made[0].fail(3, "enough")
        ended = waiting.result(WAIT_S)
        assert ended is not None
        assert "enough" in str(ended.error)


def test_two_waiters_of_one_engine_both_come_back() -> None:
    with engines(2) as made:
        early = [start(lambda e=engine: all_reduce(e, np.ones(1 << 20))) for engine in made]
        late = [np.ones(8) for _ in made]
        ends = []
        for engine, tensor in zip(made, late, strict=True):
            while engine.submitted() < 1:
                time.sleep(0.001)
            ends.append(start(lambda e=engine, t=tensor: all_reduce(e, t)))
        assert all(end.result(WAIT_S) for end in [*early, *ends])
        assert all((tensor == 2).all() for tensor in late)
