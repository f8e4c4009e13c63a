"""`pccl bench` from outside: real processes, tiny sizes, never a word about how long it took."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.bench.test_rows import KEYS
from tests.launch.processes import marked, wait_gone

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "pccl_py", "bench")


def start(mark: str, *args: object, cwd: Path = ROOT) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PCCL_")}
    env |= {"BENCH_CLI_TEST": mark, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*COMMAND, *map(str, args)],
        env=env,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*args: object) -> tuple[int, str, list[str]]:
    mark = uuid.uuid4().hex
    process = start(mark, *args)
    out, err = process.communicate(timeout=100)
    assert wait_gone(mark) == set(), "processes left behind"
    return process.returncode, out, err.splitlines()


def test_a_tiny_run_is_right_and_costs_the_coordinator_nothing(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    vs = "gloo,ceiling" if shutil.which("gcc") else "gloo"
    impls = ["pccl", *vs.split(",")]
    code, out, err = run(
        "-n", 2, "-b", "1K", "-e", "64K", "-f", 8, "-w", 1, "-r", 2, "--vs", vs,
        "--json", tmp_path / "rows.json", "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "rows.json").read_text().splitlines()]
    assert [list(row) for row in rows] == [KEYS] * len(rows)
    assert [(row["bytes"], row["impl"]) for row in rows] == [
        (size, impl) for size in (1024, 8192, 65536) for impl in impls
    ]
    assert {row["wrong"] for row in rows} == {0}
    ours = [row for row in rows if row["impl"] == "pccl"]
    assert [row["coordinator_messages"] for row in ours] == [0, 0, 0]
    assert all(row["rss_peak_bytes"] > 0 for row in rows)
    assert len([line for line in out.splitlines() if line and line[0] != "#"]) == len(rows)
    assert (tmp_path / "out/all_reduce.md").is_file()
    assert (tmp_path / "out/all_reduce.svg").is_file()
    assert len(err) == 2, "one line when it starts, one that says what was written"


def test_json_on_stdout_is_nothing_but_json() -> None:
    code, out, _ = run(
        "broadcast", "-n", 1, "-b", "1K", "-e", "1K", "-r", 1, "--in-place", "yes", "--json", "-"
    )
    assert code == 0
    (row,) = (json.loads(line) for line in out.splitlines())
    assert (row["op"], row["world"], row["wrong"]) == ("broadcast", 1, 0)


@pytest.mark.parametrize(
    "args",
    [("-b", "1X"), ("-b", "0"), ("-b", "2M", "-e", "1M"), ("-f", "1"), ("-n", "0"), ("-n", "two"),
     ("all_in",), ("--vs", "nccl"), ("--dtype", "float8"), ("--in-place", "maybe"), ("-r", "0"),
     ("--reduce", "mean"), ("-b", "1", "-e", "1")],
)  # fmt: skip
def test_nonsense_is_one_line_and_2(args: tuple[str, ...]) -> None:
    code, out, err = run(*args)
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith("pccl: ")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_behind(
    number: signal.Signals, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    mark = uuid.uuid4().hex
    process = start(mark, "-n", 2, "-b", "1K", "-e", "1K", "-r", 9999, "--in-place", "yes")
    try:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("#"):
            assert process.poll() is None
        time.sleep(0.2)  # in the middle of an op, or between two
        assert len(marked(mark)) >= 3
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == status
    assert "Traceback" not in out + err
    assert wait_gone(mark) == set()
    assert list(tmp_path.iterdir()) == []
