"""A new line of views begins without a past, and what was aborted stays so for who comes late."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from tests.sim import oracle
from tests.sim.cluster import DIRECT, Cluster
from tests.sim.coordinator import DEADLINE
from tests.sim.programs import ALL_GATHER, INT64, Submission

SUBGROUP = 5 << 33


def program(number: int) -> list[Submission]:
    pair = ((3, 3, 0), (3, 3, 0), (0, 0, 3))
    return [
        Submission(number, INT64, 0, route=DIRECT, size=40),
        Submission(SUBGROUP | number, INT64, 0, kind=ALL_GATHER, peers=(0, 1), pair=pair),
    ]


def submit(cluster: Cluster, ops: list[Submission]) -> None:
    for node in cluster.nodes:
        for op in ops:
            if node.index in (op.peers or (0, 1, 2)):
                cluster.begin(node, op)


def new_line(cluster: Cluster) -> None:
    """The same members in a fresh view; numbers begin anew."""
    cluster.epoch += 1
    cluster.history[cluster.epoch] = tuple(cluster.ring)
    for node in cluster.nodes:
        node.results.clear()
        cluster.install(node, {}, 0, fresh=True)
        cluster.drain(node)


def move_until_all_returned(cluster: Cluster, ops: list[Submission]) -> None:
    """What ends an op is sent at once; what merely follows it waits (PC_LAZY_NS)."""
    for _ in range(50):
        for node in cluster.nodes:
            for link in node.links:
                cluster.transmit(node, link, 1 << 16)
                cluster.offer(node, link, 1 << 16)
        if sum(len(node.results) for node in cluster.nodes) == 3 + 2:
            return
    raise AssertionError(f"{ops} never ended")


def test_a_new_line_begins_anew(core: ModuleType) -> None:
    """Results kept for others are let go with it, numbers restart in each context (R11, R18)."""
    cluster = Cluster(core, 3, 1)
    cluster.install_first()
    for _ in range(3):
        ops = program(1)
        submit(cluster, ops)
        move_until_all_returned(cluster, ops)
        rows = [cluster.answer(node).ops for node in cluster.nodes]
        assert any(1 in row for row in rows), "kept: not known to be held by all"
        new_line(cluster)
        assert not any(cluster.answer(node).ops for node in cluster.nodes)
        assert {s for n in cluster.nodes for s in cluster.answer(n).stable.values()} == {0}
    submit(cluster, ops)
    cluster.settle()
    assert oracle.check(cluster, ops) == len(ops)


def test_who_submits_an_aborted_op_raises_at_once(core: ModuleType) -> None:
    """Also after a further view: the abort is in it while somebody has yet to raise it (R10)."""
    cluster = Cluster(core, 3, 1)
    cluster.install_first()
    op = Submission(1, INT64, 0, size=40)
    first, second, late = cluster.nodes
    cluster.begin(first, op)
    cluster.run()
    cluster.expire(first)
    cluster.repair()
    cluster.begin(second, op)
    assert second.results.get(1, (None,))[0] == DEADLINE
    cluster.repair()
    cluster.begin(late, op)
    assert {node.results[1][0] for node in cluster.nodes} == {DEADLINE}
    cluster.run()
    for node in cluster.nodes:
        assert (node.kept[1].data == node.kept[1].before[0]).all()
    cluster.repair()
    assert not cluster.aborts, "all have raised it"
    after = Submission(2, INT64, 0, size=40)
    for node in cluster.nodes:
        cluster.begin(node, after)
    cluster.settle()
    assert all(np.array_equal(node.buffers[2], first.buffers[2]) for node in cluster.nodes)


def test_what_is_submitted_in_a_flush_for_who_is_gone_does_not_end_well(core: ModuleType) -> None:
    """Its report names no participant that the view does not have, so that the verdict is that it
    goes on: among who is left, whose part alone would be the result."""
    cluster = Cluster(core, 3, 1)
    cluster.install_first()
    cluster.kill(1)
    cluster.repair()
    lonely = program(1)[1]
    first, last = cluster.nodes[0], cluster.nodes[2]
    answers = {node.index: cluster.flush(node) for node in (first, last)}
    cluster.begin(first, lonely)
    answers[first.index] = cluster.answer(first)
    cluster.repair_with(answers)
    assert lonely.op_id not in first.results
    cluster.repair()
    assert first.results[lonely.op_id][0] != 0
