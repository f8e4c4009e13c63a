"""Outlives a launcher that was killed, then kills the process groups and removes the temporary
directories that it left behind.

Run by path with a pipe from the launcher as stdin (`python -I -S undertaker.py`), never imported
by us. The pipe says `+PID`, `-PID`, and `/HEX` for a directory (its path's bytes), a line each;
when it ends, the launcher is gone, whatever the cause. The death signal that `child` sets reaches a
worker but not what it started; this does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable

REMOVE_S = 2.0  # a process that was killed may be in the middle of making a file
REMOVE_POLL_S = 0.05


def main(lines: Iterable[str]) -> None:
    """Reads to the end, then sends SIGKILL to every group (or lone process) still on the list, and
    removes what is there of the directories."""
    living: set[int] = set()
    directories: list[str] = []
    for line in lines:
        kind, rest = line[0], line[1:].strip()
        if kind == "+":
            living.add(int(rest))
        elif kind == "-":
            living.discard(int(rest))
        else:
            directories.append(os.fsdecode(bytes.fromhex(rest)))
    for pid in living:
        for kill in (os.killpg, os.kill):  # the coordinator may lead no group of its own
            # Its death signal was quicker, or it is another user's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)
    until = time.monotonic() + REMOVE_S
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
        while os.path.lexists(directory) and time.monotonic() < until:
            time.sleep(REMOVE_POLL_S)
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(sys.stdin)
