"""One member inside an emulated host: small all-reduces, one after another, until it has seen some
over a hub, or is out of time. `small_worker.py COORDINATOR WORLD SECONDS`; prints one JSON line,
`[[route, milliseconds], ...]`.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

import pccl_py as pccl

SIZES = range(100, 116)  # the owner of a segment without a hub depends on the size
ENOUGH = 16  # ops over a hub


def main(coordinator: str, world: int, seconds: float) -> None:
    comm = pccl.join(coordinator, min_members=world, timeout=30.0)
    took: list[tuple[str, float]] = []
    end = time.monotonic() + seconds
    over = np.zeros(2, np.int64)  # all decide alike when it is enough
    while over[0] < ENOUGH * world and not over[1]:
        for size in SIZES:
            values = np.full(size, comm.rank + 1.0)
            start = time.monotonic()
            info = comm.all_reduce(values)
            took.append((info.route, (time.monotonic() - start) * 1e3))
            assert (values == world * (world + 1) / 2).all()
        over[:] = (sum(route == "star" for route, _ in took), time.monotonic() > end)
        comm.all_reduce(over)
    print(json.dumps(took), flush=True)
    comm.leave()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
