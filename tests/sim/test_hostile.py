"""One lie at a time: what a member may say, and what it costs nobody but itself."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from tests.sim.cluster import AUTO, DIRECT, RING, Cluster, Node, Submission
from tests.sim.coordinator import DONE, RUN
from tests.sim.wire import ACK, COPY, MARK, NAMED, PART, READY, descriptor, frame


def link_from(victim: Node, far: int) -> int:
    return next(number for number, link in victim.links.items() if link.far == far)


def say(cluster: Cluster, far: int, victim: Node, blob: bytes) -> None:
    """The far member's bytes, whatever its core thinks of it."""
    number = link_from(victim, far)
    victim.links[number].incoming.data += blob
    while cluster.offer(victim, number, 1 << 16):
        pass


def ready(core: ModuleType, op: int, count: int, route: int, row: int) -> bytes:
    what = descriptor(count, route=route)
    return frame(core, READY, op, contributors=row, payload=what, segment=9)


def start(core: ModuleType, world: int, count: int, route: int) -> Cluster:
    cluster = Cluster(core, world, 1)
    cluster.install_first()
    values = np.arange(count, dtype=np.int64)
    cluster.submit(cluster.nodes[0], Submission(1, 4, 0, route=route), values)
    return cluster


@pytest.mark.parametrize("route", [RING, DIRECT])
def test_a_value_before_the_input_was_sent(core: ModuleType, route: int) -> None:
    """Of two members the owner has the value at once; the other's input still waits to be sent."""
    for count in range(1, 9):  # one of the two owns the only segment, by the size
        cluster = start(core, 2, count, route)
        victim = cluster.nodes[0]
        say(cluster, 1, victim, ready(core, 1, count, route, 2))
        value = frame(core, COPY, 1, payload=bytes(8 * count), contributors=2)
        say(cluster, 1, victim, value)
        assert not victim.results
        for link in victim.links:  # nothing reads what is the caller's again
            while cluster.transmit(victim, link, 50):
                pass


def owner_of_three(core: ModuleType) -> tuple[Cluster, Node]:
    """The first of three owns the op's only segment and has the parts of the others."""
    for count in range(1, 9):
        cluster = start(core, 3, count, DIRECT)
        victim = cluster.nodes[0]
        for far in (1, 2):
            say(cluster, far, victim, ready(core, 1, count, DIRECT, 3))
            part = frame(core, PART, 1, payload=bytes(8 * count), contributors=1)
            say(cluster, far, victim, part)
        if not cluster.bad:
            return cluster, victim
    raise AssertionError("no size has its only segment at the first member")


def test_an_op_that_ended_has_sent_all_its_copies(core: ModuleType) -> None:
    cluster, victim = owner_of_three(core)
    for far in (1, 2):
        say(cluster, far, victim, frame(core, ACK, 1))
    assert not victim.results
    while any(cluster.transmit(victim, link, 64) for link in victim.links):
        pass
    assert victim.results[1][0] == 0


def test_one_member_does_not_acknowledge_for_another(core: ModuleType) -> None:
    cluster, victim = owner_of_three(core)
    say(cluster, 1, victim, frame(core, ACK, 1) * 2)
    assert "acknowledgement" in cluster.bad[0]
    assert not victim.results


def test_a_plan_made_of_lies_ends_the_op_and_not_the_process(core: ModuleType) -> None:
    done, everywhere = (DONE, [], 0, ""), (RUN, [-2, -2], 0, "")
    for verdicts, stable in (({1: done}, 0), ({1: everywhere}, 0), ({}, 7)):
        cluster = start(core, 2, 16, AUTO)
        victim = cluster.nodes[0]
        cluster.flush(victim)
        cluster.epoch += 1
        cluster.install(victim, verdicts, stable)
        cluster.drain(victim)
        assert victim.results[1][0] == core.lib.PCCL_PROTOCOL


def test_a_fresh_view_in_mid_op_ends_the_op_and_not_the_process(core: ModuleType) -> None:
    cluster = start(core, 2, 16, AUTO)
    victim = cluster.nodes[0]
    cluster.epoch += 1
    cluster.install(victim, {}, 0, fresh=True)
    cluster.drain(victim)
    assert victim.results[1][0] == core.lib.PCCL_PROTOCOL


def test_ops_that_others_announce_leave_room_for_ours(core: ModuleType) -> None:
    cluster = Cluster(core, 2, 1)
    cluster.install_first()
    victim = cluster.nodes[0]
    numbers = range(1000, 1000 + 8192)
    say(cluster, 1, victim, b"".join(ready(core, NAMED | n, 8, AUTO, 2) for n in numbers))
    assert "more ops announced than allowed" in cluster.bad[0]
    for number in range(1, 1025):
        cluster.submit(victim, Submission(number, 4, 0), np.zeros(1, np.int64))


def test_frames_parked_with_an_op_that_ended_are_freed(core: ModuleType) -> None:
    """A member that is no neighbour on the ring sends values of ops all the same."""
    cluster = Cluster(core, 4, 1)
    cluster.install_first()
    for number in range(1, 31):
        junk = frame(core, PART, number, payload=bytes(64)) * 40
        say(cluster, 2, cluster.nodes[0], junk)
        for node in cluster.nodes:
            sub = Submission(number, 4, 0, route=RING)
            cluster.submit(node, sub, np.ones(8, np.int64))
        cluster.run()
        assert not cluster.bad, f"scratch ran out at op {number}"
        assert all(node.results[number][0] == 0 for node in cluster.nodes)


def test_a_context_that_cannot_be_costs_the_link(core: ModuleType) -> None:
    """One that this peer does not know yet is well possible: it has not submitted its first op."""
    cluster = start(core, 2, 16, AUTO)
    say(cluster, 1, cluster.nodes[0], frame(core, MARK, 1, context=1))
    assert not cluster.bad
    say(cluster, 1, cluster.nodes[0], frame(core, MARK, 1, context=1 << 31))
    assert "context" in cluster.bad[0]
