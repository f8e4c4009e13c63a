"""The search can fail: what the abstract engine must do for the machines, and what the machines do
beyond the rules of VIEWS, is missed by a scene. Those rules themselves: `tests/mutants`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from pccl_py.coordinator import cases, losses, membership, verdicts
from pccl_py.protocol import messages
from pccl_py.types import OnLoss, PeerId
from tests.model.scenes import LONG, QUICK
from tests.model.search import Counterexample, explore

BY_NAME = {scene.name: scene for scene in (*QUICK, *LONG)}


@pytest.mark.parametrize(
    ("rule", "scene"),
    [
        pytest.param("R6", "a death", id="R6 stop after the answer"),
        pytest.param("R7", "a death", id="R7 lower epochs are dropped"),
        pytest.param("R8", "a death", id="R8 higher epochs wait"),
        pytest.param("R9", "K crashes, a time-out", id="R9 verdicts in the journal"),
        pytest.param("R10", "a time-out", id="R10 aborts stay"),
        pytest.param("members", "an all_gather", id="members that change while an op is submitted"),
        pytest.param("relay", "two relays", id="R3 a relay of this view"),
        pytest.param("R19", "an update with an op in flight", id="R19 drain"),
    ],
)
def test_a_rule_of_the_model_switched_off(rule: str, scene: str) -> None:
    with pytest.raises(Counterexample):
        explore(BY_NAME[scene], frozenset({rule}), limit=100_000)


def _nothing(*_: object) -> None:
    return None


def _miss_nobody(*on_loss: OnLoss) -> Callable[[cases.OpCase], PeerId | None]:
    """No loss costs ops of these classes anything."""
    missed = losses.missed
    return lambda op: None if op.on_loss in on_loss else missed(op)


def _root_may_go(op: cases.OpCase) -> bool:
    return op.is_held_by_all


def _whole_group(ring: tuple[PeerId, ...], reports: cases.Reports) -> tuple[PeerId, ...]:
    return tuple(ring)


def _own_stable_alone(answers: Mapping[PeerId, messages.Answer]) -> dict[int, int]:
    return {0: max(answer.stable for answer in answers.values())}


MUTANTS: tuple[tuple[str, object, str, object, str], ...] = (
    *(
        (f"a loss costs {scene}", losses, "missed", _miss_nobody(on_loss), scene)
        for on_loss, scene in (
            (OnLoss.SPREAD, "a broadcast"),
            (OnLoss.FIXED, "an all_gather"),
            (OnLoss.EXCHANGE, "an all_to_all"),
            (OnLoss.TO_ROOT, "a gather"),
            (OnLoss.FROM_ROOT, "a scatter"),
        )
    ),
    ("a gather needs its destination", verdicts, "_is_done", _root_may_go, "a gather"),
    (
        "an op is of its participants",
        cases,
        "taking_part",
        _whole_group,
        "an all_gather of two of three",
    ),
    (
        "contexts are stable",
        verdicts,
        "stables",
        _own_stable_alone,
        "an all_reduce of two of three",
    ),
    ("Hello brings up to date", membership, "_bring_up_to_date", _nothing, "K crashes"),
)


@pytest.mark.parametrize(
    ("target", "attribute", "mutant", "scene"),
    [mutant[1:] for mutant in MUTANTS],
    ids=[mutant[0] for mutant in MUTANTS],
)
def test_a_rule_of_the_machines_switched_off(
    monkeypatch: pytest.MonkeyPatch, target: object, attribute: str, mutant: object, scene: str
) -> None:
    monkeypatch.setattr(target, attribute, mutant)
    with pytest.raises(Counterexample):
        explore(BY_NAME[scene], limit=100_000)
