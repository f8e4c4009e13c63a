"""One peer of a fault case, forked by `nursery`: obeys orders, measures what it sees itself.

Each order is a line, answered with one (`enter`: with two):

    join COORDINATOR NAME MIN DEADLINE_S   -> joined CALL_NS RETURN_NS
    be OWN                                 -> ok
    fill COUNT                             -> ok
    time START_NS                          -> took BEGIN END REPAIRED LOST FLUSH VIEW
    check EXPECTED LIVING                  -> checked WRONG REDONE HASH
    loop PAUSE_MS                          -> looped OPS MASK GAP_MEDIAN GAP_MAX OP_MEDIAN OP_MAX
    enter COORDINATOR NAME MIN DEADLINE_S PAUSE_MS -> entered CALL JOINED FIRST; then as loop
    stop (during a loop)                      all members' loops end after the same op
    leave                                  -> ok

Times are of the monotonic clock, in nanoseconds, which all processes share. Values can be checked
whatever died: member OWN (a power of two) contributes OWN * (1 + i % 7), so a sum divided by that
pattern is the set of members in it. LOST, FLUSH, VIEW: when the control thread first saw a lost
link, a flush, and the last view since BEGIN; 0 if it did not.
"""

from __future__ import annotations

import logging
import select
import statistics
import time
from itertools import pairwise

import numpy as np
import xxhash
from numpy.typing import NDArray

import pccl_py.joining
from pccl_py.bench.lines import Line
from pccl_py.communicator import Communicator
from pccl_py.errors import PcclError
from pccl_py.protocol.encoding import printable

PATTERN = 7
BLOCK = PATTERN << 14  # elements that are checked at a time: they fit a cache
LOOP_ELEMENTS = 256  # of a loop's op: 1 KiB
FIRST_WAIT_S = 60.0

Floats = NDArray[np.float32]


class Sightings(logging.Handler):
    """When the control thread noted what. The log's own lines are not written anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, list[int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        now_ns = time.monotonic_ns()
        if isinstance(record.args, tuple) and record.args:
            self._seen.setdefault(str(record.args[0]), []).append(now_ns)

    def forget(self) -> None:
        self._seen = {}

    def first(self, name: str) -> int:
        return self._seen.get(name, [0])[0]

    def last(self, name: str) -> int:
        return self._seen.get(name, [0])[-1]


class Desk:
    """Obeys. The owner of the communicator and of the op's memory."""

    def __init__(self, line: Line, sightings: Sightings) -> None:
        self._line = line
        self._sightings = sightings
        self._comm: Communicator | None = None
        self._own = 0
        self._data: Floats = np.zeros(0, np.float32)

    def obey(self, words: list[str]) -> tuple[object, ...]:
        """The answer's words. Raises what an op or `join` raises."""
        match words:
            case ["join", coordinator, name, members, deadline_s]:
                called_ns, joined_ns = self._join(coordinator, name, members, deadline_s)
                return ("joined", called_ns, joined_ns)
            case ["be", own]:
                self._own = int(own)
                return ("ok",)
            case ["fill", count]:
                if self._data.size != int(count):
                    self._data = np.empty(int(count), np.float32)
                fill(self._data, self._own)
                return ("ok",)
            case ["time", start_ns]:
                return self._time(int(start_ns))
            case ["check", expected, living]:
                return ("checked", *verdict(self._data, int(expected), int(living)))
            case ["loop", pause_ms]:
                return self._loop(float(pause_ms) / 1e3, ())
            case ["enter", coordinator, name, members, deadline_s, pause_ms]:
                times_ns = self._join(coordinator, name, members, deadline_s)
                return self._loop(float(pause_ms) / 1e3, times_ns)
            case ["leave"]:
                assert self._comm is not None
                self._comm.leave()
                return ("ok",)
            case _:
                raise AssertionError(f"no such order: {words}")

    def _join(self, coordinator: str, name: str, members: str, deadline_s: str) -> tuple[int, int]:
        called_ns = time.monotonic_ns()
        self._comm = pccl_py.joining.join(
            coordinator, name=name, min_members=int(members), deadline_s=float(deadline_s),
            timeout=FIRST_WAIT_S,
        )  # fmt: skip
        return called_ns, time.monotonic_ns()

    def _time(self, start_ns: int) -> tuple[object, ...]:
        assert self._comm is not None
        self._sightings.forget()
        time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))
        began_ns = time.monotonic_ns()
        info = self._comm.all_reduce(self._data)
        ended_ns = time.monotonic_ns()
        seen = self._sightings
        return (
            "took", began_ns, ended_ns, info.repaired,
            seen.first("link-lost"), seen.first("flush"), seen.last("view"),
        )  # fmt: skip

    def _loop(self, pause_s: float, entered_ns: tuple[int, ...]) -> tuple[object, ...]:
        """Small ops and safe points, until an op in which a member had been told to stop."""
        comm = self._comm
        assert comm is not None
        told = select.poll()
        told.register(self._line.fileno(), select.POLLIN)
        buffer = np.empty(LOOP_ELEMENTS, np.float32)
        ends_ns: list[int] = []
        ops_ns: list[int] = []
        while True:
            buffer[:] = self._own
            buffer[0] = bool(told.poll(0))
            began_ns = time.monotonic_ns()
            comm.all_reduce(buffer)
            ends_ns.append(time.monotonic_ns())
            ops_ns.append(ends_ns[-1] - began_ns)
            if len(ends_ns) == 1 and entered_ns:
                self._line.send("entered", *entered_ns, ends_ns[0])
            if buffer[0]:
                break
            comm.update()
            time.sleep(pause_s)
        if told.poll(0):
            self._line.receive()
        same = float(buffer[1:].min()) == float(buffer[1:].max())
        mask = int(buffer[1]) if same else -1
        gaps_ns = [after - before for before, after in pairwise(ends_ns)]
        gaps_ns = gaps_ns or [0]
        return (
            "looped", len(ops_ns), mask, int(statistics.median(gaps_ns)), max(gaps_ns),
            int(statistics.median(ops_ns)), max(ops_ns),
        )  # fmt: skip


def pattern(count: int) -> Floats:
    """1 2 … 7 1 2 …"""
    return (1 + np.arange(count) % PATTERN).astype(np.float32)


def fill(data: Floats, own: int) -> None:
    """A member's contribution."""
    contribution = np.float32(own) * pattern(BLOCK)
    for at in range(0, data.size, BLOCK):
        part = data[at : at + BLOCK]
        part[:] = contribution[: part.size]


def verdict(data: Floats, expected: int, living: int) -> tuple[int, int, str]:
    """Wrong elements, elements without some member that died, and a hash of all bits. Right is the
    sum over a set of members between `living` and `expected`."""
    wrong = redone = 0
    shape = pattern(BLOCK)
    for at in range(0, data.size, BLOCK):
        part = data[at : at + BLOCK]
        pure = shape[: part.size]
        whole = part == np.float32(expected) * pure
        missing = part.size - int(np.count_nonzero(whole))
        if not missing:
            continue
        redone += missing
        if int(np.count_nonzero(part == np.float32(living) * pure)) == missing:
            continue
        sets = part[~whole] / pure[~whole]
        members = sets.astype(np.int64)
        bad = (
            (members != sets) | ((members & living) != living) | ((members | expected) != expected)
        )
        wrong += int(np.count_nonzero(bad))
    return wrong, redone, xxhash.xxh3_64_hexdigest(data.view(np.uint8).data)


def live(line: Line) -> None:
    """A child's whole life: until its line is closed, or an op fails."""
    sightings = Sightings()
    log = logging.getLogger("pccl.peer")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(sightings)
    desk = Desk(line, sightings)
    while (words := line.receive()) is not None:
        answer: tuple[object, ...]
        try:
            answer = desk.obey(words)
        except (PcclError, OSError) as error:
            line.send("error", printable(f"{type(error).__name__}: {error}"))
            return
        line.send(*answer)
