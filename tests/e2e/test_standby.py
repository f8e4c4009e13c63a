"""A second coordinator on the same state directory takes over when the first is killed with -9:
real processes, members that reduce meanwhile, and a death that the second has to repair."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.processes import (
    COORDINATOR,
    ROOT,
    Process,
    all_connected,
    free_ports,
    members,
    started,
    status_until,
    until_said,
)
from tests.e2e.test_kill import check

LOOP = ("--count", "5000", "--pause", "0.01", "--update")

pytestmark = pytest.mark.timeout(100)


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


def test_a_standby_whose_port_is_taken_says_so_and_waits_for_it(tmp_path: Path) -> None:
    shared = ("--state-dir", str(tmp_path), "--standby")
    one, three = free_ports(2)
    with socket.create_server(("127.0.0.1", 0)) as other, ExitStack() as stack:
        two = other.getsockname()[1]
        first = stack.enter_context(started("--bind", f"127.0.0.1:{one}", *shared))
        until_said(first, "stdout", "listening on")
        second = stack.enter_context(started("--bind", f"127.0.0.1:{two}", *shared))
        until_said(second, "stderr", f"WARNING port {two} on 127.0.0.1 is in use")
        until_said(second, "stderr", "standing by")
        first.kill()
        until_said(second, "stderr", "WARNING cannot take over")
        # It keeps nobody else from acting meanwhile.
        third = stack.enter_context(started("--bind", f"127.0.0.1:{three}", *shared))
        until_said(third, "stdout", "listening on")
        other.close()
        until_said(second, "stderr", "standing by: another coordinator")
        third.kill()
        assert until_said(second, "stdout", "listening on") == f"listening on 127.0.0.1:{two}\n"
        second.terminate()
        assert second.wait(10) == 0


def test_a_standby_on_the_port_of_the_one_that_acts_takes_over(tmp_path: Path) -> None:
    words = ("--bind", f"127.0.0.1:{free_ports(1)[0]}", "--state-dir", str(tmp_path), "--standby")
    with started(*words) as first, ExitStack() as stack:
        until_said(first, "stdout", "listening on")
        second = stack.enter_context(started(*words))
        until_said(second, "stderr", "is in use: right if the coordinator that acts now")
        first.kill()
        until_said(second, "stdout", "listening on")
        second.terminate()
        assert second.wait(10) == 0


def test_a_standby_that_waits_for_its_port_goes_when_it_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        bind = f"127.0.0.1:{other.getsockname()[1]}"
        with started("--bind", bind, "--state-dir", str(tmp_path), "--standby") as waits:
            until_said(waits, "stderr", "cannot take over")
            waits.send_signal(signal.SIGTERM)
            assert waits.wait(10) == 0
            assert waits.stdout is not None
            assert waits.stdout.read() == ""


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
            (("--bind", f"127.0.0.1:{two}", "--standby"), "--standby needs --state-dir"),
            (("--bind", "127.0.0.1:0", *shared, "--standby"), "choose the port"),
        ):
            refused = subprocess.run(
                [*COORDINATOR, *words],
                check=False, cwd=ROOT, capture_output=True, text=True, timeout=20,
            )  # fmt: skip
            assert (refused.returncode, refused.stdout) == (2, "")
            assert says in refused.stderr
            assert refused.stderr.count("\n") == 1
        second.send_signal(signal.SIGTERM)
        assert second.wait(10) == 0
        assert second.stdout is not None
        assert second.stdout.read() == ""
