"""A coordinator as a child process of this one (layer 5).

The launcher and the torch backend call `start` when no coordinator was given. The child is never a
thread of a worker, gets a process group of its own (so that Ctrl-C in a terminal ends the workers
first), and ends by itself within a second when its parent is gone. This file speaks with it through
its one line on stdout, its exit status and its log; it knows nothing of the protocol.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

from pccl_py import config
from pccl_py.errors import PcclError, ResourceError, UsageError
from pccl_py.protocol.encoding import printable

STOP_S = 5.0
EXIT_USAGE = 2
_READY = "listening on "
_LINE_BYTES_MAX = 4096


class Embedded:
    """A running coordinator, a child of ours. One owner: stop it, or leave its `with` block."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self._process = process
        self._address = address

    @property
    def address(self) -> str:
        """HOST:PORT that peers join at."""
        return self._address

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, minus the signal that ended it; None until it was reaped."""
        return self._process.returncode

    def stop(self) -> None:
        """End the coordinator and reap it: SIGTERM, after 5 s SIGKILL. Idempotent."""
        _end(self._process)

    def __enter__(self) -> Embedded:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def start(
    secret: bytes | None = None,
    run: str | None = None,
    bind: str = "127.0.0.1:0",
    state_dir: Path | None = None,
    log_path: Path | None = None,
    timeout_s: float = 10.0,
    deadline_s: float | None = None,
) -> Embedded:
    """Start a coordinator and wait until it listens.

    secret goes to the child in its environment, never in its arguments. log_path: where its log is
    appended; None keeps it for error messages only. deadline_s: the run's, None: as by default.
    Blocks for at most timeout_s.
    Raises UsageError or ResourceError with the child's last line.
    """
    command = [sys.executable, "-P", "-m", "pccl_py", "coordinator", "--bind", bind]
    command += ["--parent-pid", str(os.getpid())]
    command += [] if run is None else ["--run", run]
    command += [] if state_dir is None else ["--state-dir", str(state_dir)]
    command += [] if deadline_s is None else ["--deadline", str(deadline_s)]
    with _open_log(log_path) as log:
        log_start = log.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            command,
            env=_environment(secret),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=0,
        )
        try:
            address = _await_ready(process, timeout_s)
            if address is None:
                raise _failure(process, log, log_start, timeout_s)
        except BaseException:
            _end(process)
            raise
    return Embedded(process, address)


def _environment(secret: bytes | None) -> Mapping[str, str]:
    env = dict(config.environment())
    # The run is an argument or the first joiner's; a secret of this process is no order for ours.
    for name in ("PCCL_RUN", "PCCL_SECRET", "PCCL_SECRET_FILE"):
        env.pop(name, None)
    if secret is not None:
        env["PCCL_SECRET"] = os.fsdecode(secret)
    # The child must find the same package, also when this one was found through sys.path[0].
    root = str(Path(__file__).resolve().parents[2])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH"))))
    return env


def _open_log(path: Path | None) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile() if path is None else path.open("a+b")
    except OSError as error:
        text = f"the coordinator's log cannot be opened: {error}"
        raise ResourceError(error.errno, text) from None


def _await_ready(process: subprocess.Popen[bytes], timeout_s: float) -> str | None:
    """The address from the child's one line; None if it ends or says nothing in time."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    until = time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE_BYTES_MAX:
        wait_s = max(0.0, until - time.monotonic())
        if not select.select([fd], [], [], wait_s)[0]:
            return None
        part = os.read(fd, _LINE_BYTES_MAX)
        if not part:
            return None
        line += part
    text = line.decode(errors="replace").strip()
    return text.removeprefix(_READY) if text.startswith(_READY) else None


def _failure(
    process: subprocess.Popen[bytes], log: IO[bytes], log_start: int, timeout_s: float
) -> PcclError:
    """Why the child did not come up, in its own words if it left any."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
    log.seek(log_start)
    lines = log.read(1 << 20).decode(errors="replace").strip().splitlines()
    last = printable(lines[-1].removeprefix("pccl: ")) if lines else "it left no word"
    if process.returncode == EXIT_USAGE:
        return UsageError(last)
    if process.returncode is None:
        return ResourceError(f"the coordinator did not start within {timeout_s:g} s: {last}")
    return ResourceError(f"the coordinator did not start (exit {process.returncode}): {last}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()
