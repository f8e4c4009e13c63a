"""Hostile peers against the C core: right checksums, absurd contents. Links close, nothing dies.

One or two members' streams are mutated between their core and the others': fields of frames are
rewritten and the checksum is made right again, frames are made up, repeated, reordered, cut. What
must hold, under the sanitizers too: no crash, no scratch beyond the bound, no table of ops beyond
its bound, and an op that ends has nothing left to send from memory that is its caller's again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from tests.sim.cluster import AUTO, DIRECT, RING, STAR, Cluster, Node, Submission
from tests.sim.coordinator import RAISED, STABLE, Answer
from tests.sim.programs import NUMPY, Maker
from tests.sim.wire import NAMED, SEGMENT, Wire

# Buffers: one for each possible link, the windows of these small worlds, and what relays hold.
POOL_MAX = 512 + 200 + 10 * 32


class Hostile(Cluster):
    """A cluster in which the traffic of some members goes through a Wire."""

    honest = False

    def __init__(self, core: ModuleType, world: int, seed: int, evil: set[int], rate: float):
        super().__init__(core, world, seed, links=1 + seed % 2, checksum=seed % 3 > 0)
        self.evil, self.rate, self.module = evil, rate, core
        self.wires: dict[tuple[int, int], Wire] = {}
        self.sizes: dict[int, tuple[int, ...]] = {}  # bytes of an op's segments
        self.frees = seed % 4 < 3
        self.lag = self.random.choice((0.0, 0.5, 0.9))  # how often the honest do not get to send

    def transmit(self, node: Node, link: int, limit: int) -> bool:
        if node.index not in self.evil:
            if self.random.random() < self.lag:
                return False
            return super().transmit(node, link, limit)
        pipe = node.links[link].outgoing
        kept = bytes(pipe.data)
        pipe.data.clear()
        moved = super().transmit(node, link, limit)
        wire = self.wires.setdefault(
            (node.index, link), Wire(self.module, self.random, self.rate, self.sizes)
        )
        pipe.data[:] = kept + wire.put(bytes(pipe.data))
        if wire.seen and self.random.random() < self.rate / 4:
            far = node.links[link].far
            other = self.random.choice([k for k, v in node.links.items() if v.far == far])
            node.links[other].outgoing.data += self.random.choice(wire.seen)  # and there, too
        return moved

    def step(self) -> bool:
        """As the engine does: a link that broke the rules is closed, and called anew."""
        for node, link in self.broken:
            if link not in node.links:
                continue  # both ends complained
            self.wires.pop((node.index, link), None)
            far = self.close(node, link)
            self.wires = {k: w for k, w in self.wires.items() if k[1] in self.nodes[k[0]].links}
            self.connect(node, far)
        self.broken.clear()
        return super().step()

    def flush(self, node: Node) -> Answer:
        """What the evil report of themselves need not be so either."""
        answer = super().flush(node)
        if node.index not in self.evil or self.random.random() < 0.6:
            return answer
        for row in answer.ops.values():
            if self.random.random() < 0.5:
                row.final = [self.random.random() < 0.7 for _ in row.final]
            if self.random.random() < 0.1:
                row.status, row.code = self.random.choice((STABLE, RAISED)), 2
            if self.random.random() < 0.1:
                row.on_loss, row.root = self.random.randrange(7), 1000 + self.random.randrange(6)
            if self.random.random() < 0.1:
                row.among = [i for i in self.ring if self.random.random() < 0.7] or [node.index]
        for context in answer.stable:
            answer.stable[context] += (self.random.random() < 0.2) * self.random.randrange(4)
        return answer

    def drain(self, node: Node) -> None:
        super().drain(node)
        if self.frees:
            node.ghosts.clear()  # the caller's memory is its own again
        stats = self.ffi.new("struct pccl_stats *")
        self.lib.pc_core_stats(node.core, stats)
        assert stats.scratch_bytes <= POOL_MAX * (SEGMENT + 16)


def play(core: ModuleType, seed: int) -> Hostile:
    rng = random.Random(seed)
    world = rng.choice((2, 2, 3, 3, 4, 5))
    evil = set(rng.sample(range(world), rng.choice((1, 1, 2))))
    cluster = Hostile(core, world, seed, evil, rng.choice((0.02, 0.1, 0.5)))
    cluster.install_first()
    for number in range(1, 5):
        size = rng.choice((0, 1, 8, 8, 16, 40, 200))
        route = rng.choice((AUTO, RING, STAR, DIRECT))
        kind = int(rng.random() < 0.2)
        sub = Submission(
            number if number < 4 else NAMED | 7, 4, rng.randrange(5), kind=kind,
            root=rng.randrange(world), name=0 if number < 4 else 7, strict=rng.random() < 0.2,
            route=route,
        )  # fmt: skip
        cluster.sizes[sub.op_id] = tuple({min(SEGMENT, 8 * size), 8 * size % SEGMENT})
        for node in cluster.nodes:
            node.inputs[sub.op_id] = np.arange(size, dtype=np.int64)
            node.todo.append(sub)
    misbehave(cluster, rng)
    return cluster


def misbehave(cluster: Hostile, rng: random.Random) -> None:
    steps = rng.choice((150, 400, 800))
    for _ in range(rng.randrange(1, 5)):
        for _ in range(steps):
            cluster.step()
        if len(cluster.alive()) > 2 and rng.random() < 0.3:
            cluster.kill(rng.choice(cluster.alive()).index)
        if len(cluster.ring) > 2 and rng.random() < 0.2:
            cluster.cut(*rng.sample(cluster.ring, 2))
        cluster.repair(shuffle=rng.random() < 0.2)
    for node in cluster.nodes:
        assert all(ghost.is_as_scribbled() for ghost in node.ghosts), "written after the end"


def play_all(core: ModuleType, seed: int) -> Hostile:
    """All kinds of ops, in the group, in sub-groups, in pairs."""
    rng = random.Random(seed)
    world = rng.choice((2, 3, 3, 4, 5))
    evil = set(rng.sample(range(world), rng.choice((1, 1, 2))))
    cluster = Hostile(core, world, seed, evil, rng.choice((0.02, 0.1, 0.5)))
    program = Maker(rng, world, (0, 1, 7, 8, 9, 40, 40, 150)).program(rng.randrange(2, 9))
    for sub in program.ops:
        item = np.dtype(NUMPY[sub.dtype]).itemsize
        amounts = {sub.size, *(n for row in sub.pair for n in row)}
        parts = {n * item % SEGMENT for n in amounts} | {0, SEGMENT, 8 * item}
        cluster.sizes[sub.op_id] = tuple(sorted(parts))
    for node, order in zip(cluster.nodes, program.orders, strict=True):
        node.todo = list(order)
    if world > 2 and rng.random() < 0.3:
        cluster.cut(*rng.sample(range(world), 2))
    cluster.install_first()
    misbehave(cluster, rng)
    return cluster


@pytest.mark.parametrize("block", range(10))
@pytest.mark.parametrize("scene", [play, play_all])
def test_no_hostile_stream_kills_a_core(
    core: ModuleType, scene: Callable[[ModuleType, int], Hostile], block: int
) -> None:
    for seed in range(block * 40, block * 40 + 40):
        try:
            scene(core, seed)
        except BaseException as error:
            error.add_note(f"{scene.__name__} seed {seed}")
            raise
