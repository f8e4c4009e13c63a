"""One worker process from start to reaping, and the watch over all of them.

`supervise` and `keeper` call this; it decides nothing. A worker leads a session and process group
of its own, so that the terminal's Ctrl-C reaches only the launcher, and so that what the worker
started can be ended with it. Linux only (pidfd_open, death signals).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from pccl_py.errors import ResourceError

_HERE = Path(__file__).parent
PYTHON_WORKER = (sys.executable, str(_HERE / "worker.py"))  # before a script, or -m and a module
_BARE_PYTHON = (sys.executable, "-I", "-S")  # no site, no user environment: starts in 20 ms


async def ended(pid: int) -> None:
    """Returns when the child `pid` has ended; it is left to be reaped by its owner."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def on_readable() -> None:
        loop.remove_reader(fd)
        if not future.done():
            future.set_result(None)

    loop.add_reader(fd, on_readable)
    try:
        await future
    finally:
        loop.remove_reader(fd)
        os.close(fd)


class WorkerProcess:
    """A started worker; its streams are read by the owner, who must call `reap` in the end.

    The death signal is tied to the *thread* that starts the worker: start it from one that lives as
    long as the run does. Raises ResourceError when the system refuses another process."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        shim = (*_BARE_PYTHON, str(_HERE / "child.py"), str(os.getpid()), *command)
        try:
            self._popen = subprocess.Popen(
                shim,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            text = f"cannot start another worker: {error.strerror}"
            raise ResourceError(error.errno or errno.EAGAIN, text) from error
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self.stdout, self.stderr = self._popen.stdout, self._popen.stderr
        self.pid = self._popen.pid

    def signal(self, signum: int) -> None:
        """SIGKILL goes to the whole group, any other signal to the worker alone, which may need
        what it has started to finish. Nothing happens if it is gone. Before `reap` only."""
        # Everybody ended, or became another user (sudo) and is not ours to end.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if signum == signal.SIGKILL:
                os.killpg(self.pid, signum)
            else:
                os.kill(self.pid, signum)

    def reap(self) -> int:
        """Ends what is left of the group, then reaps the worker. Returns its status.

        In this order, because until the worker is reaped nobody else can own its number."""
        self.signal(signal.SIGKILL)
        status = self._popen.wait()
        self.stdout.close()
        self.stderr.close()
        return status


class Undertaker:
    """Holds the pipe to the `undertaker` program; a context manager. Raises ResourceError."""

    def __enter__(self) -> Undertaker:
        command = (*_BARE_PYTHON, str(_HERE / "undertaker.py"))
        try:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            text = f"cannot start the launcher's helper: {error.strerror}"
            raise ResourceError(error.errno or errno.EAGAIN, text) from error
        return self

    def watch(self, pid: int) -> None:
        """From now on `pid` and its group die with the launcher."""
        self._tell(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        """`pid` was reaped; its number may be somebody else's soon."""
        self._tell(f"-{pid}\n")

    def inherit(self, directory: Path) -> None:
        """`directory` is removed with the launcher, if that has not done it."""
        self._tell(f"/{os.fsencode(directory.absolute()).hex()}\n")

    def _tell(self, line: str) -> None:
        assert self._popen.stdin is not None
        # If somebody killed the helper only the death signals are left, which is enough.
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.write(line.encode())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        self._popen.wait()
