"""Values that every layer speaks of: peers, members, views, verdicts, op results (layer 0).

Pure data, frozen; nothing here decides or does anything.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType

PeerId = NewType("PeerId", int)
"""One process life, a random unsigned 64-bit number; a restarted worker is a new peer (R12)."""

REDO = -1  # in Verdict.holders: final nowhere, reduce the segment again
HELD_BY_ALL = -2  # in Verdict.holders: every stayer has it, nothing to do


def peer_text(peer: int) -> str:
    """A peer id as people read it: the first 8 of its 16 hex digits."""
    return f"{peer:016x}"[:8]


_NAMED = 1 << 32
_CONTEXT_SHIFT = 33


def op_id(number: int, *, named: bool = False, context: int = 0) -> int:
    """The engine's op id, 64 bits: context, a bit for named ops, 32 bits of number (unnamed: 1 is
    the line's first) or of name hash."""
    return context << _CONTEXT_SHIFT | (_NAMED if named else 0) | number


def is_named(op: int) -> bool:
    """Whether an op id is of a named op, matched by (name, n-th use) instead of by order."""
    return bool(op & _NAMED)


def covered(op: int, stable: int) -> bool:
    """Whether `stable` speaks of this op: only unnamed ops of context 0 count along it."""
    return op <= stable


def context_of(op: int) -> int:
    """The context that an op id is of: 0 is the whole group's."""
    return op >> _CONTEXT_SHIFT


def op_text(op: int) -> str:
    """An op as people read it."""
    context, number = op >> _CONTEXT_SHIFT, op & (_NAMED - 1)
    what = f"named op {number:08x}" if is_named(op) else f"op {number}"
    return f"{what} of context {context}" if context else what


class Kind(enum.IntEnum):
    """Collectives, numbered as in pccl.h (a barrier is an all_reduce of nothing)."""

    ALL_REDUCE = 0
    BROADCAST = 1
    REDUCE = 2
    ALL_GATHER = 3
    REDUCE_SCATTER = 4
    GATHER = 5
    SCATTER = 6
    ALL_TO_ALL = 7
    SEND = 8
    RECV = 9


class ReduceOp(enum.IntEnum):
    """Reductions, numbered as in pccl.h."""

    SUM = 0
    AVG = 1
    PROD = 2
    MIN = 3
    MAX = 4


class DType(enum.IntEnum):
    """Element types, numbered as in pccl.h."""

    UINT8 = 0
    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    FLOAT16 = 5
    BFLOAT16 = 6
    FLOAT32 = 7
    FLOAT64 = 8


class Route(enum.IntEnum):
    """How segments travel, numbered as in pccl.h."""

    AUTO = 0
    RING = 1
    STAR = 2
    DIRECT = 3


class Phase(enum.IntEnum):
    """What an op in flight waits for, numbered as in pccl.h."""

    NONE = 0  # it has not run
    VIEW = 1  # a flush is under way, or there is no view yet
    SUBMIT = 2  # participants that are not known to have submitted it
    REDUCE = 3  # inputs, and what is made of them
    COPY = 4  # values that are there elsewhere
    CONFIRM = 5  # word that others hold theirs

    @property
    def text(self) -> str:
        """As people read it, behind "waiting for"."""
        return _PHASES[self]


_PHASES = {
    Phase.NONE: "its turn",
    Phase.VIEW: "the next view",
    Phase.SUBMIT: "members to submit it",
    Phase.REDUCE: "values",
    Phase.COPY: "copies",
    Phase.CONFIRM: "confirmation",
}


@dataclass(frozen=True, slots=True)
class OpInFlight:
    """How an op that a member waits for stands there. op: engine op id; called: what the user calls
    it, "" if only its number is known; nbytes: of its memory; missing: bytes of that which are not
    there yet; age_ms: since it was submitted; awaited: members that are waited for, of which
    `awaited_count` may be more than are named; timed_out: its deadline has passed."""

    op: int
    called: str
    kind: Kind
    phase: Phase
    nbytes: int
    missing: int
    age_ms: int
    awaited: tuple[PeerId, ...]
    awaited_count: int
    timed_out: bool

    @property
    def text(self) -> str:
        """The op for people: its name, or its number."""
        what = self.called or self.kind.name.lower()
        return what if is_named(self.op) and self.called else f"{what}, {op_text(self.op)}"


@dataclass(frozen=True, slots=True)
class Path:
    """What a member's kernel has measured on its links to `peer`; 0: not known. rtt_us: the least
    round trip of late, microseconds; rate: bytes a second, the best delivered while the path, not
    the program, was the limit."""

    peer: PeerId
    rtt_us: int
    rate: int


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a view. `host`, `port`: where its engine listens for data links."""

    peer: PeerId
    name: str
    group: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.name} ({peer_text(self.peer)})"


def members_text(members: Sequence[Member], limit: int = 8) -> str:
    """Members for people: "w1 (1a2b3c4d), w2 (...)", and how many more beyond `limit`."""
    text = ", ".join(str(member) for member in members[:limit])
    more = len(members) - limit
    return f"{text} and {more} more" if more > 0 else text


class OnLoss(enum.IntEnum):
    """What the loss of a participant does to an op; each report of an op says it (VIEWS §1)."""

    REPAIR = 0  # all_reduce, barrier: goes on without it; reduce (has a root): the root must live
    STRICT = 1  # all_reduce(strict=True): a member lost and a segment final nowhere -> PeerLost
    FIXED = 2  # all_gather, reduce_scatter: one gone and a segment final nowhere -> PeerLost
    EXCHANGE = 3  # all_to_all: one gone and its blocks not with all -> PeerLost
    TO_ROOT = 4  # gather, send/recv: root is the destination
    FROM_ROOT = 5  # scatter: root is the source
    SPREAD = 6  # broadcast: root is the source, whose copy is whole from the start

    @property
    def is_exchange(self) -> bool:
        """Whether the report's `final` has a bit per ring member instead of one per segment."""
        return self in (OnLoss.EXCHANGE, OnLoss.TO_ROOT, OnLoss.FROM_ROOT)


class Outcome(enum.IntEnum):
    """What a flush decided about one op."""

    RUN = 0  # goes on in the next view, segment by segment as `holders` says
    DONE = 1  # held whole by all: return
    ABORT = 2  # final nowhere, or not completable: raise `code`, `text`


@dataclass(frozen=True, slots=True)
class Verdict:
    """The coordinator's decision on one op above `stable`, part of a view record (VIEWS §1).

    op: engine op id. holders (RUN only): per segment the index into the group's ring of the member
    that serves it, or REDO, or HELD_BY_ALL; empty means REDO for all segments.
    code, text (ABORT only): the error that every member raises.
    """

    op: int
    outcome: Outcome
    holders: tuple[int, ...] = ()
    code: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """One group's part of a view record. ring: peer ids in ring order; stable: every unnamed op of
    this line up to this number is held by all (or raised by all); verdicts: the repair plan, the
    done ops and the aborts still in force; hub: whom small all-reduces go over, or 0; large: the
    route of large ones, AUTO where nothing speaks for another."""

    group: str
    ring: tuple[PeerId, ...]
    stable: int = 0
    verdicts: tuple[Verdict, ...] = ()
    hub: PeerId = PeerId(0)
    large: Route = Route.AUTO


@dataclass(frozen=True, slots=True)
class Record:
    """A view as journaled and installed, verdicts included (R9), byte for byte the same for all.

    line: views between two admissions share it; op numbers and safe-point positions restart at 0 in
    a line's first view (`fresh` is True there). members: all groups, in order of joining.
    excluded: broken edges that routes avoid.
    """

    line: int
    epoch: int
    fresh: bool
    members: tuple[Member, ...]
    groups: tuple[GroupRecord, ...]
    excluded: tuple[tuple[PeerId, PeerId], ...] = ()

    def member(self, peer: int) -> Member | None:
        return next((m for m in self.members if m.peer == peer), None)

    def of_group(self, group: str) -> GroupRecord:
        return next(g for g in self.groups if g.group == group)


@dataclass(frozen=True, slots=True)
class View:
    """A group's view as one member sees it: `members` in rank order, `rank` its own place."""

    epoch: int
    line: int
    rank: int
    members: tuple[Member, ...]

    @property
    def world_size(self) -> int:
        return len(self.members)


@dataclass(frozen=True, slots=True)
class OpInfo:
    """What one collective cost. contributors_min/max: over the segments whose value is here or
    whose owner has told (0 where there is none: a reduce that a change of members ended, away from
    its root); repaired: segments that were redone or fetched after a view change; bytes: payload of
    this op on this peer's links; seconds: from submission to the end on this peer; route: "direct",
    "ring", "star", or "self"; transport: "tcp" or "none"."""

    contributors_min: int
    contributors_max: int
    repaired: int
    bytes_sent: int
    bytes_received: int
    seconds: float
    route: str
    transport: str


@dataclass(frozen=True, slots=True)
class SyncInfo:
    """What one `sync_state` did: the elected revision, the donor's name ("" when nothing differed
    anywhere), keys and bytes that this peer received, seconds from call to return."""

    revision: int
    donor: str
    keys: tuple[str, ...]
    bytes: int
    seconds: float
