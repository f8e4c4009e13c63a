"""What every collective gives, to the bit, against numpy: groups, sub-groups, lists and blocks of
one tensor, async, names, tags; and what is left when a member dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

import pccl_py as pccl
from pccl_py.collectives import Collectives
from pccl_py.coordinator import embedded
from tests.crew import Crew, crew, until

WORLD = 4
BIG = 300_001  # more than one segment, and odd
SIZES = [(3, 3, 3, 3), (1, 0, 5, 2), (BIG, 7, BIG + 1, 0), (0, 0, 0, 0)]


@pytest.fixture(scope="module")
def quartet() -> Iterator[Crew]:
    """Four members that stay together for the tests that leave a crew as they found it."""
    with embedded.start() as own, crew(own.address, WORLD) as members:
        yield members


def block(count: int, *marks: int) -> np.ndarray:
    """Numbers of one's own, exact in float32 also when four are added."""
    rng = np.random.default_rng([count, *marks])
    return rng.integers(-9999, 9999, count).astype(np.float32)


def empty(counts: tuple[int, ...]) -> list[np.ndarray]:
    return [np.full(count, np.nan, np.float32) for count in counts]


def same(got: list[np.ndarray], want: list[np.ndarray]) -> None:
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


# ---------------------------------------------------------------- a group


@pytest.mark.parametrize("sizes", SIZES)
def test_all_gather(quartet: Crew, sizes: tuple[int, ...]) -> None:
    mine = [block(n, i) for i, n in enumerate(sizes)]
    for one in mine:
        one.flags.writeable = False
    outs = [empty(sizes) for _ in range(WORLD)]
    infos = quartet.each(lambda c: c.all_gather(outs[c.rank], mine[c.rank]))
    for got in outs:
        same(got, mine)
    assert {info.transport for info in infos} == {"tcp"}


def test_all_gather_in_place_of_one_tensor(quartet: Crew) -> None:
    outs = [torch.zeros(WORLD, 5, dtype=torch.bfloat16) for _ in range(WORLD)]
    for i, out in enumerate(outs):
        out[i] = i + 1.5
    quartet.each(lambda c: c.all_gather(outs[c.rank], outs[c.rank][c.rank]))
    want = torch.tensor([1.5, 2.5, 3.5, 4.5], dtype=torch.bfloat16)[:, None].expand(WORLD, 5)
    assert all(torch.equal(out, want) for out in outs)


@pytest.mark.parametrize("op", ["sum", "max", "avg"])
@pytest.mark.parametrize("sizes", SIZES)
def test_reduce_scatter(quartet: Crew, sizes: tuple[int, ...], op: str) -> None:
    ins = [[block(n, i, r) for r, n in enumerate(sizes)] for i in range(WORLD)]
    before = [[part.copy() for part in parts] for parts in ins]
    outs = empty(sizes)
    quartet.each(lambda c: c.reduce_scatter(outs[c.rank], ins[c.rank], op))
    for r, got in enumerate(outs):
        parts = np.stack([before[i][r] for i in range(WORLD)])
        want = parts.max(0) if op == "max" and parts.size else parts.sum(0)
        same([got], [want / 4 if op == "avg" else want])
    for now, was in zip(ins, before, strict=True):
        same(now, was)


@pytest.mark.parametrize("count", [0, 1, 1000, BIG])
@pytest.mark.parametrize("dst", [0, 2])
def test_reduce(quartet: Crew, count: int, dst: int) -> None:
    mine = [block(count, i) for i in range(WORLD)]
    before = [m.copy() for m in mine]
    quartet.each(lambda c: c.reduce(mine[c.rank], dst, "sum"))
    same([mine[dst]], [sum(before)])
    same([m for i, m in enumerate(mine) if i != dst], [m for i, m in enumerate(before) if i != dst])
    mine[dst][:] = before[dst]
    outs = [np.zeros(count, np.float32) for _ in range(WORLD)]
    quartet.each(lambda c: c.reduce(mine[c.rank], dst, "avg", out=outs[c.rank]))
    same([outs[dst], *mine], [sum(before) / 4, *before])


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("root", [0, 3])
def test_gather_and_scatter(quartet: Crew, sizes: tuple[int, ...], root: int) -> None:
    mine = [block(n, i) for i, n in enumerate(sizes)]
    outs, back = empty(sizes), empty(sizes)
    quartet.each(lambda c: c.gather(mine[c.rank], outs if c.rank == root else None, root))
    same(outs, mine)
    quartet.each(lambda c: c.scatter(back[c.rank], outs if c.rank == root else None, root))
    same(back, mine)


def test_gather_and_scatter_in_place(quartet: Crew) -> None:
    whole = np.arange(8.0)
    mine = [whole[2:4] if i == 1 else np.full(2, 10.0 * i) for i in range(WORLD)]
    quartet.each(lambda c: c.gather(mine[c.rank], whole if c.rank == 1 else None, dst=1))
    np.testing.assert_array_equal(whole, [0, 0, 2, 3, 20, 20, 30, 30])
    whole += 1
    quartet.each(lambda c: c.scatter(mine[c.rank], whole if c.rank == 1 else None, src=1))
    same(mine, [whole[2 * i : 2 * i + 2] for i in range(WORLD)])


@pytest.mark.parametrize("big", [1, 100_000])
def test_all_to_all(quartet: Crew, big: int) -> None:
    """From i to j go (i + 2 j) % 5 blocks: some nothing, none as much as comes back."""
    counts = [[(i + 2 * j) % 5 * big for j in range(WORLD)] for i in range(WORLD)]
    ins = [[block(counts[i][j], i, j) for j in range(WORLD)] for i in range(WORLD)]
    outs = [empty(tuple(counts[i][j] for i in range(WORLD))) for j in range(WORLD)]
    quartet.each(lambda c: c.all_to_all(outs[c.rank], ins[c.rank]))
    for j in range(WORLD):
        same(outs[j], [ins[i][j] for i in range(WORLD)])
    table = [np.arange(8, dtype=np.int64) + 10 * i for i in range(WORLD)]
    turned = [np.zeros(8, np.int64) for _ in range(WORLD)]
    quartet.each(lambda c: c.all_to_all(turned[c.rank], table[c.rank]))
    np.testing.assert_array_equal(np.stack(turned).reshape(4, 4, 2),
                                  np.stack(table).reshape(4, 4, 2).swapaxes(0, 1))  # fmt: skip


def test_a_world_of_one_has_it_all() -> None:
    with embedded.start() as own, crew(own.address, 1) as (comm,):
        x, y = block(5), np.zeros(5, np.float32)
        calls: list[Callable[[Collectives], object]] = [
            lambda c: c.all_reduce(x, out=y),
            lambda c: c.reduce(x, out=y),
            lambda c: c.all_gather([y], x),
            lambda c: c.all_gather(y, x),
            lambda c: c.reduce_scatter(y, x, "avg"),
            lambda c: c.gather(x, [y]),
            lambda c: c.scatter(y, x),
            lambda c: c.all_to_all(y, [x]),
        ]
        for call in calls:
            for members in (comm, comm.subgroup([0])):
                y[:] = 0
                call(members)
                same([y], [x])
        with pytest.raises(pccl.UsageError, match="dst=0 is this member itself"):
            comm.send(x, 0)


# ---------------------------------------------------------------- all_reduce


@pytest.mark.parametrize("route", ["direct", "ring", "star"])
@pytest.mark.parametrize("count", [1, 1000, BIG])
def test_all_reduce_into_another_tensor(quartet: Crew, count: int, route: str) -> None:
    mine = [block(count, i) for i in range(WORLD)]
    before = [m.copy() for m in mine]
    for m in mine:
        m.flags.writeable = False
    outs = empty((count,) * WORLD)
    quartet.each(lambda c: c.all_reduce(mine[c.rank], out=outs[c.rank], route=route))
    for out in outs:
        same([out], [sum(before)])
    same(mine, before)


@pytest.mark.parametrize("route", ["direct", "ring", "star"])
@pytest.mark.parametrize("count", [1, 1000, BIG])
def test_weights(quartet: Crew, count: int, route: str) -> None:
    weights = [0.5, None, 0, 2.5]  # None is 1
    mine = [block(count, i) for i in range(WORLD)]
    mine[2][:] = np.nan
    outs = [m.copy() for m in mine]
    infos = quartet.each(
        lambda c: c.all_reduce(outs[c.rank], "avg", weight=weights[c.rank], route=route)
    )
    want = (0.5 * mine[0].astype(float) + mine[1] + 2.5 * mine[3]) / 4
    np.testing.assert_allclose(outs[0], want, rtol=1e-5, atol=1e-2)
    assert all(out.tobytes() == outs[0].tobytes() for out in outs)
    assert {(i.contributors_min, i.contributors_max) for i in infos} == {(3, 3)}


# ---------------------------------------------------------------- two


def test_sends_of_one_tag_arrive_in_order_and_tags_are_apart(quartet: Crew) -> None:
    count = 12
    got = [np.zeros(1000, np.int64) for _ in range(count)]
    tagged = np.zeros(3)

    def body(c: pccl.Communicator) -> None:
        if c.rank == 1:
            works = [c.send(np.full(1000, i), 3, async_op=True) for i in range(count)]
            c.send(np.full(3, 7.0), 3, tag=5)
            for work in works:
                work.wait(20.0)
        elif c.rank == 3:
            c.recv(tagged, 1, tag=5)
            works = [c.recv(out, 1, async_op=True) for out in got]
            for work in works[::-1]:
                work.wait(20.0)

    quartet.each(body)
    assert [int(out[0]) for out in got] == list(range(count))
    assert (tagged == 7.0).all()


def test_both_ways_at_once_and_a_ring(quartet: Crew) -> None:
    out = [np.zeros(BIG, np.float32) for _ in range(WORLD)]

    def shift(c: pccl.Communicator) -> None:
        sent = c.send(np.full(BIG, c.rank, np.float32), (c.rank + 1) % WORLD, async_op=True)
        c.recv(out[c.rank], (c.rank - 1) % WORLD)
        sent.wait(20.0)

    quartet.each(shift)
    assert [float(o[-1]) for o in out] == [3.0, 0.0, 1.0, 2.0]


def test_two_ends_that_differ_are_told(quartet: Crew) -> None:
    def body(c: pccl.Communicator) -> object:
        if c.rank == 0:
            return c.send(np.zeros(3), 1, timeout=5.0)
        return c.recv(np.zeros(4), 0, timeout=5.0) if c.rank == 1 else None

    errors = quartet.errors(body)
    assert [type(e) for e in errors[:2]] == [pccl.UsageError] * 2, errors
    assert "send/recv with tag 0" in str(errors[0])
    quartet.each(lambda c: c.barrier())


# ---------------------------------------------------------------- sub-groups


def test_subgroups_side_by_side(quartet: Crew) -> None:
    """Odd and even ranks at once, each in an order of its own, beside the whole group."""

    def run(even: list[int], odd: list[int]) -> None:
        x = [np.full(1000, 10.0**i) for i in range(WORLD)]
        outs = [np.zeros(2) for _ in range(WORLD)]

        def body(c: pccl.Communicator) -> int:
            sub = c.subgroup(odd if c.rank % 2 else even)
            both = c.all_reduce(np.ones(3), async_op=True)
            sub.all_reduce(x[c.rank])
            sub.all_gather(outs[c.rank], np.full(1, float(c.rank)))
            sub.barrier(name="end")
            both.wait(10.0)
            return sub.rank

        ranks = quartet.each(body)
        assert ranks == [(odd if rank % 2 else even).index(rank) for rank in range(WORLD)]
        assert [float(v[0]) for v in x] == [101.0, 1010.0, 101.0, 1010.0]
        assert [list(out) for out in outs] == [even, odd, even, odd]

    run([0, 2], [3, 1])
    connections = [c.stats().links_up for c in quartet]
    run([2, 0], [3, 1])
    run([0, 2], [1, 3])
    assert [c.stats().links_up for c in quartet] == connections, "none of their own"
    quartet.each(lambda c: c.update())


def test_roots_in_a_subgroup_are_its_ranks(quartet: Crew) -> None:
    x = [np.full(3, float(i)) for i in range(WORLD)]
    got = np.zeros(1)

    def body(c: pccl.Communicator) -> None:
        if c.rank == 0:
            return
        sub = c.subgroup([3, 2, 1])
        sub.broadcast(x[c.rank], src=0)
        if sub.rank == 2:
            sub.send(np.full(1, 5.0), 1)
        elif sub.rank == 1:
            sub.recv(got, 2)

    quartet.each(body)
    assert [float(v[0]) for v in x] == [0.0, 3.0, 3.0, 3.0]
    assert got[0] == 5.0


# ---------------------------------------------------------------- deaths


def test_what_needs_the_dead_raises_everywhere_and_is_retried() -> None:
    with embedded.start() as own, crew(own.address, 3) as trio:
        sub = [c.subgroup([2, 0, 1]) for c in trio]
        survivors = trio[:2]
        works = [c.all_gather(empty((2, 2, 2)), np.ones(2, np.float32), async_op=True)
                 for c in survivors]  # fmt: skip
        trio[2].close()
        for work in works:
            with pytest.raises(pccl.PeerLost):
                work.wait(20.0)
        until(lambda: all(c.world_size == 2 for c in survivors))
        del trio[2]
        with pytest.raises(pccl.PeerLost, match="look again"):
            trio[0].all_gather(empty((2, 2, 2)), np.ones(2, np.float32))
        outs = [empty((2, 2)) for _ in range(2)]
        trio.each(lambda c: c.all_gather(outs[c.rank], np.full(2, float(c.rank), np.float32)))
        same(outs[1], [np.zeros(2), np.ones(2)])
        assert [(s.world_size, s.rank) for s in sub[:2]] == [(2, 0), (2, 1)]
        x = [np.ones(5) for _ in range(2)]
        trio.each(lambda c: sub[c.rank].all_reduce(x[c.rank]))
        assert (x[0] == 2.0).all()


def test_what_a_death_does_to_each() -> None:
    """Rank 2 dies without having called any of these, which are all in flight at once."""

    def one(count: int = 1000) -> np.ndarray:
        return np.ones(count)

    lives: dict[str, Callable[[pccl.Communicator], pccl.Work]] = {
        "all_reduce": lambda c: c.all_reduce(one(), async_op=True),
        "barrier": lambda c: c.barrier(async_op=True),
        "reduce to a survivor": lambda c: c.reduce(one(), 0, async_op=True),
        "broadcast of a survivor": lambda c: c.broadcast(one(), 1, async_op=True),
        "scatter of a survivor": lambda c: c.scatter(one(), one(3000), 0, async_op=True),
        "sub-group": lambda c: c.subgroup([2, 1, 0]).all_reduce(one(), async_op=True),
    }
    ends: dict[str, Callable[[pccl.Communicator], pccl.Work]] = {
        "strict": lambda c: c.all_reduce(one(), strict=True, async_op=True),
        "reduce": lambda c: c.reduce(one(), 2, async_op=True),
        "broadcast": lambda c: c.broadcast(one(), 2, async_op=True),
        "all_gather": lambda c: c.all_gather(one(3000), one(), async_op=True),
        "reduce_scatter": lambda c: c.reduce_scatter(one(), one(3000), async_op=True),
        "gather": lambda c: c.gather(one(), one(3000), 0, async_op=True),
        "gather to the dead": lambda c: c.gather(one(), None, 2, async_op=True),
        "scatter of the dead": lambda c: c.scatter(one(), None, 2, async_op=True),
        "all_to_all": lambda c: c.all_to_all(one(3000), one(3000), async_op=True),
        "recv": lambda c: c.recv(one(), 2, async_op=True),
        "send": lambda c: c.send(one(), 2, tag=1, async_op=True),
    }
    with embedded.start() as own, crew(own.address, 3) as trio:
        dead = trio.pop()
        calls = {**lives, **ends}
        works = trio.each(lambda c: {what: call(c) for what, call in calls.items()})
        dead.close()
        for mine in works:
            for what in lives:
                info = mine[what].wait(20.0)
                assert info.contributors_max <= 2, what
            for what in ends:
                with pytest.raises(pccl.PeerLost):
                    mine[what].wait(20.0)
        again = [one() for _ in trio]
        trio.each(lambda c: c.all_reduce(again[c.rank]))
        assert (again[0] == 2.0).all()


def test_a_third_members_death_costs_a_transfer_nothing() -> None:
    with embedded.start() as own, crew(own.address, 3) as trio:
        got = np.zeros(1_000_000)
        work = trio[0].recv(got, 1, async_op=True)
        trio[2].close()
        until(lambda: all(c.world_size == 2 for c in trio[:2]))
        del trio[2]
        trio[1].send(np.ones(1_000_000), 0)
        work.wait(20.0)
        assert (got == 1.0).all()


def test_a_repair_that_waits_for_who_is_late_does_not_keep_a_time_out() -> None:
    """Rank 3 dies, so that rank 0 is to serve all its segments again; but rank 2 never calls."""
    with embedded.start() as own, crew(own.address, 4, deadline_s=8.0) as four:
        x = [np.full(1 << 18, float(rank)) for rank in range(4)]
        works = [c.broadcast(x[c.rank], 0, timeout=1.0, async_op=True) for c in four[:2]]
        four.pop().close()
        for work in works:
            with pytest.raises(pccl.DeadlineExceeded):
                work.wait(15.0)
        with pytest.raises(pccl.DeadlineExceeded):
            four[2].broadcast(x[2], 0)
        x[1][:] = 1.0
        four.each(lambda c: c.broadcast(x[c.rank], 1))
        assert all((one == 1.0).all() for one in x[:3])
