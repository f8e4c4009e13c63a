"""What a collective must give, in numpy, written apart from the engine: element types, one
reduction step, the documented order of a reduction, the documented cut into segments.

bfloat16 is stored as uint16. Values never hold NaNs but the canonical one, which is what every
result has.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pccl_py.types import DType, ReduceOp
from tests.dtypes import STORED, Array

FLOATS = (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.FLOAT64)
CANONICAL_NAN = {
    DType.FLOAT16: 0x7E00,
    DType.BFLOAT16: 0x7FC0,
    DType.FLOAT32: 0x7FC00000,
    DType.FLOAT64: 0x7FF8000000000000,
}
EPSILON = {DType.FLOAT16: 2**-10, DType.BFLOAT16: 2**-7, DType.FLOAT32: 2**-23,
           DType.FLOAT64: 2**-52}  # fmt: skip


def itemsize(dtype: DType) -> int:
    return np.dtype(STORED[dtype]).itemsize


def bits(values: Array) -> Array:
    return values.view(f"u{values.dtype.itemsize}")


def widened(dtype: DType, values: Array) -> Array:
    """In the type in which one step is computed."""
    if dtype is DType.BFLOAT16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32) if dtype is DType.FLOAT16 else values


def narrowed(dtype: DType, wide: Array) -> Array:
    """As stored: to the nearest, ties to even, canonical NaN."""
    if dtype is DType.BFLOAT16:
        from_bits = wide.view(np.uint32)
        stored = ((from_bits + 0x7FFF + (from_bits >> 16 & 1)) >> 16).astype(np.uint16)
    else:
        stored = wide.astype(STORED[dtype])
    if dtype in CANONICAL_NAN:
        size = stored.dtype.itemsize
        nan = np.array(CANONICAL_NAN[dtype], f"u{size}")
        stored = np.where(np.isnan(wide), nan, bits(stored)).view(STORED[dtype])
    return stored


def _selected(reduce: ReduceOp, a: Array, b: Array) -> Array:
    if a.dtype.kind != "f":
        return np.minimum(a, b) if reduce is ReduceOp.MIN else np.maximum(a, b)
    lower = (a < b) | ((a == b) & np.signbit(a))  # -0 is below +0
    picked = np.where(lower == (reduce is ReduceOp.MIN), a, b)
    return np.where(np.isnan(a) | np.isnan(b), np.array(np.nan, a.dtype), picked)


def combined(dtype: DType, reduce: ReduceOp, a: Array, b: Array) -> Array:
    """One step; integers wrap."""
    x, y = widened(dtype, a), widened(dtype, b)
    with np.errstate(all="ignore"):
        match reduce:
            case ReduceOp.SUM | ReduceOp.AVG:
                wide = x + y
            case ReduceOp.PROD:
                wide = x * y
            case ReduceOp.MIN | ReduceOp.MAX:
                wide = _selected(reduce, x, y)
        return narrowed(dtype, wide)


def divided(dtype: DType, total: Array, count: int) -> Array:
    """Integers truncate toward zero."""
    if dtype not in FLOATS:
        wide = total.astype(np.int64)
        return ((wide - np.fmod(wide, count)) // count).astype(STORED[dtype])
    wide = widened(dtype, total)
    with np.errstate(all="ignore"):
        return narrowed(dtype, wide / wide.dtype.type(count))


def folded(dtype: DType, reduce: ReduceOp, inputs: Sequence[Array]) -> Array:
    """The inputs reduced in this order."""
    total = inputs[0]
    for one in inputs[1:]:
        total = combined(dtype, reduce, total, one)
    return divided(dtype, total, len(inputs)) if reduce is ReduceOp.AVG else total


def from_owner(
    dtype: DType, reduce: ReduceOp, ring: Sequence[Array], owner: int, route: str
) -> Array:
    """As the owner at a place of the ring finishes it: direct and star from its own input on, the
    ring from its successor's."""
    first = owner + (route == "ring")
    order = [ring[(first + i) % len(ring)] for i in range(len(ring))]
    return folded(dtype, reduce, order)


def segments(count: int, size: int) -> list[slice]:
    """A tensor's segments (native/PROTOCOL.md 1.4), nearly equal."""
    wanted = max(32 << 10, min(512 << 10, count * size // 16)) // size
    number = max(1, -(-count // wanted))
    each = max(1, -(-count // number))
    return [slice(i * each, min(count, (i + 1) * each)) for i in range(number)]


def is_rotated(got: Array, by_owner: Sequence[Array], size: int) -> bool:
    """Whether segment s is what owner (s + t) mod W gives, for one t and all s."""
    world = len(by_owner)
    turns = set(range(world))
    for s, part in enumerate(segments(got.size, size)):
        mine = bits(got[part])
        turns = {t for t in turns if np.array_equal(mine, bits(by_owner[(s + t) % world][part]))}
    return bool(turns)


def drawn(dtype: DType, count: int, seed: Sequence[int], *, tame: bool = False) -> Array:
    """Values of ordinary size, and some corners unless `tame`; same seed, same values."""
    rng = np.random.default_rng(list(seed))
    stored = np.dtype(STORED[dtype])
    if dtype not in FLOATS:
        return rng.integers(0, 256, count * stored.itemsize, np.uint8).view(stored)
    wide = rng.standard_normal(count) * 4
    if not tame:
        corners = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-41, -6e-8, 6e4, 3e38, -1e300]
        wide = np.where(rng.random(count) < 0.02, rng.choice(corners, count), wide)
    with np.errstate(all="ignore"):
        step = wide if dtype is DType.FLOAT64 else wide.astype(np.float32)
        return narrowed(dtype, step)


def as_tensor(dtype: DType, values: Array) -> object:
    """What a user passes: numpy's own, or a torch tensor over the same memory for bfloat16."""
    if dtype is not DType.BFLOAT16:
        return values
    return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
