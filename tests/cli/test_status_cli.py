"""`pccl status`: what it prints of ops, deadlines and who is silent; --watch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

import pccl_py as pccl
from pccl_py.cli import main, status
from pccl_py.coordinator import embedded
from pccl_py.protocol.endpoint import Endpoint
from tests.coordinator.raw_peer import ROOT, running

WHERE = Endpoint("127.0.0.1", 5)
OP = {
    "member": "w0", "op": "all_reduce 'g\x1b'", "age_s": 3.25, "bytes": 800, "bytes_missing": 24,
    "phase": "submit", "awaited": ["w1", "w\n2", "w3", "w4", "w5"], "awaited_count": 9,
    "timed_out": True,
}  # fmt: skip


def test_table_shows_ops_in_flight() -> None:
    text = status.table(WHERE, {"ops": [OP], "ops_more": 5, "unanswered": [{"name": "w7"}]})
    lines = text.splitlines()
    titles = next(i for i, line in enumerate(lines) if line.startswith("member"))
    assert lines[titles].split("  ") != []
    row = " ".join(lines[titles + 1].split())
    assert row == (
        "w0 all_reduce 'g?', timed out 3.25 s 24 of 800 submit w1, w 2, w3, w4 and 5 more"
    )
    assert lines[titles + 2] == "and 5 more"
    assert "no word of their ops, within a second, from: w7" in lines


def test_table_is_bounded_and_takes_anything() -> None:
    many = status.table(WHERE, {"ops": [OP] * 100})
    assert many.count("all_reduce") == status.OPS_SHOWN_MAX
    assert f"and {100 - status.OPS_SHOWN_MAX} more" in many
    odd = {**dict.fromkeys(OP, 7), "awaited": 3, "awaited_count": "x"}
    text = status.table(WHERE, {"ops": [odd, {}], "ops_more": "x", "unanswered": [{}]})
    assert "7 of 7" in text
    assert "- of -" in text


def members(*deadlines: float | None) -> list[dict]:
    return [{"name": f"w{i}", "deadline_s": s} for i, s in enumerate(deadlines)]


def test_deadlines_that_differ_are_shown_and_short_ones_named() -> None:
    known = {"deadline_s": 600.0, "detection_s": 5.0}
    same = status.table(WHERE, {**known, "members": members(600.0, None)})
    assert "own deadline" not in same
    long = status.table(WHERE, {**known, "members": members(20.0, 30.0)})
    assert "members' own deadline 20 to 30 s" in long
    assert "warning" not in long
    short = status.table(WHERE, {**known, "members": members(2.0, 600.0)})
    assert "warning: that of w0 is shorter than the detection time" in short


def test_watch_goes_on_until_it_is_interrupted() -> None:
    with embedded.start() as own:
        command = [sys.executable, "-m", "pccl_py", "status", "--watch", "0.1", "--json"]
        with subprocess.Popen(
            [*command, "--coordinator", own.address],
            stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ,
        ) as child:  # fmt: skip
            assert child.stdout is not None
            try:
                for _ in range(2):
                    assert json.loads(child.stdout.readline())["members"] == []
            finally:
                child.send_signal(signal.SIGINT)
            assert child.wait(10) == main.EXIT_INTERRUPTED


@pytest.mark.parametrize("every", ["0", "-1", "nan", "inf"])
def test_watch_wants_a_time(every: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["status", f"--watch={every}"]) == 2
    assert "must be 0.1 seconds or more" in capsys.readouterr().err


def test_a_run_with_a_deadline_of_its_own_refuses_one_that_does_not_go_with_it() -> None:
    words = ("-m", "pccl_py", "coordinator", "--bind", "127.0.0.1:0", "--deadline", "60")
    with running(*words) as (address, _):
        with pytest.raises(pccl.UsageError, match=r"deadline_s=4 is shorter than the 5 s in which"):
            pccl.join(address, deadline_s=4.0, timeout=10.0)
        pccl.join(address, deadline_s=20.0, timeout=10.0).leave()
