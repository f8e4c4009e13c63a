"""Over an emulated wide-area network whose paths differ, small ops come to go over the member in
the middle, and are faster by it. Needs root."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from stress import wan

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("small_worker.py")
FAR_MS, NEAR_MS = 120.0, 40.0
HUB = 2  # the host in the middle


def environment() -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("PCCL_")}
    return env | {"PCCL_SECRET": "an emulated network's", "PYTHONPATH": str(ROOT)}


def run(net: wan.Network) -> tuple[list[list[tuple[str, float]]], dict[str, object]]:
    """What each host's worker saw, and the coordinator's status before they left."""
    address = f"{net.address(0)}:48148"
    pccl = [sys.executable, "-m", "pccl_py"]
    env = environment()
    coordinator = net.run(
        0, [*pccl, "coordinator", "--bind", address], stdout=subprocess.PIPE, env=env, cwd=ROOT
    )
    assert coordinator.stdout is not None
    assert b"48148" in coordinator.stdout.readline()
    argv = [sys.executable, str(WORKER), address, str(net.hosts), "40"]
    workers = [
        net.run(host, argv, stdout=subprocess.PIPE, env=env, cwd=ROOT) for host in range(net.hosts)
    ]
    lines = []
    for worker in workers:
        assert worker.stdout is not None
        lines.append(worker.stdout.readline())
    with net.run(
        0, [*pccl, "status", "--json", "--coordinator", address], stdout=subprocess.PIPE, env=env,
        cwd=ROOT,
    ) as asked:  # fmt: skip
        assert asked.stdout is not None
        status = json.loads(asked.stdout.read() or b"{}")
    for worker in workers:
        assert worker.wait(30) == 0
    coordinator.terminate()
    coordinator.wait(10)
    coordinator.stdout.close()
    return [json.loads(line) for line in lines], status


def test_small_ops_are_faster_over_the_hub_in_the_middle() -> None:
    net = wan.Network(4, rtt_ms=FAR_MS, rate_mbit=0.0)
    try:
        net.__enter__()
    except wan.WanUnavailable as missing:
        pytest.skip(str(missing))
    try:
        for host in range(4):
            if host != HUB:
                net.set_pair(host, HUB, rtt_ms=NEAR_MS)
        seen, status = run(net)
    finally:
        net.__exit__(None, None, None)
    before, after = [], []
    for took in seen:
        before += [ms for route, ms in took if route == "direct"]
        after += [ms for route, ms in took if route == "star"][1:]  # without the view's change
    assert len(before) >= 4 * 8, "some went before the paths were known"
    assert len(after) >= 4 * 8, f"no hub was named: {status}"
    was, now = statistics.median(before), statistics.median(after)
    print(f"median of {len(before)}: {was:.1f} ms, over the hub of {len(after)}: {now:.1f} ms")
    assert now < 0.7 * was
