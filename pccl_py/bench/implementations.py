"""What is compared, as a worker sees it: pccl, torch's gloo, MPI.

Each is opened once per worker, knows its rank, turns a numpy array into what it takes, and runs a
row of `ops`. The worker owns them and the buffers; torch and mpi4py are imported only when asked.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol, TypeAlias

from pccl_py.bench import calls, values
from pccl_py.bench.calls import Call
from pccl_py.bench.ops import Op
from pccl_py.errors import UsageError
from pccl_py.joining import join
from pccl_py.types import OpInfo

JOIN_S = 60.0
Told: TypeAlias = tuple[str | None, int | None, str | None]


class Implementation(Protocol):
    """One member's side of an implementation."""

    rank: int

    def wrap(self, array: values.Array, dtype: str) -> object: ...
    def run(self, op: Op, call: Call) -> None: ...
    def told(self) -> Told:
        """Route of the last op, links open, transport; None where not known."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where to meet. coordinator: HOST:PORT for pccl; rendezvous: a file for gloo."""

    index: int
    world: int
    coordinator: str
    rendezvous: Path


class Pccl:
    """A member of a run of its own."""

    def __init__(self, place: Place) -> None:
        self._comm = join(
            place.coordinator,
            name=f"bench{place.index}",
            min_members=place.world,
            timeout=JOIN_S,
        )
        self.rank = self._comm.rank
        self._info: OpInfo | None = None

    def wrap(self, array: values.Array, dtype: str) -> object:
        return _torch_tensor(array, dtype) if dtype == "bfloat16" else array

    def run(self, op: Op, call: Call) -> None:
        self._info = calls.PCCL[op.name](self._comm, call)

    def told(self) -> Told:
        assert self._info is not None
        return self._info.route, self._comm.stats().links_up, self._info.transport

    def close(self) -> None:
        self._comm.leave()


class Gloo:
    """torch.distributed over the loopback interface. rank: pccl's, so that both fill alike."""

    def __init__(self, place: Place, rank: int) -> None:
        self._dist = importlib.import_module("torch.distributed")
        self._dist.init_process_group(
            "gloo", init_method=f"file://{place.rendezvous}", rank=rank, world_size=place.world
        )
        self.rank = rank

    def wrap(self, array: values.Array, dtype: str) -> object:
        return _torch_tensor(array, dtype)

    def run(self, op: Op, call: Call) -> None:
        calls.GLOO[op.name](self._dist, call)

    def told(self) -> Told:
        return None, None, "tcp"

    def close(self) -> None:
        self._dist.destroy_process_group()


class Mpi:
    """MPI through mpi4py; this process was started by mpiexec."""

    def __init__(self, transport: str) -> None:
        self._transport = transport
        self._mpi: ModuleType = importlib.import_module("mpi4py.MPI")
        self.rank = int(self._mpi.COMM_WORLD.rank)

    def wrap(self, array: values.Array, dtype: str) -> object:
        return array

    def run(self, op: Op, call: Call) -> None:
        calls.MPI[op.name](self._mpi, call)

    def told(self) -> Told:
        return None, None, self._transport

    def close(self) -> None:
        self._mpi.Finalize()


def opened(names: Sequence[str], place: Place) -> Mapping[str, Implementation]:
    """The implementations of one worker; they all have the same rank."""
    found: dict[str, Implementation] = {}
    rank = place.index
    for name in names:
        match name:
            case "pccl":
                found[name] = Pccl(place)
                rank = found[name].rank
            case "gloo":
                found[name] = Gloo(place, rank)
            case _ if name.startswith(("mpi", "openmpi")):
                found[name] = Mpi("shm" if name.endswith("-shm") else "tcp")
            case _:
                raise UsageError(f"{name} is no implementation")
    return found


def _torch_tensor(array: values.Array, dtype: str) -> object:
    torch = importlib.import_module("torch")
    if dtype != "bfloat16":
        return torch.from_numpy(array)
    return torch.from_numpy(array).view(torch.bfloat16)
