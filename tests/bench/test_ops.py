"""Twin of pccl_py.bench.ops: what a row expects is what a plain computation of the op gives."""

from __future__ import annotations

import numpy as np
import pytest

from pccl_py.bench import calls, ops, values
from pccl_py.bench.ops import ROOT, Job, Op
from pccl_py.bench.values import Span

COUNT = 3 * 4099  # of three ranks, odd blocks longer than the period


def put_in(op: Op, world: int) -> list[np.ndarray]:
    """By rank."""
    jobs = [Job("sum", op.elements(COUNT, world), rank, world) for rank in range(world)]
    return [values.filled(Span(job.input(), 0, op.counts(job)[0]), "float32") for job in jobs]


def plainly(name: str, put: list[np.ndarray], rank: int) -> np.ndarray:
    """What `rank` gets."""
    world = len(put)
    match name:
        case "all_reduce" | "reduce":
            return np.sum(put, axis=0)
        case "reduce_scatter":
            return np.split(np.sum(put, axis=0), world)[rank]
        case "broadcast":
            return put[ROOT]
        case "all_gather" | "gather":
            return np.concatenate(put)
        case "scatter":
            return np.split(put[ROOT], world)[rank]
        case "all_to_all":
            return np.concatenate([np.split(each, world)[rank] for each in put])
        case _:
            return put[rank - 1]


@pytest.mark.parametrize("name", ops.known())
@pytest.mark.parametrize("world", [2, 3])
def test_expectation(name: str, world: int) -> None:
    op = ops.known()[name]
    put = put_in(op, world)
    for rank in range(world):
        job = Job("sum", op.elements(COUNT, world), rank, world)
        expected = op.expected(job)
        if name in ("reduce", "gather") and rank != ROOT:
            assert not expected
            continue
        result = plainly(name, put, rank)
        assert result.size == op.counts(job)[1]
        assert values.wrong(result, expected, "float32") == 0
        assert values.wrong(np.roll(result, 1), expected, "float32") > 0


@pytest.mark.parametrize("name", ops.known())
def test_in_place_lies_within_the_shared_buffer(name: str) -> None:
    op = ops.known()[name]
    assert op.modes((False, True)) == ((False, True) if op.in_place else (False,))
    for rank in range(3):
        job = Job("sum", COUNT, rank, 3)
        source_count, target_count = op.counts(job)
        source_at, target_at = op.in_place(job) if op.in_place else (0, 0)
        size = max(source_count, target_count)
        assert source_at + source_count <= size
        assert target_at + target_count <= size


def test_every_op_is_known_to_every_implementation() -> None:
    assert ops.known().keys() == calls.PCCL.keys() == calls.GLOO.keys() == calls.MPI.keys()
