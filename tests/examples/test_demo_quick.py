"""The whole demo at a reduced size: real workers with torch, a real kill, a real late joiner; and
the proof that its checks can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DIVERGENT = Path(__file__).with_name("divergent_worker.py")


def demo(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Runs it from another folder, as a user may."""
    command = (sys.executable, str(EXAMPLES / "demo.py"), "--quick", "--plain", *args)
    env = {k: v for k, v in os.environ.items() if not k.startswith("PCCL_")}
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=110, check=False
    )


@pytest.mark.timeout(120)
def test_the_demo_at_a_reduced_size(tmp_path: Path) -> None:
    done = demo(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nok ") == 6
    assert "kill -9" in done.stdout
    assert "The kill cost the survivors" in done.stdout
    assert "survived kill -9" in (tmp_path / "demo-report.html").read_text()
    assert done.stderr == ""


@pytest.mark.timeout(120)
def test_a_divergent_worker_fails_the_demo(tmp_path: Path) -> None:
    done = demo(tmp_path, "--script", str(DIVERGENT))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL all members hold the same state: after round 1:" in done.stdout
    assert "failed its checks" in (tmp_path / "demo-report.html").read_text()
