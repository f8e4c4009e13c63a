"""One collective as a plan of plain values, carried out by a crew and checked to the bit.

A plan says what is drawn; `run_all` gives every member its memory (with guards around each tensor,
inputs read-only where they may be), has all members submit all plans at once, and compares what is
there afterwards with `reference`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pccl_py.collectives import Collectives
from pccl_py.communicator import Communicator
from pccl_py.types import DType, Kind, OpInfo, ReduceOp
from pccl_py.work import Work
from tests import reference
from tests.crew import Crew
from tests.reference import Array, as_tensor, bits

KIB = 1 << 10
GUARD = 0x5A
GUARD_BYTES = 64
WEIGHTS = [None, 0, 0.0, 0.25, 1, 3.5, 1e300, 1e-300]
WAIT_S = 60.0

Call = Callable[[Collectives], Work | None]


@dataclass(frozen=True)
class Plan:
    """size: (bytes, elements more) of a tensor, or of a block. in_place: results over inputs where
    a collective can. whole: blocks as one tensor. uneven: blocks of different sizes. among: ranks,
    in the order of a sub-group; the whole group in its order is used as such if `is_group`."""

    kind: Kind
    dtype: DType
    reduce: ReduceOp = ReduceOp.SUM
    size: tuple[int, int] = (0, 1)
    route: str = "auto"
    in_place: bool = False
    whole: bool = False
    uneven: bool = False
    strict: bool = False
    weighted: bool = False
    root: int = 0
    among: tuple[int, ...] = ()
    is_group: bool = True
    named: bool = False
    seed: int = 0

    @property
    def count(self) -> int:
        return max(0, self.size[0] // reference.itemsize(self.dtype) + self.size[1])

    @property
    def world(self) -> int:
        return len(self.among)

    def block_count(self, source: int, destination: int) -> int:
        if not self.uneven or self.whole:
            return self.count // self.world
        return self.count // self.world * ((source + 2 * destination + self.seed) % 3) + destination


class Arena:
    """One member's tensors, each between guards; says whether anybody wrote where nobody may."""

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype
        self._kept: list[tuple[Array, int, int]] = []
        self._inputs: list[tuple[Array, Array]] = []

    def new(self, count: int) -> Array:
        """A tensor of no values yet."""
        nbytes = count * reference.itemsize(self.dtype)
        memory = np.full(nbytes + 2 * GUARD_BYTES, GUARD, np.uint8)
        self._kept.append((memory, GUARD_BYTES, nbytes))
        return memory[GUARD_BYTES : GUARD_BYTES + nbytes].view(reference.STORED[self.dtype])

    def result(self, values: Array) -> Array:
        """A tensor that holds values and will be written."""
        tensor = self.new(values.size)
        tensor[:] = values
        return tensor

    def given(self, values: Array) -> Array:
        """A tensor that is only read; torch takes no read-only memory."""
        tensor = self.result(values)
        self._inputs.append((tensor, values))
        if self.dtype is not DType.BFLOAT16:
            tensor.flags.writeable = False
        return tensor

    def check(self) -> None:
        for memory, begin, nbytes in self._kept:
            assert (memory[:begin] == GUARD).all(), "written before a tensor"
            assert (memory[begin + nbytes :] == GUARD).all(), "written behind a tensor"
        for tensor, values in self._inputs:
            assert_bits(tensor, values, "an input that is only read was written")


class Performance:
    """A plan with memory: what each rank calls, and what must be there afterwards."""

    def __init__(self, plan: Plan, number: int) -> None:
        self.plan = plan
        self.how: dict[str, object] = {"async_op": True}
        if plan.named and plan.kind != Kind.SEND:
            self.how["name"] = f"plan{number}"
        self.arenas = [Arena(plan.dtype) for _ in plan.among]
        self.checks: list[Callable[[], None]] = []
        self.calls: list[Call] = [lambda c: None for _ in plan.among]
        self.contributors: int | None = None
        _PREPARE[plan.kind](self)

    @property
    def root(self) -> int:
        return self.plan.root % self.plan.world

    def calls_with(self, rank: int, method: str, *arguments: object, **keywords: object) -> None:
        """What a rank calls; arrays are passed as a user would."""

        def passed(value: object) -> object:
            return self.tensor(value) if isinstance(value, np.ndarray) else value

        positional = [passed(value) for value in arguments]
        named = {key: passed(value) for key, value in keywords.items()} | self.how
        self.calls[rank] = lambda c: getattr(c, method)(*positional, **named)

    def tensor(self, values: Array) -> object:
        return as_tensor(self.plan.dtype, values)

    def values(self, count: int, *marks: int, tame: bool = False) -> Array:
        return reference.drawn(self.plan.dtype, count, (self.plan.seed, *marks), tame=tame)

    def blocks(
        self, rank: int, values: Sequence[Array], *, read: bool
    ) -> tuple[list[Array], object]:
        """Memory for one block per rank and what is passed: a list, or one tensor."""
        arena = self.arenas[rank]
        make = arena.given if read else arena.result
        if not self.plan.whole:
            parts = [make(v) for v in values]
            return parts, [self.tensor(p) for p in parts]
        one = make(np.concatenate(values) if values else arena.new(0))
        edges = np.cumsum([0, *(v.size for v in values)])
        return [one[a:b] for a, b in pairwise(edges)], self.tensor(one)

    def expect(self, got: Array, wanted: Array, what: str) -> None:
        self.checks.append(lambda: assert_bits(got, wanted, what))

    def junk(self, count: int) -> Array:
        return np.full(count * reference.itemsize(self.plan.dtype), 0xA5, np.uint8).view(
            reference.STORED[self.plan.dtype]
        )

    def ring(self, inputs: Sequence[Array]) -> tuple[list[Array], dict[int, int]]:
        """Inputs in the order of the view's ring, and each rank's place in it."""
        order = sorted(range(self.plan.world), key=lambda rank: self.plan.among[rank])
        return [inputs[rank] for rank in order], {rank: at for at, rank in enumerate(order)}

    def check(self, infos: Sequence[OpInfo | None]) -> None:
        for check in self.checks:
            check()
        for arena in self.arenas:
            arena.check()
        for info in infos:
            assert info is None or info.repaired == 0
            if info is not None and self.contributors is not None:
                assert {info.contributors_min, info.contributors_max} == {self.contributors}


def assert_bits(got: Array, wanted: Array, what: str) -> None:
    same = bits(got) == bits(wanted)
    assert same.all(), f"{what}: {(~same).sum()} of {same.size} differ, first {same.argmin()}"


# ---------------------------------------------------------------- reductions


def _all_reduce(p: Performance) -> None:
    plan = p.plan
    is_weighted = plan.weighted and plan.reduce == ReduceOp.AVG and plan.dtype in reference.FLOATS
    inputs = [p.values(plan.count, r, tame=is_weighted) for r in range(plan.world)]
    rng = random.Random(plan.seed)
    weights = [rng.choice(WEIGHTS) if is_weighted else None for _ in inputs]
    p.contributors = sum(w is None or w > 0 for w in weights)
    outs = []
    for r, values in enumerate(inputs):
        arena = p.arenas[r]
        if weights[r] == 0:
            values = p.values(plan.count, r)  # whatever it is, it does not count
        out = arena.result(values if plan.in_place else p.junk(plan.count))
        outs.append(out)
        passed, kept = (out, None) if plan.in_place else (arena.given(values), out)
        how = {"weight": weights[r], "strict": plan.strict, "route": plan.route}
        p.calls_with(r, "all_reduce", passed, plan.reduce, out=kept, **how)

    def check() -> None:
        for out in outs[1:]:
            assert_bits(out, outs[0], "members differ")
        if any(w is not None and w != 1 for w in weights):
            _check_mean(plan, outs[0], inputs, weights)
            return
        ring, _ = p.ring(inputs)
        route = "direct" if plan.route == "auto" else plan.route
        owners = range(1 if _has_no_order(plan) or route == "star" else plan.world)
        by_owner = [reference.from_owner(plan.dtype, plan.reduce, ring, o, route) for o in owners]
        size = reference.itemsize(plan.dtype)
        assert reference.is_rotated(outs[0], by_owner, size), "neither owner's order gives this"

    p.checks.append(check)


def _has_no_order(plan: Plan) -> bool:
    """Whether every order of the inputs gives the same bits."""
    return plan.dtype not in reference.FLOATS or plan.reduce in (ReduceOp.MIN, ReduceOp.MAX)


def _check_mean(
    plan: Plan, got: Array, inputs: Sequence[Array], weights: Sequence[float | None]
) -> None:
    given = np.array([1.0 if w is None else w for w in weights])
    if not given.any():
        assert np.isnan(reference.widened(plan.dtype, got)).all(), "the mean of nothing is NaN"
        return
    wide = np.stack([reference.widened(plan.dtype, x).astype(float) for x in inputs])
    wanted = (wide * (given / given.sum())[:, None]).sum(0)
    slack = plan.world * reference.EPSILON[plan.dtype] * np.abs(wide).max(0, initial=1e-30)
    off = np.abs(reference.widened(plan.dtype, got).astype(float) - wanted)
    assert (off <= slack).all(), f"the mean is off by {off.max()}"


def _reduce(p: Performance) -> None:
    plan, root = p.plan, p.root
    inputs = [p.values(plan.count, r) for r in range(plan.world)]
    p.contributors = plan.world
    ring, places = p.ring(inputs)
    wanted = reference.from_owner(plan.dtype, plan.reduce, ring, places[root], "direct")
    for r, values in enumerate(inputs):
        arena, out = p.arenas[r], None
        if r == root and plan.in_place:
            passed = arena.result(values)
            p.expect(passed, wanted, "reduce in place")
        else:
            passed = arena.given(values)
        if r == root and not plan.in_place:
            target = arena.result(p.junk(plan.count))
            p.expect(target, wanted, "reduce")
            out = target
        p.calls_with(r, "reduce", passed, root, plan.reduce, out=out)


def _reduce_scatter(p: Performance) -> None:
    plan = p.plan
    counts = [plan.block_count(0, r) for r in range(plan.world)]
    table = [[p.values(n, i, r) for r, n in enumerate(counts)] for i in range(plan.world)]
    p.contributors = plan.world
    for r, n in enumerate(counts):
        ring, places = p.ring([table[i][r] for i in range(plan.world)])
        out = p.arenas[r].result(p.junk(n))
        p.expect(
            out,
            reference.from_owner(plan.dtype, plan.reduce, ring, places[r], "direct"),
            f"reduce_scatter at {r}",
        )
        _, passed = p.blocks(r, table[r], read=True)
        p.calls_with(r, "reduce_scatter", out, passed, plan.reduce)


# ---------------------------------------------------------------- copies


def _broadcast(p: Performance) -> None:
    plan, root = p.plan, p.root
    wanted = p.values(plan.count, 0)
    for r, arena in enumerate(p.arenas):
        if r == root:
            tensor = arena.given(wanted)
        else:
            tensor = arena.result(p.junk(plan.count))
            p.expect(tensor, wanted, f"broadcast at {r}")
        p.calls_with(r, "broadcast", tensor, root)


def _all_gather(p: Performance) -> None:
    plan = p.plan
    table = [p.values(plan.block_count(0, r), r) for r in range(plan.world)]
    for r, mine in enumerate(table):
        before = [v if i == r else p.junk(v.size) for i, v in enumerate(table)]
        outs, passed = p.blocks(r, before, read=False)
        own = outs[r] if plan.in_place else p.arenas[r].given(mine)
        for i, out in enumerate(outs):
            p.expect(out, table[i], f"all_gather, block {i} at {r}")
        p.calls_with(r, "all_gather", passed, own)


def _gather(p: Performance) -> None:
    plan, root = p.plan, p.root
    table = [p.values(plan.block_count(0, r), r) for r in range(plan.world)]
    for r, mine in enumerate(table):
        passed = None
        own = None
        if r == root:
            before = [v if i == r else p.junk(v.size) for i, v in enumerate(table)]
            outs, passed = p.blocks(r, before, read=False)
            for i, out in enumerate(outs):
                p.expect(out, table[i], f"gather, block {i}")
            own = outs[r] if plan.in_place else None
        own = p.arenas[r].given(mine) if own is None else own
        p.calls_with(r, "gather", own, passed, root)


def _scatter(p: Performance) -> None:
    plan, root = p.plan, p.root
    table = [p.values(plan.block_count(0, r), r) for r in range(plan.world)]
    for r, wanted in enumerate(table):
        passed, own = None, None
        if r == root:
            ins, passed = p.blocks(r, table, read=not plan.in_place)
            for i, one in enumerate(ins):
                p.expect(one, table[i], f"scatter, what is scattered, block {i}")
            own = ins[r] if plan.in_place else None
        own = p.arenas[r].result(p.junk(wanted.size)) if own is None else own
        p.expect(own, wanted, f"scatter at {r}")
        p.calls_with(r, "scatter", own, passed, root)


def _all_to_all(p: Performance) -> None:
    plan = p.plan
    ranks = range(plan.world)
    table = [[p.values(plan.block_count(i, j), i, j) for j in ranks] for i in ranks]
    for r in ranks:
        wanted = [table[i][r] for i in ranks]
        outs, taken = p.blocks(r, [p.junk(v.size) for v in wanted], read=False)
        _, given = p.blocks(r, table[r], read=True)
        for i, out in enumerate(outs):
            p.expect(out, wanted[i], f"all_to_all from {i} to {r}")
        p.calls_with(r, "all_to_all", taken, given)


def _send(p: Performance) -> None:
    """From the root to the next rank; a world of one has nobody to send to."""
    plan, source = p.plan, p.root
    if plan.world == 1:
        return
    destination = (source + 1 + plan.seed % (plan.world - 1)) % plan.world
    values = p.values(plan.count, 0)
    sent = p.arenas[source].given(values)
    got = p.arenas[destination].result(p.junk(plan.count))
    p.expect(got, values, "recv")
    tag = plan.seed % 3
    p.calls_with(source, "send", sent, destination, tag)
    p.calls_with(destination, "recv", got, source, tag)


_PREPARE: dict[Kind, Callable[[Performance], None]] = {
    Kind.ALL_REDUCE: _all_reduce,
    Kind.REDUCE: _reduce,
    Kind.REDUCE_SCATTER: _reduce_scatter,
    Kind.BROADCAST: _broadcast,
    Kind.ALL_GATHER: _all_gather,
    Kind.GATHER: _gather,
    Kind.SCATTER: _scatter,
    Kind.ALL_TO_ALL: _all_to_all,
    Kind.SEND: _send,
}


# ---------------------------------------------------------------- a crew at work


def run_all(crew: Crew, batch: Sequence[Plan], seed: int) -> None:
    """All plans in flight at once; each member waits for them in an order of its own."""
    performances = [Performance(plan, number) for number, plan in enumerate(batch)]

    def body(comm: Communicator) -> list[OpInfo | None]:
        works = [_submit(comm, p) for p in performances]
        order = list(range(len(works)))
        random.Random(seed + comm.rank).shuffle(order)
        infos: list[OpInfo | None] = [None] * len(works)
        for i in order:
            work = works[i]
            infos[i] = work.wait(WAIT_S) if work is not None else None
        return infos

    futures = [crew.on(rank, body) for rank in range(len(crew))]
    errors = {rank: future.exception(WAIT_S) for rank, future in enumerate(futures)}
    assert not any(errors.values()), errors
    infos = [future.result() for future in futures]
    for i, performance in enumerate(performances):
        performance.check([mine[i] for mine in infos])


def _submit(comm: Communicator, performance: Performance) -> Work | None:
    plan = performance.plan
    if comm.rank not in plan.among:
        return None
    whom: Collectives = comm
    if not plan.is_group or plan.among != tuple(range(comm.world_size)):
        whom = comm.subgroup(plan.among)
    return performance.calls[plan.among.index(comm.rank)](whom)
