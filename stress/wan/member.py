"""One member of the measured group, inside a host: `member.py INDEX WORLD RENDEZVOUS MIB`. Obeys
the lines on its standard input, one answer each; started by bench.py, decides nothing.

open IMPL HOST:PORT  ready; of a coordinator for pccl
fill IMPL            ready, with this member's input in the tensor
run IMPL START_NS    took SECONDS LINKS, from the common start on
check IMPL           ready, if the tensor holds the right sum
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
        self._comm = pccl.join(coordinator, min_members=world, timeout=JOIN_S, links=links)
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


class Desk:
    """Obeys the lines; owns the tensor and the implementations."""

    def __init__(self, mib: float, world: int) -> None:
        self._world = world
        self._array = np.empty(int(mib * (1 << 18)), np.float32)
        self._pattern = np.arange(self._array.size, dtype=np.uint32) % PATTERN
        self._known: dict[str, Implementation] = {}

    def add(self, name: str, implementation: Implementation) -> None:
        self._known[name] = implementation

    def fill(self, name: str) -> None:
        self._multiply(self._known[name].rank + 1, self._array)

    def run(self, name: str, start_ns: int) -> tuple[float, int]:
        """Seconds from the common start to this member's end, and links."""
        time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))
        self._known[name].all_reduce(self._array)
        seconds = (time.monotonic_ns() - start_ns) / 1e9
        return seconds, self._known[name].links()

    def check(self, name: str) -> None:
        expected = np.empty_like(self._array)
        self._multiply(self._world * (self._world + 1) // 2, expected)
        if not np.array_equal(self._array, expected):
            raise ArithmeticError(f"{name}: a wrong sum")

    def _multiply(self, factor: int, out: Array) -> None:
        np.multiply(self._pattern, factor, out=out, casting="unsafe")

    def close(self) -> None:
        for each in self._known.values():
            each.close()


def main(index: int, world: int, rendezvous: str, mib: float) -> None:
    desk = Desk(mib, world)
    for line in sys.stdin:
        answer: tuple[object, ...] = ("ready",)
        match line.split():
            case ["open", name, coordinator]:
                desk.add(name, opened(name, index, world, coordinator, rendezvous))
            case ["fill", name]:
                desk.fill(name)
            case ["run", name, start_ns]:
                answer = ("took", *desk.run(name, int(start_ns)))
            case ["check", name]:
                desk.check(name)
            case words:
                raise ValueError(f"no such order: {words}")
        print(*answer, flush=True)
    desk.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
