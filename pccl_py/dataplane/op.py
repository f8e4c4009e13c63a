"""One collective as it is handed to the engine (layer 3): kind, memory, participants; pure data.

`collectives` and `exchanges` make it from what a user passes, checked; the engine turns it into its
C form. What an op costs, who has died and how segments travel must not be known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pccl_py.dataplane.buffers import Buffer
from pccl_py.types import DType, Kind, PeerId, ReduceOp

Blocks = tuple[Buffer | None, ...]
NOBODY = PeerId(0)


@dataclass(slots=True)  # not frozen: that takes 3 times as long to make
class Op:
    """What one member submits; nobody changes it once it is in flight. Which memory it names
    depends on the kind (me: this member):

    all_reduce: out, reduced in place; or input, and out elsewhere. broadcast: out.
    reduce: input; out at the root alone, the same memory as input there when in place.
    all_gather: input, receives (all blocks, mine too; mine is input itself when in place).
    reduce_scatter: sends (all blocks), out. all_to_all: sends, receives.
    gather: sends[root]; receives at the root alone, whose own block may be sent in place.
    scatter: sends at the root alone; receives[root].
    send, recv: sends[1] at the source, receives[0] at the destination; peers is (source,
    destination), root the destination.

    dtype: of every block. what: the op in words; words: what error texts say instead of the op's
    id, "" if the id says enough. root: whose tensor is broadcast, who gathers,
    reduces to itself, scatters. sends, receives: by position in `peers`, () or None for nothing.
    peers: participants in rank order; () for all_reduce, broadcast and reduce of the whole group.
    context: 31 bits, 0 for the whole group. name: 0 (matched by order) or a 64-bit hash.
    route: index in engine.ROUTES. weight: this member's in an all_reduce with avg.
    """

    kind: Kind
    dtype: DType
    what: str
    reduce: ReduceOp = ReduceOp.SUM
    root: PeerId = NOBODY
    out: Buffer | None = None
    input: Buffer | None = None
    sends: Blocks = ()
    receives: Blocks = ()
    peers: tuple[PeerId, ...] = ()
    context: int = 0
    name: int = 0
    strict: bool = False
    route: int = 0
    weight: float = 1.0
    words: str = ""

    @property
    def nbytes(self) -> int:
        """Of what it reads, or of what it writes if that is more."""
        return max(_nbytes(self.out, self.receives), _nbytes(self.input, self.sends))

    @property
    def reads(self) -> Iterator[Buffer]:
        """What nobody may write while the op is in flight."""
        return _present((self.input, *self.sends))

    @property
    def writes(self) -> Iterator[Buffer]:
        """What nobody else may touch while the op is in flight."""
        return _present((self.out, *self.receives))

    def conflicts(self, other: Op) -> bool:
        """Whether the two cannot be in flight at once: one writes what the other touches."""
        ours, theirs = tuple(self.writes), tuple(other.writes)
        return (
            _any_overlap(ours, theirs)
            or _any_overlap(ours, tuple(other.reads))
            or _any_overlap(tuple(self.reads), theirs)
        )


def _nbytes(one: Buffer | None, blocks: Blocks) -> int:
    nbytes = one.nbytes if one is not None else 0
    for block in blocks:
        nbytes += block.nbytes if block is not None else 0
    return nbytes


def _present(buffers: Iterable[Buffer | None]) -> Iterator[Buffer]:
    return (buffer for buffer in buffers if buffer is not None and buffer.count)


def _any_overlap(ones: Iterable[Buffer], others: tuple[Buffer, ...]) -> bool:
    return any(one.overlaps(other) for one in ones for other in others)
