"""The whole demo at a reduced size: real workers with torch, a real kill, a real late joiner; and
the proof that its checks can fail."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pccl_py.report import conduct, oracle
from pccl_py.report.director import Script
from pccl_py.report.live import PlainLines

ROOT = Path(__file__).resolve().parents[2]
DIVERGENT = Path(__file__).with_name("divergent_worker.py")
FAKE = ROOT / "tests" / "report" / "fake_worker.py"
COMMAND = (sys.executable, str(ROOT / "examples" / "demo.py"), "--quick", "--plain")


def clean_environment(**more: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("PCCL_")} | more


def demo(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs it from another folder, as a user may."""
    return subprocess.run(
        (*COMMAND, *args),
        cwd=folder, env=clean_environment(**env), capture_output=True, text=True, timeout=230,
        check=False,
    )  # fmt: skip


@pytest.mark.timeout(250)
def test_the_demo_at_a_reduced_size(tmp_path: Path) -> None:
    done = demo(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nok ") == 6
    assert "kill -9" in done.stdout
    assert "The kill cost the survivors" in done.stdout
    assert "survived kill -9" in (tmp_path / "demo-report.html").read_text()
    assert done.stderr == ""


def test_a_divergent_worker_fails_the_demo(tmp_path: Path) -> None:
    done = demo(tmp_path, "--script", str(FAKE), FAKE_DIVERGES="w1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL all members hold the same state: after round 1:" in done.stdout
    assert "failed its checks" in (tmp_path / "demo-report.html").read_text()
    folder = Path(done.stdout.rpartition("Logs: ")[2].strip())
    assert (folder / "metrics").is_dir()
    shutil.rmtree(folder)


def test_a_wrong_outer_parameter_shows_in_the_hash(tmp_path: Path) -> None:
    rounds = 3
    expected = oracle.Expected(("w0", "w1"), "w1", "w2", rounds, None)
    tiny = "--layers 1 --width 16 --heads 2 --context 16 --inner-steps 2 --eval-batches 1"
    plan = conduct.Plan(
        script=Script(expected, kill_round=rounds + 1, late_round=rounds + 1, limit_s=60.0),
        command=(sys.executable, str(DIVERGENT), "--rounds", str(rounds), *tiny.split()),
        folder=tmp_path,
        env=clean_environment(),
    )
    result = conduct.run(plan, PlainLines(Console(quiet=True), rounds))
    verdict = oracle.same_state(result.events, expected)
    assert not verdict.ok
    assert verdict.text.startswith("after round 1: w0 "), result.errors


def test_ctrl_c_ends_it_in_one_line(tmp_path: Path) -> None:
    process = subprocess.Popen(
        (*COMMAND, "--script", str(FAKE)),
        cwd=tmp_path, env=clean_environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "round 3/" in line:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGINT
    assert re.fullmatch(r"demo: stopped; logs in \S+\n", errors)
    shutil.rmtree(errors.split()[-1])
