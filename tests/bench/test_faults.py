"""`pccl bench faults` without processes: figures and goals, values of a sum that lost somebody, the
simulated coordinator, the options."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from pccl_py.bench.faults import cases, figures, peer
from pccl_py.bench.faults.crowd import answered
from pccl_py.bench.faults.figures import MAX, About, Figure
from pccl_py.bench.faults.programme import CASES, Programme, size_of
from pccl_py.bench.faults.simulated import Simulation
from pccl_py.cli import faults
from pccl_py.errors import PcclError, UsageError
from pccl_py.protocol.messages import Ask, Bye, Sp, Target

SAMPLES = [float(number) for number in range(1, 31)]
COUNT = 3 * peer.BLOCK + 5


def test_a_figure_is_median_p90_and_most() -> None:
    found = About("sigkill", 4, 64 << 20).of("detection", SAMPLES)
    assert (found.n, found.median, found.p90, found.max) == (30, 15.5, 27.0, 30.0)
    assert [figures.percentile([7.0], share) for share in (0.0, 0.5, 1.0)] == [7.0] * 3


@pytest.mark.parametrize(
    ("goal", "goal_of", "wrong", "met"),
    [(16.0, "median", 0, True), (15.0, "median", 0, False), (16.0, MAX, 0, False),
     (30.0, MAX, 0, True), (30.0, MAX, 1, False), (None, MAX, 0, True)],
)  # fmt: skip
def test_a_goal_is_met_or_not(goal: float | None, goal_of: str, wrong: int, met: bool) -> None:
    found = About("x", 4, wrong=wrong).of("y", SAMPLES, goal, goal_of)
    assert found.is_met == met
    assert json.loads(figures.as_json(found))["met"] == (None if goal is None else met)
    said = figures.line(found)
    assert ("NOT MET" in said) == (not met)
    assert ("WRONG" in said) == bool(wrong)
    assert len(figures.verdict([found])) == (1 if met else 2)


def summed(*members: int) -> peer.Floats:
    data = np.zeros(COUNT, np.float32)
    peer.fill(data, sum(1 << member for member in members))
    return data


def test_a_sum_may_lack_who_died_and_nobody_else() -> None:
    whole, living = 0b1111, 0b1101
    data = summed(0, 1, 2, 3)
    assert peer.verdict(data, whole, living)[:2] == (0, 0)
    data[7:1007] = summed(0, 2, 3)[7:1007]
    assert peer.verdict(data, whole, living)[:2] == (0, 1000)
    data[0:3] = summed(0, 1, 2)[0:3]  # the third lives
    data[-1] += 1  # nobody's sum
    data[3] = 64.0 * peer.pattern(4)[3]  # twice the fifth, whom there is not
    assert peer.verdict(data, whole, living)[:2] == (5, 1005)
    assert peer.verdict(data, whole, living)[2] != peer.verdict(summed(0), whole, living)[2]


def test_two_deaths_at_once_leave_any_sum_between() -> None:
    data = summed(0, 1, 2, 3)
    data[:10] = summed(0, 1, 3)[:10]
    data[10:20] = summed(0, 3)[10:20]
    data[20:30] = summed(1, 2)[20:30]
    assert peer.verdict(data, 0b1111, 0b1001)[:2] == (10, 30)


def test_a_simulated_coordinator_takes_a_join_and_a_death() -> None:
    simulation = Simulation(200)
    assert simulation.join() > 0.0
    assert (simulation.world, simulation.epoch) == (201, 8)
    assert simulation.die(3) > 0.0
    assert (simulation.world, simulation.epoch) == (200, 9)


def test_members_of_the_crowd_stand_where_they_are_asked_to() -> None:
    assert answered(Ask(3, (1, 2))) == Sp(3, (1, 2), -1, 0)
    said = answered(Target(3, (1, 2), 5))
    assert said is not None
    assert getattr(said, "position", None) == 5
    assert answered(Bye()) is None


@pytest.mark.parametrize(
    ("worlds", "cases", "vs", "trials"),
    [([1], "", "", 1), ([17], "", "", 1), ([2], "sigkil", "", 1), ([2], "", "mpich", 1),
     ([2], "", "", 0)],
)  # fmt: skip
def test_what_cannot_be_played_is_said(worlds: list[int], cases: str, vs: str, trials: int) -> None:
    with pytest.raises(UsageError):
        faults.programme(argparse.Namespace(case=cases, vs=vs), worlds, trials)


def test_a_row_that_is_no_case_is_refused_with_the_case_that_gives_it() -> None:
    with pytest.raises(UsageError, match=r"'join' must be of sigkill \(rows: sigkill, join\), "):
        faults.programme(argparse.Namespace(case="join", vs=""), [2], 1)
    assert "scale (rows: storm, simulated)" in faults.DESCRIPTION


def test_all_cases_by_default() -> None:
    plan = faults.programme(argparse.Namespace(case=None, vs=""), [], None)
    assert plan == Programme()
    assert (plan.cases, plan.trials, plan.versus_gloo) == (CASES, 30, False)
    assert [size_of(world) >> 20 for world in plan.worlds] == [64, 64, 16, 4]


@pytest.mark.parametrize(("wrong", "failure"), [(0, ""), (2, ""), (0, "start: it ended")])
def test_what_is_wrong_or_failed_changes_the_end(
    monkeypatch: pytest.MonkeyPatch, wrong: int, failure: str
) -> None:
    def played(*given: object) -> Iterator[Sequence[Figure]]:
        about = About("sigkill", 4, wrong=wrong)
        yield [about.of("a", SAMPLES, 1.0), about.of("b", SAMPLES)]
        if failure:
            given[2](failure)  # type: ignore[operator]

    monkeypatch.setattr(faults, "played", played)
    table, rows = io.StringIO(), io.StringIO()

    def play() -> int:
        return faults.run(Programme(), rows, table, lambda text: None, lambda text: None)

    if wrong or failure:
        with pytest.raises(PcclError, match="2 values were wrong" if wrong else failure):
            play()
    else:
        assert play() == 0, "a goal that is missed is no failure"
    assert "0 of 1 goals met" in table.getvalue()
    assert [json.loads(row)["figure"] for row in rows.getvalue().splitlines()] == ["a", "b"]


@pytest.mark.parametrize(
    ("ended_ms", "redone", "beyond_s"),
    [(1000, 0.0, 0.0), (1030, 0.4, 0.03), (1230, 0.7, 0.03), (900, 0.2, -0.1)],
)
def test_beyond_is_what_neither_the_rest_nor_the_lost_work_takes(
    ended_ms: int, redone: float, beyond_s: float
) -> None:
    """An op of 1 s, begun at 5 s, in which somebody dies half-way."""
    ms = 1_000_000
    death = cases._Death(
        kill_ns=5500 * ms, lost_ns=5510 * ms, flush_ns=5520 * ms, view_ns=5530 * ms,
        ended_ns=(5000 + ended_ms) * ms, start_ns=5000 * ms, segments=9, redone=redone, wrong=0,
    )  # fmt: skip
    tally = cases._Tally()
    cases._add_death(tally, death, 1.0)
    found = {name: round(samples[0], 6) for name, samples in tally.samples.items()}
    assert found["beyond"] == beyond_s
    assert (found["evidence"], found["detection"], found["flush"]) == (0.01, 0.02, 0.01)
    assert found["repair"] == round(ended_ms / 1e3 - 0.52, 6)
