"""The workers' JSON lines: what is read from them, and what is refused."""

from __future__ import annotations

import json
import math

import pytest

from pccl_py.report import records

JOINED: dict[str, object] = {
    "event": "joined", "time": 1.5, "worker": "w0", "pid": 7, "epoch": 2, "rank": 1, "world": 3,
    "round": 4, "something": "more",
}  # fmt: skip


def test_a_line_becomes_an_event() -> None:
    assert records.parse(json.dumps(JOINED)) == records.Joined(1.5, "w0", 7, 2, 1, 3, 4)


def test_what_the_report_does_not_use_is_skipped() -> None:
    assert records.parse('{"event": "weather", "time": 1}') is None


def test_the_bigram_loss_may_be_missing() -> None:
    line = {"event": "evaluated", "time": 1, "worker": "w0", "pid": 7, "round": 0, "valid_loss": 2}
    event = records.parse(json.dumps(line))
    assert isinstance(event, records.Evaluated)
    assert math.isnan(event.bigram_loss)
    again = records.parse(json.dumps({**line, "bigram_loss": 2.5}))
    assert isinstance(again, records.Evaluated)
    assert again.bigram_loss == 2.5


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "not a JSON object"),
        ("{", "Expecting"),
        (json.dumps({**JOINED, "epoch": "2"}), "epoch is '2', not an integer"),
        (json.dumps({**JOINED, "epoch": True}), "epoch is True, not an integer"),
        (json.dumps({**JOINED, "time": None}), "time is None, not a number"),
        (json.dumps({**JOINED, "worker": 3}), "worker is 3, not a text"),
        ('{"event": "left", "time": 1}', "worker is None, not a text"),
    ],
)
def test_a_bad_line_is_refused_by_name(line: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("[", r"\[")):
        records.parse(line)
