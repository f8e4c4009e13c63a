"""Answers that cannot all be true: who is believed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pccl_py.coordinator.claims import unbelieved
from pccl_py.protocol.messages import Answer, OpStatus
from pccl_py.types import OnLoss, PeerId, op_id
from tests.coordinator.test_verdicts import A, B, C, answer, ended, running

NAMED, SUB = op_id(7, named=True), op_id(1, context=5)
STABLE = OpStatus.STABLE


def lacks(submitted: int) -> Answer:
    return replace(answer(), submitted=submitted)


@pytest.mark.parametrize(
    ("answers", "out"),
    [
        ({A: answer(stable=3), B: answer(running(4, "10"), stable=2)}, ""),
        ({A: answer(stable=3), B: answer(running(3, "11"), stable=2)}, ""),
        ({A: answer(stable=3), B: answer(running(3, "10"))}, "A"),
        ({A: answer(stable=3), B: answer(running(3, "10")), C: answer(stable=3)}, "B"),
        ({A: answer(stable=4), B: lacks(3), C: lacks(3)}, "A"),
        ({A: answer(stable=4), B: lacks(3), C: answer(stable=4)}, "B"),
        ({A: answer(ended(4, STABLE)), B: lacks(3)}, "A"),
        ({A: answer(ended(4, STABLE)), B: lacks(4)}, ""),
        ({A: answer(ended(4, STABLE)), B: answer(running(4, "0")), C: answer(stable=4)}, "B"),
        ({A: answer(ended(NAMED, STABLE)), B: answer(running(NAMED, "10"))}, "A"),
        ({A: answer(ended(NAMED, STABLE)), B: answer()}, ""),
        ({A: answer(ended(SUB, STABLE)), B: answer(running(SUB, "01")), C: answer()}, "A"),
        ({A: lacks(1)}, ""),
        ({}, ""),
    ],
)
def test_who_is_believed(answers: dict[PeerId, Answer], out: str) -> None:
    assert unbelieved(answers) == {{"A": A, "B": B, "C": C}[name] for name in out}


@pytest.mark.parametrize("on_loss", [OnLoss.FIXED, OnLoss.TO_ROOT, OnLoss.SPREAD])
def test_bits_of_an_op_that_is_not_all_of_everybodys_deny_nothing(on_loss: OnLoss) -> None:
    report = running(NAMED, "10", on_loss=on_loss, root=A if on_loss is not OnLoss.FIXED else 0)
    assert not unbelieved({A: answer(ended(NAMED, STABLE)), B: answer(report)})


def test_two_sub_groups_of_one_number_do_not_contradict_each_other() -> None:
    mine = replace(ended(SUB, STABLE), among=b"\x03")
    theirs = running(SUB, "00", among=b"\x06")
    assert not unbelieved({A: answer(mine), B: answer(theirs)})
