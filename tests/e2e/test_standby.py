"""A second coordinator on the same state directory takes over when the first is killed with -9:
real processes, members that reduce meanwhile, and a death that the second has to repair."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pccl_py.launch import inquiry
from tests.e2e.processes import ROOT, Process, members, status_until
from tests.e2e.test_kill import check

COMMAND = (sys.executable, "-m", "pccl_py", "coordinator")
LOOP = ("--count", "5000", "--pause", "0.01", "--update")

pytestmark = pytest.mark.timeout(100)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses just now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


@contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A coordinator as a process, killed at the end."""
    process = subprocess.Popen(
        [*COMMAND, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("PCCL_")},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def until_said(process: subprocess.Popen[str], stream: str, wanted: str) -> str:
    """The first line of its stdout or stderr that holds `wanted`; the test's own timeout bounds it,
    the end of the process too."""
    source = getattr(process, stream)
    lines = []
    while line := source.readline():
        lines.append(line)
        if wanted in line:
            return str(line)
    raise AssertionError(f"it ended without {wanted!r}: {lines}")


def all_connected(found: inquiry.Json) -> bool:
    members = found["members"]
    assert isinstance(members, list)
    return all(member["connected"] for member in members)


def slowest_s(group: Sequence[Process]) -> float:
    return max(line["seconds"] for process in group for line in process.events("reduced"))


def test_a_standby_takes_over_and_members_find_it(tmp_path: Path) -> None:
    one, two = (f"127.0.0.1:{port}" for port in free_ports(2))
    shared = ("--state-dir", str(tmp_path))
    with started("--bind", one, *shared) as first:
        until_said(first, "stdout", "listening on")
        with (
            started("--bind", two, *shared, "--standby") as second,
            members(f"{one},{two}", 3, "--ops", "100", *LOOP) as group,
        ):
            until_said(second, "stderr", "standing by: another coordinator runs on")
            group[0].until("reduced", op=5)
            first.kill()
            killed = time.monotonic()
            assert until_said(second, "stdout", "listening on") == f"listening on {two}\n"
            took_s = time.monotonic() - killed
            found = status_until(f"{one},{two}", all_connected)
            assert (found["epoch"], len(found["members"])) == (1, 3), "no view for that"
            group[0].until("begin")
            group[2].kill()
            with started("--bind", one, *shared, "--standby") as third:
                until_said(third, "stderr", "standing by")
                group[0].until("reduced", world=2)
                second.kill()
                until_said(third, "stdout", "listening on")
                living = group[:2]
                assert [p.finish() for p in living] == [0, 0], [p.errors() for p in living]
                check(living)
                assert all(p.events("reduced")[-1]["op"] == 99 for p in living), "none has failed"
                third.terminate()
                assert third.wait(10) == 0
    print(f"took over in {took_s:.2f} s, slowest op {slowest_s(living):.2f} s")
    assert took_s < 5.0


def test_a_standby_waits_in_silence_and_goes_when_it_is_told(tmp_path: Path) -> None:
    one, two = free_ports(2)
    shared = ("--state-dir", str(tmp_path))
    with started("--bind", f"127.0.0.1:{one}", *shared) as first, ExitStack() as stack:
        until_said(first, "stdout", "listening on")
        standby = started("--bind", f"127.0.0.1:{two}", *shared, "--standby")
        second = stack.enter_context(standby)
        until_said(second, "stderr", "standing by")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", two), 5).close()
        for words, says in (
            (("--bind", "127.0.0.1:0", *shared), "another coordinator runs on"),
            (("--bind", "127.0.0.1:0", "--standby"), "--standby needs --state-dir"),
        ):
            refused = subprocess.run(
                [*COMMAND, *words],
                check=False, cwd=ROOT, capture_output=True, text=True, timeout=20,
            )  # fmt: skip
            assert (refused.returncode, refused.stdout) == (2, "")
            assert says in refused.stderr
            assert refused.stderr.count("\n") == 1
        second.send_signal(signal.SIGTERM)
        assert second.wait(10) == 0
        assert second.stdout is not None
        assert second.stdout.read() == ""
