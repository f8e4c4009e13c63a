"""A real SIGKILL, or SIGSTOP, of a member in mid op, for every collective: what the survivors have
is right, or all of them have PeerLost and their inputs; and they go on. Judged by `stress.chaos`.

One group of processes serves several cases; each case costs it a member.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from stress.chaos.group import Group, Worker
from stress.chaos.steps import KINDS, Op, Step

WORLD = 4
BIG = 1 << 20  # elements of 8 bytes: a kill lands in mid op
BOUND_S = 12.0
DEADLINE_S = 16.0


@contextmanager
def group_of(count: int) -> Iterator[Group]:
    with Group(DEADLINE_S, hang_s=30.0) as group:
        group.begin(count)
        yield group


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    """Made up to four members again before each case."""
    with group_of(WORLD) as made:
        yield made


def ready(group: Group) -> list[Worker]:
    """The members in rank order, after what died was replaced."""
    group.start(WORLD - len(group.living), 1)
    group.settle()
    world = group.run(Step(0))[0].world
    by_name = {worker.name: worker for worker in group.living}
    assert len(world) == WORLD
    return [by_name[name] for name in world]


_number = iter(range(1_000_000))


def op(kind: str, **fields: object) -> Op:
    return replace(Op(next(_number), kind, count=BIG // 4), **fields)


def kill_in(group: Group, step: Step, victim: Worker, seed: int) -> float:
    """Kills a member somewhere in the step; how long the survivors needed from then on."""
    group.tell(step)
    group.listen(random.Random(seed).uniform(0.0, 0.04))
    victim.kill()
    began = time.monotonic()
    group.finish()
    return time.monotonic() - began


def go_on(group: Group) -> None:
    """Every collective once more, among the survivors."""
    group.run(Step(0, tuple(op(kind, count=999) for kind in KINDS if kind != "send")))


# (kind, root's rank, victim's rank, what else)
CASES = [
    ("all_reduce", 0, 3, {"reduction": "avg", "weighted": True}),
    ("all_reduce", 0, 2, {"in_place": False, "route": "ring"}),
    ("all_reduce", 0, 1, {"strict": True}),
    ("reduce", 1, 2, {}),
    ("reduce", 1, 1, {}),
    ("broadcast", 0, 0, {}),
    ("broadcast", 3, 1, {}),
    ("all_gather", 0, 2, {}),
    ("reduce_scatter", 0, 1, {}),
    ("gather", 2, 0, {}),
    ("gather", 2, 2, {}),
    ("scatter", 0, 3, {}),
    ("scatter", 3, 3, {}),
    ("all_to_all", 0, 0, {}),
]


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: "-".join(map(str, CASES[i][:3])))
def test_a_member_is_killed_in_mid_op(group: Group, case: int) -> None:
    kind, root, victim, fields = CASES[case]
    workers = ready(group)
    one = op(kind, root=root, **fields)
    assert kill_in(group, Step(0, (one,)), workers[victim], case) < BOUND_S
    assert len(group.living) == WORLD - 1
    go_on(group)


@pytest.mark.parametrize("victim", [0, 1, 2], ids=["source", "destination", "bystander"])
def test_a_member_is_killed_while_two_transfer(group: Group, victim: int) -> None:
    workers = ready(group)
    pair = (workers[0].name, workers[1].name)
    group.run(Step(0, groups=(pair,), update=False))
    several = tuple(op("send", ends=pair, group=0, count=BIG) for _ in range(3))
    assert kill_in(group, Step(0, several), workers[victim], victim) < BOUND_S
    go_on(group)


@pytest.mark.parametrize("victim", [1, 3], ids=["inside", "outside"])
def test_a_member_is_killed_while_a_subgroup_reduces(group: Group, victim: int) -> None:
    workers = ready(group)
    inside = (workers[2].name, workers[0].name, workers[1].name)
    group.run(Step(0, groups=(inside,), update=False))
    several = tuple(op("all_reduce", group=0, count=BIG) for _ in range(2))
    assert kill_in(group, Step(0, several), workers[victim], victim) < BOUND_S
    assert group.ends["all_reduce ok"] >= 2
    group.run(Step(0, (op("all_gather", group=0), op("all_reduce", group=0))))
    go_on(group)


def test_a_member_is_stopped_until_it_is_taken_for_dead(group: Group) -> None:
    """It comes back to find itself evicted; the others have long gone on."""
    workers = ready(group)
    group.tell(Step(0, (op("all_to_all"), op("all_reduce", count=BIG))))
    workers[1].stop()
    began = time.monotonic()
    number = group.steps - 1
    while not all(number in w.done for w in workers if w is not workers[1]):
        group.listen(0.05)
        assert time.monotonic() - began < BOUND_S
    workers[1].resume()
    group.finish()
    assert group.ends["evicted"] == 1
    assert len(group.living) == WORLD - 1
    go_on(group)
