"""An all-reduce over an emulated network: pccl as it is, pccl with one link a pair, and gloo, by
turns in one run, as shares of what the links can carry. Called by `python -m stress.wan bench`.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from stress.wan import build, measure
from stress.wan.net import Network

IMPLEMENTATIONS = ("pccl", "pccl-1", "gloo")  # pccl-N: with links=N
PORT = 48148  # of the first coordinator
START_S = 0.3  # from an order to the common start
FORMULA = "share = 2 (W-1)/W x bytes / time / (rate x 1448/1500); time = the slowest member's"


@dataclass(slots=True)
class Row:
    """One implementation's ops, in order; the first had fresh connections."""

    name: str
    seconds: list[float] = field(default_factory=list)
    links: int = 0  # of a member, to all others together; 0: not known


class Members:
    """The processes inside the hosts, in lock step."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._processes = processes

    def order(self, *words: object) -> list[list[str]]:
        """Tells all, and returns each one's answer.

        Raises:
            RuntimeError: a member ended; it said why on standard error.
        """
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):
                _pipe(process.stdin).write(" ".join(map(str, words)).encode() + b"\n")
                _pipe(process.stdin).flush()
        answers = [_pipe(process.stdout).readline().decode().split() for process in self._processes]
        if not all(answers):
            raise RuntimeError(f"a member ended at: {' '.join(map(str, words))}")
        return answers

    def end(self) -> None:
        for process in self._processes:
            _pipe(process.stdin).close()
        for process in self._processes:
            process.wait(timeout=30)


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "run with a pipe"
    return stream


def _environment() -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PCCL_")}
    return env | {
        "PCCL_SECRET": "an emulated network's",
        "GLOO_SOCKET_IFNAME": "wan0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(build.ROOT),
    }


@contextlib.contextmanager
def _members(net: Network, mib: float) -> Iterator[Members]:
    env = _environment()
    with tempfile.TemporaryDirectory() as folder:
        shared = [str(net.hosts), str(Path(folder) / "gloo"), str(mib)]
        members = Members([
            net.run(
                host, [sys.executable, "-m", "stress.wan.member", str(host), *shared],
                env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
            for host in range(net.hosts)
        ])  # fmt: skip
        yield members
        members.end()


def _coordinator(net: Network, port: int) -> str:
    """Starts one, for a run of its own: members of two could not join while they wait for orders,
    since newcomers enter where all members of a run are between two ops."""
    where = f"{net.address(0)}:{port}"
    argv = [sys.executable, "-m", "pccl_py", "coordinator", "--bind", where]
    net.run(0, argv, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return where


def measured(net: Network, names: Sequence[str], *, mib: float, repeats: int) -> list[Row]:
    """`repeats` ops of each, by turns.

    Raises:
        RuntimeError: a member ended.
    """
    rows = [Row(name) for name in names]
    with _members(net, mib) as members:
        for number, row in enumerate(rows):
            members.order("open", row.name, _coordinator(net, PORT + number))
        for _ in range(repeats):
            for row in rows:
                members.order("fill", row.name)
                start_ns = time.monotonic_ns() + int(START_S * 1e9)
                answers = members.order("run", row.name, start_ns)
                row.seconds.append(max(float(words[1]) for words in answers))
                members.order("check", row.name)
                row.links = max(int(words[2]) for words in answers)
    return rows


def ideal_s(net: Network, mib: float) -> float:
    """What the bytes alone take, at the rate of a host's link."""
    carried = 2 * (net.hosts - 1) / net.hosts * mib * (1 << 20)
    return carried * 8e-6 / net.settings.capacity_mbit(net.mtu, 1 << 20)


def table(rows: Sequence[Row], ideal: float) -> str:
    """Seconds and shares, the first op apart: its connections are new."""
    lines = [f"{'':12} {'first op':>16} {'later ops, median':>20} {'min':>8} {'max':>8}  links"]
    for row in rows:
        first, later = row.seconds[0], row.seconds[1:] or row.seconds
        middle = statistics.median(later)
        lines.append(
            f"{row.name:12} {first:7.2f} s {ideal / first:6.1%}"
            f" {middle:11.2f} s {ideal / middle:6.1%}"
            f" {ideal / max(later):8.1%} {ideal / min(later):8.1%}  {row.links or ''}"
        )
    return "\n".join(lines)


def bench(net: Network, names: Sequence[str], *, mib: float, repeats: int) -> int:
    """Prints the table. 1 when the emulator could not be believed before or after."""
    try:
        before = net.calibrate(ring=net.hosts > 2)
        rows = measured(net, names, mib=mib, repeats=repeats)
        after = net.calibrate(ring=net.hosts > 2)
    except measure.NotFaithful as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    print(
        f"{net.hosts} hosts, all_reduce of {mib:g} MiB, {net.settings}\n"
        f"bare streams reach {before.share:.1%} of the capacity before, {after.share:.1%} after\n"
        f"{FORMULA}; the bytes alone take {ideal_s(net, mib):.2f} s\n\n"
        f"{table(rows, ideal_s(net, mib))}"
    )
    return 0
