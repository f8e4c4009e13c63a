"""What thousands of ops leave behind: memory, descriptors, threads, messages to the coordinator.

PCCL_ENDURANCE=N does N ops, and N that are aborted (`make endurance`: 10,000); without it fewer.
"""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import pccl_py as pccl
from pccl_py.bench.census import Census
from pccl_py.collectives import Collectives
from pccl_py.coordinator import embedded
from tests.crew import Crew, crew, join_all, start, until

OPS = int(os.environ.get("PCCL_ENDURANCE", "1500"))
BATCH = 250  # in flight at once
PARTS = 3
GROWTH_MAX = 2 << 20  # bytes of RSS in one part of the ops, of three members
SCRATCH_MAX = 64 << 20
WAIT_S = 60.0

Call = Callable[[pccl.Communicator], pccl.Work | None]


@dataclass(frozen=True)
class Footprint:
    rss: int
    descriptors: int
    threads: int

    @classmethod
    def now(cls) -> Footprint:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            pages * os.sysconf("SC_PAGE_SIZE"),
            len(os.listdir("/proc/self/fd")),
            len(os.listdir("/proc/self/task")),
        )


def check_flat(do: Callable[[], None]) -> None:
    """Does it several times. The allocator grows now and then, a leak each time."""
    marks = [Footprint.now()]
    for _ in range(PARTS):
        do()
        marks.append(Footprint.now())
    grown = [after.rss - before.rss for before, after in pairwise(marks)]
    assert min(grown) < GROWTH_MAX, f"bytes more after each part: {grown}"
    assert {(m.descriptors, m.threads) for m in marks} == {(marks[0].descriptors, marks[0].threads)}


@pytest.fixture
def address() -> Iterator[str]:
    with embedded.start() as own:
        yield own.address


@pytest.fixture
def trio(address: str) -> Iterator[Crew]:
    with crew(address, 3, links=1) as members:  # or a busy machine may want more of them
        yield members


# ---------------------------------------------------------------- ops that end well


class Mixed:
    """One member's ops: every kind, in the group and a sub-group, some named, some large."""

    def __init__(self, comm: pccl.Communicator) -> None:
        self.comm = comm
        self.sub = comm.subgroup([2, 0, 1])
        self.shared = np.ones(600)

    def start(self, number: int, *, may_be_named: bool) -> pccl.Work | None:
        size = 20_000 if number % 50 == 0 else number % 200 * 3
        whom: Collectives = self.sub if number % 3 == 0 else self.comm
        how: dict[str, object] = {"async_op": True}
        if may_be_named and number // 10 % 2:  # 2,048 that ended are remembered: soon reached
            how["name"] = f"op {number % 70}"
        mine, third = np.ones(size), np.ones(size // 3)
        root = number % 3
        is_root = whom.rank == root
        tag = number % 40
        match number % 10:
            case 0:
                return whom.all_reduce(mine, "avg", **how)
            case 1:
                return whom.all_reduce(self.shared, out=np.empty(600), **how)
            case 2:
                return whom.reduce(mine, root, **how)
            case 3:
                return whom.broadcast(mine, root, **how)
            case 4:
                return whom.all_gather(np.empty(third.size * 3), third, **how)
            case 5:
                return whom.reduce_scatter(third, mine[: third.size * 3], **how)
            case 6:
                outs = np.empty(third.size * 3) if is_root else None
                return whom.gather(third, outs, root, **how)
            case 7:
                ins = np.ones(third.size * 3) if is_root else None
                return whom.scatter(third, ins, root, **how)
            case 8:
                return whom.all_to_all(np.empty(third.size * 3), np.ones(third.size * 3), **how)
            case _:
                rank = self.comm.rank
                if rank == 0:
                    return self.comm.send(mine, 1, tag, async_op=True)
                return self.comm.recv(mine, 0, tag, async_op=True) if rank == 1 else None


def perform(trio: Crew, ops: range, *, may_be_named: bool) -> None:
    """All of these, so many at once, at all members."""

    def body(comm: pccl.Communicator) -> None:
        mixed = Mixed(comm)
        for first in range(ops.start, ops.stop, BATCH):
            batch = range(first, min(ops.stop, first + BATCH))
            works = [mixed.start(number, may_be_named=may_be_named) for number in batch]
            random.Random(first).shuffle(works)
            for work in works:
                if work is not None:
                    work.wait(WAIT_S)

    trio.each(body)


def test_ops_leave_nothing_behind(trio: Crew) -> None:
    perform(trio, range(OPS // 2), may_be_named=True)
    check_flat(lambda: perform(trio, range(OPS // PARTS), may_be_named=True))
    assert all(comm.stats().ops_running == 0 for comm in trio)


def test_ops_cost_the_coordinator_nothing(address: str, trio: Crew) -> None:
    """Named ones do, every two thousand of them: what has ended is forgotten then."""
    with Census(address) as census:
        perform(trio, range(100), may_be_named=False)
        before = census.count()
        perform(trio, range(OPS), may_be_named=False)
        assert census.count() == before
        perform(trio, range(OPS), may_be_named=True)
        assert census.count() - before <= 60 * (1 + OPS // 2000)


# ---------------------------------------------------------------- ops that are aborted


def aborted(trio: Crew, error: type[Exception], call: Callable[..., pccl.Work]) -> None:
    """Many at once at each member, which all end so; if they are to be late, the third comes when
    all has been decided without it."""
    decided = threading.Semaphore(0)

    def body(comm: pccl.Communicator) -> None:
        if call is late and comm.rank == 2:
            for _ in range(2):
                assert decided.acquire(timeout=WAIT_S)
        works = [call(comm, number) for number in range(BATCH)]
        for work in works:
            with pytest.raises(error):
                work.wait(WAIT_S)
        decided.release()

    trio.each(body)


def late(comm: pccl.Communicator, number: int) -> pccl.Work:
    whom: Collectives = comm if number % 2 else comm.subgroup([1, 2, 0])
    if number % 4 == 2:
        return whom.all_to_all(np.ones(30), np.ones(30), timeout=0.1, async_op=True)
    size = 50_000 if number % 9 == 0 else 99
    return whom.all_reduce(np.ones(size), timeout=0.1, async_op=True)


def unlike(comm: pccl.Communicator, number: int) -> pccl.Work:
    """One has another size."""
    size = 30 + 3 * (comm.rank == number % 3)
    if number % 2:
        return comm.all_reduce(np.ones(size), async_op=True)
    return comm.all_gather(np.ones(3 * size), np.ones(size), name=f"n{number}", async_op=True)


@pytest.mark.parametrize(
    ("error", "call"),
    [(pccl.DeadlineExceeded, late), (pccl.UsageError, unlike)],
    ids=["late", "unlike"],
)
@pytest.mark.timeout(120 + OPS // 20)
def test_aborted_ops_leave_nothing_behind(
    trio: Crew, error: type[Exception], call: Callable[..., pccl.Work]
) -> None:
    def do() -> None:
        for _ in range(max(1, OPS // BATCH // PARTS)):
            aborted(trio, error, call)

    do()
    check_flat(do)
    x = [np.ones(3) for _ in trio]
    trio.each(lambda c: c.all_reduce(x[c.rank]))
    assert all((one == 3.0).all() for one in x)


def lose_one(address: str, pair: Crew) -> None:
    """A third comes and dies with hundreds of exchanges in flight, which end without it."""
    third = joined(address, pair)
    submitted = threading.Semaphore(0)

    def body(comm: pccl.Communicator) -> None:
        works = []
        for number in range(BATCH):
            mine, all_of_them = np.ones(number), np.ones(3 * number)
            match number % 3:
                case 0:
                    works.append(comm.all_gather(all_of_them, mine, async_op=True))
                case 1:
                    works.append(comm.all_to_all(np.ones(3 * number), all_of_them, async_op=True))
                case _:
                    works.append(comm.recv(np.ones(9), 2, number % 20, async_op=True))
        submitted.release()
        for work in works:
            with pytest.raises(pccl.PeerLost):
                work.wait(WAIT_S)

    futures = [pair.on(rank, body) for rank in range(2)]
    for _ in pair:
        assert submitted.acquire(timeout=WAIT_S)
    third.close()
    for future in futures:
        future.result(WAIT_S)


def joined(address: str, pair: Crew) -> pccl.Communicator:
    """A third member, admitted at a safe point of the two."""
    joining = start(lambda: pccl.join(address, name="third", timeout=WAIT_S))
    while not joining.done():
        pair.each(lambda comm: comm.update())
    until(lambda: all(comm.world_size == 3 for comm in pair))
    return joining.result(WAIT_S)


@pytest.mark.timeout(120 + OPS // 20)
def test_ops_that_lost_a_peer_leave_nothing_behind(address: str) -> None:
    pair = join_all(address, 2, links=1)

    def do() -> None:
        for _ in range(max(1, OPS // BATCH // PARTS)):
            lose_one(address, pair)

    try:
        do()
        check_flat(do)
        pair.each(lambda comm: comm.leave())
    finally:
        for comm in pair:
            comm.close()


# ---------------------------------------------------------------- scratch


@pytest.mark.parametrize("route", ["direct", "ring", "star"])
def test_scratch_is_bounded(trio: Crew, route: str) -> None:
    tensors = [np.full(64 << 20, comm.rank + 1, np.float32) for comm in trio]
    most = [0] * 3
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.002):
            for comm in trio:
                most[comm.rank] = max(most[comm.rank], comm.stats().scratch_bytes)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        trio.each(lambda c: c.all_reduce(tensors[c.rank], route=route))
    finally:
        ended.set()
        watcher.join(WAIT_S)
    assert all((tensor[::4099] == 6.0).all() for tensor in tensors)
    assert 0 < max(most) <= SCRATCH_MAX
