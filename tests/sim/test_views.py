"""Scenes of VIEWS §2 that live in the C core, step by step. The last member owns all segments."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from tests.sim.cluster import STAR, Cluster, Node
from tests.sim.coordinator import RUNNING, Answer, Flush, Verdict
from tests.sim.programs import INT64, Submission, tensor

A, B, C = range(3)
SMALL, LARGE = 0, 1  # bytes of the largest op that returns early; 0: as the product has it


def op(number: int) -> Submission:
    return Submission(number, INT64, 0, route=STAR, size=8)


def start(core: ModuleType, world: int = 3, *, links: int = 1, small: int = SMALL) -> Cluster:
    cluster = Cluster(core, world, 1, hub=world - 1, links=links, small=small)
    cluster.install_first()
    return cluster


def begin(cluster: Cluster, number: int, *indices: int) -> None:
    for index in indices:
        cluster.nodes[index].inputs[number] = tensor(op(number), index)
        cluster.begin(cluster.nodes[index], op(number))


def links(cluster: Cluster, node: int, far: int) -> list[int]:
    return [link for link, end in cluster.nodes[node].links.items() if end.far == far]


def send(cluster: Cluster, source: int, target: int, which: int = 0) -> None:
    """All that one has for another is on its way, by that of their links."""
    link = links(cluster, source, target)[which]
    while cluster.transmit(cluster.nodes[source], link, 1 << 16):
        pass


def arrive(cluster: Cluster, source: int, target: int, which: int = 0) -> None:
    link = links(cluster, target, source)[which]
    while cluster.offer(cluster.nodes[target], link, 1 << 16):
        pass


def bring(cluster: Cluster, source: int, target: int) -> None:
    send(cluster, source, target)
    arrive(cluster, source, target)


def sums_reach_the_owner(cluster: Cluster) -> None:
    """And it has finished them. Its copies have not left."""
    for _ in range(2):
        for index in (A, B):
            bring(cluster, index, C)
        for index in (A, B):
            if not cluster.answer(cluster.nodes[C]).ops[max(cluster.nodes[C].buffers)].final[0]:
                bring(cluster, C, index)


def values(cluster: Cluster, number: int, *members: int) -> np.ndarray:
    return np.sum([cluster.nodes[i].inputs[number] for i in members], axis=0)


def check(cluster: Cluster, number: int, *contributors: int) -> None:
    """All who are left have the sum of these members' inputs."""
    assert not cluster.bad
    for node in cluster.alive():
        assert number in node.results, f"op {number} never ended at {node.index}"
        status, low, high, _, text = node.results[number]
        assert (status, low, high) == (0, len(contributors), len(contributors)), text
        assert (node.buffers[number] == values(cluster, number, *contributors)).all()
        assert all(ghost.is_as_scribbled() for ghost in node.ghosts)


def next_view(cluster: Cluster, answers: dict[int, Answer]) -> tuple[dict[int, Verdict], int]:
    """Decided, and to be installed by hand."""
    ring = [i for i in cluster.ring if i in answers]
    flush = Flush(list(cluster.ring), ring, answers, cluster.aborts, {}, cluster.random)
    cluster.ring = ring
    cluster.epoch += 1
    cluster.history[cluster.epoch] = tuple(ring)
    return flush.decide()


def test_v4_one_has_returned_and_its_memory_is_used_anew(core: ModuleType) -> None:
    """What others still need is kept apart (R4)."""
    cluster = start(core)
    begin(cluster, 1, A, B, C)
    sums_reach_the_owner(cluster)
    bring(cluster, C, A)
    assert 1 in cluster.nodes[A].results, "returned, and scribbled over"
    assert 1 not in cluster.nodes[B].results
    cluster.kill(C)
    cluster.repair()
    cluster.run()
    check(cluster, 1, A, B, C)


def test_v4_a_later_op_is_done_and_the_earlier_is_not(core: ModuleType) -> None:
    """That op 2 is held by all says nothing of op 1 (R5)."""
    cluster = start(core, links=2)
    begin(cluster, 1, A, B, C)
    sums_reach_the_owner(cluster)
    bring(cluster, C, A)
    send(cluster, C, B)  # and stays on its way
    begin(cluster, 2, A, B, C)
    for _ in range(4):
        for index in (A, B):
            bring(cluster, index, C)
        bring(cluster, C, A)
        send(cluster, C, B, which=1)
        arrive(cluster, C, B, which=1)
    assert [n.results.keys() for n in cluster.nodes] == [{1, 2}, {2}, {1, 2}]
    cluster.kill(C)
    cluster.repair()
    cluster.run()
    check(cluster, 1, A, B, C)
    check(cluster, 2, A, B, C)


def test_v5_a_copy_after_the_answer(core: ModuleType) -> None:
    """Else there would be a holder that nobody knows (R6)."""
    cluster = start(core)
    begin(cluster, 1, A, B, C)
    sums_reach_the_owner(cluster)
    send(cluster, C, B)
    cluster.kill(C)
    answers = {i: cluster.flush(cluster.nodes[i]) for i in (A, B)}
    arrive(cluster, C, B)
    cluster.repair_with(answers)
    cluster.run()
    check(cluster, 1, A, B)


@pytest.mark.parametrize("first", [A, B])
def test_v6_frames_of_a_view_not_installed_here(core: ModuleType, first: int) -> None:
    """They wait (R8)."""
    cluster = start(core)
    begin(cluster, 1, A, B, C)
    cluster.kill(C)
    cluster.hub = B
    second = A + B - first
    answers = {i: cluster.flush(cluster.nodes[i]) for i in (A, B)}
    view = next_view(cluster, answers)
    cluster.install(cluster.nodes[first], *view)
    bring(cluster, first, second)
    assert not cluster.nodes[second].results
    cluster.install(cluster.nodes[second], *view)
    cluster.run()
    check(cluster, 1, A, B)


def test_v18_frames_of_an_op_that_is_not_submitted_here(core: ModuleType) -> None:
    """They do not hide what comes behind them on the link (R21)."""
    cluster = start(core, 2)
    for number in (1, 2, 3):
        begin(cluster, number, A)
    bring(cluster, A, B)
    begin(cluster, 1, B)
    bring(cluster, B, A)
    assert 1 in cluster.nodes[A].results, "though much lies parked"
    begin(cluster, 2, B)
    begin(cluster, 3, B)
    cluster.run()
    for number in (1, 2, 3):
        check(cluster, number, A, B)


@pytest.mark.parametrize("by", [A, B])
def test_v22_all_hold_it_and_nobody_knows(core: ModuleType, by: int) -> None:
    """Who was to bear the mark has died: the view says that all hold it (R26)."""
    cluster = start(core, small=LARGE)
    begin(cluster, 1, A, B, C)
    sums_reach_the_owner(cluster)
    for index in (A, B):
        bring(cluster, C, index)
    left: list[Node] = [cluster.nodes[A], cluster.nodes[B]]
    rows = [cluster.answer(node).ops[1] for node in left]
    assert [(row.status, row.final) for row in rows] == [(RUNNING, [True])] * 2
    bring(cluster, by, C)
    cluster.kill(C)
    cluster.repair()
    cluster.run()
    check(cluster, 1, A, B, C)
    assert [node.results[1][3] for node in left] == [0, 0], "nothing is done again"
