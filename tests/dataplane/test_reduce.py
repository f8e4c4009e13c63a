"""The reduction kernels against numpy references written apart from them, and path against path.

Values are drawn as bit patterns, so NaN of any payload, infinities, subnormals and both zeros are
met all the time. float16 is checked against numpy's own conversions, bfloat16 against a reference
in exact rational steps (below), integers against Python's unbounded ones on the corner values.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl_py.types import DType, ReduceOp
from tests.dtypes import STORED, Array

NAN_BITS = {
    DType.FLOAT16: 0x7E00,
    DType.BFLOAT16: 0x7FC0,
    DType.FLOAT32: 0x7FC00000,
    DType.FLOAT64: 0x7FF8000000000000,
}
# Bit patterns worth meeting: zeros, ones, subnormals, the largest, infinities, NaNs, sign bits.
CORNERS = {
    2: [0, 1, 0x3FF, 0x400, 0x3C00, 0x7BFF, 0x7C00, 0x7C01, 0x7E00, 0x7F80, 0x7F7F, 0x7FFF],
    4: [0, 1, 0x7FFFFF, 0x800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00001],
    8: [
        0,
        1,
        0xFFFFFFFFFFFFF,
        0x10000000000000,
        0x3FF0000000000000,
        0x7FEFFFFFFFFFFFFF,
        0x7FF0000000000000,
        0x7FF0000000000001,
        0x7FF8000000000001,
    ],
    1: [0, 1, 2, 0x7F, 0x55],
}
COUNTS = [0, 1, 7, 8, 9, 31, 64, 65, 1000, 4099]
EVERY = [(d, r) for d in DType for r in ReduceOp]


def drawn(dtype: DType, count: int, seed: int) -> Array:
    """`count` elements of random bits, a third of them corners of either sign; same seed, same."""
    rng = np.random.default_rng(seed)
    size = np.dtype(STORED[dtype]).itemsize
    unsigned = np.dtype(f"u{size}")
    bits = rng.integers(0, 2 ** (8 * size) - 1, count, dtype=unsigned, endpoint=True)
    sign = 1 << (8 * size - 1)
    corners = np.array([c | s for c in CORNERS[size] for s in (0, sign)], dtype=unsigned)
    return np.where(rng.random(count) < 1 / 3, rng.choice(corners, count), bits).view(STORED[dtype])


def bf16_to_f32(values: Array) -> npt.NDArray[np.float32]:
    return (values.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The nearer of the two neighbours, by distance in float64; a tie goes to the even one."""
    wide = values.astype(np.float64)
    bits = values.view(np.uint32)
    below = (bits >> 16).astype(np.uint16)  # toward zero
    above = (below + 1).astype(np.uint16)
    low, high = (bf16_to_f32(x).astype(np.float64) for x in (below, above))
    # beyond the largest finite value the next step counts as the next power of two
    high = np.where(np.isinf(high), np.copysign(2.0**128, wide), high)
    to_low, to_high = np.abs(wide - low), np.abs(high - wide)
    up = (to_high < to_low) | ((to_high == to_low) & (below % 2 == 1))
    rounded = np.where(up, above, below)
    return np.where(np.isinf(values), below, rounded).astype(np.uint16)


def float_reduced(reduce: ReduceOp, a: Array, b: Array) -> Array:
    match reduce:
        case ReduceOp.SUM | ReduceOp.AVG:
            return a + b
        case ReduceOp.PROD:
            return a * b
        case ReduceOp.MIN | ReduceOp.MAX:
            lower = (a < b) | ((a == b) & np.signbit(a))
            picked = np.where(lower == (reduce is ReduceOp.MIN), a, b)
            nan = np.isnan(a) | np.isnan(b)
            return np.where(nan, np.array(np.nan, a.dtype), picked)


def integer_reduced(reduce: ReduceOp, a: Array, b: Array) -> Array:
    """In Python's unbounded integers, then cut to the width."""
    pick = {ReduceOp.MIN: min, ReduceOp.MAX: max, ReduceOp.PROD: lambda x, y: x * y}
    combine = pick.get(reduce, lambda x, y: x + y)
    bits = 8 * a.dtype.itemsize
    low = 0 if a.dtype.kind == "u" else -(1 << (bits - 1))
    wrapped = [
        (combine(x, y) - low) % (1 << bits) + low
        for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    return np.array(wrapped, dtype=a.dtype)


def rounded(dtype: DType, wide: Array) -> Array:
    """`wide` (float32 for the halves) as stored, with the canonical NaN; as unsigned bits."""
    stored = f32_to_bf16(wide) if dtype is DType.BFLOAT16 else wide.astype(STORED[dtype])
    size = stored.dtype.itemsize
    return np.where(np.isnan(wide), NAN_BITS[dtype], stored.view(f"u{size}"))


def widened(dtype: DType, values: Array) -> Array:
    if dtype is DType.BFLOAT16:
        return bf16_to_f32(values)
    return values.astype(np.float32) if dtype is DType.FLOAT16 else values


def reference(dtype: DType, reduce: ReduceOp, a: Array, b: Array) -> Array:
    """Expected bits, unsigned."""
    with np.errstate(all="ignore"):
        if dtype in NAN_BITS:
            wide = float_reduced(reduce, widened(dtype, a), widened(dtype, b))
            return rounded(dtype, wide)
        return as_bits(integer_reduced(reduce, a, b))


def as_bits(values: Array) -> Array:
    return values.view(f"u{values.dtype.itemsize}")


def paths(core: ModuleType) -> list[int]:
    return [p for p in (core.lib.PC_PATH_PLAIN, core.lib.PC_PATH_AVX2) if core.lib.pc_reduce_has(p)]


def address(core: ModuleType, values: Array) -> object:
    return core.ffi.cast("void *", values.ctypes.data)


def reduced(
    core: ModuleType, path: int, dtype: DType, reduce: ReduceOp, a: Array, b: Array
) -> Array:
    out = np.full_like(a, 1)
    pointers = (address(core, x) for x in (out, a, b))
    core.lib.pc_reduce_path(path, dtype, reduce, *pointers, a.size)
    return out


@pytest.mark.parametrize(("dtype", "reduce"), EVERY)
def test_equals_reference_on_every_path(core: ModuleType, dtype: DType, reduce: ReduceOp) -> None:
    for seed, count in enumerate(COUNTS):
        a, b = drawn(dtype, count, seed), drawn(dtype, count, 1000 + seed)
        expected = reference(dtype, reduce, a, b)
        for path in paths(core):
            got = as_bits(reduced(core, path, dtype, reduce, a, b))
            np.testing.assert_array_equal(got, expected, f"{dtype.name} {reduce.name} path {path}")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(EVERY), st.integers(0, 200), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_paths_agree_at_any_offset(
    core: ModuleType, what: tuple[DType, ReduceOp], count: int, seed: int, offset: int
) -> None:
    dtype, reduce = what
    a = drawn(dtype, count + offset, seed)[offset:]
    b = drawn(dtype, count + offset, seed + 1)[offset:]
    results = [as_bits(reduced(core, p, dtype, reduce, a, b)) for p in paths(core)]
    swapped = [as_bits(reduced(core, p, dtype, reduce, b, a)) for p in paths(core)]
    for result in [*results, *swapped]:  # commutative to the bit, so rank order never shows
        np.testing.assert_array_equal(result, reference(dtype, reduce, a, b))


@pytest.mark.parametrize("dtype", list(DType))
@pytest.mark.parametrize("target", ["a", "b"])
def test_result_may_replace_an_input(core: ModuleType, dtype: DType, target: str) -> None:
    a, b = drawn(dtype, 1001, 1), drawn(dtype, 1001, 2)
    for path in paths(core):
        for reduce in ReduceOp:
            own = {"a": a.copy(), "b": b.copy()}
            pointers = (address(core, own[name]) for name in (target, "a", "b"))
            core.lib.pc_reduce_path(path, dtype, reduce, *pointers, a.size)
            np.testing.assert_array_equal(as_bits(own[target]), reference(dtype, reduce, a, b))


def test_accumulate_and_default_path(core: ModuleType) -> None:
    acc, more = drawn(DType.FLOAT32, 77, 1), drawn(DType.FLOAT32, 77, 2)
    expected = reference(DType.FLOAT32, ReduceOp.PROD, acc, more)
    core.lib.pc_reduce(DType.FLOAT32, ReduceOp.PROD, address(core, acc), address(core, more), 77)
    np.testing.assert_array_equal(as_bits(acc), expected)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_every_half_times_one_is_itself(core: ModuleType, dtype: DType) -> None:
    """All 65536 values through both conversions: nothing changes but the payload of NaN."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bits.view(STORED[dtype])
    one = np.full(1 << 16, 0x3C00 if dtype is DType.FLOAT16 else 0x3F80, np.uint16).view(
        STORED[dtype]
    )
    expected = np.where(np.isnan(widened(dtype, values)), NAN_BITS[dtype], bits)
    for path in paths(core):
        got = as_bits(reduced(core, path, dtype, ReduceOp.PROD, values, one))
        np.testing.assert_array_equal(got, expected)


def test_zero_signs_and_nan_in_min_and_max(core: ModuleType) -> None:
    a = np.array([-0.0, 0.0, np.nan, 1.0], np.float32)
    b = np.array([0.0, -0.0, 1.0, np.nan], np.float32)
    for path in paths(core):
        low = as_bits(reduced(core, path, DType.FLOAT32, ReduceOp.MIN, a, b)).tolist()
        high = as_bits(reduced(core, path, DType.FLOAT32, ReduceOp.MAX, a, b)).tolist()
        assert low == [0x80000000, 0x80000000, 0x7FC00000, 0x7FC00000]
        assert high == [0, 0, 0x7FC00000, 0x7FC00000]


@pytest.mark.parametrize("dtype", list(DType))
@pytest.mark.parametrize("contributors", [1, 2, 3, 7, 129, 1024])
def test_average_divides(core: ModuleType, dtype: DType, contributors: int) -> None:
    sums = drawn(dtype, 1003, contributors)
    if dtype in NAN_BITS:
        with np.errstate(all="ignore"):
            wide = widened(dtype, sums)
            expected = rounded(dtype, wide / wide.dtype.type(contributors))
    else:
        quotients = [abs(x) // contributors * (1 if x >= 0 else -1) for x in sums.tolist()]
        expected = as_bits(np.array(quotients, dtype=sums.dtype))
    for path in paths(core):
        got = sums.copy()
        core.lib.pc_average_path(path, dtype, address(core, got), got.size, contributors)
        np.testing.assert_array_equal(as_bits(got), expected)


def test_a_wrong_sum_would_be_seen(core: ModuleType) -> None:
    """The check can fail: one bit off in one element is not equal."""
    a, b = drawn(DType.INT32, 100, 1), drawn(DType.INT32, 100, 2)
    got = as_bits(reduced(core, 0, DType.INT32, ReduceOp.SUM, a, b)).copy()
    got[57] ^= 1
    assert not np.array_equal(got, reference(DType.INT32, ReduceOp.SUM, a, b))
