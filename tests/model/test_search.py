"""The exhaustive search finds nothing wrong; `-s` shows how many worlds it saw.

The long scenes, and those that no search sees whole: `make model`.
"""

from __future__ import annotations

import pytest

from tests.model.scenes import FIELD, QUICK
from tests.model.search import Counterexample, explore
from tests.model.wander import Wanderer
from tests.model.world import Scene


@pytest.mark.parametrize("scene", QUICK, ids=lambda scene: scene.name)
def test_quick_scene(scene: Scene) -> None:
    result = explore(scene)
    print(f"{scene.name}: {result.worlds} worlds, {result.steps} steps")
    assert result.complete


@pytest.mark.parametrize("scene", FIELD, ids=lambda scene: scene.name)
def test_a_walk_through_a_large_scene(scene: Scene) -> None:
    wanderer = Wanderer(scene, seed=1)
    wanderer.go(worlds=1_500)
    assert wanderer.rests, "some walks come to an end"


def test_a_walk_finds_what_is_wrong() -> None:
    with pytest.raises(Counterexample, match=r"not so"):
        Wanderer(FIELD[0], seed=1, off=frozenset({"R6"})).go(worlds=100_000)
