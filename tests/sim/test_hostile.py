"""One lie at a time: what a member may say, and what it costs nobody but itself."""

from __future__ import annotations

import math
import random
from types import ModuleType

import numpy as np
import pytest

from tests.sim import oracle
from tests.sim.cluster import AUTO, DIRECT, RING, Cluster, Node, Submission
from tests.sim.coordinator import DONE, RUN
from tests.sim.programs import ALL_TO_ALL, AVG, BROADCAST, OLD, Memory
from tests.sim.wire import ACK, COPY, DESC, MARK, NAMED, PART, READY, Wire, descriptor, frame


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


def test_who_announces_too_many_ops_leaves_room_for_those_of_others(core: ModuleType) -> None:
    cluster = Cluster(core, 3, 1)
    cluster.install_first()
    victim = cluster.nodes[0]
    say(cluster, 1, victim, b"".join(ready(core, NAMED | n, 8, AUTO, 3) for n in range(9, 1033)))
    assert not cluster.bad
    say(cluster, 1, victim, ready(core, NAMED | 5000, 8, AUTO, 3))
    assert "more ops announced than allowed" in cluster.bad[0]
    say(cluster, 2, victim, b"".join(ready(core, NAMED | n, 8, AUTO, 3) for n in range(2000, 3024)))
    assert len(cluster.bad) == 1
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


# ---------------------------------------------------------------- exchanges, contexts, weights

CONTEXT = 77
OLD_WORD = np.full(8, OLD, np.uint8).view(np.int64)[0]  # of memory that is to be overwritten
PAIR = ((0, 20, 20), (20, 0, 20), (20, 20, 0))


def exchange(core: ModuleType, kind: int = ALL_TO_ALL, *, links: int = 1) -> tuple[Cluster, Node]:
    """Members 0 and 1 of three have an op among them, which 0 has submitted."""
    cluster = Cluster(core, 3, 1, links=links)
    cluster.install_first()
    op = CONTEXT << 33 | 1
    sub = Submission(op, 4, 0, kind=kind, root=0, peers=(0, 1), pair=PAIR, size=20)
    for node in cluster.nodes[:2]:
        node.todo = [sub]
    victim = cluster.nodes[0]
    cluster.begin(victim, victim.todo.pop())
    return cluster, victim


def announced(victim: Node, cluster: Cluster, **lies: float) -> bytes:
    """READY of member 1, as it would be, but for the lies; its bytes after the header."""
    peer = cluster.nodes[1]
    cluster.begin(peer, peer.todo.pop())
    number = link_from(peer, 0)
    cluster.transmit(peer, number, 96)
    payload = bytes(peer.links[number].outgoing.data[32:96])
    peer.links[number].outgoing.data.clear()
    fields = list(DESC.unpack(payload))
    for name, value in lies.items():
        fields[("weight", "for_you").index(name) + 10] = value
    return DESC.pack(*fields)


def test_strangers_of_a_sub_group_are_not_heard(core: ModuleType) -> None:
    op = CONTEXT << 33 | 1
    for lie in (
        frame(core, READY, op, payload=descriptor(0, kind=ALL_TO_ALL)),
        frame(core, MARK, op),
        frame(core, COPY, op, payload=bytes(64)),
    ):
        cluster, victim = exchange(core)
        before = victim.memories[op].receives[1].copy()
        say(cluster, 2, victim, lie)
        cluster.sweep()
        assert cluster.bad or len(lie) > 32, "what has no descriptor waits for one"
        assert not victim.mismatches
        assert (before == OLD_WORD).all()


def test_what_one_says_it_has_for_us_is_what_we_wait_for(core: ModuleType) -> None:
    op = CONTEXT << 33 | 1
    for lie in (0, 19, 21, 1 << 63, (1 << 64) - 1):
        cluster, victim = exchange(core)
        say(
            cluster,
            1,
            victim,
            frame(core, READY, op, payload=announced(victim, cluster, for_you=lie)),
        )
        assert [m[1:] for m in victim.mismatches] == [("count", "20", str(lie))]
        say(cluster, 1, victim, frame(core, COPY, op, payload=bytes(64), contributors=1))
        say(cluster, 1, victim, frame(core, MARK, op))
        assert not victim.results
        assert (victim.memories[op].receives[1] == OLD_WORD).all()


def test_what_one_says_it_holds_costs_itself(core: ModuleType) -> None:
    """It says that it has more of our segments than there are, and that it has all."""
    op = CONTEXT << 33 | 1
    for opened in (3, 4, 1 << 31, (1 << 32) - 1):
        cluster, victim = exchange(core)
        ready_too = frame(core, READY, op, payload=announced(victim, cluster), segment=opened)
        say(cluster, 1, victim, ready_too + frame(core, MARK, op))
        assert not victim.results, "nothing has come yet"


def test_a_weight_that_cannot_be_costs_the_link(core: ModuleType) -> None:
    for weight, dtype, reduce in (
        (math.nan, 7, AVG), (math.inf, 7, AVG), (-1.0, 7, AVG), (0.5, 4, AVG), (0.5, 7, 0),
    ):  # fmt: skip
        cluster = start(core, 2, 16, DIRECT)
        what = descriptor(16, dtype, reduce=reduce, weight=weight, route=DIRECT)
        say(cluster, 1, cluster.nodes[0], frame(core, READY, 1, payload=what))
        assert "descriptor" in cluster.bad[0]
        assert not cluster.nodes[0].mismatches


@pytest.mark.parametrize("kind", [ALL_TO_ALL, BROADCAST])
def test_a_copy_damaged_on_its_way_is_sent_again(core: ModuleType, kind: int) -> None:
    """It lands in the user's memory before its checksum is known; the view after makes it whole."""
    for at in (32, 40, 95):
        cluster = Cluster(core, 2, at)
        sub = Submission(1, 4, 0, kind=kind, root=1, size=20, pair=((20, 20), (20, 20)))
        for node in cluster.nodes:
            node.todo = [sub]
        cluster.install_first()
        for node in cluster.nodes:
            cluster.begin(node, node.todo.pop())
        wire, hit = Wire(core, random.Random(0), 0.0, {}), False
        for _ in range(30):
            for node in cluster.nodes:
                link = next(iter(node.links))
                pipe = node.links[link].outgoing
                kept = bytes(pipe.data)
                pipe.data.clear()
                cluster.transmit(node, link, 1 << 16)
                whole = bytearray(wire.put(bytes(pipe.data)) if node.index else pipe.data)
                copies = [i for i in range(0, len(whole) - 64, 32) if whole[i : i + 2] == b"\2\2"]
                if node.index and copies and not hit:
                    whole[copies[0] + at] ^= 1
                    hit = True
                pipe.data[:] = kept + whole
            for node in cluster.nodes:
                cluster.offer(node, next(iter(node.links)), 1 << 16)
        assert hit
        assert cluster.bad == ["0: wrong checksum"]
        cluster.bad.clear()
        cluster.close(*cluster.broken.pop())
        cluster.connect(*cluster.nodes)
        cluster.repair()
        cluster.settle()
        assert oracle.check(cluster, [sub]) == 1


def test_a_link_lost_in_mid_copy_and_the_same_copy_by_another(core: ModuleType) -> None:
    """Two links bring one segment: one of them lands it, and only whole."""
    op = CONTEXT << 33 | 1
    cluster, victim = exchange(core, links=2)
    first, second = (k for k, link in victim.links.items() if link.far == 1)
    say(cluster, 1, victim, frame(core, READY, op, payload=announced(victim, cluster)))
    good = frame(core, COPY, op, payload=bytes(range(64)), contributors=1)
    evil = frame(core, COPY, op, payload=b"\xff" * 64, contributors=1, flags=2)
    victim.links[first].incoming.data += evil[:60]
    while cluster.offer(victim, first, 100):
        pass
    victim.links[second].incoming.data += good + good
    while cluster.offer(victim, second, 100):
        pass
    victim.links[first].incoming.data += evil[60:]
    while cluster.offer(victim, first, 100):
        pass
    assert not victim.results
    assert not cluster.bad
    victim.links[second].incoming.data += good
    while cluster.offer(victim, second, 100):
        pass
    landed = victim.memories[op].receives[1][:8].tobytes()
    assert landed in (good[32:], evil[32:]), "one or the other, not something between"
    cluster.close(victim, first)


@pytest.mark.parametrize("where", ["owner", "third"])
def test_no_value_lands_from_one_who_does_not_own_it(core: ModuleType, where: str) -> None:
    """Where the destination is no input, copies are received in place: the owner's alone. Anybody
    else's would be written on while the right value comes another way, and after the end."""
    for count in range(1, 9):  # the first owns the only segment, or the second, by the size
        cluster = Cluster(core, 3, 1, links=2)
        cluster.install_first()
        victim, sub = cluster.nodes[0], Submission(1, 4, 0, route=DIRECT, separate=True)
        memory = Memory(data=np.zeros(count, np.int64), input=np.ones(count, np.int64), before=[])
        cluster.hand_over(victim, sub, memory)
        evil, honest = (k for k, link in victim.links.items() if link.far == 2)
        value = frame(core, COPY, 1, payload=b"\xff" * (8 * count), contributors=3)

        def give(number: int, blob: bytes, victim: Node = victim, at: Cluster = cluster) -> None:
            victim.links[number].incoming.data += blob
            while at.offer(victim, number, 1 << 16):
                pass

        hello = [ready(core, 1, count, DIRECT, 3) for _ in range(2)]
        say(cluster, 1, victim, hello[0])
        give(evil, hello[1] + value[:34])
        ones = np.ones(count, np.int64).tobytes()
        if where == "owner":
            for far in (1, honest):
                part = frame(core, PART, 1, payload=ones, contributors=1)
                say(cluster, 1, victim, part) if far == 1 else give(far, part)
        else:
            final = (3 * np.ones(count, np.int64)).tobytes()
            say(cluster, 1, victim, frame(core, COPY, 1, payload=final, contributors=3))
        innocent = [number for node, number in cluster.broken if number != evil]
        if innocent:
            continue  # of this size another owns it
        while any(cluster.transmit(victim, link, 64) for link in victim.links):
            pass
        if victim.results.get(1, (1,))[0]:
            continue
        give(evil, value[34:])
        assert (victim.kept[1].data == 3).all()
        assert all(ghost.is_as_scribbled() for ghost in victim.ghosts)
        return
    raise AssertionError("no size that fits, or the right value was refused")
