"""What the members of a simulated cluster submit: every kind of op, its memory, random programs.

A `Submission` is one op as the program has it; `memory_of` is what one member hands over for it.
Every value of an op is drawn from (op, from whom, for whom), so the oracle can draw it again.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

AUTO, RING, STAR, DIRECT = 0, 1, 2, 3
(
    ALL_REDUCE, BROADCAST, REDUCE, ALL_GATHER, REDUCE_SCATTER, GATHER, SCATTER, ALL_TO_ALL, SEND,
    RECV,
) = range(10)  # fmt: skip
SUM, AVG, PROD, MIN, MAX = range(5)
NAMED = 1 << 32
UINT8, INT64, FLOAT32, FLOAT64 = 0, 4, 7, 8
NUMPY = {0: np.uint8, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.int64, 5: np.float16,
         7: np.float32, 8: np.float64}  # fmt: skip
ROUTES = (AUTO, RING, STAR, DIRECT)
OLD = 0xEE  # bytes of memory that an op is to overwrite
SCRIBBLE = 0xA5  # bytes of memory of ended ops


@dataclass(frozen=True)
class Submission:
    """One op as the program submits it on every participant; members are indices of the cluster.

    root: of send and recv, the destination. peers: participants in rank order, () the whole group:
    for kinds that need a list, those in the view in which a member submits it. size: elements of a
    tensor; pair: elements from one to another, [from][to], of blocks [whose][whose]. weights: by
    member. separate: the result goes elsewhere than the input lies. salt: tells ops with equal ids
    apart, those of two lines.
    """

    op_id: int
    dtype: int
    reduce: int
    kind: int = 0
    root: int = 0
    name: int = 0
    strict: bool = False
    route: int = AUTO
    peers: tuple[int, ...] = ()
    size: int = -1
    pair: tuple[tuple[int, ...], ...] = ()
    weights: tuple[float, ...] = ()
    separate: bool = False
    salt: int = 0

    @property
    def context(self) -> int:
        return self.op_id >> 33

    @property
    def needs_peers(self) -> bool:
        return bool(self.peers) or self.kind >= ALL_GATHER

    @property
    def has_root(self) -> bool:
        return self.kind in (BROADCAST, REDUCE, GATHER, SCATTER, SEND, RECV)

    def weight(self, member: int) -> float:
        return self.weights[member] if self.weights else 1.0


Array = np.ndarray
Blocks = list["Array | None"]


@dataclass
class Memory:
    """What one member hands over; blocks by position in `peers`. `before`: a copy of it all."""

    peers: tuple[int, ...] = ()
    data: Array | None = None
    input: Array | None = None
    sends: Blocks | None = None
    receives: Blocks | None = None
    kind: int = 0  # send or recv, by the end
    before: list[Array] = field(default_factory=list)

    def arrays(self) -> Iterator[Array]:
        for array in (self.data, self.input, *(self.sends or ()), *(self.receives or ())):
            if array is not None:
                yield array

    def copy(self) -> Memory:
        """The same values elsewhere."""
        made: dict[int, Array] = {}

        def twin(array: Array | None) -> Array | None:
            return None if array is None else made.setdefault(id(array), array.copy())

        return replace(
            self, data=twin(self.data), input=twin(self.input),
            sends=None if self.sends is None else [twin(a) for a in self.sends],
            receives=None if self.receives is None else [twin(a) for a in self.receives],
        )  # fmt: skip

    def scribble(self) -> None:
        for array in self.arrays():
            array.view(np.uint8)[:] = SCRIBBLE

    def is_as_scribbled(self) -> bool:
        return all(a.tobytes().count(SCRIBBLE) == a.nbytes for a in self.arrays())


def values(sub: Submission, source: int, target: int, size: int) -> Array:
    """What `source` has for `target` in this op."""
    return _drawn(sub.dtype, size, sub.op_id, source, target, sub.salt).copy()


@functools.lru_cache(maxsize=1 << 14)
def _drawn(dtype: int, size: int, *marks: int) -> Array:
    return np.random.default_rng(marks).integers(1, 100, size).astype(NUMPY[dtype])


def old(sub: Submission, size: int) -> Array:
    return np.full(size * np.dtype(NUMPY[sub.dtype]).itemsize, OLD, np.uint8).view(NUMPY[sub.dtype])


def tensor(sub: Submission, member: int) -> Array:
    """The whole-tensor input of one member."""
    return values(sub, member, member, sub.size)


def block(sub: Submission, source: int, owner: int) -> Array:
    """What `source` adds to the block of `owner`."""
    return values(sub, source, owner, sub.pair[owner][owner])


def piece(sub: Submission, source: int, target: int) -> Array:
    """What passes from one to another in an exchange."""
    return values(sub, source, target, sub.pair[source][target])


def memory_of(sub: Submission, me: int, peers: tuple[int, ...]) -> Memory:
    """What member `me` hands over, among these participants (rank order)."""
    memory = Memory(peers, kind=sub.kind)
    fill = _whole if sub.kind <= REDUCE else _blocks if sub.kind <= REDUCE_SCATTER else _exchange
    fill(memory, sub, me)
    memory.before = [array.copy() for array in memory.arrays()]
    return memory


def _whole(memory: Memory, sub: Submission, me: int) -> None:
    if sub.kind == BROADCAST:
        memory.data = tensor(sub, me) if me == sub.root else old(sub, sub.size)
        return
    mine = tensor(sub, me)
    gets_it = sub.kind == ALL_REDUCE or me == sub.root
    if sub.separate or sub.kind == REDUCE:
        memory.input = mine
    if gets_it:
        memory.data = old(sub, sub.size) if sub.separate else mine


def _blocks(memory: Memory, sub: Submission, me: int) -> None:
    if sub.kind == REDUCE_SCATTER:
        memory.sends = [block(sub, me, owner) for owner in memory.peers]
        memory.data = old(sub, sub.pair[me][me])
        return
    memory.receives = [old(sub, sub.pair[owner][owner]) for owner in memory.peers]
    mine = memory.receives[memory.peers.index(me)]
    assert mine is not None
    mine[:] = block(sub, me, me)  # the shell copies it at submit
    memory.input = mine.copy() if sub.separate else mine


def _exchange(memory: Memory, sub: Submission, me: int) -> None:
    peers, root = memory.peers, sub.root
    sends = {p: piece(sub, me, p) for p in peers if passes(sub, me, p, peers)}
    receives = {p: old(sub, sub.pair[p][me]) for p in peers if passes(sub, p, me, peers)}
    if sub.kind == SEND:
        memory.kind = RECV if me == root else SEND
    if me in receives:
        receives[me][:] = sends[me]  # the shell copies it at submit
    if sends:
        memory.sends = [sends.get(p) for p in peers]
    if receives:
        memory.receives = [receives.get(p) for p in peers]


def passes(sub: Submission, source: int, target: int, peers: tuple[int, ...]) -> bool:
    """Whether anything goes from one to the other in this exchange."""
    match sub.kind:
        case 5:
            return target == sub.root
        case 6:
            return source == sub.root
        case 8:
            return source != sub.root and target == sub.root
        case _:
            return True


# ---------------------------------------------------------------- random programs


@dataclass
class Program:
    """Ops, and for each member those it takes part in, in the order it submits them."""

    ops: list[Submission]
    orders: list[list[Submission]]


class Maker:
    """Draws programs: sub-groups, pairs with tags, named ops, all kinds."""

    def __init__(self, rng: random.Random, world: int, sizes: tuple[int, ...]) -> None:
        self.rng, self.world, self.sizes = rng, world, sizes
        self.counts: dict[int, int] = {}
        self.groups = [
            (
                rng.randrange(1, 1 << 31),
                tuple(rng.sample(range(world), rng.randrange(1, world + 1))),
            )
            for _ in range(2)
        ]
        self.pairs: dict[tuple[int, int], int] = {}
        self.everybody = tuple(range(world))

    def program(self, count: int, kinds: tuple[int, ...] = tuple(range(9))) -> Program:
        kinds = tuple(k for k in kinds if self.world > 1 or k != SEND)
        ops = [self.op(self.rng.choice(kinds)) for _ in range(count)]
        orders = []
        for me in range(self.world):
            mine = [op for op in ops if me in (op.peers or self.everybody)]
            for _ in range(self.rng.randrange(2 * count)):
                self.swap(mine)
            orders.append(mine)
        return Program(ops, orders)

    def swap(self, mine: list[Submission]) -> None:
        """Unnamed ops of one context keep their order; nothing else does."""
        if len(mine) < 2:
            return
        at = self.rng.randrange(len(mine) - 1)
        one, other = mine[at : at + 2]
        if one.op_id & NAMED or other.op_id & NAMED or one.context != other.context:
            mine[at : at + 2] = other, one

    def op(self, kind: int) -> Submission:
        rng = self.rng
        context, peers = 0, ()
        if kind == SEND:
            source, root = rng.sample(range(self.world), 2)
            context = self.pairs.setdefault((source, root), rng.randrange(1, 1 << 31))
            peers = (source, root)
        elif rng.random() < 0.4:
            context, peers = rng.choice(self.groups)
            root = rng.choice(peers)
        else:
            root = rng.randrange(self.world)
        dtype, reduce, weights = self.arithmetic(kind)
        op_id, name = self.number(context)
        grid = [[rng.choice(self.sizes) for _ in self.everybody] for _ in self.everybody]
        if rng.random() < 0.2:
            grid = [[grid[0][0]] * self.world] * self.world
        return Submission(
            op_id, dtype, reduce, kind=kind, root=root, name=name,
            strict=kind == ALL_REDUCE and rng.random() < 0.2, route=rng.choice(ROUTES), peers=peers,
            size=rng.choice(self.sizes), pair=tuple(tuple(row) for row in grid), weights=weights,
            separate=rng.random() < 0.5,
        )  # fmt: skip

    def number(self, context: int) -> tuple[int, int]:
        """An op id of this context, and the name if it has one."""
        if self.rng.random() < 0.25:
            name = self.rng.randrange(1, 1 << 32)
            return context << 33 | NAMED | name, name
        self.counts[context] = self.counts.get(context, 0) + 1
        return context << 33 | self.counts[context], 0

    def arithmetic(self, kind: int) -> tuple[int, int, tuple[float, ...]]:
        rng = self.rng
        dtype = rng.choice((INT64, FLOAT32, FLOAT32, UINT8))
        if kind not in (ALL_REDUCE, REDUCE, REDUCE_SCATTER):
            return dtype, SUM, ()
        is_float = dtype in (FLOAT32, FLOAT64)
        reduce = rng.choice((SUM, AVG, MAX) if is_float else (SUM, SUM, AVG, PROD, MIN))
        if not is_float or reduce != AVG or rng.random() < 0.3:
            return dtype, reduce, ()
        choice = rng.choice(((1.0, 0.0), (0.5, 1.0, 3.0), (0.0, 0.25, 1.0, 7.0), (0.0,)))
        return dtype, reduce, tuple(rng.choice(choice) for _ in self.everybody)
