"""What a user sees of a communicator: values, bits, errors, threads, membership, state."""

from __future__ import annotations

import array
import gc
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import pccl_py as pccl
from pccl_py.communicator import Communicator
from pccl_py.coordinator import embedded
from tests.crew import Crew, crew, start, until

REDUCE = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
}
DTYPES = ["uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with embedded.start() as started:
        yield started.address


@pytest.fixture(scope="module")
def trio(address: str) -> Iterator[Crew]:
    """Three members that stay together for the tests that leave a crew as they found it."""
    with embedded.start() as own, crew(own.address, 3) as members:
        yield members


def same_bits(arrays: list[np.ndarray]) -> bool:
    return all(a.tobytes() == arrays[0].tobytes() for a in arrays)


# ---------------------------------------------------------------- values


def inputs(dtype: str, op: str, count: int, world: int) -> list[np.ndarray]:
    rng = np.random.default_rng(count)
    if dtype.startswith("float"):
        high = 3 if op == "prod" else 100
        return [rng.integers(-high, high, count).astype(dtype) for _ in range(world)]
    info = np.iinfo(dtype)
    low, high = (max(info.min, -3), 4) if op == "prod" else (info.min, info.max)
    return [rng.integers(low, high, count, dtype, endpoint=True) for _ in range(world)]


def expected(parts: list[np.ndarray], op: str) -> np.ndarray:
    if op != "avg":
        with np.errstate(over="ignore"):
            return REDUCE[op].reduce(np.stack(parts)).astype(parts[0].dtype)
    with np.errstate(over="ignore"):
        total = np.add.reduce(np.stack(parts), dtype=parts[0].dtype)
    if parts[0].dtype.kind == "f":
        return (total.astype(np.float64) / len(parts)).astype(parts[0].dtype)
    wide = [int(x) for x in total]  # integers wrap, then the division truncates toward zero
    return np.array([abs(x) // 3 * (1 if x >= 0 else -1) for x in wide], parts[0].dtype)


@pytest.mark.parametrize("op", ["sum", "avg", "prod", "min", "max"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_op_against_numpy(trio: Crew, dtype: str, op: str) -> None:
    for count in (1, 2, 3, 1001):
        parts = inputs(dtype, op, count, 3)
        outs = [part.copy() for part in parts]
        infos = trio.each(lambda comm, outs=outs: comm.all_reduce(outs[comm.rank], op))
        assert same_bits(outs)
        want = expected(parts, op)
        if op == "avg" and dtype.startswith("float"):
            np.testing.assert_allclose(outs[0], want, rtol=2e-3 if dtype == "float16" else 1e-6)
        else:
            np.testing.assert_array_equal(outs[0], want)
        assert {(i.contributors_min, i.contributors_max, i.repaired) for i in infos} == {(3, 3, 0)}


@pytest.mark.parametrize("count", [1, 7, 300_001, 2_500_000])
def test_sizes_up_to_many_segments(trio: Crew, count: int) -> None:
    rng = np.random.default_rng(count)
    parts = [rng.integers(-9999, 9999, count).astype(np.float32) for _ in range(3)]
    outs = [part.copy() for part in parts]
    infos = trio.each(lambda comm: comm.all_reduce(outs[comm.rank]))
    np.testing.assert_array_equal(outs[0], sum(parts))
    assert same_bits(outs)
    assert all(i.route == "direct" and i.transport == "tcp" and i.seconds > 0 for i in infos)
    sent = sum(i.bytes_sent for i in infos)
    assert sent >= 2 * 2 * 4 * count, "reduce and copy: 2 (n - 1) / n of the tensor per member"
    assert sent == sum(i.bytes_received for i in infos)


def test_equal_ops_have_equal_bits(trio: Crew) -> None:
    rng = np.random.default_rng(6)
    parts = [rng.standard_normal(100_003).astype(np.float32) for _ in range(3)]
    runs = []
    for _ in range(2):
        outs = [part.copy() for part in parts]
        trio.each(lambda comm, outs=outs: comm.all_reduce(outs[comm.rank]))
        runs.append(outs[0])
    assert same_bits(runs), "the same view, inputs and route give the same bits"


def test_random_floats_have_the_same_bits_everywhere(trio: Crew) -> None:
    rng = np.random.default_rng(5)
    parts = [rng.standard_normal(100_003).astype(np.float32) for _ in range(3)]
    for _ in range(2):
        outs = [part.copy() for part in parts]
        trio.each(lambda comm, outs=outs: comm.all_reduce(outs[comm.rank], "avg"))
        assert same_bits(outs)
        np.testing.assert_allclose(outs[0], sum(parts) / 3, atol=1e-5)


def test_empty_and_zero_dimensional(trio: Crew) -> None:
    empty = [np.zeros((0, 4), np.float32) for _ in range(3)]
    assert trio.each(lambda c: c.all_reduce(empty[c.rank]))[0].contributors_min in (0, 3)
    scalars = [np.array(float(i)) for i in range(3)]
    trio.each(lambda c: c.all_reduce(scalars[c.rank]))
    assert [float(s) for s in scalars] == [3.0, 3.0, 3.0]
    tensors = [torch.tensor(i + 1) for i in range(3)]
    trio.each(lambda c: c.all_reduce(tensors[c.rank], "prod"))
    assert [int(t) for t in tensors] == [6, 6, 6]


def test_torch_bfloat16_and_parameters(trio: Crew) -> None:
    tensors = [torch.full((17, 3), i + 0.5, dtype=torch.bfloat16) for i in range(3)]
    trio.each(lambda c: c.all_reduce(tensors[c.rank], "avg"))
    assert all(torch.equal(t, torch.full((17, 3), 1.5, dtype=torch.bfloat16)) for t in tensors)
    weights = [torch.nn.Parameter(torch.full((5,), float(i))) for i in range(3)]
    trio.each(lambda c: c.all_reduce(weights[c.rank]))
    assert all(torch.equal(w.data, torch.full((5,), 3.0)) for w in weights)


def test_plain_buffers(trio: Crew) -> None:
    raw = [bytearray([i, 250, 7]) for i in range(3)]
    trio.each(lambda c: c.all_reduce(raw[c.rank]))
    assert raw[0] == raw[1] == raw[2] == bytearray([3, 750 % 256, 21])
    doubles = [array.array("d", [1.5, i]) for i in range(3)]
    trio.each(lambda c: c.all_reduce(doubles[c.rank]))
    assert list(doubles[2]) == [4.5, 3.0]


def test_nan_and_infinities(trio: Crew) -> None:
    parts = [np.array([1.0, np.nan, np.inf, -0.0], np.float32) for _ in range(3)]
    parts[1][0] = np.nan
    for op in ("min", "max"):
        outs = [part.copy() for part in parts]
        trio.each(lambda c, op=op, outs=outs: c.all_reduce(outs[c.rank], op))
        assert np.isnan(outs[0][:2]).all()
        assert outs[0][2] == np.inf
        assert same_bits(outs)


def test_world_of_one_is_the_identity(address: str) -> None:
    with crew(address, 1, group="alone") as (comm,):
        for dtype in DTYPES:
            for op in ("sum", "avg", "prod", "min", "max"):
                x = np.arange(-5, 6).astype(dtype)
                info = comm.all_reduce(x, op)
                np.testing.assert_array_equal(x, np.arange(-5, 6).astype(dtype))
                assert (info.contributors_min, info.route, info.transport) == (1, "self", "none")
        nan = np.array([np.nan, 1e-45], np.float32)
        bits = nan.tobytes()
        comm.all_reduce(nan, "avg")
        assert nan.tobytes() == bits
        assert comm.broadcast(nan).bytes_sent == 0
        comm.barrier()
        comm.update()
        assert comm.sync_state({"x": nan}, revision=3).revision == 3


def test_beyond_two_to_the_31_elements(address: str) -> None:
    count = (1 << 31) + 4097
    with crew(address, 2, group="big", deadline_s=100.0) as pair:
        big = [np.full(count, i + 1, np.int8) for i in range(2)]
        for x in big:
            x[-1] = 40
        pair.each(lambda c: c.all_reduce(big[c.rank]))
        for x in big:
            assert x[0] == 3
            assert x[1 << 31] == 3
            assert x[-1] == 80
            assert np.array_equal(x[: 1 << 20], x[-(1 << 20) - 1 : -1])
            assert int(x[:: 4096 + 1].min()) == 3


# ---------------------------------------------------------------- async, names, threads


def test_works_are_waited_for_in_any_order(trio: Crew) -> None:
    tensors = [[np.full(1000 * (n + 1), float(n + r)) for n in range(8)] for r in range(3)]

    def body(comm: Communicator) -> None:
        works = [comm.all_reduce(t, async_op=True) for t in tensors[comm.rank]]
        for work in works[::-1] if comm.rank else works:
            work.wait(10.0)
        assert all(work.is_completed() and work.exception() is None for work in works)

    trio.each(body)
    for n in range(8):
        assert all((tensors[r][n] == 3 * n + 3).all() for r in range(3))


def test_named_ops_from_two_threads_in_opposite_order(trio: Crew) -> None:
    def body(comm: Communicator) -> None:
        a, b = np.full(100, 1.0), np.full(77, 10.0)
        order = ["a", "b"] if comm.rank % 2 else ["b", "a"]
        for turn in range(5):
            works = {
                name: start(
                    lambda name=name: comm.all_reduce({"a": a, "b": b}[name], "avg", name=name)
                )
                for name in order
            }
            for future in works.values():
                future.result(20.0)
            assert (a == 1.0).all(), turn
            assert (b == 10.0).all(), turn

    trio.each(body)


def test_a_wait_that_is_too_short_is_the_builtin_timeout(trio: Crew) -> None:
    tensors = [np.ones(10) for _ in range(3)]
    first = trio[0].all_reduce(tensors[0], async_op=True)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="still running") as caught:
        first.wait(0.05)
    assert not isinstance(caught.value, pccl.PcclError)
    assert time.monotonic() - began < 1.0
    assert not first.is_completed()
    assert first.exception() is None
    for comm in trio[1:]:
        start(lambda comm=comm: comm.all_reduce(tensors[comm.rank]))
    assert first.wait(10.0).contributors_max == 3
    assert (tensors[0] == 3.0).all()


def test_is_completed_does_not_wait_for_another_waiter(trio: Crew) -> None:
    tensors = [np.ones(10) for _ in range(3)]
    work = trio[0].all_reduce(tensors[0], async_op=True)
    waiter = start(work.wait)
    time.sleep(0.05)
    began = time.monotonic()
    assert not any(work.is_completed() for _ in range(20))
    assert time.monotonic() - began < 0.5
    for comm in trio[1:]:
        start(lambda comm=comm: comm.all_reduce(tensors[comm.rank]))
    assert waiter.result(10.0) == work.wait(10.0)


def test_overlapping_buffers_in_flight(trio: Crew) -> None:
    base = np.zeros(100, np.float32)
    others = [np.zeros(60, np.float32) for _ in range(2)]
    work = trio[0].all_reduce(base[:60], async_op=True)
    with pytest.raises(pccl.UsageError, match="overlaps"):
        trio[0].all_reduce(base[59:], async_op=True)
    rest = [trio[1 + i].all_reduce(others[i], async_op=True) for i in range(2)]
    for w in [work, *rest]:
        w.wait(10.0)
    trio.each(lambda c: c.all_reduce(base[59:] if c.rank == 0 else others[c.rank - 1][:41]))


def test_more_ops_than_fit(trio: Crew) -> None:
    tensors = [np.zeros(1030, np.float32) for _ in range(3)]
    works = [trio[0].all_reduce(tensors[0][i : i + 1], async_op=True) for i in range(1024)]
    with pytest.raises(pccl.ResourceError, match="1024 may be in flight") as caught:
        trio[0].all_reduce(tensors[0][1024:1025], async_op=True)
    assert caught.value.errno

    def submit_all(comm: Communicator) -> None:
        mine = tensors[comm.rank]
        for work in [comm.all_reduce(mine[i : i + 1], async_op=True) for i in range(1024)]:
            work.wait(20.0)

    rest = [trio.on(rank, submit_all) for rank in (1, 2)]
    for work in works:
        work.wait(20.0)
    for future in rest:
        future.result(20.0)
    trio.each(lambda c: c.barrier())


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda c: c.all_reduce(np.zeros(3), op="mean"), "sum, avg, prod, min, max"),
        (lambda c: c.all_reduce(np.zeros(3), name=""), "a text, and not empty"),
        (lambda c: c.all_reduce(np.zeros(3), timeout=0), "positive number of seconds"),
        (lambda c: c.all_reduce(np.zeros(3), timeout=float("nan")), "positive number of seconds"),
        (lambda c: c.all_reduce(np.zeros(3), timeout="soon"), "positive number of seconds"),
        (lambda c: c.all_reduce(np.zeros(3), name=5), "name"),
        (lambda c: c.all_reduce(np.zeros(3), op=None), "sum, avg"),
        (lambda c: c.broadcast(np.zeros(3), src=3), "from 0 to 2"),
        (lambda c: c.broadcast(np.zeros(3), src=-1), "from 0 to 2"),
        (lambda c: c.broadcast(np.zeros(3), src="m0"), "from 0 to 2"),
        (lambda c: c.sync_state({"x": np.zeros(3)}, revision=-1), "revision"),
        (lambda c: c.sync_state({"x": [1]}), "list is not a tensor"),
        (lambda c: c.sync_state({"": np.zeros(3)}), "of 1 to 256 bytes"),
        (lambda c: c.sync_state({3: np.zeros(3)}), "key 3"),
    ],
)
def test_wrong_arguments(trio: Crew, call: object, says: str) -> None:
    with pytest.raises(pccl.UsageError, match=says) as caught:
        call(trio[0])  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    trio.each(lambda c: c.barrier())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"count": 11}, "count"),
        ({"dtype": "float64"}, "dtype"),
        ({"op": "max"}, "op"),
        ({"kind": "broadcast"}, "kind"),
    ],
)
def test_peers_that_disagree(trio: Crew, change: dict, field: str) -> None:
    tensors = [np.arange(10, dtype=np.float32) for _ in range(3)]
    if "count" in change or "dtype" in change:
        tensors[2] = np.arange(change.get("count", 10)).astype(change.get("dtype", "float32"))
    before = [t.copy() for t in tensors]

    def call(comm: Communicator) -> object:
        odd = comm.rank == 2
        if odd and "kind" in change:
            return comm.broadcast(tensors[2])
        return comm.all_reduce(tensors[comm.rank], change.get("op", "sum") if odd else "sum")

    errors = trio.errors(call)
    for error in errors:
        assert type(error) is pccl.UsageError, errors
        text = str(error)
        assert field in text, text
        assert trio[2].name in text, text
        assert trio[0].name in text or trio[1].name in text, text
        assert "\n" not in text
    assert len({str(e) for e in errors}) == 1, "the same words everywhere"
    for got, was in zip(tensors, before, strict=True):
        np.testing.assert_array_equal(got, was)
    again = [np.ones(10) for _ in range(3)]
    trio.each(lambda c: c.all_reduce(again[c.rank]))
    assert (again[0] == 3.0).all(), "the communicator goes on"


# ---------------------------------------------------------------- deadlines


def test_a_member_that_never_submits_is_named(trio: Crew) -> None:
    tensors = [np.full(5, float(i)) for i in range(2)]
    began = time.monotonic()
    futures = [
        trio.on(i, lambda c, i=i: c.all_reduce(tensors[i], timeout=0.4 + 0.2 * i)) for i in range(2)
    ]
    for future in futures:
        error = future.exception(10.0)
        assert type(error) is pccl.DeadlineExceeded, error
        assert isinstance(error, TimeoutError)
        assert trio[2].name in str(error), str(error)
        assert "\n" not in str(error)
    assert time.monotonic() - began < 5.0
    assert [float(t[0]) for t in tensors] == [0.0, 1.0], "inputs intact"
    late = trio.on(2, lambda c: c.all_reduce(np.zeros(5))).exception(10.0)
    assert type(late) is pccl.DeadlineExceeded, "the op happened on no peer"
    again = [np.ones(10) for _ in range(3)]
    trio.each(lambda c: c.all_reduce(again[c.rank]))
    assert (again[0] == 3.0).all(), "the communicator goes on"


def test_a_dropped_error_is_raised_by_the_next_call_once(trio: Crew) -> None:
    def fail(comm: Communicator) -> None:
        comm.all_reduce(np.zeros(4 + comm.rank), async_op=True)
        gc.collect()

    trio.each(fail)
    until(lambda: all(c.stats().ops_running == 0 for c in trio))
    time.sleep(0.05)
    for comm in trio:
        with pytest.raises(pccl.UsageError, match="count"):
            comm.update()
        comm.update()
    ones = [np.ones(3) for _ in range(3)]
    trio.each(lambda c: c.all_reduce(ones[c.rank]))
    assert (ones[0] == 3).all()


def test_an_error_that_was_raised_is_not_raised_again(trio: Crew) -> None:
    errors = trio.errors(lambda c: c.all_reduce(np.zeros(4 + c.rank)))
    assert all(type(e) is pccl.UsageError for e in errors)
    del errors
    gc.collect()
    trio.each(lambda c: c.update())
    works = trio.each(lambda c: c.all_reduce(np.zeros(4 + c.rank), async_op=True))
    until(lambda: all(work.is_completed() for work in works))
    assert all(type(work.exception()) is pccl.UsageError for work in works)
    works.clear()
    gc.collect()
    trio.each(lambda c: c.barrier())


@pytest.mark.parametrize("route", ["ring", "star", "direct"])
def test_every_route_gives_the_sum(trio: Crew, route: str) -> None:
    rng = np.random.default_rng(8)
    for count in (0, 1, 1000, 300_001):
        parts = [rng.integers(-999, 999, count).astype(np.float32) for _ in range(3)]
        outs = [part.copy() for part in parts]
        infos = trio.each(lambda c, outs=outs: c.all_reduce(outs[c.rank], route=route))
        np.testing.assert_array_equal(outs[0], sum(parts))
        assert same_bits(outs)
        assert {info.route for info in infos} == {route}


def test_members_that_name_different_routes_are_told(trio: Crew) -> None:
    def mine(comm: pccl.Communicator) -> None:
        comm.all_reduce(np.ones(9), route="ring" if comm.rank == 1 else "direct")

    for error in trio.errors(mine):
        assert isinstance(error, pccl.UsageError)
        assert "route" in str(error)
    with pytest.raises(pccl.UsageError, match="route='tree' must be one of"):
        trio[0].all_reduce(np.ones(9), route="tree")
