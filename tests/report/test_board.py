"""The table's rows and the rounds' summaries, folded from events."""

from __future__ import annotations

import math

from pccl_py.report import board
from pccl_py.report.records import Event, Exited, Hung, Killed, Rounded, Started
from tests.report.story import BEGAN, EXPECTED, good, without


def doing(until: float) -> dict[str, board.Doing]:
    events = [event for event in good() if event.time <= BEGAN + until]
    return {row.worker: row.doing for row in board.rows(events, EXPECTED.everybody)}


def test_the_states_of_a_run() -> None:
    assert doing(-1) == dict.fromkeys(EXPECTED.everybody, "waiting")
    assert doing(0)["w0"] == "starting"
    assert doing(1)["w0"] == "joined"
    assert doing(2.95)["w1"] == "reducing"
    assert doing(3)["w1"] == "training"
    assert doing(6)["w2"] == "dead"
    assert doing(6.3)["w2"] == "restarting"
    assert doing(9)["w3"] == "starting"
    assert doing(16) == dict.fromkeys(EXPECTED.everybody, "done")


def test_a_crash_and_a_hang() -> None:
    crash: list[Event] = [Started(0, "w0", 1, 0), Exited(1, "w0", 1, 3)]
    assert board.rows(crash, ["w0"])[0].doing == "dead"
    assert board.rows([Hung(1, "w0", 1, 31)], ["w0"])[0].doing == "hung"
    assert board.rows([Killed(1, "other", 1)], ["w0"])[0].doing == "waiting"


def test_what_a_row_says() -> None:
    row = board.rows(good(), EXPECTED.everybody)[2]
    assert (row.worker, row.round, row.digest) == ("w2", 6, "hash6")
    assert row.bytes_sent == 4_000_000  # both lives
    assert row.loss == 2.0
    assert math.isnan(board.rows([], ["w0"])[0].loss)


def test_rounds_in_sum() -> None:
    third = board.round_summaries(good())[2]
    assert third == board.RoundSummary(3, 2, 3.5, 2_000_000, 4)
    assert board.round_summaries(without(good(), Rounded)) == ()


def test_bytes_in_words() -> None:
    texts = [board.bytes_text(n) for n in (0, 999, 1000, 3_530_000, 999_960_000, 5 * 10**12)]
    assert texts == ["0 B", "999 B", "1.0 kB", "3.5 MB", "1.0 GB", "5000.0 GB"]
