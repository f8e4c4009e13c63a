"""What a member sends before it is asked, in which order, and what it need not wait for."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from tests.sim.cluster import DIRECT, Cluster, Node
from tests.sim.programs import Submission
from tests.sim.test_hostile import say
from tests.sim.wire import ACK, COPY, HEADER, MARK, PART, READY, descriptor, frame

SEGMENT = 64
OP = Submission(1, 4, 0, route=DIRECT)  # int64, sum
COUNT = 64 * SEGMENT // 8


def cluster_of(core: ModuleType, world: int, small: int) -> Cluster:
    """64 buffers of scratch."""
    made = Cluster(core, world, 1, segment=SEGMENT, small=small, scratch=64 * SEGMENT)
    made.install_first()
    return made


def submit(cluster: Cluster, node: Node, count: int = COUNT) -> None:
    cluster.submit(node, OP, np.ones(count, np.int64))


def link_to(node: Node, far: int) -> int:
    return next(link for link, end in node.links.items() if end.far == far)


def frames_sent(cluster: Cluster, node: Node, far: int) -> list[tuple[int, bytes]]:
    """What the core has for a member now, taken out of the pipe: kinds, and the frames."""
    link = link_to(node, far)
    pipe = node.links[link].outgoing
    while cluster.transmit(node, link, 1 << 16):
        pass
    found, data = [], bytes(pipe.data)
    pipe.data.clear()
    while data:
        _, kind, _, length, *_ = HEADER.unpack(data[: HEADER.size])
        size = HEADER.size + int.from_bytes(length, "little")
        found.append((kind, data[:size]))
        data = data[size:]
    return found


@pytest.mark.parametrize(("small", "parts"), [(1, 7), (0, 8)])
def test_some_parts_go_unasked(core: ModuleType, small: int, parts: int) -> None:
    """An eighth of the buffers, one less for an op that is not small; the rest waits for READY."""
    cluster = cluster_of(core, 2, small)
    submit(cluster, cluster.nodes[0])
    kinds = [kind for kind, _ in frames_sent(cluster, cluster.nodes[0], 1)]
    assert kinds == [READY, *[PART] * parts]


def owner_with_a_copy(core: ModuleType) -> Cluster:
    """The first of three has summed one of its segments; its copies, and then parts that both
    others ask for, wait to be sent."""
    for segment in range(3):
        cluster = cluster_of(core, 3, 1)
        owner = cluster.nodes[0]
        submit(cluster, owner)
        for far in (1, 2):
            frames_sent(cluster, owner, far)  # READY, and what goes unasked
        what = descriptor(COUNT, route=DIRECT)
        part = frame(core, PART, 1, segment=segment, payload=bytes(SEGMENT), contributors=1)
        for far in (1, 2):
            say(cluster, far, owner, frame(core, READY, 1, payload=what, contributors=3) + part)
        asked = frame(core, READY, 1, payload=what, contributors=3, segment=20)
        for far in (1, 2):
            say(cluster, far, owner, asked)
        if not cluster.bad:
            return cluster
    raise AssertionError("the first member owns none of the first three segments")


@pytest.mark.parametrize(("far", "before"), [(1, 3), (2, 0)])
def test_parts_overtake_copies_on_a_long_path(core: ModuleType, far: int, before: int) -> None:
    cluster = owner_with_a_copy(core)
    kinds = [kind for kind, _ in frames_sent(cluster, cluster.nodes[0], far)]
    values = [kind for kind in kinds if kind in (PART, COPY)]
    assert values[: before + 2] == [*[PART] * before, COPY, PART]


@pytest.mark.parametrize(("nbytes", "returns"), [(1024, True), (1032, False)])
def test_up_to_sixteen_small_ones_a_result_is_returned_before_all_hold_it(
    core: ModuleType, nbytes: int, returns: bool
) -> None:
    """Acknowledgements and marks are lost on the way."""
    cluster = cluster_of(core, 3, 64)
    for node in cluster.nodes:
        submit(cluster, node, nbytes // 8)
    for _ in range(20):
        for node in cluster.nodes:
            for far in {0, 1, 2} - {node.index}:
                told = frames_sent(cluster, node, far)
                blob = b"".join(data for kind, data in told if kind not in (ACK, MARK))
                say(cluster, node.index, cluster.nodes[far], blob)
    assert [1 in node.results for node in cluster.nodes] == [returns] * 3
