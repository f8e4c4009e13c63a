"""Among whom an op is, as one member sees it at one moment (layer 5).

The collectives ask it for the peer of a rank, for a context, for the blocks of a list of tensors.
It decides what fits the participants: a list that no longer fits because members were lost since
the program looked is no mistake of the program's. What an op does must not be known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import xxhash

from pccl_py import arguments
from pccl_py.dataplane import buffers
from pccl_py.dataplane.buffers import Buffer
from pccl_py.dataplane.op import Blocks
from pccl_py.errors import PcclError, PeerLost, UsageError
from pccl_py.types import PeerId

CONTEXT_MASK = (1 << 31) - 1


def context_of(*parts: object) -> int:
    """The same 31 bits, never 0, on all members that name the same parts."""
    return xxhash.xxh3_64_intdigest("\0".join(map(str, parts)).encode()) & CONTEXT_MASK or 1


class Told:
    """How many participants the program may still think there are: as many as there were at some
    time in this line, until an error has told it otherwise."""

    __slots__ = ("_line", "size")

    def __init__(self) -> None:
        self._line = -1
        self.size = 0

    def note(self, line: int, size: int) -> None:
        if line != self._line:
            self._line, self.size = line, size
        self.size = max(self.size, size)


@dataclass(frozen=True, slots=True)
class Among:
    """peers: the living participants in rank order; rank: this member's place; whom: "group", or
    "sub-group"."""

    peers: tuple[PeerId, ...]
    rank: int
    whom: str
    told: Told

    @property
    def size(self) -> int:
        return len(self.peers)

    def peer(self, what: str, rank: object) -> PeerId:
        """Who has a rank now. Raises UsageError, or PeerLost as `misfit`."""
        place = arguments.whole(rank, 0, self.size - 1)
        if place is None:
            raise self.misfit(
                f"{what}={arguments.shown(rank)} must be a rank from 0 to {self.size - 1}"
            )
        return self.peers[place]

    def other(self, what: str, rank: object) -> PeerId:
        """As `peer`, of somebody else: this member may have got the rank of one that was lost."""
        found = self.peer(what, rank)
        if rank == self.rank:
            raise self.misfit(f"{what}={rank} is this member itself: copy the tensor instead")
        return found

    def blocks(self, what: str, value: object, *, writable: bool) -> tuple[Buffer, ...]:
        """One buffer per rank: of a list, or equal parts of one tensor. Raises UsageError, or
        PeerLost as `misfit`."""
        if isinstance(value, list | tuple):
            if len(value) != self.size:
                raise self.misfit(
                    f"{what} has {len(value)} tensors and the {self.whom} {self.size} members: "
                    "pass one per rank"
                )
            return buffers.of_each(what, value, writable=writable)
        whole = buffers.named(what, value, writable=writable)
        count, rest = divmod(whole.count, self.size)
        if rest:
            raise self.misfit(
                f"{what} has {whole.count} elements, which {self.size} members cannot share "
                "evenly: pass a list of one tensor per rank"
            )
        return tuple(whole.part(rank * count, count) for rank in range(self.size))

    def only(self, rank: int, buffer: Buffer) -> Blocks:
        """Blocks of which one rank has one."""
        return tuple(buffer if i == rank else None for i in range(self.size))

    def check_same(self, what: str, one: Buffer, as_what: str, other: Buffer) -> None:
        """Raises UsageError, or PeerLost as `misfit`, unless they have equal count and dtype."""
        if (one.count, one.dtype) != (other.count, other.dtype):
            raise self.misfit(
                f"{what} is {one.in_words()} and {as_what} {other.in_words()}: make them alike"
            )

    def misfit(self, text: str) -> PcclError:
        """What does not fit the participants: a UsageError; but PeerLost, once, when participants
        were lost and the program has not been told: it looks again, and retries."""
        lost = self.told.size - self.size
        if lost <= 0:
            return UsageError(text)
        self.told.size = self.size
        gone = "1 member has" if lost == 1 else f"{lost} members have"
        return PeerLost(f"{text}; {gone} gone since there were {self.size + lost}: look again")


def check_apart(written: str, writes: Iterable[Buffer], read: str, reads: Iterable[Buffer]) -> None:
    """Raises UsageError if one of `writes` shares memory with another of them, or with `reads`."""
    spans = [(b.address, b.address + b.nbytes, True) for b in writes if b.count]
    spans += [(b.address, b.address + b.nbytes, False) for b in reads if b.count]
    written_to = read_to = 0
    for begin, end, is_write in sorted(spans):
        if is_write and begin < written_to:
            raise UsageError(f"tensors of {written} overlap each other in memory")
        if begin < (read_to if is_write else written_to):
            raise UsageError(f"{written} overlaps {read} in memory: results would overwrite inputs")
        if is_write:
            written_to = max(written_to, end)
        else:
            read_to = max(read_to, end)


def check_one_dtype(what: str, blocks: Sequence[Buffer], as_what: str, other: Buffer) -> None:
    """Raises UsageError unless the blocks (of one dtype already) have that of `other`."""
    if blocks[0].dtype != other.dtype:
        raise UsageError(
            f"{what} is {blocks[0].dtype.name.lower()} and {as_what} {other.dtype.name.lower()}: "
            "one op has one dtype"
        )
