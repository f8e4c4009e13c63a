"""How each implementation is called for each op of `ops`.

An implementation that has no such op out of place copies the source first, as its user would have
to: gloo's all_reduce and reduce, everybody's broadcast (at the root). Called by `implementations`;
buffers are in the implementation's own type by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

from pccl_py.bench.ops import ROOT, Job
from pccl_py.communicator import Communicator
from pccl_py.types import OpInfo


@dataclass(frozen=True, slots=True)
class Call:
    """An op of this rank. source, target: numpy arrays or torch tensors; in place they are parts of
    one buffer, the same one where the op works over its input. copy: target <- source."""

    job: Job
    in_place: bool
    source: object
    target: object
    copy: Callable[[], None]

    def copy_unless_in_place(self) -> None:
        if not self.in_place:
            self.copy()

    @property
    def is_root(self) -> bool:
        return self.job.rank == ROOT

    @property
    def around(self) -> tuple[int, int]:
        """The ranks before and after this one."""
        return (self.job.rank - 1) % self.job.world, (self.job.rank + 1) % self.job.world


# ---------------------------------------------------------------- pccl


def _pccl_all_reduce(comm: Communicator, call: Call) -> OpInfo:
    out = None if call.in_place else call.target
    return comm.all_reduce(call.source, op=call.job.reduce, out=out)


def _pccl_reduce(comm: Communicator, call: Call) -> OpInfo:
    out = call.target if call.is_root and not call.in_place else None
    return comm.reduce(call.source, dst=ROOT, op=call.job.reduce, out=out)


def _pccl_broadcast(comm: Communicator, call: Call) -> OpInfo:
    if call.is_root:
        call.copy_unless_in_place()
    return comm.broadcast(call.target, src=ROOT)


def _pccl_gather(comm: Communicator, call: Call) -> OpInfo:
    return comm.gather(call.source, call.target if call.is_root else None, dst=ROOT)


def _pccl_scatter(comm: Communicator, call: Call) -> OpInfo:
    return comm.scatter(call.target, call.source if call.is_root else None, src=ROOT)


def _pccl_sendrecv(comm: Communicator, call: Call) -> OpInfo:
    before, after = call.around
    sent = comm.send(call.source, dst=after, async_op=True)
    info = comm.recv(call.target, src=before)
    sent.wait()
    return info


PCCL: Mapping[str, Callable[[Communicator, Call], OpInfo]] = {
    "all_reduce": _pccl_all_reduce,
    "all_gather": lambda comm, call: comm.all_gather(call.target, call.source),
    "reduce_scatter": lambda comm, call: comm.reduce_scatter(
        call.target, call.source, op=call.job.reduce
    ),
    "broadcast": _pccl_broadcast,
    "reduce": _pccl_reduce,
    "gather": _pccl_gather,
    "scatter": _pccl_scatter,
    "all_to_all": lambda comm, call: comm.all_to_all(call.target, call.source),
    "sendrecv": _pccl_sendrecv,
}

# ---------------------------------------------------------------- gloo, of torch.distributed


def _gloo_op(dist: ModuleType, call: Call) -> object:
    name = {"prod": "product"}.get(call.job.reduce, call.job.reduce)
    return getattr(dist.ReduceOp, name.upper())


def _gloo_all_reduce(dist: ModuleType, call: Call) -> None:
    call.copy_unless_in_place()
    dist.all_reduce(call.target, op=_gloo_op(dist, call))


def _gloo_reduce(dist: ModuleType, call: Call) -> None:
    call.copy_unless_in_place()  # everywhere: it leaves partial sums behind at the others
    dist.reduce(call.target, dst=ROOT, op=_gloo_op(dist, call))


def _gloo_broadcast(dist: ModuleType, call: Call) -> None:
    if call.is_root:
        call.copy_unless_in_place()
    dist.broadcast(call.target, src=ROOT)


def _gloo_parts(call: Call, tensor: object) -> list[object] | None:
    if not call.is_root:
        return None
    chunk: Callable[[int], tuple[object, ...]] = getattr(tensor, "chunk")  # noqa: B009
    return list(chunk(call.job.world))


def _gloo_sendrecv(dist: ModuleType, call: Call) -> None:
    before, after = call.around
    sent = dist.isend(call.source, dst=after)
    dist.recv(call.target, src=before)
    sent.wait()


GLOO: Mapping[str, Callable[[ModuleType, Call], object]] = {
    "all_reduce": _gloo_all_reduce,
    "all_gather": lambda dist, call: dist.all_gather_into_tensor(call.target, call.source),
    "reduce_scatter": lambda dist, call: dist.reduce_scatter_tensor(
        call.target, call.source, op=_gloo_op(dist, call)
    ),
    "broadcast": _gloo_broadcast,
    "reduce": _gloo_reduce,
    "gather": lambda dist, call: dist.gather(call.source, _gloo_parts(call, call.target), dst=ROOT),
    "scatter": lambda dist, call: dist.scatter(
        call.target, _gloo_parts(call, call.source), src=ROOT
    ),
    "all_to_all": lambda dist, call: dist.all_to_all_single(call.target, call.source),
    "sendrecv": _gloo_sendrecv,
}

# ---------------------------------------------------------------- mpi4py.MPI


def _mpi_op(mpi: ModuleType, call: Call) -> object:
    return getattr(mpi, call.job.reduce.upper())


def _mpi_source(mpi: ModuleType, call: Call) -> object:
    """MPI wants to be told that the input lies in the output."""
    return mpi.IN_PLACE if call.in_place else call.source


def _mpi_reduce(mpi: ModuleType, call: Call) -> None:
    source = _mpi_source(mpi, call) if call.is_root else call.source
    target = call.target if call.is_root else None
    mpi.COMM_WORLD.Reduce(source, target, op=_mpi_op(mpi, call), root=ROOT)


def _mpi_broadcast(mpi: ModuleType, call: Call) -> None:
    if call.is_root:
        call.copy_unless_in_place()
    mpi.COMM_WORLD.Bcast(call.target, root=ROOT)


def _mpi_sendrecv(mpi: ModuleType, call: Call) -> None:
    before, after = call.around
    mpi.COMM_WORLD.Sendrecv(call.source, after, recvbuf=call.target, source=before)


MPI: Mapping[str, Callable[[ModuleType, Call], object]] = {
    "all_reduce": lambda mpi, call: mpi.COMM_WORLD.Allreduce(
        _mpi_source(mpi, call), call.target, op=_mpi_op(mpi, call)
    ),
    "all_gather": lambda mpi, call: mpi.COMM_WORLD.Allgather(_mpi_source(mpi, call), call.target),
    "reduce_scatter": lambda mpi, call: mpi.COMM_WORLD.Reduce_scatter_block(
        call.source, call.target, op=_mpi_op(mpi, call)
    ),
    "broadcast": _mpi_broadcast,
    "reduce": _mpi_reduce,
    "gather": lambda mpi, call: mpi.COMM_WORLD.Gather(
        call.source, call.target if call.is_root else None, root=ROOT
    ),
    "scatter": lambda mpi, call: mpi.COMM_WORLD.Scatter(
        call.source if call.is_root else None, call.target, root=ROOT
    ),
    "all_to_all": lambda mpi, call: mpi.COMM_WORLD.Alltoall(call.source, call.target),
    "sendrecv": _mpi_sendrecv,
}
