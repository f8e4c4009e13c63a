"""Becomes a worker: binds its life to the launcher's, then executes the command in its place.

Run by path (`python -I -S child.py PARENT_PID command…`), never imported by us: a program of its
own because `preexec_fn` is unsafe beside threads, and executed without our package because it must
start in milliseconds. Exit status 126 or 127 when the command cannot be executed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h; survives execve


def main(argv: list[str]) -> int:
    """argv: the launcher's pid, then the command. Returns only when the command cannot run."""
    parent, command = int(argv[0]), argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        return 1
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot execute {command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
