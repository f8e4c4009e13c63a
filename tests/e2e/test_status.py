"""`pccl status` in the middle of it: who has not submitted, and who is stopped."""

from __future__ import annotations

import logging
import signal
import time

import numpy as np
import pytest

from pccl_py.cli import main
from pccl_py.launch import inquiry
from tests.crew import crew, start, until
from tests.e2e.processes import Process, coordinator

COUNT = 50_000
STATE = {"step": np.zeros(1, np.int64)}


def test_status_names_who_has_not_submitted_and_who_is_stopped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with coordinator() as address:
        third = Process(address, "--name", "third", "--min-members", "3", "--ops", "1",
                        "--count", str(COUNT))  # fmt: skip
        try:
            with crew(address, 2, min_members=3) as (one, two):
                for call in [start(lambda c=c: c.sync_state(dict(STATE))) for c in (one, two)]:
                    call.result(20)
                third.until("begin", op=0)
                work = one.all_reduce(np.zeros(COUNT, np.float32), async_op=True)

                def ops() -> list[dict]:
                    return inquiry.status(address, "", None)[1]["ops"]  # type: ignore[return-value]

                until(lambda: {row["member"] for row in ops()} == {one.name, "third"})
                third.kill(signal.SIGSTOP)
                try:
                    assert main.main(["status", "--coordinator", address]) == 0
                finally:
                    third.kill(signal.SIGCONT)
                table = capsys.readouterr().out
                (row,) = (line for line in table.splitlines() if "all_reduce" in line)
                assert row.startswith(f"{one.name} ")
                assert "200000 of 200000  submit" in row
                assert row.rstrip().endswith(two.name)
                assert "no word of their ops, within a second, from: third\n" in table
                two.all_reduce(np.zeros(COUNT, np.float32))
                assert work.wait(20.0).contributors_min == 3
                assert all(row["member"] == "third" for row in ops())
            assert third.finish() == 0, third.errors()
        finally:
            if third.child.poll() is None:
                third.kill()
                third.child.wait(10)
            for stream in (third.child.stdout, third.child.stderr):
                assert stream is not None
                stream.close()


def test_an_op_that_takes_long_gets_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with coordinator() as address, crew(address, 2, deadline_s=6.0) as (one, two):
        with caplog.at_level(logging.WARNING, logger="pccl"):
            began = time.monotonic()
            work = one.all_reduce(np.zeros(5), name="late", async_op=True)
            until(lambda: "'late'" in caplog.text)
            assert time.monotonic() - began >= 1.5  # the detection time of such a deadline
            two.all_reduce(np.zeros(5), name="late")
            work.wait(10.0)
        line, *_ = (r.getMessage() for r in caplog.records if "'late'" in r.getMessage())
        assert line.startswith("all_reduce 'late' has not ended for ")
        assert "waiting for members to submit it, 40 of 40 bytes missing, awaiting " in line
        assert line.endswith(str(two.members[two.rank]))
