"""The table of collectives that can be measured: a row says all that is known of one; pure.

To add an op, add a row: its busbw factor, how many elements each buffer has, what the result must
be, and how each implementation is called. An op that the communicator does not have is left out of
`known`, so a row may be here first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

from pccl_py.bench import values
from pccl_py.bench.values import Span
from pccl_py.communicator import Communicator
from pccl_py.types import OpInfo


@dataclass(frozen=True, slots=True)
class Tensors:
    """What an implementation is called with, in its own type (numpy array, torch tensor): an op in
    place has its input in `target` and leaves `source` alone."""

    source: object
    target: object


@dataclass(frozen=True, slots=True)
class Job:
    """One op as one rank sees it. count: elements of the size that the table shows."""

    reduce: str
    count: int
    rank: int
    world: int

    def input(self, rank: int | None = None) -> values.Table:
        """The table that a rank (default: this one) puts in."""
        return values.table(self.reduce, self.rank if rank is None else rank, self.world)


@dataclass(frozen=True, slots=True)
class Op:
    """busbw: factor by world size; counts: (count, world) -> elements of source and target;
    expected: what the target holds afterwards; same_everywhere: on all ranks; reduces: takes a
    reduction; in_place: works on the target, out of place it is a copy and then the op (else it
    reads the source itself and is measured out of place only). pccl, gloo and mpi run it; they get
    the communicator, torch.distributed and mpi4py.MPI; None: that one has no such op."""

    name: str
    busbw: Callable[[int], float]
    counts: Callable[[int, int], tuple[int, int]]
    expected: Callable[[Job], Sequence[Span]]
    same_everywhere: bool
    reduces: bool
    in_place: bool
    pccl: Callable[[Communicator, Tensors, str], OpInfo]
    gloo: Callable[[ModuleType, Tensors, str], object] | None = None
    mpi: Callable[[ModuleType, Tensors, str], object] | None = None


def _equal(count: int, _world: int) -> tuple[int, int]:
    return count, count


_ROWS = (
    Op(
        name="all_reduce",
        busbw=lambda world: 2 * (world - 1) / world,
        counts=_equal,
        expected=lambda job: [Span(values.reduced(job.reduce, job.world), 0, job.count)],
        same_everywhere=True,
        reduces=True,
        in_place=True,
        pccl=lambda comm, t, reduce: comm.all_reduce(t.target, op=reduce),
        gloo=lambda dist, t, reduce: dist.all_reduce(
            t.target, op=getattr(dist.ReduceOp, reduce.upper())
        ),
        mpi=lambda mpi, t, reduce: mpi.COMM_WORLD.Allreduce(
            mpi.IN_PLACE, t.target, op=getattr(mpi, reduce.upper())
        ),
    ),
    Op(
        name="broadcast",
        busbw=lambda _world: 1.0,
        counts=_equal,
        expected=lambda job: [Span(job.input(0), 0, job.count)],
        same_everywhere=True,
        reduces=False,
        in_place=True,
        pccl=lambda comm, t, _reduce: comm.broadcast(t.target, src=0),
        gloo=lambda dist, t, _reduce: dist.broadcast(t.target, src=0),
        mpi=lambda mpi, t, _reduce: mpi.COMM_WORLD.Bcast(t.target, root=0),
    ),
)


def known() -> Mapping[str, Op]:
    """The ops that this communicator has, by name."""
    return {op.name: op for op in _ROWS if hasattr(Communicator, op.name)}


def lacks(impl: str, op: Op, dtype: str, reduce: str) -> str | None:
    """Why an implementation cannot be compared here, in a few words; None if it can."""
    match impl:
        case "ceiling" if (op.name, dtype, reduce) != ("all_reduce", "float32", "sum"):
            return "it knows all_reduce of float32 with sum only"
        case "gloo" | "mpi" | "mpi-shm" if op.reduces and reduce == "avg":
            return "it has no avg"
        case "gloo" if op.gloo is None or dtype == "int16":
            return f"it has no {op.name} of {dtype}"
        case "mpi" | "mpi-shm" if op.mpi is None or dtype in ("float16", "bfloat16"):
            return f"it has no {op.name} of {dtype}"
        case _:
            return None
