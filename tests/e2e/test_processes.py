"""What only processes can show: signals, forks, and a donor killed in mid sync."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import pccl_py as pccl
from tests.crew import start
from tests.e2e.processes import Process, coordinator

PROGRAMS = Path(__file__).with_name("interrupted.py")


@contextmanager
def program(*arguments: str) -> Iterator[Process]:
    process = Process(*arguments, script=PROGRAMS)
    try:
        yield process
    finally:
        if process.child.poll() is None:
            process.kill()
        process.child.wait(10)
        for stream in (process.child.stdout, process.child.stderr):
            if stream is not None:
                stream.close()


@contextmanager
def with_partner(what: str) -> Iterator[tuple[Process, pccl.Communicator]]:
    """A program as one member and this process as the other."""
    with coordinator() as address, program(what, address, "other", "2") as process:
        comm = start(
            lambda: pccl.join(address, name="me", min_members=2, timeout=30, deadline_s=20)
        ).result(30.0)
        try:
            yield process, comm
        finally:
            comm.close()


def test_ctrl_c_acts_at_once_and_leaves_the_op_running() -> None:
    with with_partner("interrupt") as (process, comm):
        process.until("waiting")
        time.sleep(0.2)
        sent = time.time()
        process.kill(signal.SIGINT)
        interrupted = process.until("interrupted")
        assert interrupted["at"] - sent < 0.5
        assert interrupted["running"]
        x = np.full(10, 2.0)
        comm.all_reduce(x)
        reduced = process.until("reduced")
        assert (reduced["value"], reduced["contributors"]) == (3.0, 2)
        process.until("left")
        assert process.finish() == 0


def test_a_forked_child_is_refused_and_hides_no_death() -> None:
    with with_partner("fork") as (process, comm):
        told = process.until("child")  # the child and its parent speak in any order
        child = told["pid"]
        try:
            assert all("forked child" in text for text in told["said"]), told["said"]
            assert told["sockets"] == [], "the parent's connections are closed in the child"
            x = np.ones(10)
            comm.all_reduce(x)
            assert process.until("reduced")["value"] == 2.0
            began = time.monotonic()
            process.kill()
            y = np.ones(10)
            info = comm.all_reduce(y, timeout=15.0)
            assert time.monotonic() - began < 3.0, "the child does not hide its parent's death"
            assert info.contributors_max == 1
            assert comm.world_size == 1
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_end_of_a_child_disturbs_nobody() -> None:
    with with_partner("child_ends") as (process, comm):
        statuses = [process.until("child ended")["status"] for _ in range(4)]
        assert statuses == [0, 0, 0, 0]
        x = np.ones(10)
        assert comm.all_reduce(x).contributors_min == 2
        assert process.until("reduced")["value"] == 2.0
        process.until("left")
        assert process.finish() == 0


@pytest.mark.parametrize("seed", range(2))
def test_a_donor_killed_in_mid_sync(seed: int) -> None:
    with (
        coordinator() as address,
        program("donate", address, "m0", "3") as a,
        program("donate", address, "m1", "3") as b,
        program("donate", address, "m2", "3") as c,
    ):
        ranks = {process.until("syncing")["rank"]: process for process in (a, b, c)}
        time.sleep(random.Random(seed).uniform(0.0, 0.15))
        ranks[0].kill()  # all differ: who joined first is the donor
        ends = [ranks[rank].until("synced") for rank in (1, 2)]
        assert len(ends[0]["values"]) == 1, "one peer's state, whole"
        assert ends[0]["values"] == ends[1]["values"]
        assert [ranks[rank].finish() for rank in (1, 2)] == [0, 0]
