"""Blame, of real cores: whoever is stuck, the members whom a waiting op names lead to it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pccl_py.types import Kind, Phase
from tests.sim.cluster import AUTO, DIRECT, RING, STAR, Cluster, Node, Submission

WORLD, STUCK = 4, 2
KINDS = [
    *((Kind.ALL_REDUCE, route) for route in (AUTO, RING, STAR, DIRECT)),
    *((Kind.BROADCAST, route) for route in (RING, DIRECT)),
    *((kind, RING) for kind in (Kind.REDUCE, Kind.ALL_GATHER, Kind.REDUCE_SCATTER)),
    *((kind, DIRECT) for kind in (Kind.REDUCE, Kind.ALL_GATHER, Kind.REDUCE_SCATTER)),
    *((kind, AUTO) for kind in (Kind.GATHER, Kind.SCATTER, Kind.ALL_TO_ALL)),
]


class Watch:
    """A cluster of which one member's bytes leave only when `let` says so."""

    def __init__(self, core: ModuleType, small: int = 64) -> None:
        self.cluster = Cluster(core, WORLD, 5, small=small, hub=1, scratch=1 << 16)
        self.cluster.install_first()
        self.stuck = self.cluster.nodes[STUCK]
        self.rows = self.cluster.ffi.new("struct pccl_inspection *")

    def rest(self) -> None:
        """Until nothing moves any more but what the stuck member would send."""
        cluster, moved = self.cluster, True
        while moved:
            moved = False
            for node in cluster.nodes:
                cluster.now += 4_000_000
                cluster.lib.pc_core_tick(node.core, cluster.now)
                for link in node.links:
                    moved |= node is not self.stuck and cluster.transmit(node, link, 1 << 20)
                    moved |= cluster.offer(node, link, 1 << 20)

    def let(self, limit: int) -> bool:
        """Up to `limit` bytes of each of the stuck member's links go."""
        moved = [self.cluster.transmit(self.stuck, link, limit) for link in self.stuck.links]
        return any(moved)

    def row(self, node: Node) -> Any:
        """What a core says of its only op; None if it has ended."""
        self.cluster.lib.pc_core_inspect(node.core, self.cluster.now, self.rows)
        assert self.rows.running == self.rows.count
        return self.rows.rows[0] if self.rows.count else None

    def awaited(self, node: Node) -> set[int]:
        row = self.row(node)
        assert row.awaited_count <= WORLD - 1
        named = {row.awaited[i] - 1000 for i in range(row.awaited_count)}
        assert node.index not in named
        return named


def tensor(node: Node, size: int = 1000) -> np.ndarray:
    return np.full(size, node.index + 1, np.float32)


def one_of(kind: Kind, route: int) -> Submission:
    pair = ((250,) * WORLD,) * WORLD
    return Submission(1, 7, 0, kind=kind, root=0, route=route, size=1000, pair=pair)


def begin(watch: Watch, sub: Submission, *absent: int) -> None:
    for node in watch.cluster.nodes:
        if node.index not in absent:
            watch.cluster.begin(node, sub)


@pytest.mark.parametrize(("kind", "route"), KINDS)
def test_blame_leads_to_the_member_that_does_not_submit(
    core: ModuleType, kind: Kind, route: int
) -> None:
    watch = Watch(core)
    begin(watch, one_of(kind, route), STUCK)
    watch.let(1 << 20)
    watch.rest()
    assert Phase.SUBMIT in check_leads(watch) <= {Phase.SUBMIT, Phase.CONFIRM}


@pytest.mark.parametrize(("kind", "route"), KINDS)
def test_blame_leads_to_the_member_that_sends_no_more(
    core: ModuleType, kind: Kind, route: int
) -> None:
    """Whatever it has sent so far, down to single bytes; and in the end there is none."""
    watch = Watch(core)
    begin(watch, one_of(kind, route))
    watch.rest()
    phases: set[Phase] = set()
    for step in range(100_000):
        phases |= check_leads(watch)
        if not watch.let(7 if step < 60 else 97):
            break
        watch.rest()
    assert all(watch.row(node) is None for node in watch.cluster.nodes)
    assert all(node.results[1][0] == 0 for node in watch.cluster.nodes)
    assert Phase.SUBMIT in phases
    assert phases & {Phase.REDUCE, Phase.COPY, Phase.CONFIRM}


def check_leads(watch: Watch) -> set[Phase]:
    """The phases. From any op that waits one comes, by who is awaited, to who is stuck."""
    waiting = [n for n in watch.cluster.nodes if n is not watch.stuck and watch.row(n) is not None]
    leads = {n.index: watch.awaited(n) for n in waiting}
    found = {Phase(watch.row(n).phase) for n in waiting}
    for start, named in leads.items():
        seen, todo = {start}, [start]
        while todo:
            for member in leads.get(todo.pop(), set()) - seen:
                seen.add(member)
                todo.append(member)
        assert STUCK in seen, f"{start} waits for {named}, and that leads to {seen}: {found}"
    return found


def test_bytes_and_age_are_those_that_are_missing_here(core: ModuleType) -> None:
    watch = Watch(core)
    began = watch.cluster.now
    for node in watch.cluster.nodes[:-1]:
        watch.cluster.submit(node, Submission(1, 7, 0), tensor(node))
    watch.cluster.now += 3_000_000_000
    row = watch.row(watch.cluster.nodes[0])
    assert (row.op, row.bytes, row.missing) == (1, 4000, 4000)
    assert row.age_ns == watch.cluster.now - began
    assert not row.timed_out
    watch.cluster.expire(watch.cluster.nodes[0])
    assert watch.row(watch.cluster.nodes[0]).timed_out


def test_a_receiver_misses_what_is_to_come_and_a_sender_nothing(core: ModuleType) -> None:
    watch = Watch(core)
    begin(watch, one_of(Kind.BROADCAST, AUTO), STUCK)
    source, other, _, _ = watch.cluster.nodes
    assert watch.row(source).missing == 0
    assert watch.row(other).missing == watch.row(other).bytes == 4000


def test_a_flush_is_a_phase_of_its_own_and_the_error_tells_the_one_before(
    core: ModuleType,
) -> None:
    watch = Watch(core)
    cluster = watch.cluster
    for node in cluster.nodes[:-1]:
        cluster.submit(node, Submission(1, 7, 0), tensor(node))
    cluster.lib.pc_core_flush(cluster.nodes[0].core, 1)
    row = watch.row(cluster.nodes[0])
    assert (Phase(row.phase), row.awaited_count) == (Phase.VIEW, 0)
    for node in cluster.nodes[:2]:
        cluster.lib.pc_core_fail(node.core, 5, b"no coordinator", cluster.now)
        event = cluster.event
        assert cluster.lib.pc_core_next_event(node.core, event, cluster.now + 2_000_000_000)
        assert Phase(event.result.phase) is Phase.SUBMIT
        assert event.result.missing == 4000
        assert event.result.elapsed_ns >= 2_000_000_000


@pytest.mark.parametrize("world", [2, 3, 9])
def test_the_line_names_a_few(core: ModuleType, world: int) -> None:
    cluster = Cluster(core, world, 1, small=64)
    cluster.install_first()
    cluster.submit(cluster.nodes[0], Submission(1, 7, 0, route=DIRECT), tensor(cluster.nodes[0]))
    cluster.lib.pc_core_tick(cluster.nodes[0].core, cluster.now + 20_000_000_000)
    event = cluster.event
    assert cluster.lib.pc_core_next_event(cluster.nodes[0].core, event, cluster.now)
    assert event.event.type == cluster.lib.PCCL_EVENT_TIMEOUT
    line = cluster.ffi.string(event.event.reason).decode()
    assert line.startswith("waited 0.0 s for members to submit it, 4000 bytes missing, awaiting ")
    assert line.count("peer 00000000") == min(world - 1, 3)
    assert line.endswith(" and 5 more") == (world == 9)
