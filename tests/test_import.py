"""`import pccl_py` is light: it needs no torch and does not bring it in. Each import runs in a
process of its own; the cost is CPU time, since wall time here depends on who else is running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CPU_MAX_S = 0.3
PROGRAM = """
import json, sys, time
if {block}:
    sys.modules["torch"] = None
before = time.process_time()
import pccl_py
cost = time.process_time() - before
print(json.dumps({{"cost_s": cost, "torch": bool(sys.modules.get("torch"))}}))
"""


def imported(*, block_torch: bool) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(block=block_torch)],
        capture_output=True, text=True, timeout=60, env=environment, cwd=ROOT, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


def test_without_torch() -> None:
    imported(block_torch=True)


def test_quick_and_torch_stays_out() -> None:
    runs = [imported(block_torch=False) for _ in range(4)]
    assert not any(run["torch"] for run in runs)
    assert min(run["cost_s"] for run in runs) < CPU_MAX_S
