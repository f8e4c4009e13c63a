"""Twin of pccl_py.bench.conduct and worker: groups without processes, one of which is wrong."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from pccl_py.bench import conduct, worker
from pccl_py.bench.calls import Call
from pccl_py.bench.lines import Line, gather
from pccl_py.bench.ops import Op
from pccl_py.bench.plan import Plan
from pccl_py.bench.rows import Row
from pccl_py.errors import PcclError, ResourceError
from tests.bench.test_plan import GOOD

WORLD = 2
PLAN = replace(GOOD, world=WORLD, sizes=(1024, 80_000), modes=(True,), impls=("pccl", "gloo"))


class Exchange:
    """A sum over threads. spoil: what rank 1 does to its result; eats: to its input."""

    def __init__(self, rank: int, board: list[np.ndarray | None], meet: threading.Barrier) -> None:
        self.rank, self._board, self._meet = rank, board, meet
        self.spoil = self.eats = False
        self.fails = False

    def wrap(self, array: np.ndarray, dtype: str) -> object:
        return array

    def run(self, op: Op, call: Call) -> None:
        if self.fails:
            raise PcclError("no luck")
        assert isinstance(call.source, np.ndarray)
        assert isinstance(call.target, np.ndarray)
        self._board[self.rank] = call.source.copy()
        self._meet.wait(10)
        with np.errstate(over="ignore"):  # sums of sums in one repeat
            call.target[:] = np.sum([part for part in self._board if part is not None], axis=0)
        self._meet.wait(10)
        if self.spoil:
            call.target[-1] += 1
        if self.eats and not call.in_place:
            call.source[0] += 1

    def told(self) -> tuple[str | None, int | None, str | None]:
        return "ring", 2, "tcp"

    def close(self) -> None:
        pass


class Threads:
    """A `Group` of desks in threads; notes the orders."""

    def __init__(self, members: Sequence[Exchange], impl: str) -> None:
        self.orders: list[tuple[object, ...]] = []
        self._lines, self._threads = [], []
        for member in members:
            ours, theirs = socket.socketpair()
            desk = worker.Desk({impl: member}, member.rank, WORLD)
            line = Line(theirs, "the benchmark")
            thread = threading.Thread(target=worker.serve, args=(line, desk), daemon=True)
            thread.start()
            self._threads.append((thread, line))
            self._lines.append(Line(ours, f"{impl} rank {member.rank}"))

    def order(self, *words: object) -> list[list[str]]:
        self.orders.append(words)
        for line in self._lines:
            line.send(*words)
        return gather(self._lines, 20.0)

    def close(self) -> None:
        for line in self._lines:
            line.close()
        for thread, line in self._threads:
            thread.join(10)
            line.close()


def exchanges() -> list[Exchange]:
    board: list[np.ndarray | None] = [None] * WORLD
    meet = threading.Barrier(WORLD)
    return [Exchange(rank, board, meet) for rank in range(WORLD)]


@contextmanager
def crowd() -> Iterator[tuple[dict[str, list[Exchange]], dict[str, Threads]]]:
    members = {impl: exchanges() for impl in PLAN.impls}
    groups = {impl: Threads(each, impl) for impl, each in members.items()}
    try:
        yield members, groups
    finally:
        for group in groups.values():
            group.close()


def measure(plan: Plan, groups: dict[str, Threads]) -> list[Sequence[Row]]:
    return list(conduct.run(plan, groups, lambda: 7, lambda _text: None, lambda: None))


def test_right_results_and_turns() -> None:
    with crowd() as (_, groups):
        found = measure(PLAN, groups)
    assert [[row.impl for row in size] for size in found] == [["pccl", "gloo"]] * 2
    rows = [row for size in found for row in size]
    assert {row.wrong for row in rows} == {0}
    assert [row.bytes for row in rows] == [1024, 1024, 80_000, 80_000]
    assert [row.coordinator_messages for row in rows] == [0, None, 0, None]
    assert all(row.min_s <= row.median_s <= row.max_s for row in rows)
    assert {(row.route, row.links, row.transport) for row in rows} == {("ring", 2, "tcp")}
    timed = [words for words in groups["pccl"].orders if words[0] == "time"]
    assert len(timed) >= len(PLAN.sizes) * (PLAN.repeats + 1)


def test_a_wrong_value_is_counted() -> None:
    with crowd() as (members, groups):
        members["gloo"][1].spoil = True
        found = measure(PLAN, groups)
    assert [row.wrong for row in found[0]] == [0, 1]
    assert [row.wrong for row in found[1]] == [0, 1]


def test_out_of_place_starts_from_the_source_each_time() -> None:
    with crowd() as (_, groups):
        found = measure(replace(PLAN, modes=(False, True), sizes=(64,)), groups)
    assert [(row.in_place, row.wrong) for row in found[0]] == [(False, 0), (True, 0)] * 2


def test_an_input_that_is_written_out_of_place_is_wrong() -> None:
    with crowd() as (members, groups):
        members["pccl"][0].eats = True
        found = measure(replace(PLAN, modes=(False,), sizes=(64,), repeats=1), groups)
    assert [row.wrong > 0 for row in found[0]] == [True, False]


def test_an_error_of_an_op_is_told_in_its_words() -> None:
    with crowd() as (members, groups):
        for member in members["pccl"]:
            member.fails = True
        with pytest.raises(PcclError, match=r"pccl rank \d: PcclError: no luck"):
            measure(PLAN, groups)


def test_one_that_ends_is_noticed_while_another_is_awaited() -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    lines = [Line(ours, f"rank {at}") for at, (ours, _) in enumerate(pairs)]
    pairs[1][1].close()
    with pytest.raises(ResourceError, match="rank 1 has ended"):
        gather(lines, 10.0)
    with pytest.raises(ResourceError, match=r"no answer in 0 s from rank 0"):
        gather(lines[:1], 0.01)
    for line in lines:
        line.close()
    pairs[0][1].close()


def test_a_quick_op_is_repeated_within_a_repeat() -> None:
    assert conduct.inner_for(1.0) == 1
    assert conduct.inner_for(conduct.REPEAT_S / 10) == 10
    assert conduct.inner_for(0.0) == conduct.INNER_MAX
