"""`pccl bench` from outside: real processes, tiny sizes, never a word about how long it took."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from pccl_py.bench import ops
from pccl_py.cli import bench, main
from tests.bench.test_rows import KEYS, row
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


def test_a_tiny_run_is_right_and_costs_the_coordinator_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    vs = "gloo,ceiling" if shutil.which("gcc") else "gloo"
    impls = ["pccl", *vs.split(",")]
    code, out, err = run(
        "--world", 2, "-b", "1K", "-e", "64K", "-f", 64, "-w", 0, "-n", 2, "--vs", vs,
        "--json", tmp_path / "rows.json", "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "rows.json").read_text().splitlines()]
    assert [list(row) for row in rows] == [KEYS] * len(rows)
    assert [(row["bytes"], row["impl"], row["in_place"]) for row in rows] == [
        (size, impl, is_in)
        for size in (1024, 65536) for impl in impls for is_in in (False, True)
    ]  # fmt: skip
    assert {row["wrong"] for row in rows} == {0}
    ours = [row for row in rows if row["impl"] == "pccl"]
    assert {each["coordinator_messages"] for each in ours} == {0}
    assert {row["transport"] for row in rows} == {"tcp"}
    assert all(row["rss_peak_bytes"] > 0 for row in rows)
    assert len([line for line in out.splitlines() if line and line[0] != "#"]) == len(rows) // 2
    assert len(err) == 2, "one line when it starts, one that says what was written"
    assert main.main(["bench", "--markdown", str(tmp_path / "out/rows.jsonl")]) == 0
    assert capsys.readouterr().out == (tmp_path / "out/table.md").read_text()
    assert (tmp_path / "out/rows.jsonl").read_text() == (tmp_path / "rows.json").read_text()


def test_every_op_is_right() -> None:
    code, out, err = run(
        "--op", "all", "--world", 3, "-b", "3K", "-e", "3K", "-w", 0, "-n", 1, "--vs", "ceiling",
        "--json", "-",
    )  # fmt: skip
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert {(row["op"], row["wrong"]) for row in rows} == {(op, 0) for op in ops.known()}
    assert {row["bytes"] for row in rows} == {3072}


def test_json_on_stdout_is_nothing_but_json() -> None:
    code, out, _ = run(
        "broadcast", "--world", 1, "-b", "1K", "-e", "1K", "-n", 1, "--in-place", "yes",
        "--json", "-",
    )  # fmt: skip
    assert code == 0
    (row,) = (json.loads(line) for line in out.splitlines())
    assert (row["op"], row["world"], row["wrong"]) == ("broadcast", 1, 0)


def test_a_wrong_value_is_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "_measured", lambda *_: iter([[replace(row(), wrong=3)]]))
    number = signal.getsignal(signal.SIGTERM)
    assert main.main(["bench"]) == 1
    signal.signal(signal.SIGTERM, number)
    assert capsys.readouterr().err.splitlines()[-1] == "pccl: 3 values were wrong"


@pytest.mark.parametrize(
    "args",
    [("-b", "1X"), ("-b", "0"), ("-b", "2M", "-e", "1M"), ("-f", "1"), ("-n", "0"), ("-n", "two"),
     ("all_in",), ("--vs", "nccl"), ("--dtype", "float8"), ("--in-place", "maybe"), ("-w", "-1"),
     ("--reduce", "mean"), ("-b", "1", "-e", "1"), ("--world", "0"), ("--world", "2,two"),
     ("reduce", "--op", "reduce"), ("--op", "sendrecv", "--world", "1"), ("--fast",),
     ("--op", "gather", "--in-place", "yes"), ("--vs", "mpi", "--mpi", "/nowhere")],
)  # fmt: skip
def test_nonsense_is_one_line_and_2(
    args: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main.main(["bench", *args])
    except SystemExit as ended:  # argparse's
        code = ended.code
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("pccl: ")


def await_table(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    while not process.stdout.readline().startswith("#"):
        assert process.poll() is None
    time.sleep(0.2)  # in the middle of an op, or between two


def workers(mark: str) -> list[int]:
    return [pid for pid in marked(mark) if b"bench.worker" in cmdline(pid)]


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_worker_that_is_killed_is_named() -> None:
    mark = uuid.uuid4().hex
    process = start(mark, "--world", 3, "-b", "1K", "-e", "1K", "-n", 9999)
    try:
        await_table(process)
        victim = max(workers(mark))
        os.kill(victim, signal.SIGKILL)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    said = err.splitlines()[-1]
    assert re.fullmatch(rf"pccl: pccl rank \d \(pid {victim}\) was killed by SIGKILL.*", said), err
    assert wait_gone(mark) == set()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_behind(
    number: signal.Signals, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    mark = uuid.uuid4().hex
    process = start(mark, "--world", 2, "-b", "1K", "-e", "1K", "-n", 9999)
    try:
        await_table(process)
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
