"""`pccl bench faults` from outside: real deaths, few of them, not a word about how long it took."""

from __future__ import annotations

import json
import time
import uuid

from pccl_py.bench.faults import scale, stage
from pccl_py.bench.faults.programme import ROWS
from pccl_py.cli import bench
from tests.cli.test_bench_cli import run, start
from tests.launch.processes import marked, wait_gone


def test_deaths_joins_and_restarts_are_measured_and_right() -> None:
    code, out, err = run("faults", "--case", "sigkill,restart", "--world", 3, "-n", 1, "--json")
    assert code == 0, err
    rows = [json.loads(row) for row in out.splitlines()]
    assert {row["wrong"] for row in rows} == {0}
    assert {(row["case"], row["world"]) for row in rows} == {
        ("sigkill", 3), ("join", 3), ("restart", 4)
    }  # fmt: skip
    assert {row["case"] for row in rows} == {*ROWS["sigkill"], *ROWS["restart"]}
    found = {(row["case"], row["figure"]): row for row in rows}
    after = found["sigkill", "detection: kill to first flush"]
    assert after["n"] == 1
    assert 0 < after["median"] < found["sigkill", "op with one"]["median"]
    assert found["restart", "longest op"]["goal"] >= 0.5
    assert any("goals met" in line for line in err), "the table is beside the rows"


def test_a_crowd_becomes_members() -> None:
    with stage.Nursery("crowd") as crowd:
        _, views = scale.storm(crowd, 60, 1, lambda text: None)
    assert views.is_met


def test_whoever_ends_it_ends_all_its_processes() -> None:
    mark = uuid.uuid4().hex
    process = start(mark, "faults", "--case", "sigkill", "--world", 2, "-n", 1000)
    until = time.monotonic() + 60
    while len(marked(mark)) < 4:  # itself, the coordinator, who forks peers, a peer
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == bench.EXIT_TERMINATED
    assert wait_gone(mark) == set()
