"""Twin of pccl_py.bench.rows."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from pccl_py.bench import ops, rows
from pccl_py.bench.rows import Row
from pccl_py.errors import UsageError

KEYS = [
    "op", "impl", "world", "bytes", "dtype", "codec", "route", "links", "median_s", "min_s",
    "max_s", "algbw", "busbw", "wrong", "rss_peak_bytes", "coordinator_messages", "in_place",
    "transport",
]  # fmt: skip


def row(
    impl: str = "pccl",
    world: int = 2,
    size: int = 1024,
    median_s: float = 0.5,
    in_place: bool = True,
) -> Row:
    return Row(
        op="all_reduce", impl=impl, world=world, bytes=size, dtype="float32", codec="none",
        route=None, links=None, median_s=median_s, min_s=median_s / 2, max_s=median_s * 2,
        algbw=size / median_s, busbw=size / median_s, wrong=0, rss_peak_bytes=1,
        coordinator_messages=0 if impl == "pccl" else None, in_place=in_place, transport="tcp",
    )  # fmt: skip


def test_json_has_exactly_these_keys_in_one_line() -> None:
    text = rows.as_json(row())
    assert "\n" not in text
    assert list(json.loads(text)) == KEYS
    assert rows.from_json(text) == row()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"op": "all_reduce"}', '{"speed": 9}'])
def test_what_is_no_row_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no row"):
        rows.from_json(text)


def test_times_and_the_slowest_rank() -> None:
    assert rows.slowest([[1.0, 5.0, 2.0], [3.0, 4.0, 2.5]]) == [3.0, 5.0, 2.5]
    assert rows.times([3.0, 5.0, 2.5]) == rows.Times(3.0, 2.5, 5.0)
    assert rows.times([1.0, 2.0]).median_s == 1.5


@pytest.mark.parametrize(
    ("names", "factors"),
    [("all_reduce", (0.0, 1.0, 1.5, 1.75)),
     ("all_gather reduce_scatter gather scatter all_to_all", (0.0, 0.5, 0.75, 0.875)),
     ("broadcast reduce sendrecv", (1.0, 1.0, 1.0, 1.0))],
)  # fmt: skip
def test_busbw_is_that_of_nccl_tests(names: str, factors: Sequence[float]) -> None:
    for name in names.split():
        for world, factor in zip((1, 2, 4, 8), factors, strict=True):
            found = rows.bandwidths(1000, 0.5, ops.known()[name].busbw(world))
            assert found == (2000.0, 2000.0 * factor)


def test_ratio_is_above_one_when_ours_is_faster() -> None:
    assert rows.ratio(row(median_s=0.5), row("gloo", median_s=1.0)) == 2.0


def test_wrong_values_and_differing_bits_are_counted() -> None:
    count = rows.count_wrong
    assert count([0, 0], ["a", "a"], same_everywhere=True) == 0
    assert count([0, 3], ["a", "b"], same_everywhere=True) == 3
    assert count([0, 0, 0], ["a", "b", "b"], same_everywhere=True) == 2
    assert count([0, 0], ["a", "b"], same_everywhere=False) == 0
