"""A minute of chaos with a fixed seed: real processes, killed, stopped, cut off, corrupted, and a
coordinator that is killed again and again; judged by `stress.storm.oracle` from the log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stress.storm import conclude, figures, oracle

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 54  # of faults; with the beginning, what is still to heal, and the leaving: a minute


@pytest.mark.chaos
@pytest.mark.timeout(240)
def test_a_minute_of_chaos(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stress.chaos", "--profile", "suite", "--seed", "4"]
    done = subprocess.run(
        [*command, "--seconds", str(SECONDS), "--out", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=220,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    history = conclude.read(tmp_path)
    faults = figures.faults_by_kind(history)
    assert faults.total() >= SECONDS / 3
    assert {"kill", "join", "coordinator"} <= set(faults)
    assert len(figures.steps_of(history)) > 100
    assert f"{len(oracle.CHECKS)} of {len(oracle.CHECKS)} checks hold" in done.stdout
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert len((tmp_path / "schedule.jsonl").read_text().splitlines()) > faults.total()
