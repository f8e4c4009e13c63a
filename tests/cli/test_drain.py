"""SIGTERM under `pccl run`: a worker finishes the op it is in, leaves and exits with 0."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_run_cli import TIMEOUT_S, Bench
from tests.launch.processes import wait_gone

SCRIPT = """
import contextlib, os
import numpy as np
import pccl_py as pccl
comm = pccl.join(min_members=3, deadline_s=60)
print("pid", os.getpid(), flush=True)
x = np.ones(2_000_000, np.float32)
with contextlib.nullcontext() if os.environ["RANK"] == "1" else comm:
    for op in range(1_000_000):
        x.fill(1.0)
        work = comm.all_reduce(x, async_op=True)
        print("in", op, flush=True)
        info = work.wait()
        print("out", op, info.contributors_min, info.contributors_max, int(x[0]), flush=True)
        comm.update()
"""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    try:
        yield bench
        assert wait_gone(bench.mark) == set(), "processes left behind"
    finally:
        bench.clean_up()


class Told:
    """What the workers of a launcher say, by worker: pid, ops begun, ops ended."""

    def __init__(self, launcher: subprocess.Popen[str]) -> None:
        assert launcher.stdout is not None
        self.stdout = launcher.stdout
        self.pid: dict[str, int] = {}
        self.begun: dict[str, int] = {}
        self.ended: dict[str, dict[int, tuple[int, ...]]] = {}

    def take(self, line: str) -> None:
        found = re.match(r"\[(w\d)\] (\w+) (.*)", line)
        assert found, line
        who, what, numbers = found[1], found[2], [int(n) for n in found[3].split()]
        match what:
            case "pid":
                self.pid[who] = numbers[0]
            case "in":
                self.begun[who] = numbers[0]
            case "out":
                self.ended.setdefault(who, {})[numbers[0]] = tuple(numbers[1:])

    def until_all_end(self, op: int, workers: tuple[str, ...]) -> None:
        while not all(op in self.ended.get(who, {}) for who in workers):
            line = self.stdout.readline()
            assert line, "it ended"
            self.take(line)


def test_nobody_loses_anything_by_a_sigterm(bench: Bench) -> None:
    launcher = bench.start("-n", "3", bench.script(SCRIPT))
    told = Told(launcher)
    told.until_all_end(3, ("w0", "w1", "w2"))
    os.kill(told.pid["w1"], signal.SIGTERM)
    while told.ended["w0"][max(told.ended["w0"])] != (2, 2, 2):
        told.take(launcher.stdout.readline())  # type: ignore[union-attr]
    last = told.begun["w1"]  # or one more, of which it could not speak any more
    told.until_all_end(last + 3, ("w0", "w2"))
    launcher.send_signal(signal.SIGTERM)
    out, err = launcher.communicate(timeout=TIMEOUT_S)
    for line in out.splitlines():
        told.take(line)
    assert told.begun["w1"] == last
    for who in ("w0", "w2"):
        worlds = [ended for op, ended in sorted(told.ended[who].items()) if op <= last + 3]
        count = worlds.count((3, 3, 3))
        assert count in (last + 1, last + 2)
        assert worlds == [(3, 3, 3)] * count + [(2, 2, 2)] * (last + 4 - count)
    assert launcher.returncode == 128 + signal.SIGTERM
    assert not re.search(r"w\d: ", err), "a summary tells of workers that did not end with 0"
