"""Twin of pccl_py.bench.rows."""

from __future__ import annotations

import json

import pytest

from pccl_py.bench import ops, rows
from pccl_py.bench.rows import Row

KEYS = [
    "op", "impl", "world", "bytes", "dtype", "codec", "route", "links", "median_s", "min_s",
    "max_s", "algbw", "busbw", "wrong", "rss_peak_bytes", "coordinator_messages",
]  # fmt: skip


def row(impl: str = "pccl", world: int = 2, size: int = 1024, median_s: float = 0.5) -> Row:
    return Row(
        op="all_reduce", impl=impl, world=world, bytes=size, dtype="float32", codec="none",
        route=None, links=None, median_s=median_s, min_s=median_s / 2, max_s=median_s * 2,
        algbw=size / median_s, busbw=size / median_s, wrong=0, rss_peak_bytes=1,
        coordinator_messages=0 if impl == "pccl" else None,
    )  # fmt: skip


def test_json_has_exactly_these_keys_in_one_line() -> None:
    text = rows.as_json(row())
    assert "\n" not in text
    assert list(json.loads(text)) == KEYS


def test_times_and_the_slowest_rank() -> None:
    assert rows.slowest([[1.0, 5.0, 2.0], [3.0, 4.0, 2.5]]) == [3.0, 5.0, 2.5]
    assert rows.times([3.0, 5.0, 2.5]) == rows.Times(3.0, 2.5, 5.0)
    assert rows.times([1.0, 2.0]).median_s == 1.5


@pytest.mark.parametrize(("world", "factor"), [(1, 0.0), (2, 1.0), (4, 1.5), (8, 1.75)])
def test_busbw_of_all_reduce(world: int, factor: float) -> None:
    algbw, busbw = rows.bandwidths(1000, 0.5, ops.known()["all_reduce"].busbw(world))
    assert (algbw, busbw) == (2000.0, 2000.0 * factor)


def test_busbw_of_broadcast_is_algbw() -> None:
    assert ops.known()["broadcast"].busbw(8) == 1.0


def test_ratio_is_above_one_when_ours_is_faster() -> None:
    assert rows.ratio(row(median_s=0.5), row("gloo", median_s=1.0)) == 2.0


def test_wrong_values_and_differing_bits_are_counted() -> None:
    count = rows.count_wrong
    assert count([0, 0], ["a", "a"], same_everywhere=True) == 0
    assert count([0, 3], ["a", "b"], same_everywhere=True) == 3
    assert count([0, 0, 0], ["a", "b", "b"], same_everywhere=True) == 2
    assert count([0, 0], ["a", "b"], same_everywhere=False) == 0
