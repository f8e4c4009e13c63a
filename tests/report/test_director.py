"""When the demo acts: the kill, the late worker, the end of its patience."""

from __future__ import annotations

from dataclasses import replace

from pccl_py.report.director import Script, find_hung, kill_due, late_due, next_text
from pccl_py.report.records import Event, Exited, Killed, Rounded, Started
from tests.report.story import BEGAN, EXPECTED, good, without

SCRIPT = Script(EXPECTED, kill_round=2, late_round=4, limit_s=100.0)


def until(seconds: float) -> list[Event]:
    return [event for event in good() if event.time <= BEGAN + seconds]


def test_the_kill_falls_in_the_middle_of_the_next_round() -> None:
    assert not kill_due(until(4.9), SCRIPT, BEGAN + 4.9)
    assert not kill_due(until(5.5), SCRIPT, BEGAN + 5.5)  # round 3 has just begun
    assert kill_due(until(5.9), SCRIPT, BEGAN + 6.0)  # rounds take 2 s


def test_a_missed_middle_is_made_up_for() -> None:
    early = replace(SCRIPT, kill_round=1)
    assert kill_due(until(5.0), early, BEGAN + 5.0)


def test_a_victim_is_killed_once_and_only_alive() -> None:
    assert not kill_due(until(6.0), SCRIPT, BEGAN + 7)
    assert not kill_due(until(20), SCRIPT, BEGAN + 20)
    crashed: list[Event] = [*until(5.9), Exited(BEGAN + 5.95, "w2", 12, 1)]
    assert not kill_due(crashed, SCRIPT, BEGAN + 7)


def test_the_late_worker_waits_for_its_round_and_the_kill() -> None:
    assert not late_due(until(9), SCRIPT)
    assert late_due(until(10), SCRIPT)
    assert not late_due(without(until(10), Killed), SCRIPT)


def test_a_calm_run_never_exhausts_patience() -> None:
    for tenth in range(170):
        now = BEGAN + tenth / 10
        assert find_hung(until(tenth / 10), SCRIPT, BEGAN, now) is None


def test_a_silent_member_hangs() -> None:
    silent = without(good(), Exited, worker="w1")
    assert find_hung(silent, SCRIPT, BEGAN, BEGAN + 45) is None
    hung = find_hung(silent, SCRIPT, BEGAN, BEGAN + 46)
    assert hung is not None
    assert (hung.worker, hung.seconds) == ("w1", 30.5)


def test_a_start_may_take_longer() -> None:
    events: list[Event] = [Started(BEGAN, "w0", 1, 0)]
    assert find_hung(events, SCRIPT, BEGAN, BEGAN + 80) is None
    assert find_hung(events, SCRIPT, BEGAN, BEGAN + 91) is not None


def test_the_whole_run_has_a_limit() -> None:
    assert find_hung([], SCRIPT, BEGAN, BEGAN + 99) is None
    hung = find_hung([], SCRIPT, BEGAN, BEGAN + 101)
    assert hung is not None
    assert hung.worker == "w0"
    assert find_hung(good(), SCRIPT, BEGAN, BEGAN + 101) is not None


def test_what_comes_next_is_told_at_every_stage() -> None:
    seen: list[str] = []
    for tenth in range(-5, 161):
        text = next_text(until(tenth / 10), SCRIPT)
        if not seen or seen[-1] != text:
            seen.append(text)
    assert seen == [
        "next: 3 workers join",
        "next: kill -9 w2 in mid round 3",
        "next: the launcher restarts w2, which rejoins and catches up",
        "next: w3 joins",
        "next: the end, at round 6",
        "next: the outer parameters are tested",
        "finished",
    ]
    before = [e for e in until(10.2) if e.worker != "w3" and not isinstance(e, Rounded)]
    assert next_text(before, SCRIPT) == "next: a second `pccl run` brings w3, at round 4"
