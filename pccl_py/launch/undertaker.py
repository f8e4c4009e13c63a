"""Outlives a launcher that was killed, and then kills the process groups that it left behind.

Run by path with a pipe from the launcher as stdin (`python -I -S undertaker.py`), never imported
by us. The pipe says `+PID` and `-PID`, a line each; when it ends, the launcher is gone, whatever
the cause. The death signal that `child` sets reaches a worker but not what it started; this does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable


def main(lines: Iterable[str]) -> None:
    """Reads to the end, then sends SIGKILL to every group (or lone process) still on the list."""
    living: set[int] = set()
    for line in lines:
        pid = int(line[1:])
        if line[0] == "+":
            living.add(pid)
        else:
            living.discard(pid)
    for pid in living:
        for kill in (os.killpg, os.kill):  # the coordinator may lead no group of its own
            # Its death signal was quicker, or it is another user's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.stdin)
