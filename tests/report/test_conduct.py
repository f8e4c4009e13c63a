"""The demo's machinery with real launchers, a real coordinator and a real kill; workers train
nothing (`fake_worker`)."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from pccl_py.report import conduct, oracle
from pccl_py.report.director import Script
from pccl_py.report.live import PlainLines, Show
from pccl_py.report.oracle import Expected
from pccl_py.report.records import Event, Exited, Hung, Joined, Killed, Started

FAKE = Path(__file__).with_name("fake_worker.py")
ROUNDS = 30


def run(folder: Path, show: Show | None = None, hang_s: float = 20.0, **env: str) -> conduct.Result:
    expected = Expected(("w0", "w1", "w2"), "w2", "w3", ROUNDS, 2.35, hang_s)
    plan = conduct.Plan(
        script=Script(expected, kill_round=6, late_round=10, limit_s=60.0),
        command=(sys.executable, str(FAKE), "--rounds", str(ROUNDS)),
        folder=folder,
        env={**os.environ, **env},
    )
    quiet = PlainLines(Console(quiet=True), ROUNDS)
    return conduct.run(plan, show or quiet)


def failed(result: conduct.Result) -> dict[str, str]:
    expected = Expected(("w0", "w1", "w2"), "w2", "w3", ROUNDS, 2.35)
    return {v.name: v.text for v in oracle.judge(result.events, expected) if not v.ok}


def test_a_run_with_a_kill_and_a_late_worker(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert failed(result) == {}
    assert result.code == 0
    kill = next(event for event in result.events if isinstance(event, Killed))
    ends = [event for event in result.events if isinstance(event, Exited)]
    assert [end.status for end in ends if end.pid == kill.pid] == [-signal.SIGKILL]
    assert list(result.events) == sorted(result.events, key=lambda event: event.time)
    late = {e.pid for e in result.events if e.worker == "w3" and isinstance(e, Started | Joined)}
    assert len(late) == 2  # a launcher of its own and its worker
    assert not any(_alive(event.pid) for event in result.events)


def test_a_divergent_worker_is_caught(tmp_path: Path) -> None:
    found = failed(run(tmp_path, FAKE_DIVERGES="w1"))
    assert list(found) == ["all members hold the same state"]
    assert "w1" in found["all members hold the same state"]


def test_a_worker_that_fails_is_caught_and_quoted(tmp_path: Path) -> None:
    result = run(tmp_path, FAKE_FAILS="w3")
    assert list(failed(result)) == ["every worker ended in good order"]
    assert any("something went wrong" in line for line in result.errors["w3"])


def test_a_hanging_worker_ends_the_run(tmp_path: Path) -> None:
    began = time.monotonic()
    result = run(tmp_path, hang_s=1.5, FAKE_HANGS="w1")
    assert time.monotonic() - began < 20
    hung = [event for event in result.events if isinstance(event, Hung)]
    assert [event.worker for event in hung] == ["w1"]
    assert "w1" in failed(result)["no member hung"]
    assert result.code == 0  # our own stop is a failed check, not the user's Ctrl-C
    assert not any(_alive(event.pid) for event in result.events)


@pytest.mark.parametrize("when", ["early", "with the late worker"])
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, when: str) -> None:
    marks = 3 if when == "early" else 5  # members, counting lives
    watched = _Interrupts(marks)
    result = run(tmp_path, show=watched)
    assert result.code == 128 + signal.SIGINT
    assert not any(_alive(event.pid) for event in result.events)


class _Interrupts(PlainLines):
    """Presses Ctrl-C, once, when so many lives have become members."""

    def __init__(self, members: int) -> None:
        super().__init__(Console(quiet=True), ROUNDS)
        self._members = members

    def update(self, events: Sequence[Event], began: float, now: float, next_text: str) -> None:
        if sum(isinstance(event, Joined) for event in events) >= self._members:
            self._members = 1000
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()


def _alive(pid: int) -> bool:
    """Whether a process of that number runs still (an ended one may wait to be reaped)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
