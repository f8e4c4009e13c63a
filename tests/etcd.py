"""A real etcd (Debian's `etcd-server`) as a process of its own, on free ports and in a folder of
the test; `installed` says whether there is one here."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

installed = shutil.which("etcd") is not None


class Server:
    """One etcd, a cluster of its own. Ended by its pid."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        """ports: two free ones, for clients and for peers."""
        self._folder = folder
        self.url, self._peer_url = (f"http://127.0.0.1:{port}" for port in ports)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers. Elections within 0.1 s, so that leases may last 2 s."""
        command = [
            "etcd", "--data-dir", str(self._folder / "data"), "--log-level", "error",
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", self._peer_url, "--initial-advertise-peer-urls", self._peer_url,
            "--initial-cluster", f"default={self._peer_url}",
            "--heartbeat-interval", "20", "--election-timeout", "200",
        ]  # fmt: skip
        with (self._folder / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)
        direct = build_opener(ProxyHandler({}))
        until = time.monotonic() + 30
        while True:
            with (
                contextlib.suppress(OSError),
                direct.open(f"{self.url}/health", timeout=5) as answer,
            ):
                if json.loads(answer.read())["health"] == "true":  # it has a leader
                    return
            if self._process.poll() is not None or time.monotonic() > until:
                log_text = (self._folder / "etcd.log").read_text(errors="replace")
                raise AssertionError(f"etcd does not start: {log_text[-2000:]}")
            time.sleep(0.05)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """A signal; after SIGKILL it is reaped, after SIGSTOP all its threads stand."""
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait(10)
        while number == signal.SIGSTOP and not self._stands():
            time.sleep(0.01)

    def _stands(self) -> bool:
        assert self._process is not None
        states = Path(f"/proc/{self._process.pid}/task").glob("*/stat")
        return all(path.read_text().rpartition(")")[2].split()[0] == "T" for path in states)
