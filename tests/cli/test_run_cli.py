"""`pccl run` from outside: real launchers, real signals, real coordinators, tiny scripts."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.processes import marked, wait_gone

PCCL_RUN = (sys.executable, "-m", "pccl_py", "run")
TIMEOUT_S = 60  # for one launcher on a busy machine
HANG = "import os, time; print('pid', os.getpid(), flush=True); time.sleep(100)"


class Bench:
    """Scripts and launchers of one test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mark = uuid.uuid4().hex
        self.env = {n: v for n, v in os.environ.items() if not n.startswith(("PCCL_", "OMP_"))}
        self.env["RUN_CLI_TEST"] = self.mark
        self.env["PYTHONPATH"] = str(Path(__file__).parents[2])
        self.launchers: list[subprocess.Popen[str]] = []

    def script(self, code: str) -> str:
        path = self.directory / f"s{len(list(self.directory.iterdir()))}.py"
        path.write_text(code)
        return str(path)

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        launcher = subprocess.Popen(
            [*PCCL_RUN, *args],
            env=self.env | env,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.launchers.append(launcher)
        return launcher

    def run(self, *args: str, **env: str) -> tuple[int, list[str], list[str]]:
        """Exit status, lines of stdout, lines of stderr."""
        launcher = self.start(*args, **env)
        out, err = launcher.communicate(timeout=TIMEOUT_S)
        return launcher.returncode, out.splitlines(), err.splitlines()

    def clean_up(self) -> None:
        for launcher in self.launchers:
            launcher.kill()
            launcher.communicate(timeout=TIMEOUT_S)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    try:
        yield bench
        assert wait_gone(bench.mark) == set(), "processes left behind"
    finally:
        bench.clean_up()


def pids(launcher: subprocess.Popen[str], count: int) -> dict[str, int]:
    """Reads stdout until `count` workers of HANG have told their pid."""
    assert launcher.stdout is not None
    found = {}
    while len(found) < count:
        line = launcher.stdout.readline()
        assert line, launcher.communicate(timeout=TIMEOUT_S)
        if match := re.fullmatch(r"\[(w\d+)\] pid (\d+)\n", line):
            found[match[1]] = int(match[2])
    return found


def test_prefixed_output_one_calm_line_and_0(bench: Bench) -> None:
    script = bench.script("import sys; print('hello', *sys.argv[1:])")
    code, out, err = bench.run("-n", "2", "--standalone", script, "-n", "--x", "--", "y")
    assert code == 0
    assert sorted(out) == ["[w0] hello -n --x -- y", "[w1] hello -n --x -- y"]
    address = [line for line in err if "coordinator at 127.0.0.1:" in line]
    assert len(address) == 1
    assert [line for line in err if "OMP_NUM_THREADS" in line] == [
        line for line in err if line not in address
    ]


def test_a_single_worker_says_even_less(bench: Bench) -> None:
    code, out, err = bench.run(bench.script("print('hi')"))
    assert (code, out, len(err)) == (0, ["[w0] hi"], 1)


def test_module_and_program(bench: Bench) -> None:
    (bench.directory / "mod.py").write_text("import sys; print('mod', sys.argv[1])")
    assert bench.run("-m", "mod", "a")[1] == ["[w0] mod a"]
    code, out, _ = bench.run("--no-python", "grep", "SigIgn", "/proc/self/status")
    assert code == 0
    assert int(out[0].split()[-1], 16) & 1 << signal.SIGPIPE - 1 == 0, "SIGPIPE is ignored"


def test_failure_names_the_worker_and_ends_with_1(bench: Bench) -> None:
    code_ = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit(3)\ntime.sleep(2)"
    script = bench.script(code_)
    code, _, err = bench.run("-n", "2", "--max-restarts", "1", script)
    assert code == 1
    assert any(re.search(r"w1.*exit status 3", line) for line in err)
    assert any("w1: failed, exit status 3, 1 restart" in line for line in err)


def test_recovered_run_ends_with_0_and_a_summary(bench: Bench) -> None:
    script = bench.script(
        "import os, signal\n"
        "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0': os.kill(0, signal.SIGKILL)\n"
    )
    code, _, err = bench.run(script)
    assert code == 0
    assert any("w0: killed by SIGKILL; starting it again (restart 1 of 3)" in line for line in err)
    assert any("w0: finished, 1 restart" in line for line in err)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stop_leaves_nothing(bench: Bench, signum: int, status: int) -> None:
    script = bench.script(f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{HANG}")
    launcher = bench.start("-n", "2", "--grace", "0.5", script)
    pids(launcher, 2)
    assert len(marked(bench.mark)) >= 4, "launcher, coordinator, two workers"
    launcher.send_signal(signum)
    launcher.communicate(timeout=TIMEOUT_S)
    assert launcher.returncode == status
    assert marked(bench.mark) == set()


def test_kill_9_of_the_launcher_leaves_nothing(bench: Bench) -> None:
    script = bench.script(
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(100)'])\n{HANG}"
    )
    temporary = bench.directory / "tmp"
    temporary.mkdir()
    launcher = bench.start("-n", "2", script, TMPDIR=str(temporary))
    pids(launcher, 2)
    assert len(marked(bench.mark)) >= 6
    assert [path.name[:9] for path in temporary.iterdir()] == ["pccl-run-"]
    launcher.kill()
    assert wait_gone(bench.mark, timeout_s=5) == set()
    assert list(temporary.iterdir()) == []


def test_two_launchers_side_by_side_and_one_that_joins(bench: Bench) -> None:
    code = (
        "import os, time; print('at', os.environ['PCCL_COORDINATOR'], flush=True); time.sleep(100)"
    )
    script = bench.script(code)
    first = bench.start("--standalone", script, PCCL_COORDINATOR="127.0.0.1:1")
    second = bench.start(script)
    addresses = []
    for launcher in (first, second):
        assert launcher.stdout is not None
        addresses.append(launcher.stdout.readline().split()[-1])
    assert len(set(addresses)) == 2
    script = bench.script("import os; print(os.environ['PCCL_COORDINATOR'])")
    code_, out, _ = bench.run("-n", "1", "--coordinator", addresses[0], script)
    assert (code_, out) == (0, [f"[w0] {addresses[0]}"])
    for launcher in (first, second):
        launcher.terminate()
        launcher.communicate(timeout=TIMEOUT_S)
        assert launcher.returncode == 143


def test_a_killed_coordinator_comes_back_where_it_was(bench: Bench) -> None:
    launcher = bench.start(bench.script(HANG))
    worker = pids(launcher, 1)["w0"]
    assert launcher.stderr is not None
    address = re.search(r"coordinator at ([\d.]+):(\d+)", launcher.stderr.readline())
    assert address is not None
    for pid in marked(bench.mark) - {worker, launcher.pid}:
        if b"undertaker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    assert "died" in launcher.stderr.readline()
    assert f"back at {address[1]}:{address[2]}" in launcher.stderr.readline()
    socket.create_connection((address[1], int(address[2])), 5).close()
    os.kill(worker, 0)
    launcher.terminate()
    launcher.communicate(timeout=TIMEOUT_S)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("nowhere.py",), "no such script"),
        ((".",), "a directory"),
        (("-n", "0", "nowhere.py"), "-n 0"),
        (("-n", "many", "nowhere.py"), "-n many"),
        (("--max-restarts", "-1", "x"), "--max-restarts"),
        (("--grace", "nan", "x"), "--grace"),
        (("--alone-timeout", "-1", "x"), "--alone-timeout -1"),
        (("-m", "no_such_module"), "no module named"),
        (("--no-python", "no-such-program"), "no such program"),
        (("--coordinator", "here", "ok.py"), "HOST:PORT"),
        (("--coordinator", "127.0.0.1:0", "ok.py"), "1 to 65535"),
        (("--coordinator", "example.org:48148", "ok.py"), "PCCL_SECRET"),
        (("--standalone", "--coordinator", "127.0.0.1:5", "ok.py"), "exclude"),
        (("--log-dir", "ok.py", "ok.py"), "not a directory"),
        (("--group", "x" * 200, "ok.py"), "--group="),
        (("--group", "", "ok.py"), "--group="),
        (("--run", "x" * 200, "ok.py"), "--run="),
        ((), "are required: script (see"),
    ],
)
def test_usage_errors_are_one_line_and_2(bench: Bench, args: tuple[str, ...], text: str) -> None:
    (bench.directory / "ok.py").write_text("")
    code, out, err = bench.run(*args)
    assert (code, out, len(err)) == (2, [], 1), err
    assert text in err[0]


DIES_ONCE = """
import os, sys, time, pccl_py
if os.environ['RANK'] == '0': time.sleep(1); sys.exit(0)
if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0': sys.exit(9)
comm = pccl_py.join(min_members=MIN)
time.sleep(4)
comm.leave()
"""


def test_a_restarted_worker_does_not_wait_for_ever_for_who_has_finished(bench: Bench) -> None:
    script = bench.script(DIES_ONCE.replace("MIN", "2"))
    began = time.monotonic()
    code, _, err = bench.run("-n", "2", "--alone-timeout", "2", script)
    assert code == 1, err
    assert time.monotonic() - began < 40
    assert any("w1 waits alone to join: the others have finished" in line for line in err), err
    assert any("w1: failed, exit status 0, 1 restart" in line for line in err), err


def test_a_restarted_worker_that_works_is_left_alone(bench: Bench) -> None:
    code, _, err = bench.run("-n", "2", "--alone-timeout", "1", bench.script(DIES_ONCE.replace(
        "MIN", "1")))  # fmt: skip
    assert code == 0, err
    assert any("w1: finished, 1 restart" in line for line in err), err


def test_unreachable_coordinator_is_told_in_one_line(bench: Bench) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    began = time.monotonic()
    code, out, err = bench.run(bench.script("print('never')"), PCCL_COORDINATOR=address)
    assert (code, out, len(err)) == (1, [], 1), err
    assert address in err[0]
    assert time.monotonic() - began < 20


def test_a_closed_output_ends_the_run(bench: Bench) -> None:
    launcher = bench.start(bench.script("while True: print('y')"))
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "[w0] y\n"
    launcher.stdout.close()
    launcher.stdout = None
    launcher.communicate(timeout=TIMEOUT_S)
    assert launcher.returncode == 141
