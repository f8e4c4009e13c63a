"""What the buffers hold, what they must hold afterwards, and how many elements do not; pure.

Values are small whole numbers, different on each rank, so that every sum is exact in every dtype
whatever its order, and a result can be compared to the bit. They repeat with a prime period: a
segment that lands in the wrong place is wrong almost everywhere. `native/ceiling/ceiling.c` has the
same values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from pccl_py.errors import UsageError

PERIOD = 4093
VALUE_MAX = 3
Array: TypeAlias = "npt.NDArray[np.generic[object]]"
Table = npt.NDArray[np.int64]  # PERIOD whole numbers

_BLOCK = 64 * PERIOD  # elements compared at once


@dataclass(frozen=True, slots=True)
class Kind:
    """A dtype. storage: numpy's, bfloat16 is kept as its bits; exact_max: whole numbers up to it
    are exact."""

    storage: str
    exact_max: int


KINDS: Mapping[str, Kind] = {
    "uint8": Kind("uint8", 255),
    "int8": Kind("int8", 127),
    "int16": Kind("int16", (1 << 15) - 1),
    "int32": Kind("int32", (1 << 31) - 1),
    "int64": Kind("int64", (1 << 62) - 1),
    "float16": Kind("float16", 2048),
    "bfloat16": Kind("uint16", 256),
    "float32": Kind("float32", 1 << 24),
    "float64": Kind("float64", 1 << 53),
}
REDUCTIONS = ("sum", "avg", "prod", "min", "max")


@dataclass(frozen=True, slots=True)
class Span:
    """`count` elements that hold `table` from its element `start` on, over and over."""

    table: Table
    start: int
    count: int


def item_bytes(dtype: str) -> int:
    return np.dtype(KINDS[dtype].storage).itemsize


def check(dtype: str, reduce: str, world: int) -> None:
    """Raises UsageError when a result would not be exact, so that it could not be verified."""
    most = max(int(table.max()) for table in _all(reduce, world))
    if reduce in ("sum", "avg"):
        most *= world
    if most > KINDS[dtype].exact_max:
        raise UsageError(f"{reduce} of {dtype} over {world} ranks cannot be verified exactly")


def table(reduce: str, rank: int, world: int) -> Table:
    """What `rank` puts in."""
    j = np.arange(PERIOD, dtype=np.int64)
    mixed = (j + 1) * 2654435761 + (rank + 1) * (j % 61 + 1) * 2654435769
    plain = mixed >> 28 & VALUE_MAX
    match reduce:
        case "avg":  # divisible by world
            return plain * world
        case "prod":  # at most 64, whatever the world
            return 1 + (plain & 1) if rank < 6 else np.ones_like(j)
        case _:
            return plain


def _all(reduce: str, world: int) -> list[Table]:
    return [table(reduce, rank, world) for rank in range(world)]


_COMBINE: Mapping[str, Callable[[npt.NDArray[np.int64]], Table]] = {
    "sum": lambda tables: tables.sum(axis=0),
    "avg": lambda tables: tables.sum(axis=0) // len(tables),
    "prod": lambda tables: tables.prod(axis=0),
    "min": lambda tables: tables.min(axis=0),
    "max": lambda tables: tables.max(axis=0),
}


def reduced(reduce: str, world: int) -> Table:
    """What a reduction of all ranks' tables gives."""
    return _COMBINE[reduce](np.stack(_all(reduce, world)))


def _stored(numbers: Table, dtype: str) -> Array:
    if dtype == "bfloat16":  # whole numbers up to 256 lose nothing in the cut
        return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return numbers.astype(KINDS[dtype].storage)


def filled(span: Span, dtype: str) -> Array:
    """A new array of `span.count` elements."""
    return np.resize(np.roll(_stored(span.table, dtype), -span.start), span.count)


def wrong(array: Array, spans: Sequence[Span], dtype: str) -> int:
    """How many elements of `array` are not what `spans`, one after the other, say."""
    assert sum(span.count for span in spans) == array.size
    found = first = 0
    for span in spans:
        period = np.roll(_stored(span.table, dtype), -span.start)
        expected = np.tile(period, _BLOCK // PERIOD)
        for at in range(0, span.count, _BLOCK):
            count = min(_BLOCK, span.count - at)
            part = array[first + at : first + at + count]
            found += int(np.count_nonzero(part != expected[:count]))
        first += span.count
    return found


def hashed(array: Array) -> str:
    """A hash of the bits."""
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(array).view(np.uint8).data)
