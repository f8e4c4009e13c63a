"""Twin of pccl_py.bench.values."""

from __future__ import annotations

import numpy as np
import pytest

from pccl_py.bench import values
from pccl_py.bench.values import PERIOD, Span
from pccl_py.errors import UsageError


def reduce_all(reduce: str, world: int, dtype: str) -> np.ndarray:
    """All ranks' values reduced in numpy, in rank order."""
    tables = [values.table(reduce, rank, world).astype(dtype) for rank in range(world)]
    match reduce:
        case "sum":
            return np.add.reduce(tables)
        case "avg":
            return np.add.reduce(tables) / np.array(world, dtype)
        case "prod":
            return np.multiply.reduce(tables)
        case "min":
            return np.minimum.reduce(tables)
        case _:
            return np.maximum.reduce(tables)


@pytest.mark.parametrize("reduce", values.REDUCTIONS)
@pytest.mark.parametrize("world", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_expectation_is_exact(reduce: str, world: int, dtype: str) -> None:
    count = 2 * PERIOD + 17
    result = np.resize(reduce_all(reduce, world, dtype), count)
    span = Span(values.reduced(reduce, world), 0, count)
    assert values.wrong(result, [span], dtype) == 0


def test_ranks_differ_and_so_do_places() -> None:
    tables = [values.table("sum", rank, 8) for rank in range(8)]
    for rank in range(1, 8):
        assert np.count_nonzero(tables[rank] != tables[0]) > PERIOD / 2
    total = values.reduced("sum", 4)
    for shift in (1, 1024, 16384, 65536):
        assert np.count_nonzero(np.roll(total, shift) != total) > PERIOD / 2


def test_wrong_elements_are_counted_wherever_they_are() -> None:
    spans = [Span(values.reduced("sum", 2), 0, 300_000), Span(values.table("sum", 1, 2), 5, 7)]
    array = np.concatenate([values.filled(span, "float32") for span in spans])
    assert values.wrong(array, spans, "float32") == 0
    for at in (0, 262_143, 262_144, 299_999, 300_006):
        array[at] += 1
    array[17] = np.nan
    assert values.wrong(array, spans, "float32") == 6


def test_filled_starts_where_it_is_told() -> None:
    table = values.table("sum", 0, 1)
    found = values.filled(Span(table, PERIOD - 1, 3), "int32")
    assert found.tolist() == [table[-1], table[0], table[1]]


def test_bfloat16_is_kept_as_bits() -> None:
    torch = pytest.importorskip("torch")
    table = values.table("sum", 1, 2)
    bits = values.filled(Span(table, 0, PERIOD), "bfloat16")
    assert torch.from_numpy(bits).view(torch.bfloat16).tolist() == table.tolist()


def test_what_could_not_be_verified_is_refused() -> None:
    values.check("float32", "avg", 64)
    values.check("int8", "sum", 42)
    for dtype, reduce, world in (("int8", "sum", 43), ("bfloat16", "avg", 10)):
        with pytest.raises(UsageError, match="cannot be verified"):
            values.check(dtype, reduce, world)


def test_hash_sees_what_comparing_does_not() -> None:
    zeros = np.zeros(4, np.float32)
    assert values.hashed(zeros) != values.hashed(-zeros)
