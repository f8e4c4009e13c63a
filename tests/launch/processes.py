"""Help for tests with real processes: a stand-in coordinator, and a census of what is alive."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from pccl_py.errors import ResourceError

_LISTEN = """
import socket, sys, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", int(sys.argv[1]))); s.listen()
print(s.getsockname()[1], flush=True); time.sleep(300)
"""


class StandIn:
    """A process that listens where a coordinator would, and does nothing."""

    def __init__(self, port: int) -> None:
        command = [sys.executable, "-I", "-S", "-c", _LISTEN, str(port)]
        self._popen = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._popen.stdout is not None
        self.address = f"127.0.0.1:{int(self._popen.stdout.readline())}"
        self._popen.stdout.close()
        self.pid = self._popen.pid

    def stop(self) -> None:
        self._popen.kill()
        self._popen.wait()


@dataclass
class Starter:
    """A `StartCoordinator` that notes what it was asked for."""

    fail: bool = False
    asked: list[tuple[str, Path | None]] = field(default_factory=list)

    def __call__(
        self,
        secret: bytes | None,
        run: str | None,
        bind: str,
        state_dir: Path | None,
        log_path: Path | None,
        timeout_s: float,
    ) -> StandIn:
        self.asked.append((bind, state_dir))
        if self.fail:
            raise ResourceError(98, "the port is in use")
        return StandIn(int(bind.rpartition(":")[2]))


def marked(mark: str) -> set[int]:
    """The living processes whose environment holds `mark`, wherever they hang in the tree."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.add(int(entry.name))
            except OSError:
                pass  # it ended meanwhile, or is somebody else's
    return found


def wait_gone(mark: str, timeout_s: float = 10.0) -> set[int]:
    """Waits until nobody is `marked`; returns who still is."""
    until = time.monotonic() + timeout_s
    while (left := marked(mark)) and time.monotonic() < until:
        time.sleep(0.05)
    return left
