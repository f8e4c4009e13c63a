"""Every collective, in groups, sub-groups and pairs, under a seed: values, outcomes, memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from tests.sim import oracle
from tests.sim.cluster import Cluster
from tests.sim.coordinator import PEER_LOST, USAGE
from tests.sim.programs import (
    ALL_GATHER,
    ALL_TO_ALL,
    AVG,
    DIRECT,
    FLOAT32,
    INT64,
    REDUCE,
    REDUCE_SCATTER,
    RING,
    SEND,
    Maker,
    Program,
    Submission,
)

SIZES = (0, 1, 7, 8, 9, 40, 40, 150)
BIG = (0, 100, 9000, 20000)  # elements: beyond 64 KiB nothing is sent unasked


def start(
    core: ModuleType, seed: int, *, least: int = 1, ops: int = 9, big: bool = False
) -> tuple[Cluster, Program]:
    """A cluster whose members are about to submit a program of that seed."""
    rng = random.Random(seed)
    world = rng.randrange(least, 5 if big else 7)
    unit = 64 if big else 1
    cluster = Cluster(
        core, world, seed, checksum=rng.random() < 0.5, links=rng.choice((1, 1, 2, 3)),
        scratch=unit * rng.choice((64, 64 * 40, 1 << 14)), segment=unit * 64,
        small=random.Random(~seed).choice((0, 1, 200)),
    )  # fmt: skip
    if big:
        cluster.strides = (32, 500, 5000, 20000)
    program = Maker(rng, world, BIG if big else SIZES).program(rng.randrange(1, ops))
    for node, order in zip(cluster.nodes, program.orders, strict=True):
        node.todo = list(order)
    if world > 2 and rng.random() < 0.2:
        cluster.cut(*rng.sample(range(world), 2))
    cluster.install_first()
    return cluster, program


def wander(cluster: Cluster, most: int) -> None:
    for _ in range(cluster.random.randrange(most)):
        cluster.step()


def plain(core: ModuleType, seed: int) -> None:
    cluster, program = start(core, seed)
    cluster.settle()
    assert oracle.check(cluster, program.ops) == len(program.ops)
    assert cluster.epoch == 1


def refresh(core: ModuleType, seed: int) -> None:
    """Views change, nobody goes: everything must end well."""
    cluster, program = start(core, seed)
    for _ in range(cluster.random.randrange(1, 4)):
        wander(cluster, 2000)
        if len(cluster.ring) > 2 and cluster.random.random() < 0.3:
            cluster.cut(*cluster.random.sample(cluster.ring, 2))
        cluster.repair(shuffle=cluster.random.random() < 0.5)
    cluster.settle()
    assert oracle.check(cluster, program.ops) == len(program.ops)


def deaths(core: ModuleType, seed: int, *, late: bool = False, big: bool = False) -> None:
    """Members die, or leave, or are replaced by nobody; views may also change for nothing."""
    cluster, program = start(core, seed, least=2, big=big, ops=4 if big else 9)
    rng = cluster.random
    for _ in range(rng.randrange(1, 4)):
        wander(cluster, 1500)
        living = [n.index for n in cluster.alive()]
        if len(living) < 2:
            break
        event = rng.random()
        if event < 0.75:
            cluster.kill(rng.choice(living))
        elif event < 0.9:
            cluster.nodes[rng.choice(living)].leaving = True
        if late:
            cluster.expire(rng.choice(cluster.alive()))
        left = [n.index for n in cluster.alive()]
        if len(left) > 2 and rng.random() < 0.2:
            cluster.cut(*rng.sample(left, 2))
        second = rng.choice(left) if rng.random() < 0.3 and len(left) > 1 else None
        cluster.repair(also_dies=second, shuffle=rng.random() < 0.3)
    cluster.settle()
    oracle.check(cluster, program.ops, late=late)


def late(core: ModuleType, seed: int) -> None:
    deaths(core, seed, late=True)


def large(core: ModuleType, seed: int) -> None:
    deaths(core, seed, big=True)


def hasty(core: ModuleType, seed: int) -> None:
    """One view after another, hardly a frame between them."""
    cluster, program = start(core, seed, least=3, ops=5)
    rng = cluster.random
    wander(cluster, 1200)
    for _ in range(rng.randrange(2, 7)):
        wander(cluster, rng.choice((2, 30, 200)))
        living = [n.index for n in cluster.alive()]
        if len(living) > 1 and rng.random() < 0.3:
            cluster.kill(rng.choice(living))
        cluster.repair(shuffle=rng.random() < 0.5)
    cluster.settle()
    oracle.check(cluster, program.ops)


SCENES = {plain: 120, refresh: 160, deaths: 300, late: 200, hasty: 160, large: 60}
BLOCK = 20
BLOCKS = [
    pytest.param(scene, first, id=f"{scene.__name__}-{first}")
    for scene, count in SCENES.items()
    for first in range(0, count, BLOCK)
]


@pytest.mark.parametrize(("scene", "first"), BLOCKS)
def test_seeds(core: ModuleType, scene: Callable[[ModuleType, int], None], first: int) -> None:
    for seed in range(first, first + BLOCK):
        try:
            scene(core, seed)
        except BaseException as error:
            error.add_note(f"{scene.__name__} seed {seed}")
            raise


# ---------------------------------------------------------------- what the seeds have found


def two(core: ModuleType, sub: Submission, world: int = 2) -> Cluster:
    """A cluster whose members have the op in their programs, and have not submitted it."""
    cluster = Cluster(core, world, 1)
    for node in cluster.nodes:
        node.todo = [sub]
    cluster.install_first()
    return cluster


def begin(cluster: Cluster, *indices: int) -> None:
    for index in indices:
        cluster.begin(cluster.nodes[index], cluster.nodes[index].todo.pop(0))


def test_the_mean_of_nothing_is_no_number_when_one_is_alone_either(core: ModuleType) -> None:
    for world in (1, 2):
        sub = Submission(1, FLOAT32, AVG, size=5, weights=(0.0,) * world)
        cluster = two(core, sub, world)
        cluster.settle()
        assert oracle.check(cluster, [sub]) == 1
        assert np.isnan(cluster.nodes[0].buffers[1]).all()


@pytest.mark.parametrize("route", [RING, DIRECT])
@pytest.mark.parametrize("kind", [REDUCE, REDUCE_SCATTER])
def test_marks_that_a_view_swallowed_are_said_again(
    core: ModuleType, kind: int, route: int
) -> None:
    """The owner of what it alone gets has marked it; its marks are on their way when all stops."""
    for steps in range(0, 400, 8):
        pair = ((20, 0, 0), (0, 20, 0), (0, 0, 20))
        sub = Submission(1, INT64, 0, kind=kind, root=1, route=route, size=20, pair=pair)
        cluster = two(core, sub, 3)
        begin(cluster, 0, 1, 2)
        for _ in range(steps):
            cluster.step()
        cluster.repair()
        cluster.settle()
        assert oracle.check(cluster, [sub]) == 1


@pytest.mark.parametrize("route", [RING, DIRECT])
def test_a_partial_sum_in_hand_when_a_member_dies_is_no_count(core: ModuleType, route: int) -> None:
    """Once one has returned all hold theirs; the others have not heard it of all blocks yet."""
    pair = tuple(tuple(30 * (i == j) for j in range(4)) for i in range(4))
    sub = Submission(1, INT64, 0, kind=REDUCE_SCATTER, route=route, pair=pair)
    for seed in range(20):
        cluster = Cluster(core, 4, seed)
        cluster.install_first()
        for node in cluster.nodes:
            cluster.begin(node, sub)
        while not any(node.results for node in cluster.nodes):
            cluster.step()
        waiting = [node for node in cluster.nodes if not node.results]
        cluster.kill(waiting[0].index)
        cluster.repair()
        cluster.settle()
        assert oracle.check(cluster, [sub]) == 1
        assert {node.results[1][1:3] for node in cluster.alive()} == {(4, 4)}


def test_an_op_for_those_who_are_gone_asks_for_a_verdict_alone(core: ModuleType) -> None:
    """Submitted between the answer to the flush and the view in which its member is alone."""
    sub = Submission(1, INT64, 0, kind=ALL_GATHER, pair=((3, 3), (3, 3)))
    cluster = two(core, sub)
    node = cluster.nodes[0]
    cluster.kill(1)
    todo, node.todo = node.todo, []
    answer = cluster.flush(node)
    cluster.begin(node, todo[0])
    cluster.repair_with({0: answer})
    cluster.settle()
    assert cluster.nodes[0].results[1][0] == PEER_LOST
    assert cluster.epoch == 3


def test_who_gets_nothing_waits_to_hear_so(core: ModuleType) -> None:
    """Else the one who sends something would believe that it had been taken."""
    sub = Submission(5 << 33 | 1, INT64, 0, kind=SEND, root=1, peers=(0, 1), pair=((0, 0), (0, 0)))
    cluster = two(core, sub)
    begin(cluster, 1)
    cluster.nodes[0].todo.clear()
    cluster.run()
    assert not cluster.nodes[1].results
    cluster.begin(cluster.nodes[0], replace(sub, pair=((0, 4), (0, 0))))
    cluster.run()
    assert [m[1:] for m in cluster.nodes[1].mismatches] == [("count", "0", "4")]
    cluster.settle()
    assert {n.results[sub.op_id][0] for n in cluster.nodes} == {USAGE}


def test_a_relay_for_one_who_does_not_reach_two(core: ModuleType) -> None:
    """Each of the two may have its share of frames waiting at the relay."""
    everybody = tuple((2000,) * 4 for _ in range(4))
    for route in (DIRECT, RING):
        sub = Submission(1, INT64, 0, kind=ALL_TO_ALL, route=route, pair=everybody)
        cluster = Cluster(core, 4, route)
        cluster.cut(0, 2)
        cluster.cut(0, 3)
        for node in cluster.nodes:
            node.todo = [sub]
        cluster.install_first()
        assert len(cluster.cuts) == 2
        begin(cluster, 0, 1, 2, 3)
        for _ in range(50):  # all that comes to the relay before it passes anything on
            for node in (0, 2, 3):
                for link in cluster.nodes[node].links:
                    cluster.transmit(cluster.nodes[node], link, 1 << 16)
            for link in cluster.nodes[1].links:
                cluster.offer(cluster.nodes[1], link, 1 << 16)
        cluster.settle()
        assert oracle.check(cluster, [sub]) == 1


def test_what_was_to_come_from_who_is_gone_is_missing(core: ModuleType) -> None:
    """A receive submitted while stopped, from a source that is in no view any more: nobody may take
    it for held by all."""
    cluster = Cluster(core, 3, 1)
    cluster.install_first()
    cluster.kill(2)
    cluster.repair()
    node = cluster.nodes[0]
    cluster.flush(node)
    op = 5 << 33 | 1
    pair = ((8, 8, 8),) * 3
    cluster.begin(node, Submission(op, INT64, 0, kind=SEND, root=0, peers=(2, 0), pair=pair))
    assert not all(cluster.answer(node).ops[op].final)
