"""The proofs can fail: each rule of VIEWS switched off in the real code is caught by something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import assert_never

import pytest

from tests.mutants import patch
from tests.mutants.catch import SCENES as BY_NAME
from tests.mutants.catch import SCRIPTS, Script, Search, Sim, Unit
from tests.mutants.scenes import NUMBERS as NUMBERS_OF_SCENES
from tests.mutants.scenes import SCENES
from tests.mutants.table import NOT_SWITCHED_OFF, RULES, TABLE, Mutant

NUMBERS = count()


@pytest.fixture(scope="module")
def cores(tmp_path_factory: pytest.TempPathFactory) -> patch.Cores:
    return patch.Cores(tmp_path_factory.mktemp("cores"))


def test_every_rule_is_here() -> None:
    switched_off = {mutant.rule for mutant in TABLE}
    assert switched_off.isdisjoint(NOT_SWITCHED_OFF)
    assert switched_off | NOT_SWITCHED_OFF.keys() == set(RULES)


def test_every_scene_is_committed() -> None:
    """They are run where they are; here nothing is missing."""
    assert SCENES.keys() == set(NUMBERS_OF_SCENES)
    for catcher in (catcher for found in SCENES.values() for catcher in found):
        match catcher:
            case Script(name=name):
                assert "> " in SCRIPTS[name].read_text(encoding="utf-8")
            case Search(scene=name):
                assert name in BY_NAME
            case Sim(program=program):
                assert program.__name__.startswith("test_")
            case Unit(test=test):
                assert callable(test)
            case _:
                assert_never(catcher)


def named(mutants: Sequence[Mutant]) -> list[object]:
    return [pytest.param(mutant, id=f"{mutant.rule} {mutant.what}") for mutant in mutants]


PYTHON = [mutant for mutant in TABLE if mutant.path.endswith(".py")]
NATIVE = [mutant for mutant in TABLE if mutant.path.endswith(".c")]


@pytest.mark.parametrize("mutant", named(PYTHON))
def test_of_the_machines(monkeypatch: pytest.MonkeyPatch, mutant: Mutant) -> None:
    assert not isinstance(mutant.caught_by, Sim)
    patch.in_python(monkeypatch, mutant.path, mutant.edits)
    with pytest.raises(AssertionError):
        mutant.caught_by.catch()


@pytest.mark.parametrize("mutant", named(NATIVE))
def test_of_the_core(cores: patch.Cores, mutant: Mutant) -> None:
    assert isinstance(mutant.caught_by, Sim)
    core = cores.mutant(next(NUMBERS), mutant.path, mutant.edits)
    with pytest.raises(AssertionError):
        mutant.caught_by.catch(core)


def test_a_core_as_it_is_passes(cores: patch.Cores) -> None:
    """So what caught the others was no fault of this way of building and running."""
    core = cores.mutant(next(NUMBERS), "native/src/view.c", ())
    for sim in dict.fromkeys(mutant.caught_by for mutant in NATIVE):
        assert isinstance(sim, Sim)
        replace(sim, seeds=min(sim.seeds, 2)).catch(core)
