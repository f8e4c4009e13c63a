"""The exhaustive search finds nothing wrong; `-s` shows how many worlds it saw."""

from __future__ import annotations

import os

import pytest

from tests.model.scenes import LONG, QUICK
from tests.model.search import explore
from tests.model.world import Scene

LONG_LIMIT = 2_000_000


@pytest.mark.parametrize("scene", QUICK, ids=lambda scene: scene.name)
def test_quick_scene(scene: Scene) -> None:
    result = explore(scene)
    print(f"{scene.name}: {result.worlds} worlds, {result.steps} steps")
    assert result.complete


@pytest.mark.skipif(os.environ.get("PCCL_MODEL") != "long", reason="minutes; PCCL_MODEL=long")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scene", LONG, ids=lambda scene: scene.name)
def test_long_scene(scene: Scene) -> None:
    result = explore(scene, limit=LONG_LIMIT)
    print(f"{scene.name}: {result.worlds} worlds, {result.steps} steps, {result.complete}")
