"""The table of collectives that can be measured: a row says all that is known of one; pure.

To add an op, add a row here, and how each implementation is called in `calls`. Sizes and busbw
factors are those of nccl-tests (its PERFORMANCE.md): the size is that of the larger buffer, so
`all_gather` counts what is received, `reduce_scatter` what is put in, of all ranks together. An op
that the communicator does not have is left out of `known`, so a row may be here first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pccl_py.bench import values
from pccl_py.bench.values import Span
from pccl_py.communicator import Communicator

ROOT = 0  # of the ops that have one


@dataclass(frozen=True, slots=True)
class Job:
    """One op as one rank sees it. count: elements of the size that the table shows."""

    reduce: str
    count: int
    rank: int
    world: int

    @property
    def block(self) -> int:
        """Elements of one rank's part, where the size is divided among them."""
        return self.count // self.world

    def input(self, rank: int | None = None) -> values.Table:
        """The table that a rank (default: this one) puts in."""
        return values.table(self.reduce, self.rank if rank is None else rank, self.world)

    def at_root(self, count: int) -> int:
        return count if self.rank == ROOT else 0


@dataclass(frozen=True, slots=True)
class Op:
    """busbw: factor by world size. counts: elements of this rank's source and target. expected:
    what this rank's target holds afterwards; () if nothing is said of it. in_place: where source
    and target lie in one shared buffer, elements; None: measured out of place only. crosses: the
    least bytes that must cross between processes, by size and world. is_split: the size is divided
    among the ranks. same_everywhere: all targets hold the same bits. reduces: takes a reduction.
    needs: methods of the communicator. world_min: ranks it takes."""

    name: str
    busbw: Callable[[int], float]
    counts: Callable[[Job], tuple[int, int]]
    expected: Callable[[Job], Sequence[Span]]
    in_place: Callable[[Job], tuple[int, int]] | None
    crosses: Callable[[int, int], int]
    is_split: bool = False
    same_everywhere: bool = False
    reduces: bool = False
    needs: tuple[str, ...] = ()
    world_min: int = 1

    def modes(self, wanted: Sequence[bool]) -> tuple[bool, ...]:
        """Of in place (True) and out of place (False), those that this op can be measured in."""
        return tuple(is_in for is_in in wanted if not is_in or self.in_place is not None)

    def elements(self, count: int, world: int) -> int:
        """`count`, or the next less that divides evenly."""
        return count // world * world if self.is_split else count


def _equal(job: Job) -> tuple[int, int]:
    return job.count, job.count


def _over_itself(_job: Job) -> tuple[int, int]:
    return 0, 0


def _reduced(job: Job) -> list[Span]:
    return [Span(values.reduced(job.reduce, job.world), 0, job.count)]


def _blocks_of_all(job: Job, start: int) -> list[Span]:
    return [Span(job.input(rank), start, job.block) for rank in range(job.world)]


def _share(world: int) -> float:
    return (world - 1) / world


def _to_each_other(size: int, world: int) -> int:
    return size * (world - 1)


def _but_the_roots(size: int, world: int) -> int:
    return size // world * (world - 1)


_ROWS = (
    Op(
        name="all_reduce",
        busbw=lambda world: 2 * (world - 1) / world,
        counts=_equal,
        expected=_reduced,
        in_place=_over_itself,
        crosses=_to_each_other,
        same_everywhere=True,
        reduces=True,
        needs=("all_reduce",),
    ),
    Op(
        name="all_gather",
        busbw=_share,
        counts=lambda job: (job.block, job.count),
        expected=lambda job: _blocks_of_all(job, 0),
        in_place=lambda job: (job.rank * job.block, 0),
        crosses=_to_each_other,
        is_split=True,
        same_everywhere=True,
        needs=("all_gather",),
    ),
    Op(
        name="reduce_scatter",
        busbw=_share,
        counts=lambda job: (job.count, job.block),
        expected=lambda job: [
            Span(values.reduced(job.reduce, job.world), job.rank * job.block, job.block)
        ],
        in_place=None,  # ours wants the result apart from the input
        crosses=_to_each_other,
        is_split=True,
        reduces=True,
        needs=("reduce_scatter",),
    ),
    Op(
        name="broadcast",
        busbw=lambda _world: 1.0,
        counts=_equal,
        expected=lambda job: [Span(job.input(ROOT), 0, job.count)],
        in_place=_over_itself,
        crosses=_to_each_other,
        same_everywhere=True,
        needs=("broadcast",),
    ),
    Op(
        name="reduce",
        busbw=lambda _world: 1.0,
        counts=_equal,
        expected=lambda job: _reduced(job) if job.rank == ROOT else [],
        in_place=_over_itself,
        crosses=_to_each_other,
        reduces=True,
        needs=("reduce",),
    ),
    Op(
        name="gather",
        busbw=_share,
        counts=lambda job: (job.block, job.at_root(job.count)),
        expected=lambda job: _blocks_of_all(job, 0) if job.rank == ROOT else [],
        in_place=None,
        crosses=_but_the_roots,
        is_split=True,
        needs=("gather",),
    ),
    Op(
        name="scatter",
        busbw=_share,
        counts=lambda job: (job.at_root(job.count), job.block),
        expected=lambda job: [Span(job.input(ROOT), job.rank * job.block, job.block)],
        in_place=None,
        crosses=_but_the_roots,
        is_split=True,
        needs=("scatter",),
    ),
    Op(
        name="all_to_all",
        busbw=_share,
        counts=_equal,
        expected=lambda job: _blocks_of_all(job, job.rank * job.block),
        in_place=None,
        crosses=_to_each_other,
        is_split=True,
        needs=("all_to_all",),
    ),
    Op(
        name="sendrecv",  # each rank to the next one and from the one before
        busbw=lambda _world: 1.0,
        counts=_equal,
        expected=lambda job: [Span(job.input((job.rank - 1) % job.world), 0, job.count)],
        in_place=None,
        crosses=lambda size, world: size * world,
        needs=("send", "recv"),
        world_min=2,
    ),
)


def known() -> Mapping[str, Op]:
    """The ops that this communicator has, by name."""
    return {op.name: op for op in _ROWS if all(hasattr(Communicator, need) for need in op.needs)}


def lacks(impl: str, op: Op, dtype: str, reduce: str) -> str | None:
    """Why an implementation cannot be compared here, in a few words; None if it can."""
    bare = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce")
    match impl.removesuffix("-shm"):
        case "ceiling" if op.name not in bare:
            return f"it knows {', '.join(bare)} only"
        case "ceiling" if dtype != "float32" or (op.reduces and reduce != "sum"):
            return "it knows float32 and sum only"
        case "mpi" | "mpich" | "openmpi" if op.reduces and reduce == "avg":
            return "it has no avg"
        case "mpi" | "mpich" | "openmpi" if dtype in ("float16", "bfloat16"):
            return f"it has no {dtype}"
        case "gloo" if dtype == "int16":
            return "it has no int16"
        case _:
            return None
