"""The exhaustive search finds nothing wrong; `-s` shows how many worlds it saw.

The long scenes take minutes each: `python -m tests.model.scenes [limit] [name]`.
"""

from __future__ import annotations

import pytest

from tests.model.scenes import QUICK
from tests.model.search import explore
from tests.model.world import Scene


@pytest.mark.parametrize("scene", QUICK, ids=lambda scene: scene.name)
def test_quick_scene(scene: Scene) -> None:
    result = explore(scene)
    print(f"{scene.name}: {result.worlds} worlds, {result.steps} steps")
    assert result.complete
