"""One member of the measured group, inside a host: `member.py INDEX WORLD COORDINATOR RENDEZVOUS
MIB`. Obeys the lines on its standard input, one answer each; started by bench.py, decides nothing.

    open IMPL            ready RANK
    run IMPL START_NS    took SECONDS LINKS, from the common start on
"""

from __future__ import annotations

import sys
import time
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

import pccl_py as pccl

JOIN_S = 60.0
# Of a rank: its own multiple of a pattern, so that the sum is known and small enough to be exact.
PATTERN = 97

Array = npt.NDArray[np.float32]


class Implementation(Protocol):
    rank: int

    def all_reduce(self, array: Array) -> None: ...
    def links(self) -> int:
        """TCP connections in use; 0: not known."""
        ...

    def close(self) -> None: ...


class Pccl:
    def __init__(self, coordinator: str, world: int, links: int) -> None:
        self._comm = pccl.join(
            coordinator, group=f"links{links}", min_members=world, timeout=JOIN_S, links=links
        )
        self.rank = self._comm.rank

    def all_reduce(self, array: Array) -> None:
        self._comm.all_reduce(array)

    def links(self) -> int:
        return self._comm.stats().links_up

    def close(self) -> None:
        self._comm.leave()


class Gloo:
    def __init__(self, rendezvous: str, index: int, world: int) -> None:
        dist.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=index, world_size=world
        )
        self.rank = index

    def all_reduce(self, array: Array) -> None:
        dist.all_reduce(torch.from_numpy(array))

    def links(self) -> int:
        return 0

    def close(self) -> None:
        dist.destroy_process_group()


def opened(name: str, index: int, world: int, coordinator: str, rendezvous: str) -> Implementation:
    match name.split("-"):
        case ["pccl"]:
            return Pccl(coordinator, world, links=0)
        case ["pccl", links]:
            return Pccl(coordinator, world, int(links))
        case ["gloo"]:
            return Gloo(rendezvous, index, world)
        case _:
            raise ValueError(name)


def timed(implementation: Implementation, array: Array, world: int, start_ns: int) -> float:
    """Seconds from the common start to this member's end; the result is checked afterwards."""
    pattern = np.arange(array.size, dtype=np.uint32) % PATTERN
    np.multiply(pattern, implementation.rank + 1, out=array, casting="unsafe")
    time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))
    implementation.all_reduce(array)
    seconds = (time.monotonic_ns() - start_ns) / 1e9
    pattern *= world * (world + 1) // 2
    if not np.array_equal(array, pattern):
        raise ArithmeticError(f"a wrong sum at rank {implementation.rank}")
    return seconds


def main(index: int, world: int, coordinator: str, rendezvous: str, mib: float) -> None:
    array = np.empty(int(mib * (1 << 18)), np.float32)
    known: dict[str, Implementation] = {}
    for line in sys.stdin:
        match line.split():
            case ["open", name]:
                known[name] = opened(name, index, world, coordinator, rendezvous)
                print("ready", known[name].rank, flush=True)
            case ["run", name, start_ns]:
                seconds = timed(known[name], array, world, int(start_ns))
                print("took", seconds, known[name].links(), flush=True)
            case words:
                raise ValueError(f"no such order: {words}")
    for each in known.values():
        each.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], float(sys.argv[5]))
