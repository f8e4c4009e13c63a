"""What is to be measured, checked before anything is started; pure.

The command makes a `Plan` of its arguments; `crew` and `conduct` carry it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pccl_py.bench import ops, sizes, values
from pccl_py.bench.ops import Op
from pccl_py.errors import ResourceError, UsageError

WORLD_MAX = 64
REPEATS_MAX = 10_000
OURS = "pccl"
PEERS = (
    "gloo", "ceiling", "mpi", "mpi-shm", "mpich", "mpich-shm", "openmpi", "openmpi-shm",
)  # fmt: skip
ALL = "all"
MODES = {"yes": (True,), "no": (False,), "both": (False, True)}  # by --in-place


@dataclass(frozen=True, slots=True)
class Plan:
    """sizes: bytes, as nccl-tests counts them; modes: in place or not, in the order in which they
    run; impls: pccl first, then those that it is compared with."""

    op: Op
    world: int
    sizes: Sequence[int]
    dtype: str
    reduce: str
    warm_ups: int
    repeats: int
    modes: Sequence[bool]
    impls: Sequence[str]

    def elements(self, size: int) -> int:
        """Of all ranks together where the size is divided among them; 0: there are none."""
        return self.op.elements(size // values.item_bytes(self.dtype), self.world)


def groups(impls: Sequence[str]) -> Sequence[Sequence[str]]:
    """Who shares processes: pccl and gloo; the others have their own."""
    shared = [impl for impl in impls if impl in (OURS, "gloo")]
    return (shared, *([impl] for impl in impls if impl not in shared))


def check(plan: Plan, available_bytes: int | None) -> None:
    """Raises UsageError, or ResourceError when the buffers would not fit in memory."""
    if not 1 <= plan.world <= WORLD_MAX:
        raise UsageError(f"--world {plan.world} must be a number of processes, 1 to {WORLD_MAX}")
    if plan.world < plan.op.world_min:
        raise UsageError(f"{plan.op.name} takes {plan.op.world_min} processes or more: --world")
    if not 1 <= plan.repeats <= REPEATS_MAX or not 0 <= plan.warm_ups <= REPEATS_MAX:
        raise UsageError(f"-n must be 1 to {REPEATS_MAX}, -w 0 to {REPEATS_MAX}")
    if plan.dtype not in values.KINDS:
        raise UsageError(f"--dtype {plan.dtype} must be one of {', '.join(values.KINDS)}")
    if plan.reduce not in values.REDUCTIONS:
        raise UsageError(f"--reduce {plan.reduce} must be one of {', '.join(values.REDUCTIONS)}")
    if not plan.elements(plan.sizes[0]):
        each = f" for each of {plan.world} ranks" if plan.op.is_split else ""
        text = f"-b {sizes.text(plan.sizes[0])} holds no element of {plan.dtype}{each}"
        raise UsageError(f"{plan.op.name}: {text}")
    if plan.op.reduces:
        values.check(plan.dtype, plan.reduce, plan.world)
    needed = 2 * plan.world * len(groups(plan.impls)) * max(plan.sizes)
    if available_bytes is not None and needed > available_bytes:
        raise ResourceError(
            f"{sizes.text(max(plan.sizes))} needs {needed / 2**30:.1f} GiB for {plan.world} "
            f"processes of each kind, {available_bytes / 2**30:.1f} are free: less -e or --world",
        )


def comparable(
    impls: Sequence[str], op: Op, dtype: str, reduce: str
) -> tuple[list[str], list[str]]:
    """(those that can be measured, a line for each that cannot). Raises UsageError: an unknown
    one."""
    found, left_out = [OURS], []
    for impl in impls:
        if impl not in PEERS:
            raise UsageError(f"--vs {impl!r} must be one of {', '.join(PEERS)}")
        reason = ops.lacks(impl, op, dtype, reduce)
        if reason is not None:
            left_out.append(f"{op.name}: {impl} is left out: {reason}")
        elif impl not in found:
            found.append(impl)
    return found, left_out


def ops_named(names: Sequence[str]) -> Sequence[Op]:
    """Each once. Raises UsageError."""
    known = ops.known()
    if list(names) == [ALL]:
        return tuple(known.values())
    for name in names:
        if name not in known:
            raise UsageError(f"there is no op {name!r}: use {ALL} or {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(names))
