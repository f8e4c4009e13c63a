"""Scenes too large to be searched whole: walks from the beginning to random places, and from each
a search in depth, in random order, of so many worlds that no walk has seen. Of a world that was
seen only the hash is kept, so that tens of millions fit into memory. Faults come late as well as
early.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.model.properties import checked
from tests.model.search import Counterexample, formed, moves_of, told
from tests.model.world import Model, Move, Scene, World

FAULT_SHARE = 0.05  # of the steps of a walk, as long as faults are left
WALK_MAX = 160  # steps; most scenes have come to rest by then
STRIDE = 5_000  # new worlds after each walk
BARREN_MAX = 300  # walks in a row that find nothing new: it has been searched, near enough


@dataclass
class Wanderer:
    """One scene under one seed. depth_max: of the worlds seen, in steps; rests: worlds at rest."""

    scene: Scene
    seed: int
    off: frozenset[str] = frozenset()
    steps: int = 0
    walks: int = 0
    depth_max: int = 0
    rests: int = 0
    seen: set[int] = field(default_factory=set)
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.model = Model(self.scene, self.off)
        self.first = formed(self.model)

    def go(self, worlds: int, until: Callable[[], bool] = lambda: False) -> None:
        """Until so many worlds are seen, or it is time. Raises Counterexample."""
        barren = 0
        while len(self.seen) < worlds and barren < BARREN_MAX and not until():
            before = len(self.seen)
            self.walks += 1
            self.names.clear()
            try:
                self.search(self.walk(), before + STRIDE)
            except AssertionError as broken:
                raise Counterexample(told(self.scene, self.names, broken)) from broken
            barren = 0 if len(self.seen) > before else barren + 1

    def walk(self) -> World:
        """To a place as far from the beginning as chance has it."""
        world = self.first
        for _ in range(self.random.randrange(WALK_MAX)):
            moves = self.ways(world)
            if not moves:
                break
            name, world = moves[-1]
            self.names.append(name)
            self.steps += 1
            checked(self.model, world)
        return world

    def search(self, world: World, worlds: int) -> None:
        """In depth, leaving out what was seen."""
        depth = len(self.names)
        todo = [(depth, *way) for way in self.ways(world)]
        while todo and len(self.seen) < worlds:
            depth, name, after = todo.pop()
            self.names[depth:] = [name]
            self.steps += 1
            key = hash(after)
            if key in self.seen:
                continue
            self.seen.add(key)
            self.depth_max = max(self.depth_max, depth + 1)
            checked(self.model, after)
            todo += [(depth + 1, *way) for way in self.ways(after)]

    def ways(self, world: World) -> list[Move]:
        """What may happen next, in the order in which to try it, first the last."""
        moves, faults = moves_of(self.model, world)
        self.rests += not moves
        self.random.shuffle(moves)
        self.random.shuffle(faults)
        early = faults and (not moves or self.random.random() < FAULT_SHARE)
        return [*moves, *faults] if early else [*faults, *moves]
