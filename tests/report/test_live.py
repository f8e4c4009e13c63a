"""The table and the plain lines: what a watcher reads."""

from __future__ import annotations

import io

from rich.console import Console

from pccl_py.report.live import LiveTable, PlainLines
from tests.report.story import BEGAN, EXPECTED, good


def shown(kind: str, step_s: float) -> str:
    """What stands on a terminal or in a log after the good story, looked at every `step_s`."""
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=kind == "table", color_system=None)
    show = LiveTable(console, EXPECTED.everybody, 6) if kind == "table" else PlainLines(console, 6)
    with show:
        for step in range(int(17 / step_s) + 1):
            now = BEGAN + step * step_s
            known = [event for event in good() if event.time <= now]
            show.update(known, BEGAN, now, "next: something")
    return out.getvalue()


def test_plain_lines_tell_each_round_once() -> None:
    text = shown("plain", 0.5)
    assert [text.count(f"round {n}/6: ") for n in range(1, 7)] == [1] * 6
    assert "   6.0 s  kill -9 12: w2\n" in text
    assert "w2 (process 12) died of SIGKILL" in text
    assert "w2 starts again (process 13)" in text
    assert "w3 is a member: rank 3 of 4, epoch 4, at round 5" in text
    assert "4 segments repaired" in text
    assert text.count("next: something") == 1
    assert "\x1b" not in text


def test_the_table_shows_every_worker() -> None:
    text = shown("table", 4.0)
    for worker in EXPECTED.everybody:
        assert worker in text
    assert "done" in text
    assert "hash6" in text
    assert "4.0 MB" in text
    assert "kill -9 12: w2" in text
