"""Twin of pccl_py.bench.plan and of the table of ops."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pccl_py.bench import ops, plan
from pccl_py.bench.plan import Plan
from pccl_py.errors import PcclError, ResourceError, UsageError

GOOD = Plan(
    op=ops.known()["all_reduce"],
    world=2,
    sizes=(1024, 4096),
    dtype="float32",
    reduce="sum",
    warm_ups=1,
    repeats=3,
    modes=(False, True),
    impls=("pccl", "mpi", "gloo", "ceiling"),
)


def test_who_shares_processes() -> None:
    groups = plan.groups(GOOD.impls)
    assert [list(group) for group in groups] == [["pccl", "gloo"], ["mpi"], ["ceiling"]]


@pytest.mark.parametrize(
    "bad",
    [{"world": 0}, {"world": 65}, {"repeats": 0}, {"warm_ups": -1}, {"dtype": "float8"},
     {"reduce": "mean"}, {"sizes": (3,)}, {"world": 43, "dtype": "int8"}],
)  # fmt: skip
def test_nonsense_is_refused(bad: dict[str, object]) -> None:
    plan.check(GOOD, None)
    with pytest.raises(UsageError) as caught:
        plan.check(replace(GOOD, **bad), None)
    assert "\n" not in str(caught.value)


def test_too_much_memory_is_refused() -> None:
    needed = 2 * 2 * 3 * 4096
    plan.check(GOOD, needed)
    with pytest.raises(ResourceError, match="less -e or --world"):
        plan.check(GOOD, needed - 1)


def test_what_cannot_be_compared_is_left_out_with_a_reason() -> None:
    all_reduce, broadcast = ops.known()["all_reduce"], ops.known()["broadcast"]
    every = ["gloo", "ceiling", "mpi", "gloo"]
    assert plan.comparable(every, all_reduce, "float32", "sum") == (
        ["pccl", "gloo", "ceiling", "mpi"],
        [],
    )
    found, left_out = plan.comparable(every, broadcast, "float32", "sum")
    assert (found, left_out) == (["pccl", "gloo", "ceiling", "mpi"], [])
    found, left_out = plan.comparable(every, all_reduce, "bfloat16", "avg")
    assert (found, len(left_out)) == (["pccl", "gloo"], 2)
    found, left_out = plan.comparable(every, ops.known()["all_to_all"], "float16", "avg")
    assert (found, len(left_out)) == (["pccl", "gloo"], 2)


def test_ops_by_name() -> None:
    assert [op.name for op in plan.ops_named(["all"])] == list(ops.known())
    twice = plan.ops_named(["reduce", "all_reduce", "reduce"])
    assert [op.name for op in twice] == ["reduce", "all_reduce"]


def test_a_size_is_divided_among_the_ranks() -> None:
    split = replace(GOOD, op=ops.known()["all_gather"], world=3, sizes=(1024,))
    assert split.elements(1024) == 255
    plan.check(split, None)
    with pytest.raises(UsageError, match="no element of float32 for each of 3 ranks"):
        plan.check(replace(split, sizes=(8,)), None)


def test_sendrecv_takes_two() -> None:
    with pytest.raises(UsageError, match="sendrecv takes 2 processes"):
        plan.check(replace(GOOD, op=ops.known()["sendrecv"], world=1), None)


def test_unknown_names() -> None:
    with pytest.raises(PcclError, match="use all or all_reduce"):
        plan.ops_named(["broadcast", "all_in"])
    with pytest.raises(UsageError, match="'nccl' must be one of"):
        plan.comparable(["nccl"], GOOD.op, "float32", "sum")
