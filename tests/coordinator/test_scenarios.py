"""Every scenario file does what it says. `PCCL_GOLDEN=write` writes what happens into the files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.coordinator.scenario import play, scripts


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    script = path.read_text(encoding="utf-8")
    played = play(script)
    if os.environ.get("PCCL_GOLDEN") == "write":
        path.write_text(played, encoding="utf-8")
    assert played == path.read_text(encoding="utf-8")


def test_there_are_scenarios() -> None:
    assert len(scripts()) >= 20
