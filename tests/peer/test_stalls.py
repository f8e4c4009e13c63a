"""Twin of pccl_py.peer.stalls: one line at the detection time, then at twice the age each time."""

from __future__ import annotations

from dataclasses import replace

from pccl_py.peer import stalls
from pccl_py.peer.events import Inspected
from pccl_py.types import Kind, OpInFlight, PeerId, Phase
from tests.peer.test_machine import ME, OTHER, record

OP = OpInFlight(
    3, "", Kind.ALL_REDUCE, Phase.SUBMIT, 800, 24, 0, (OTHER, PeerId(1 << 63)), 5, False
)


def told(*ages_s: float) -> Inspected:
    ops = tuple(replace(OP, op=n + 1, age_ms=int(s * 1000)) for n, s in enumerate(ages_s))
    return Inspected(ops, len(ops))


def test_a_line_says_who_what_phase_how_long_and_bytes() -> None:
    _, (line,) = stalls.look(stalls.NONE, told(5.1), record(1, ME, OTHER), 5.0)
    assert line == (
        "all_reduce, op 1 has not ended for 5.1 s: waiting for members to submit it, 24 of 800 "
        "bytes missing, awaiting w2 (00000000), peer 80000000 and 3 more"
    )
    nobody = Inspected((replace(OP, awaited=(), awaited_count=0, age_ms=9000),), 1)
    assert stalls.look(stalls.NONE, nobody, None, 5.0)[1][0].endswith("24 of 800 bytes missing")


def test_a_broadcast_waits_for_no_reduction() -> None:
    op = replace(OP, kind=Kind.BROADCAST, phase=Phase.REDUCE, age_ms=9000)
    _, (line,) = stalls.look(stalls.NONE, Inspected((op,), 1), None, 5.0)
    assert "waiting for values, 24 of 800" in line


def test_lines_come_at_twice_the_age() -> None:
    state, at = stalls.NONE, []
    for tick in range(1, 200):
        state, lines = stalls.look(state, told(tick / 2), None, 5.0)
        at += [tick / 2] * len(lines)
    assert at == [5.0, 10.0, 20.0, 40.0, 80.0]


def test_an_op_that_has_ended_is_forgotten_and_its_number_starts_anew() -> None:
    state, _ = stalls.look(stalls.NONE, told(6.0), None, 5.0)
    state, lines = stalls.look(state, told(), None, 5.0)
    assert (state, lines) == (stalls.NONE, ())
    assert len(stalls.look(state, told(6.0), None, 5.0)[1]) == 1


def test_many_ops_that_are_stuck_together_are_a_few_lines() -> None:
    state, lines = stalls.look(stalls.NONE, told(*[6.0] * 30), None, 5.0)
    assert len(lines) == stalls.LINES_MAX + 1
    assert lines[-1] == "26 more ops have not ended either"
    assert stalls.look(state, told(*[7.0] * 30), None, 5.0)[1] == ()
