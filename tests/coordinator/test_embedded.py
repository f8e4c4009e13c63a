"""Twin of pccl_py.coordinator.embedded: real child processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pccl_py.coordinator import embedded
from pccl_py.errors import ResourceError, UsageError
from pccl_py.protocol import encoding
from pccl_py.protocol.messages import Install, Refused
from tests.coordinator.raw_peer import ROOT, RawPeer, hello

pytestmark = pytest.mark.timeout(60)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_peer_can_join_it_and_stop_ends_it() -> None:
    with embedded.start(run="run") as coordinator:
        assert coordinator.address.startswith("127.0.0.1:")
        with RawPeer(coordinator.address) as peer:
            peer.send(hello("run"))
            assert peer.await_kind(Install).record.epoch == 1
    assert not _is_alive(coordinator.pid)
    coordinator.stop()  # again: nothing


def test_secret_goes_through_the_environment_not_the_arguments() -> None:
    with embedded.start(secret=b"hush-hush", run="run") as coordinator:
        arguments = Path(f"/proc/{coordinator.pid}/cmdline").read_bytes()
        assert b"hush-hush" not in arguments
        with RawPeer(coordinator.address) as peer:
            peer.send(hello("run"))
            assert peer.await_kind(Refused)
        with RawPeer(coordinator.address) as peer:
            peer.send(encoding.signed_hello(b"hush-hush", hello("run")))
            assert peer.await_kind(Install)


def test_a_secret_of_ours_is_no_order_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCCL_SECRET", "ours")
    monkeypatch.setenv("PCCL_RUN", "ours")
    with embedded.start() as coordinator, RawPeer(coordinator.address) as peer:
        peer.send(hello("any"))
        assert peer.await_kind(Install)


def test_it_is_in_its_own_process_group() -> None:
    with embedded.start() as coordinator:
        assert os.getpgid(coordinator.pid) == coordinator.pid


def test_start_failures_carry_the_last_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"port {port} on 127.0.0.1 is in use"):
            embedded.start(bind=f"127.0.0.1:{port}")
    with pytest.raises(UsageError, match="PCCL_SECRET"):
        embedded.start(bind="0.0.0.0:0")


def test_too_slow_a_start_is_a_resource_error() -> None:
    with pytest.raises(ResourceError, match=r"did not start within 0\.01 s"):
        embedded.start(timeout_s=0.01)


def test_log_goes_where_it_is_wanted(tmp_path: Path) -> None:
    log = tmp_path / "coordinator.log"
    with (
        embedded.start(log_path=log, state_dir=tmp_path / "state") as coordinator,
        RawPeer(coordinator.address) as peer,
    ):
        peer.send_bytes(b"garbage")
        assert peer.await_kind(Refused)
    assert "refused a connection" in log.read_text()
    assert (tmp_path / "state" / "journal").exists()
    with pytest.raises(ResourceError, match="log cannot be opened"):
        embedded.start(log_path=tmp_path / "absent" / "log")


def test_it_does_not_outlive_its_parent() -> None:
    script = (
        "import time\nfrom pccl_py.coordinator import embedded\n"
        "c = embedded.start()\nprint(c.pid, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert _is_alive(pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate(timeout=5)
    until = time.monotonic() + 3
    while _is_alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _is_alive(pid)
