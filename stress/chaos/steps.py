"""What a worker is told to do and what it says of it: plain values that travel on a pipe.

The numbers that a member puts into an op follow from the op and its name, so that the judge, who
has seen none of it, knows them. They are whole and small: sums are exact in any order.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

KINDS = (
    "all_reduce",
    "reduce",
    "broadcast",
    "all_gather",
    "reduce_scatter",
    "gather",
    "scatter",
    "all_to_all",
    "send",
    "barrier",
)
REDUCTIONS = ("sum", "avg", "max")
DTYPES = ("float64", "int64", "float32")
WEIGHTS = (0.5, 1.0, 2.0, 0.0)
JUNK = -7  # what results hold before


@dataclass(frozen=True)
class Op:
    """One collective of a step. count: elements of a tensor or block, about. root: a rank, modulo
    the participants. group: index of a sub-group of this line, or None. ends: names, of a send.
    timeout: seconds, or 0."""

    number: int
    kind: str
    dtype: str = "float64"
    reduction: str = "sum"
    count: int = 1000
    root: int = 0
    group: int | None = None
    ends: tuple[str, str] = ("", "")
    name: str | None = None
    route: str = "auto"
    weighted: bool = False
    in_place: bool = True
    strict: bool = False
    timeout: float = 0.0


@dataclass(frozen=True)
class Step:
    """Ops that are all in flight at once. groups: if not None, sub-groups to make first, by names.
    update: a safe point first. pauses: worker -> seconds before each of its ops. dies: worker ->
    how many ops it submits before it kills itself."""

    number: int
    ops: tuple[Op, ...] = ()
    groups: tuple[tuple[str, ...], ...] | None = None
    update: bool = True
    pauses: tuple[tuple[str, float], ...] = ()
    dies: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Piece:
    """Part of a worker's shared memory: an input ("in") or a result ("out"), to or from whom
    ("": everybody), as it was left."""

    role: str
    whom: str
    at: int
    count: int


@dataclass(frozen=True)
class Said:
    """How one op ended for one worker. end: "ok", "none" (it takes no part), or an error's class.
    members: the participants it saw at submission; root: the one it took as such."""

    number: int
    end: str
    text: str = ""
    members: tuple[str, ...] = ()
    root: str = ""
    contributors: tuple[int, int] = (0, 0)
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Joined:
    """A worker has joined, as `name`; pid is its own."""

    name: str
    pid: int


@dataclass(frozen=True)
class Done:
    """A worker has ended a step. world: the members it sees, in rank order."""

    step: int
    said: tuple[Said, ...]
    world: tuple[str, ...]


def block_count(op: Op, source: str, destination: str) -> int:
    """Blocks differ in size; some are empty."""
    if op.kind in ("all_gather", "gather"):
        destination = ""
    if op.kind in ("scatter", "reduce_scatter"):
        source = ""
    odd = zlib.crc32(f"{op.number}/{source}/{destination}".encode())
    return 0 if odd % 16 == 0 else op.count + odd % 5


def values(op: Op, source: str, destination: str = "", count: int | None = None) -> Array:
    """What `source` gives, to `destination` if that makes a difference."""
    seed = zlib.crc32(f"{source}/{destination}".encode())
    rng = np.random.default_rng([op.number, seed])
    size = op.count if count is None else count
    return rng.integers(-(1 << 18), 1 << 18, size, np.int32).astype(op.dtype)


def weight(op: Op, name: str) -> float:
    return WEIGHTS[zlib.crc32(f"{op.number}/{name}".encode()) % 4] if op.weighted else 1.0
