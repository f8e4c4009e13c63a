"""A member that reduces ones and calls update() in a loop, says what became of each op as JSON
lines, and joins again when it was evicted; until it is told to stop. Started by test_detection."""

from __future__ import annotations

import ctypes
import json
import sys
import threading
import time
from collections import deque

import numpy as np

import pccl_py as pccl

COUNT = 100_000
PAUSE_S = 0.02


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def loop(comm: pccl.Communicator, told: deque[list[str]]) -> None:
    """Until told to stop. `hold 3` keeps the GIL for 3 s, as a C extension may."""
    while True:
        match told.popleft() if told else []:
            case ["stop"]:
                return
            case ["hold", seconds]:
                say(event="holding")
                ctypes.PyDLL(None).usleep(int(float(seconds) * 1e6))
                say(event="held", failed=comm.world_size == 0)
        x = np.ones(COUNT, np.float32)
        began = time.monotonic()
        info = comm.all_reduce(x)
        say(
            event="op",
            seconds=time.monotonic() - began,
            right=bool(x.min() >= info.contributors_min and x.max() <= info.contributors_max),
            low=info.contributors_min,
            high=info.contributors_max,
            world=comm.world_size,
            epoch=comm.epoch,
            members=[member.name for member in comm.members],
        )
        comm.update()
        time.sleep(PAUSE_S)


def main() -> None:
    address, name, count, deadline = sys.argv[1:]
    told: deque[list[str]] = deque()
    reader = threading.Thread(
        target=lambda: told.extend(line.split() for line in sys.stdin), daemon=True
    )
    reader.start()
    first = int(count)
    while True:
        try:
            with pccl.join(
                address, name=name, min_members=first, deadline_s=float(deadline), timeout=60.0
            ) as comm:
                first = 1
                say(event="joined", world=comm.world_size, epoch=comm.epoch)
                loop(comm, told)
            say(event="left")
            return
        except pccl.Evicted as error:
            say(event="evicted", text=str(error))


if __name__ == "__main__":
    main()
