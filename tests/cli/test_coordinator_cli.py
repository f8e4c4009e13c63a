"""The `pccl` command: the coordinator and status as a user runs them, with the real machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pccl_py.cli import main, status
from pccl_py.errors import ResourceError
from pccl_py.protocol.endpoint import Endpoint
from pccl_py.protocol.messages import (
    Answer,
    Bye,
    Flush,
    Install,
    Leave,
    Refused,
    Waiting,
)
from tests.coordinator.raw_peer import ROOT, RawPeer, hello, running

PCCL = ("-m", "pccl_py")
COORDINATOR = (*PCCL, "coordinator", "--bind", "127.0.0.1:0")

pytestmark = pytest.mark.timeout(60)


def _pccl(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *PCCL, *words],
        check=False, cwd=ROOT, capture_output=True, text=True, timeout=20,
        env={**os.environ, **(env or {})},
    )  # fmt: skip


def _is_one_line(text: str) -> bool:
    return text.startswith("pccl: ") and text.endswith("\n") and text.count("\n") == 1


# ---------------------------------------------------------------- status


def test_status_of_an_empty_and_of_a_joined_run() -> None:
    with running(*COORDINATOR) as (address, _), RawPeer(address) as peer:
        empty = _pccl("status", "--coordinator", address)
        assert empty.returncode == 0, empty.stderr
        assert "no members" in empty.stdout
        assert "deadline 600 s · detection 5 s · heartbeat 1 s" in empty.stdout
        peer.send(hello("demo", name="w0"))
        peer.await_kind(Install)
        joined = _pccl("status", "--coordinator", address, "--json")
        members = json.loads(joined.stdout)["members"]
        assert [member["name"] for member in members] == ["w0"]
        table = _pccl("status", env={"PCCL_COORDINATOR": address}).stdout
        assert re.search(r"^run demo · epoch 1 · coordinator", table)
        assert re.search(r"^0 +w0 +default +[0-9a-f]{8} +127.0.0.1:1$", table, re.MULTILINE)
        wrong = _pccl("status", "--coordinator", address, "--run", "other")
        assert wrong.returncode == 2
        assert _is_one_line(wrong.stderr)


def test_status_of_nobody_is_one_line_within_5_seconds() -> None:
    with socket.socket() as mute:  # accepts connections, says nothing
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        asked = time.monotonic()
        silent = _pccl("status", "--coordinator", address)
        assert time.monotonic() - asked < 7  # the interpreter's own start included
    assert silent.returncode == 1
    assert _is_one_line(silent.stderr)
    assert "did not answer" in silent.stderr
    closed = _pccl("status", "--coordinator", address)
    assert closed.returncode == 1
    assert _is_one_line(closed.stderr)


def test_status_with_a_secret() -> None:
    with running(*COORDINATOR, env={"PCCL_SECRET": "s"}) as (address, _):
        assert _pccl("status", "--coordinator", address).returncode == 2
        right = _pccl("status", "--coordinator", address, env={"PCCL_SECRET": "s"})
        assert right.returncode == 0


def test_table_shows_nothing_that_a_terminal_obeys() -> None:
    hostile = {"run": "a\x1b[2J", "members": [{"name": "x\ny", "rank": 0}, "no member"], "flush": 5}
    table = status.table(Endpoint("::1", 5), hostile)
    assert "\x1b" not in table
    assert "[::1]:5" in table
    assert re.search(r"^0 +x y +- +- +-:-$", table, re.MULTILINE)


def test_table_shows_rings_hubs_and_round_trips() -> None:
    group = {"group": "default", "ring": ["a", "b\x1b", "c"], "hub": "c", "large": "star"}
    alone = {"group": "other", "ring": ["d"], "hub": None, "large": "auto"}
    paths = [{"from": "a", "to": "c", "rtt_ms": ms, "rate": 0} for ms in (40.25, 0.0, 80.0)]
    table = status.table(Endpoint("::1", 5), {"groups": [group, alone, 7], "paths": paths})
    assert "group default: ring a b? c · small ops over c · large ops by star" in table
    assert "other" not in table
    assert "round trips 40.2 to 80.0 ms" in table


# ---------------------------------------------------------------- coordinator


def test_exactly_one_line_on_stdout_and_exit_0_on_sigterm() -> None:
    with running(*COORDINATOR) as (address, process):
        process.terminate()
        out, _ = process.communicate(timeout=5)
        assert out == ""
        assert process.returncode == 0
        assert re.fullmatch(r"127\.0\.0\.1:\d+", address)


def test_no_temporary_directory_is_left(tmp_path: Path) -> None:
    with running(*COORDINATOR, env={"TMPDIR": str(tmp_path)}) as (_, process):
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=5) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "word"),
    [
        (("coordinator", "--bind", "nonsense"), 2, "HOST:PORT"),
        (("coordinator", "--bind", "0.0.0.0:0"), 2, "PCCL_SECRET"),
        (("coordinator", "--deadline", "0"), 2, "deadline"),
        (("coordinator", "--deadline", "x"), 2, "--deadline"),
        (("coordinator", "--run", "x" * 200), 2, "1 to 128 bytes"),
        (("coordinator", "--bind", "127.0.0.1:0", "--state-dir", "/dev/null/x"), 1, "journal"),
        (("status", "--coordinator", "127.0.0.1"), 2, "HOST:PORT"),
        (("nonsense",), 2, "coordinator"),
        ((), 2, "--help"),
    ],
)
def test_wrong_words_are_one_line(words: tuple[str, ...], code: int, word: str) -> None:
    result = _pccl(*words, env={"PCCL_SECRET": "", "PCCL_SECRET_FILE": ""})
    assert result.returncode == code, result.stderr
    assert _is_one_line(result.stderr), result.stderr
    assert word in result.stderr
    assert result.stdout == ""


def test_port_in_use_is_one_line() -> None:
    with running(*COORDINATOR) as (address, _):
        second = _pccl("coordinator", "--bind", address)
        assert second.returncode == 1
        assert _is_one_line(second.stderr)
        assert f"port {address.rpartition(':')[2]}" in second.stderr


def test_state_directory_of_another_run_is_refused(tmp_path: Path) -> None:
    command = (*COORDINATOR, "--state-dir", str(tmp_path))
    with running(*command) as (address, _), RawPeer(address) as peer:
        peer.send(hello("one"))
        peer.await_kind(Install)
    other = _pccl(*COORDINATOR[2:], "--state-dir", str(tmp_path), "--run", "two")
    assert other.returncode == 2
    assert "belongs to run 'one'" in other.stderr


def test_torch_is_not_imported() -> None:
    modules = "sys, pccl_py.cli.main, pccl_py.cli.coordinator"
    script = f"import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT).returncode == 0


def test_errors_with_errno_are_told_without_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main._text(ResourceError(28, "the disk is full")) == "the disk is full"
    assert main.main(["status", "--coordinator", "x"]) == 2
    assert _is_one_line(capsys.readouterr().err)


def test_a_log_that_nobody_reads_stops_nothing() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    try:
        with running(*COORDINATOR, stderr=writing) as (address, process):
            for _ in range(3):
                with RawPeer(address) as noisy:
                    noisy.send_bytes(b"garbage")
                    noisy.await_kind(Refused)
            assert _pccl("status", "--coordinator", address).returncode == 0
            process.terminate()
            assert process.wait(timeout=5) == 0
    finally:
        os.close(reading)
        os.close(writing)


# ---------------------------------------------------------------- with the real machine


def _view_of_two(one: RawPeer, two: RawPeer) -> Install:
    one.send(hello(name="one", min_members=2))
    two.send(hello(name="two", min_members=2))
    two.await_kind(Install)
    return one.await_kind(Install)


def test_death_of_a_member_flushes_the_others_at_once() -> None:
    with running(*COORDINATOR) as (address, _), RawPeer(address) as one:
        script = (
            "import sys, time\nfrom tests.coordinator.raw_peer import RawPeer, hello\n"
            "from pccl_py.protocol.messages import Install\n"
            "p = RawPeer(sys.argv[1]); p.send(hello(name='two', min_members=2))\n"
            "p.await_kind(Install); print('listening on it', flush=True); time.sleep(60)"
        )
        one.send(hello(name="one", min_members=2))
        with running("-c", script, address) as (_, victim):
            assert len(one.await_kind(Install).record.members) == 2
            victim.kill()
            # A lost control connection may be a hiccup: the machine gives it 0.4 of 5 s to return.
            assert one.await_kind(Flush, timeout_s=4.0) == Flush(1)
        one.send(Answer(1, 0, 0, (), (), (), False))
        record = one.await_kind(Install).record
        assert (record.epoch, [member.name for member in record.members]) == (2, ["one"])


def test_killed_coordinator_goes_on_with_its_journal(tmp_path: Path) -> None:
    command = (*COORDINATOR, "--state-dir", str(tmp_path))
    one_hello = hello(name="one")
    with running(*command) as (address, process), RawPeer(address) as one:
        one.send(one_hello)
        assert one.await_kind(Install).record.epoch == 1
        process.kill()
        process.wait(timeout=5)
        again = (*PCCL, "coordinator", "--bind", address, "--state-dir", str(tmp_path))
        with running(*again):
            one.send(replace(one_hello, epoch=1))
            one.send(Leave(1))
            assert one.await_kind(Flush) == Flush(1)
            one.send(Answer(1, 0, 0, (), (), (), True))
            one.await_kind(Bye)


def test_noise_does_not_disturb_a_member() -> None:
    with running(*COORDINATOR) as (address, _), RawPeer(address) as one, RawPeer(address) as two:
        _view_of_two(one, two)
        host, port = address.rsplit(":", 1)
        for noise in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(3000), b"\xff" + bytes(63)):
            for _ in range(5):
                with socket.create_connection((host, int(port)), timeout=2) as scanner:
                    scanner.sendall(noise)
        with RawPeer(address) as stranger:
            stranger.send_bytes(b"\xc1")
            assert stranger.await_kind(Refused)
        with RawPeer(address) as stranger:
            stranger.send(hello("another-run"))
            assert "run" in stranger.await_kind(Refused).text
        message = one.receive(0.5)
        assert message is None or isinstance(message, Waiting)
        answer = _pccl("status", "--json", "--coordinator", address)
        assert len(json.loads(answer.stdout)["members"]) == 2


def test_a_killed_coordinators_own_directory_is_swept_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / "pccl-coordinator-left"
    left.mkdir()
    os.utime(left, (0, 0))
    with running(*COORDINATOR, env={"TMPDIR": str(tmp_path)}):
        assert [path.name for path in tmp_path.glob("pccl-coordinator-*")] != [left.name]
        assert not left.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("coordinator", "--deadline", "1e300"), "--deadline 1e+300 must be"),
        (("coordinator", "--deadline", "soon"), "argument --deadline"),
        (("coordinator", "--log-level", "loud"), "argument --log-level"),
        (("coordinator", "--run", "x" * 200), "--run="),
        (("coordinator", "--bind", "127.0.0.1:0", "--state-dir", __file__), "is not a directory"),
        (("coordinator", "--state-dir", ""), "argument --state-dir: the name is empty"),
        (("status", "--run", "x" * 200), "--run="),
        (("status", "--run", ""), "--run="),
    ],
)
def test_a_wrong_option_is_named(words: tuple[str, ...], says: str) -> None:
    ended = _pccl(*words)
    assert ended.returncode == 2
    assert _is_one_line(ended.stderr), ended.stderr
    assert says in ended.stderr
