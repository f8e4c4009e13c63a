"""Each check of the demo holds for a good run, and each of them can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pccl_py.report import oracle
from pccl_py.report.records import Evaluated, Event, Exited, Hung, Joined, Killed, Left, Rounded
from tests.report.story import BEGAN, EXPECTED, good, rounded, without
from tests.report.story import changed as change


def test_a_good_run_passes_every_check() -> None:
    assert [v.text for v in oracle.judge(good(), EXPECTED) if not v.ok] == []


def spoiled(what: str) -> list[Event]:
    events = good()
    match what:
        case "a final hash differs":
            return change(events, Left, {"worker": "w1"}, digest="other")
        case "a hash in between differs":
            return change(events, Rounded, {"worker": "w1", "round": 2}, digest="other")
        case "no final state of one":
            return without(events, Left, worker="w3")
        case "one left too early":
            return change(events, Left, {"worker": "w1"}, round=5, digest="hash5")
        case "loss above the limit":
            return change(events, Evaluated, {"round": 6}, valid_loss=2.36)
        case "loss above the bigrams":
            return change(events, Evaluated, {"round": 6}, valid_loss=2.3, bigram_loss=2.2)
        case "bigrams unknown":
            return change(events, Evaluated, {"round": 6}, bigram_loss=float("nan"))
        case "loss is no number":
            return change(events, Evaluated, {"round": 6}, valid_loss=float("nan"))
        case "not evaluated at the end":
            return without(events, Evaluated, round=6)
        case "not evaluated at the start":
            return without(events, Evaluated, round=0)
        case "nobody was killed":
            return without(events, Killed)
        case "another was killed":
            return change(events, Killed, {}, worker="w1")
        case "the victim never came back":
            return without(events, Joined, pid=13)
        case "the victim did no round":
            return without(events, Rounded, pid=13)
        case "a survivor did not survive":
            return [*events, Joined(BEGAN + 11, "w1", 77, 3, 1, 3, 4)]
        case "nobody joined late":
            return without(events, Joined, worker="w3")
        case "the late one began alone":
            return change(events, Joined, {"worker": "w3"}, round=0)
        case "the late one did no round":
            return without(events, Rounded, worker="w3")
        case "one was found hanging":
            return [*events, Hung(BEGAN + 60, "w1", 11, 31.0)]
        case "one was silent for long":
            return change(events, Exited, {"worker": "w1"}, time=BEGAN + 46)
        case "a worker failed":
            return change(events, Exited, {"worker": "w1"}, status=1)
        case "a worker never ended":
            return without(events, Exited, worker="w1")
        case "the victim stayed dead":
            return without(events, Exited, pid=13)
        case "another signal than ours":
            return change(events, Exited, {"pid": 12}, status=-11)
    raise AssertionError(what)


@pytest.mark.parametrize(
    ("what", "check"),
    [
        ("a final hash differs", oracle.same_state),
        ("a hash in between differs", oracle.same_state),
        ("no final state of one", oracle.same_state),
        ("one left too early", oracle.same_state),
        ("loss above the limit", oracle.loss),
        ("loss above the bigrams", oracle.loss),
        ("bigrams unknown", oracle.loss),
        ("loss is no number", oracle.loss),
        ("not evaluated at the end", oracle.loss),
        ("not evaluated at the start", oracle.loss),
        ("nobody was killed", oracle.killed_and_back),
        ("another was killed", oracle.killed_and_back),
        ("the victim never came back", oracle.killed_and_back),
        ("the victim did no round", oracle.killed_and_back),
        ("a survivor did not survive", oracle.killed_and_back),
        ("nobody joined late", oracle.joined_late),
        ("the late one began alone", oracle.joined_late),
        ("the late one did no round", oracle.joined_late),
        ("one was found hanging", oracle.nobody_hung),
        ("one was silent for long", oracle.nobody_hung),
        ("a worker failed", oracle.ended_well),
        ("a worker never ended", oracle.ended_well),
        ("the victim stayed dead", oracle.ended_well),
        ("another signal than ours", oracle.ended_well),
    ],
)
def test_each_check_can_fail(what: str, check: object) -> None:
    assert callable(check)
    verdict = check(spoiled(what), EXPECTED)
    assert not verdict.ok
    assert verdict in oracle.judge(spoiled(what), EXPECTED)


def test_an_empty_run_fails_without_a_traceback() -> None:
    failed = [v.name for v in oracle.judge([], EXPECTED) if not v.ok]
    assert len(failed) == 5  # all but "no member hung": nobody was there


def test_without_a_limit_falling_is_enough() -> None:
    relaxed = replace(EXPECTED, loss_limit=None)
    events = change(good(), Evaluated, {"round": 6}, valid_loss=5.4)
    assert oracle.loss(events, relaxed).ok
    worse = change(good(), Evaluated, {"round": 6}, valid_loss=5.6)
    assert not oracle.loss(worse, relaxed).ok


def test_the_cost_of_the_kill() -> None:
    cost = oracle.kill_cost(good(), EXPECTED)
    assert cost is not None
    assert cost.usual == pytest.approx(2.0)
    assert cost.longest == pytest.approx(3.0)
    assert cost.lost == pytest.approx(1.0)
    assert cost.away == pytest.approx(4.1)
    assert (cost.contributors, cost.repaired) == (2, 4)


def test_no_cost_without_a_kill_or_without_rounds() -> None:
    assert oracle.kill_cost(without(good(), Killed), EXPECTED) is None
    assert oracle.kill_cost(without(good(), Rounded), EXPECTED) is None
    late = [rounded(BEGAN + 20, "w0", 10, 9)]
    assert oracle.kill_cost(late, EXPECTED) is None


def test_exit_statuses_in_words() -> None:
    assert oracle.status_text(3) == "ended with status 3"
    assert oracle.status_text(-9) == "died of SIGKILL"
    assert oracle.status_text(-200) == "died of signal 200"
