"""What must be true of a cluster that has come to rest: numpy's values, and the promises.

All survivors among an op's participants end it alike. An error is one that the faults explain, and
leaves inputs as they were. A sum is that of one of the views' members, bit by bit the same at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.sim.cluster import Cluster, Node
from tests.sim.coordinator import DEADLINE, NAMED, PEER_LOST, RAISED, RUNNING
from tests.sim.programs import (
    ALL_GATHER,
    ALL_REDUCE,
    AVG,
    BROADCAST,
    GATHER,
    MAX,
    MIN,
    NUMPY,
    PROD,
    REDUCE,
    REDUCE_SCATTER,
    SCATTER,
    Array,
    Memory,
    Submission,
    block,
    passes,
    piece,
    tensor,
)  # fmt: skip


def check(cluster: Cluster, ops: Sequence[Submission], *, late: bool = False) -> int:
    """Checks all; returns how many ops have succeeded. late: deadlines passed on the way."""
    assert not cluster.bad, cluster.bad
    good = 0
    for sub in ops:
        part = [n for n in cluster.alive() if n.index in (sub.peers or range(len(cluster.nodes)))]
        results = {n.index: n.results.get(sub.op_id) for n in part}
        told = f"{sub} {results} {[n.complaints for n in part]}"
        assert None not in results.values(), f"never ended: {told}"
        statuses = {r[0] for r in results.values() if r is not None}
        assert len(statuses) < 2, f"mixed outcomes: {told}"
        for node in part:
            assert_sources_intact(sub, node, node.kept[sub.op_id], raised=statuses != {0})
        if statuses == {0}:
            Values(cluster, sub, part).check()
            good += 1
        elif statuses:
            assert statuses <= may_fail(cluster, sub, part, late=late), f"no reason: {told}"
    for node in cluster.nodes:
        assert all(ghost.is_as_scribbled() for ghost in node.ghosts), "written after the end"
        assert_bounded(cluster, node)
    for node in cluster.alive():
        assert_forgotten(cluster, node)
    return good


def assert_forgotten(cluster: Cluster, node: Node) -> None:
    """What was returned early has come to its end, too, and stays in no table."""
    answer = cluster.answer(node)
    assert all(row.status != RUNNING for row in answer.ops.values()), f"{node.index}: {answer}"
    for op in answer.ops:
        raised = {o >> 33 for o, row in answer.ops.items() if row.status == RAISED}
        assert op & NAMED or op >> 33 in raised, f"{node.index} remembers {op:#x}: {answer}"


def may_fail(cluster: Cluster, sub: Submission, part: list[Node], *, late: bool) -> set[int]:
    """The errors that what happened explains."""
    asked = {m for n in part for m in n.kept[sub.op_id].peers}
    asked |= set(sub.peers or range(len(cluster.nodes)))
    gone = {m for m in asked if not cluster.nodes[m].alive}
    errors = {DEADLINE} if late else set()
    if sub.kind == ALL_REDUCE:
        needed = gone if sub.strict else set()
    elif sub.kind in (BROADCAST, REDUCE, SCATTER):
        needed = gone & {sub.root}
    else:
        needed = gone
    return errors | ({PEER_LOST} if needed else set())


def assert_sources_intact(sub: Submission, node: Node, now: Memory, *, raised: bool) -> None:
    """What is only read is as it was; after an error so is what was to be reduced in place."""
    written = list(now.receives or ())
    if now.data is not None and not (raised and reads_data(sub, node.index)):
        written.append(now.data)
    for array, before in zip(now.arrays(), now.before, strict=True):
        if not any(array is one for one in written):
            assert array.tobytes() == before.tobytes(), f"{sub} spoilt an input of {node.index}"


def reads_data(sub: Submission, member: int) -> bool:
    if sub.kind == BROADCAST:
        return member == sub.root
    return sub.kind in (ALL_REDUCE, REDUCE) and not sub.separate


def assert_bounded(cluster: Cluster, node: Node) -> None:
    """Scratch: in proportion to what was granted, with floors per member and per link."""
    stats = cluster.ffi.new("struct pccl_stats *")
    cluster.lib.pc_core_stats(node.core, stats)
    floor = 16 * len(cluster.nodes) + len(node.links) + 4 + 32 * cluster.most_cuts
    most = 2 * cluster.scratch // cluster.segment + floor
    assert stats.scratch_bytes <= most * (cluster.segment + 16)


class Values:
    """One op that succeeded, at the participants that are left."""

    def __init__(self, cluster: Cluster, sub: Submission, part: list[Node]) -> None:
        self.cluster, self.sub, self.part = cluster, sub, part
        among = sub.peers or tuple(range(len(cluster.nodes)))
        views = [tuple(m for m in ring if m in among) for ring in cluster.history.values()]
        self.sets = [m for m in dict.fromkeys(tuple(sorted(view)) for view in views) if m]

    def check(self) -> None:
        for node in self.part:
            memory = self.memory(node)
            if self.sub.kind > REDUCE:
                assert memory.peers == self.memory(self.part[0]).peers or self.sub.kind == SCATTER
        if self.sub.kind in (ALL_REDUCE, REDUCE):
            self.check_sums()
        elif self.sub.kind == REDUCE_SCATTER:
            for node in self.part:
                memory = self.memory(node)
                inputs = {m: block(self.sub, m, node.index) for m in memory.peers}
                self.assert_sum(memory.data, inputs, [memory.peers])
                self.assert_counts(node, {self.count(memory.peers)})
        else:
            for node in self.part:
                self.check_copies(node, self.memory(node))

    def memory(self, node: Node) -> Memory:
        return node.kept[self.sub.op_id]

    def check_copies(self, node: Node, memory: Memory) -> None:
        sub, me = self.sub, node.index
        if sub.kind == BROADCAST:
            self.assert_equal(memory.data, tensor(sub, sub.root))
            return
        for at, source in enumerate(memory.peers):
            got = memory.receives[at] if memory.receives else None
            if sub.kind == ALL_GATHER:
                self.assert_equal(got, block(sub, source, source))
            elif passes(sub, source, me, memory.peers):
                self.assert_equal(got, piece(sub, source, me))
            else:
                assert got is None
        if sub.kind == GATHER and me != sub.root:
            assert memory.receives is None

    def assert_equal(self, got: Array | None, expected: Array) -> None:
        assert got is not None
        assert got.tobytes() == expected.tobytes(), f"{self.sub}: {got} is not {expected}"

    def check_sums(self) -> None:
        """Segment by segment the sum of one set of members; bits the same at all who have it."""
        sub = self.sub
        holders = [n for n in self.part if sub.kind == ALL_REDUCE or n.index == sub.root]
        if not holders:
            return
        got = self.memory(holders[0]).data
        assert got is not None
        for node in holders:
            data = self.memory(node).data
            assert data is not None
            assert data.tobytes() == got.tobytes(), f"{sub}: different bits"
        each = max(1, self.cluster.segment // got.itemsize)
        segments = max(1, -(-got.size // each))
        width = max(1, -(-got.size // segments))
        counts: set[int] = set()
        for start in range(0, max(1, got.size), width):
            piece_of = slice(start, start + width)
            everybody = {m for members in self.sets for m in members}
            inputs = {m: tensor(sub, m)[piece_of] for m in everybody}
            for members in self.assert_sum(got[piece_of], inputs, self.sets):
                counts.add(self.count(members))
        for node in self.part:
            told = node.results[sub.op_id][1:3] != (0, 0)
            if told or node in holders or len(self.cluster.history) == 1:
                self.assert_counts(node, counts)

    def count(self, members: Sequence[int]) -> int:
        return sum(self.sub.weight(m) > 0 for m in members)

    def assert_counts(self, node: Node, counts: set[int]) -> None:
        _, low, high, _, _ = node.results[self.sub.op_id]
        assert {low, high} <= counts, f"{self.sub}: {low} to {high} contributors, not {counts}"

    def assert_sum(
        self, got: Array | None, inputs: dict[int, Array], sets: Sequence[Sequence[int]]
    ) -> list[Sequence[int]]:
        """Those sets of members whose sum this is."""
        assert got is not None
        found = [members for members in sets if self.is_sum(got, inputs, members)]
        assert found, f"{self.sub}: {got} is a sum of no member set of {sets}"
        return found

    def is_sum(self, got: Array, inputs: dict[int, Array], members: Sequence[int]) -> bool:
        stack = np.stack([inputs[m] for m in members])
        if not self.sub.weights:
            return got.tobytes() == reduced(stack, self.sub).tobytes()
        weights = np.array([self.sub.weight(m) for m in members])
        if not weights.sum():
            return bool(np.isnan(got).all())
        mean = np.average(stack.astype(np.float64), axis=0, weights=weights)
        return bool(np.allclose(got, mean, rtol=1e-6, atol=0))


def reduced(stack: Array, sub: Submission) -> Array:
    """The inputs, one per row, are small whole numbers: no order of adding them rounds."""
    kind = NUMPY[sub.dtype]
    match sub.reduce:
        case x if x == MIN:
            return stack.min(axis=0)
        case x if x == MAX:
            return stack.max(axis=0)
        case x if x == PROD:
            return np.multiply.reduce(stack, axis=0, dtype=kind)
    total = np.add.reduce(stack, axis=0, dtype=kind)
    if sub.reduce != AVG:
        return total
    if np.issubdtype(kind, np.integer):
        return (total // len(stack)).astype(kind)  # no input is negative
    return (total / kind(len(stack))).astype(kind)
