"""The members of a storm, forked from one process that has imported everything already.

`python -m stress.storm.nursery SOCKET` reads a member's `Spec` a line, forks it, and says on stdout
{"who": …, "status": …} when one has ended. When stdin ends all are killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import traceback

from stress.storm.peer import Spec, live


def fork(spec: Spec, path: str) -> int:
    """The pid of a member that has begun."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)
        live(spec, path)
        status = 0
    except Exception:  # noqa: BLE001  a member's last words
        sys.stderr.write(f"{spec.who}:\n{traceback.format_exc()}")
    finally:
        sys.stderr.flush()
        os._exit(status)


def main(path: str) -> None:
    hear, wake = os.pipe()
    for end in (hear, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    children: dict[int, str] = {}
    kept = b""
    try:
        while True:
            for ready in select.select([0, hear], [], [])[0]:
                if ready == hear:
                    os.read(hear, 4096)
                    continue
                data = os.read(0, 1 << 16)
                if not data:
                    return
                *lines, kept = (kept + data).split(b"\n")
                for line in lines:
                    spec = Spec(**json.loads(line))
                    children[fork(spec, path)] = spec.who
            _reap(children)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)


def _reap(children: dict[int, str]) -> None:
    with contextlib.suppress(ChildProcessError):
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            ended = {"who": children.pop(pid), "status": os.waitstatus_to_exitcode(status)}
            sys.stdout.write(json.dumps(ended) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
