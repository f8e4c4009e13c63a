"""Exhaustive search over the worlds of a scene: breadth first, so that a counter-example is a
shortest one. `explore` returns the number of worlds and of steps; a broken property (`properties`)
raises `Counterexample` with the path. Scenes too large for it: `wander`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from tests.model.engine import require
from tests.model.properties import check_quiet, checked
from tests.model.world import Broken, Model, Move, Scene, World


class Counterexample(AssertionError):
    """The shortest path to a world where something is wrong."""


@dataclass(frozen=True)
class Result:
    worlds: int
    steps: int
    complete: bool


def explore(scene: Scene, off: frozenset[str] = frozenset(), limit: int = 1 << 60) -> Result:
    """All worlds of a scene, at most `limit`."""
    model = Model(scene, off)
    path: dict[World, tuple[World | None, str]] = {}
    try:
        first = formed(model)
    except AssertionError as broken:
        raise Counterexample(f"{scene.name}: {broken} while forming") from broken
    path[first] = (None, "")
    queue = deque([first])
    steps = 0
    while queue:
        world = queue.popleft()
        try:
            moves, faults = moves_of(model, world)
        except AssertionError as broken:
            # the next world could not even be made: show every way out of the last good one
            raise Counterexample(_story(scene, path, world, broken)) from broken
        for name, after in [*moves, *faults]:
            steps += 1
            if after in path:
                continue
            path[after] = (world, name)
            try:
                checked(model, after)
            except AssertionError as broken:
                raise Counterexample(_story(scene, path, after, broken)) from broken
            queue.append(after)
        if len(path) > limit:
            return Result(len(path), steps, complete=False)
    return Result(len(path), steps, complete=True)


def moves_of(model: Model, world: World) -> tuple[list[Move], list[Move]]:
    """What may happen next by itself, and the faults; where nothing can by itself all is checked
    that must be so at rest."""
    sure = model.sure(world)
    if sure is not None:
        return [sure], []
    moves = model.moves(world)
    if not moves:
        check_quiet(model, world)
    return moves, list(model.faults(world))


def formed(model: Model) -> World:
    """The world in which the first `formed` peers are the first view, reached in one fixed way;
    with 0, nothing has happened yet."""
    world = model.start()
    for count in range(model.scene.formed):
        world = model._connect(world, count)
        while any(world.up[index] for index in range(count + 1)):
            index = next(i for i in range(count + 1) if world.up[i])
            _, world = model._heard(world, index)
    for index in range(model.scene.formed):
        while world.down[index]:
            _, world = model._told(world, index)
    require(
        model.scene.formed == 0
        or len(model.es.items[world.players[0].engine].ring) == model.scene.formed,
        "the first view is formed",
    )
    places = _places(world)
    for one, other in model.scene.broken:
        world = world._replace(cut=world.cut | {frozenset((one, other))})
        while rest := [after for _, after in model.moves(world) if _places(after) == places]:
            world = rest[0]
    return world


def _places(world: World) -> list[int]:
    """Where each program stands."""
    return [player.pc for player in world.players]


def _story(
    scene: Scene,
    path: dict[World, tuple[World | None, str]],
    world: World,
    broken: AssertionError,
) -> str:
    names: list[str] = []
    at: World | None = world
    while at is not None:
        at, name = path[at]
        names.append(name)
    return told(scene, reversed(names), broken)


def told(scene: Scene, names: Iterable[str], broken: AssertionError) -> str:
    """The steps to a world where something is wrong."""
    lines = "\n  ".join(names)
    return f"scene {scene.name}: not so: {broken} ({type(broken).__name__})\n  {lines}"


__all__ = ["Broken", "Counterexample", "Result", "explore", "formed", "moves_of", "told"]
