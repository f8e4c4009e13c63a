"""Coordinators that share nothing but an etcd: the one that acts is killed, or stopped for longer
than its lease; etcd itself is restarted. Members reduce all the while and no op fails."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests import etcd
from tests.crew import Crew, join_all, start
from tests.e2e.processes import (
    COORDINATOR,
    ROOT,
    all_connected,
    free_ports,
    started,
    status_until,
    until_said,
)

needs_etcd = pytest.mark.skipif(not etcd.installed, reason="apt-get install etcd-server")
DEADLINE = ("--deadline", "12")  # a detection time, and a lease, of 3 s


@contextmanager
def reducing(crew: Crew) -> Iterator[list[float]]:
    """The crew reduces in a loop until the end of the block; how long each op took. Raises what an
    op raises, and if a value was wrong."""
    ended = np.zeros(1, np.int64)
    took: list[float] = []

    def loop(comm) -> None:  # type: ignore[no-untyped-def]
        while True:
            values = np.full(1000, float(comm.rank + 1))
            over = np.zeros(1, np.int64) if comm.rank else ended.copy()
            began = time.monotonic()
            world = comm.all_reduce(values).contributors_max
            comm.all_reduce(over)
            if comm.rank == 0:
                took.append(time.monotonic() - began)
            assert np.all(values == world * (world + 1) / 2), values
            if over[0]:
                return
            time.sleep(0.01)

    futures = [start(lambda comm=comm: loop(comm)) for comm in crew]
    try:
        yield took
    finally:
        ended[0] = 1
        for future in futures:
            future.result(60.0)


def _worlds(crew: Crew) -> list[int]:
    return crew.each(lambda comm: comm.all_reduce(np.ones(9)).contributors_max)


@needs_etcd
@pytest.mark.timeout(150)
def test_whatever_ends_the_one_that_acts(tmp_path: Path) -> None:
    server = etcd.Server(tmp_path, free_ports(2))
    server.start()
    one, two = (f"127.0.0.1:{port}" for port in free_ports(2))
    shared = ("--etcd", server.url, "--run", "r", *DEADLINE)
    both = f"{one},{two}"
    try:
        with started("--bind", one, *shared) as first:
            until_said(first, "stdout", "listening on")
            crew = join_all(both, 3, run="r")
            with started("--bind", two, *shared, "--standby") as second:
                until_said(second, "stderr", "standing by: ")
                with reducing(crew) as took:
                    # Stopped for longer than its lease: another acts, and it does not act again.
                    first.send_signal(signal.SIGSTOP)
                    until_said(second, "stdout", f"listening on {two}")
                    status_until(two, lambda found: all_connected(found) and found["epoch"] == 1)
                    first.send_signal(signal.SIGCONT)
                    until_said(first, "stderr", "acts no more")
                    until_said(first, "stderr", "standing by: ")
                crew.pop().close()
                assert _worlds(crew) == [2, 2]
                assert status_until(both, all_connected)["epoch"] == 2
                # etcd is killed and comes back: it goes on, or is elected again.
                with reducing(crew):
                    server.kill()
                    time.sleep(0.5)
                    server.start()
                    time.sleep(0.5)
                # Killed: the one that was deposed acts again, on what is in etcd.
                with reducing(crew):
                    second.kill()
                    until_said(first, "stdout", f"listening on {one}")
                assert status_until(both, all_connected)["epoch"] == 2
                crew.pop().close()
                assert _worlds(crew) == [1]
                print(f"slowest op of {len(took)}: {max(took):.2f} s")
                crew[0].leave()
    finally:
        server.kill()


def test_no_etcd_is_one_line() -> None:
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
    for words, status, says in (
        (("--etcd", nobody, "--run", "r"), 1, f"etcd cannot be asked ({nobody}: "),
        (("--etcd", nobody, "--run", "r", "--state-dir", "x"), 2, "--etcd needs --run, the name"),
        (("--etcd", "127.0.0.1:2379", "--run", "r"), 2, "must be http://HOST:PORT"),
    ):
        ended = subprocess.run(
            [*COORDINATOR, "--bind", "127.0.0.1:0", *words],
            check=False, cwd=ROOT, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert (ended.returncode, ended.stdout) == (status, ""), ended.stderr
        assert says in ended.stderr
        assert ended.stderr.count("\n") == 1, ended.stderr
