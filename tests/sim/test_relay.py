"""Members whose link is broken, under a seed: what relays carry, what a relay's death does, lies.

A broken link is closed at both ends, or at one, or at none: then it swallows what is sent on it.
"""

from __future__ import annotations

import random
from itertools import combinations
from types import ModuleType

import pytest

from tests.sim import oracle
from tests.sim.cluster import Cluster, Node
from tests.sim.programs import (
    ALL_TO_ALL,
    DIRECT,
    INT64,
    SEND,
    Maker,
    Program,
    Submission,
)
from tests.sim.wire import CREDIT, MARK, PART, READY, RELAY, descriptor, frame

SIZES = (0, 1, 8, 9, 40, 150, 600)
RELAY_CREDIT = 16


class Broken(Cluster):
    """A cluster that mends nothing: who cannot stay goes."""

    def sever(self, one: int, other: int) -> None:
        """Breaks all links of two members for good; what was on them is lost."""
        self.cut(one, other)
        for node, far in ((one, other), (other, one)):
            keeps = self.random.random() < 0.5
            ends = self.nodes[node].links
            for link in [k for k, end in ends.items() if end.far == far]:
                ends[link].incoming.data.clear()
                if not keeps:
                    self.lib.pc_core_link_free(self.nodes[node].core, link)
                    del ends[link]

    def transmit(self, node: Node, link: int, limit: int) -> bool:
        cut = self.is_cut(node, link)
        pipe = node.links[link].outgoing
        cuts, self.cuts = self.cuts, set()  # the other class holds bytes of cut links back
        try:
            moved = super().transmit(node, link, limit)
        finally:
            self.cuts = cuts
        if cut:
            pipe.data.clear()
        return moved

    def mend(self) -> None:
        self.cuts = {edge for edge in self.cuts if edge <= set(self.ring)}
        self.most_cuts = max(self.most_cuts, len(self.cuts))

    def drop(self) -> None:
        """Of those alive the later end of each broken edge that no third one reaches goes."""
        while hopeless := [edge for edge in self.cuts if self.is_hopeless(edge)]:
            self.kill(max(max(edge) for edge in hopeless))

    def is_hopeless(self, edge: frozenset[int]) -> bool:
        living = {n.index for n in self.alive()}
        thirds = living - edge
        reached = [all(frozenset((end, t)) not in self.cuts for end in edge) for t in thirds]
        return edge <= living and not any(reached)

    def relay_of(self, edge: frozenset[int]) -> int:
        """The first in the ring that both ends reach."""
        return next(
            i
            for i in self.ring
            if i not in edge and all(frozenset((end, i)) not in self.cuts for end in edge)
        )


def start(core: ModuleType, seed: int) -> tuple[Broken, Program]:
    rng = random.Random(seed)
    world = rng.randrange(3, 7)
    cluster = Broken(
        core, world, seed, checksum=rng.random() < 0.5, links=rng.choice((1, 1, 2)),
        scratch=rng.choice((64, 64 * 40, 1 << 14)),
    )  # fmt: skip
    program = Maker(rng, world, SIZES).program(rng.randrange(2, 9))
    for node, order in zip(cluster.nodes, program.orders, strict=True):
        node.todo = list(order)
    cluster.install_first()
    return cluster, program


def wander(cluster: Broken, most: int) -> None:
    for _ in range(cluster.random.randrange(most)):
        cluster.step()


def sever_some(cluster: Broken) -> None:
    """One to three links break, or one member is left with one link."""
    living = [n.index for n in cluster.alive()]
    rng = cluster.random
    edges = list(combinations(living, 2))
    chosen = rng.sample(edges, min(len(edges), rng.randrange(1, 4)))
    if rng.random() < 0.25:
        lonely = rng.choice(living)
        chosen = [edge for edge in edges if lonely in edge][1:]
    for edge in chosen:
        if frozenset(edge) not in cluster.cuts:
            cluster.sever(*edge)


def cuts(core: ModuleType, seed: int) -> None:
    """Links break in mid-op, again and again."""
    cluster, program = start(core, seed)
    for _ in range(cluster.random.randrange(1, 4)):
        wander(cluster, 1500)
        sever_some(cluster)
        wander(cluster, 100)
        cluster.drop()
        cluster.repair(shuffle=cluster.random.random() < 0.3)
    cluster.settle()
    oracle.check(cluster, program.ops)


def relays_die(core: ModuleType, seed: int) -> None:
    """The relay of a broken link dies in mid-op, or while its death's view is being made."""
    cluster, program = start(core, seed)
    rng = cluster.random
    sever_some(cluster)
    cluster.drop()
    cluster.repair()
    for _ in range(2):
        wander(cluster, 1500)
        if not cluster.cuts:
            break
        relay = cluster.relay_of(rng.choice(sorted(cluster.cuts, key=sorted)))
        if rng.random() < 0.5:
            cluster.repair(also_dies=relay)
        else:
            cluster.kill(relay)
        wander(cluster, 100)
        cluster.drop()
        cluster.repair(shuffle=rng.random() < 0.3)
    cluster.settle()
    oracle.check(cluster, program.ops)


BLOCKS, EACH = 4, 50


@pytest.mark.parametrize("block", range(BLOCKS))
@pytest.mark.parametrize("scene", [cuts, relays_die])
def test_seeds(core: ModuleType, scene: object, block: int) -> None:
    assert callable(scene)
    for seed in range(block * EACH, block * EACH + EACH):
        try:
            scene(core, seed)
        except BaseException as error:
            error.add_note(f"{scene} seed {seed}")
            raise


# ---------------------------------------------------------------- lies

# Four members; 0 and 1 do not reach each other, and 2 passes on what is between them.
EVERYBODY = tuple((40,) * 4 for _ in range(4))
EXCHANGE = Submission(1, INT64, 0, kind=ALL_TO_ALL, route=DIRECT, pair=EVERYBODY)


def four(core: ModuleType) -> Broken:
    """All four have submitted an exchange, and nothing has been sent yet."""
    cluster = Broken(core, 4, 1)
    cluster.sever(0, 1)
    cluster.install_first()
    for node in cluster.nodes:
        cluster.begin(node, EXCHANGE)
    return cluster


def relayed(core: ModuleType, one: int, other: int, kind: int = MARK, **fields: object) -> bytes:
    return frame(core, kind, 7, relay=RELAY.pack(one, other), **fields)  # type: ignore[arg-type]


LIES = (
    pytest.param(0, 2, lambda c: relayed(c, 9, 1), "cannot be", id="from nobody"),
    pytest.param(0, 2, lambda c: relayed(c, 0, 4), "cannot be", id="to nobody"),
    pytest.param(0, 2, lambda c: relayed(c, 0xFFFF, 0xFFFF), "cannot be", id="nobody to nobody"),
    pytest.param(0, 2, lambda c: relayed(c, 0, 0), "cannot be", id="to itself"),
    pytest.param(0, 2, lambda c: relayed(c, 2, 2), "cannot be", id="of the relay to itself"),
    pytest.param(0, 2, lambda c: relayed(c, 0, 2), "cannot be", id="to who passes on"),
    pytest.param(0, 2, lambda c: relayed(c, 2, 0), "cannot be", id="from the relay"),
    pytest.param(0, 2, lambda c: relayed(c, 0, 3), "cannot be", id="to one it reaches"),
    pytest.param(0, 2, lambda c: relayed(c, 1, 0), "cannot be", id="in another's name"),
    pytest.param(3, 2, lambda c: relayed(c, 0, 1), "cannot be", id="in the name of one far"),
    pytest.param(2, 1, lambda c: relayed(c, 3, 1), "cannot be", id="of one that is near"),
    pytest.param(3, 1, lambda c: relayed(c, 0, 1), "no relay", id="passed on by no relay"),
    pytest.param(0, 3, lambda c: relayed(c, 0, 1), "cannot be", id="to no relay"),
    pytest.param(0, 2, lambda c: relayed(c, 0, 1, CREDIT), "cannot be", id="a credit passed on"),
    pytest.param(
        0, 2, lambda c: relayed(c, 0, 1) * (RELAY_CREDIT + 1), "than allowed", id="too many"
    ),
    pytest.param(
        0, 2, lambda c: relayed(c, 0, 1, PART, payload=bytes(4096)), "longer than", id="too long"
    ),
    pytest.param(
        2, 1, lambda c: relayed(c, 0, 1, READY, payload=descriptor(7)[:-1]), "READY", id="cut short"
    ),
    pytest.param(2, 0, lambda c: frame(c, CREDIT, 0, segment=1), "credit", id="more credit"),
    pytest.param(3, 0, lambda c: frame(c, CREDIT, 0, segment=1), "credit", id="of no relay"),
    pytest.param(2, 0, lambda c: frame(c, CREDIT, 0, segment=3), "credit", id="to one near"),
    pytest.param(2, 0, lambda c: frame(c, CREDIT, 0, segment=2), "credit", id="to the relay"),
    pytest.param(2, 0, lambda c: frame(c, CREDIT, 0, segment=0), "credit", id="to oneself"),
    pytest.param(2, 0, lambda c: frame(c, CREDIT, 0, segment=1 << 31), "credit", id="to nobody, c"),
    pytest.param(
        2, 0, lambda c: frame(c, CREDIT, 0, segment=1, payload=b"8 bytes!"), "payload", id="loaded"
    ),
)  # fmt: skip


@pytest.mark.parametrize(("liar", "victim", "lie", "complaint"), LIES)
def test_a_lie_costs_the_link_and_nothing_else(
    core: ModuleType, liar: int, victim: int, lie: object, complaint: str
) -> None:
    assert callable(lie)
    cluster = four(core)
    node = cluster.nodes[victim]
    link = next(number for number, end in node.links.items() if end.far == liar)
    node.links[link].incoming.data += lie(core)
    while cluster.offer(node, link, 1 << 16):
        pass
    assert [line.split(":")[0] for line in cluster.bad] == [str(victim)]
    assert complaint in cluster.bad[0]
    cluster.run()
    assert len(cluster.bad) == 1, "nobody else is blamed"
    cluster.bad.clear()
    cluster.sever(liar, victim)
    cluster.drop()
    stay = {n.index for n in cluster.alive()}
    cluster.repair()
    cluster.settle()
    oracle.check(cluster, [EXCHANGE])
    assert stay == set(cluster.ring)
    assert len(stay) >= 3


def test_a_relay_that_cannot_send_holds_its_share_alone(core: ModuleType) -> None:
    """Forty ops, and a relay that cannot send for a while: sixteen frames wait there, the rest at
    their sender."""
    cluster = Broken(core, 3, 1)
    cluster.sever(0, 1)
    cluster.install_first()
    subs = [
        Submission(c << 33 | 1, INT64, 0, kind=SEND, root=1, peers=(0, 1), pair=((0, 8), (0, 0)))
        for c in range(1, 41)
    ]
    for sub in subs:
        for index in (0, 1):
            cluster.begin(cluster.nodes[index], sub)
    relay = cluster.nodes[2]
    blocked = {k: end for k, end in relay.links.items() if end.far == 1}
    for link in blocked:
        del relay.links[link]
    cluster.run()
    assert not cluster.bad
    assert not any(node.results for node in cluster.nodes)
    relay.links.update(blocked)
    cluster.settle()
    assert oracle.check(cluster, subs) == len(subs)
