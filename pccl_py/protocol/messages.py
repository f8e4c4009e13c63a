"""Every control message, once, in one table (layer 1).

Values only: what each field means is said here, how it becomes bytes is `encoding`. Directions and
rules are VIEWS §1; `K` is the coordinator. Every message after `Hello` carries the epoch it speaks
of, and K ignores other epochs. Round numbers are (K's boot number, n), so that rounds of different
K lives never meet (R17).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pccl_py.types import OnLoss, OpInFlight, Path, PeerId, Record

Round = tuple[int, int]

OPS_IN_FLIGHT_MAX = 32  # that one member tells of, as the engine does
AWAITED_MAX = 8  # members that it names for each


class OpStatus(enum.IntEnum):
    """How an op stands at the peer that answers a flush."""

    RUNNING = 0  # submitted, not ended; `final` says which segments are in the destination
    STABLE = 1  # ended here, and known to be held whole by all members
    RAISED = 2  # ended here with an error


# ---------------------------------------------------------------- peer -> coordinator


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of each connection, and again after every reconnect (R14).

    epoch: 0 for a newcomer, else the installed view's. stopped: has answered a flush of that epoch.
    holding: the admission round it holds for, or None. host, port: where its engine listens.
    min_members: how many this peer wants in the first view. nonce: 16 random bytes.
    proof: HMAC-SHA256 under the run secret (see encoding.hello_proof), or empty without a secret.
    deadline_ms: what this peer gives its ops; 0: it does not say.
    """

    run: str
    peer: PeerId
    name: str
    group: str
    host: str
    port: int
    min_members: int
    epoch: int
    stopped: bool
    holding: Round | None
    nonce: bytes
    proof: bytes
    deadline_ms: int = 0


@dataclass(frozen=True, slots=True)
class Lost:
    """A data link in use to `other` broke, or cannot be made (evidence, not a verdict)."""

    epoch: int
    other: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Timeout:
    """The caller's deadline on `op` passed: asks for a verdict, taken at a flush (R1).
    detail: the blame line, who is waited for and how many bytes are missing, as seen here."""

    epoch: int
    op: int
    detail: str


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Peer and `other` submitted `op` with different descriptors: `field` is `mine` here and
    `theirs` there. Treated like a time-out that aborts with UsageError."""

    epoch: int
    op: int
    other: PeerId
    field: str
    mine: str
    theirs: str


@dataclass(frozen=True, slots=True)
class Refresh:
    """The peer's table of ended named ops is full: asks for a view change that clears it."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Leave:
    """Wishes to leave; its own ops have ended. It serves and answers until `Bye`."""

    epoch: int


@dataclass(frozen=True, slots=True)
class OpReport:
    """One op in an Answer. op: engine op id; segments: how many it has; final: bitmap, bit i (least
    significant first) is segment i; on_loss: what the loss of a participant does to it; root: the
    peer that it cannot do without (the source of a broadcast or scatter, the destination of a
    reduce, gather or send), else 0; among: its participants as a bitmap over the group's ring in
    the record of the answer's epoch, b"" for the whole group; timed_out: the caller's deadline has
    passed; code, text: of the error if RAISED.

    For exchanges (on_loss.is_exchange) segments is the length of that ring, and bit r of final says
    "I hold all that ring member r is to send me", set for those that send nothing."""

    op: int
    status: OpStatus
    segments: int
    final: bytes
    on_loss: OnLoss
    root: PeerId
    among: bytes
    timed_out: bool
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """To `Flush(epoch)`. submitted: unnamed ops submitted in this line; stable: every unnamed op up
    to it is known to be held by all; contexts: (context, stable) likewise for contexts other than
    0, each once, where "all" are an op's participants; ops: all others that are submitted and not
    forgotten; unreachable: members to which this peer has a broken link; leaving: wishes to
    leave."""

    epoch: int
    submitted: int
    stable: int
    contexts: tuple[tuple[int, int], ...]
    ops: tuple[OpReport, ...]
    unreachable: tuple[PeerId, ...]
    leaving: bool


@dataclass(frozen=True, slots=True)
class Sp:
    """To `Ask`: the peer holds now; it has passed the safe point `passed` (-1: none yet) and has
    submitted `submitted` ops in this line (named ones included)."""

    epoch: int
    round: Round
    passed: int
    submitted: int


@dataclass(frozen=True, slots=True)
class At:
    """The peer stands at a safe point at or after the target and all its ops have ended (R19)."""

    epoch: int
    round: Round
    position: int


@dataclass(frozen=True, slots=True)
class Repaired:
    """All segments that the view's plan asked of this peer are final here."""

    epoch: int


@dataclass(frozen=True, slots=True)
class StateKey:
    """One tensor of the shared state: digest is XXH3-128 over dtype, shape and bytes."""

    key: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Offer:
    """The peer's shared state at its `seq`-th sync_state call of this line. greeting: how many
    Hellos the peer has said. The outcome gives it back; one that gives back another was sent on a
    former connection, maybe by a former life of K, and is ignored."""

    epoch: int
    seq: int
    revision: int
    keys: tuple[StateKey, ...]
    greeting: int


@dataclass(frozen=True, slots=True)
class Elected:
    """The outcome of sync_state call `seq` as the peer was told it, the last that it knows of; said
    in place of an Offer, so that a new life of K elects nothing else. error: of a StateError (then
    there is neither donor nor dirty key), or empty."""

    epoch: int
    seq: int
    revision: int
    donor: PeerId
    dirty: tuple[str, ...]
    error: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What the peer has measured to others of its group, all that it knows. It outlives views, so K
    takes it whatever its epoch; what it says of strangers is ignored."""

    epoch: int
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class InFlight:
    """To `Inspect(round)`: the ops that somebody waits for here, the oldest OPS_IN_FLIGHT_MAX of
    them, and how many there are in all. Nothing but people's curiosity depends on it, so it is
    taken whatever its epoch."""

    epoch: int
    round: Round
    ops: tuple[OpInFlight, ...]
    running: int


# ---------------------------------------------------------------- coordinator -> peer


@dataclass(frozen=True, slots=True)
class Refused:
    """Hello was not accepted; code is an errors.Code, text says what to do."""

    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """To a newcomer, a held member or one in sync_state, now and then: who or what is awaited, for
    people."""

    text: str


@dataclass(frozen=True, slots=True)
class Install:
    record: Record


@dataclass(frozen=True, slots=True)
class Flush:
    epoch: int


@dataclass(frozen=True, slots=True)
class Ask:
    epoch: int
    round: Round


@dataclass(frozen=True, slots=True)
class Target:
    epoch: int
    round: Round
    position: int


@dataclass(frozen=True, slots=True)
class Release:
    epoch: int
    round: Round


@dataclass(frozen=True, slots=True)
class StatePlan:
    """The elected state of one sync: the donor's content is the truth. dirty: the keys that differ
    at some member, sorted; all members broadcast them from `donor`. greeting: of the Offer."""

    epoch: int
    seq: int
    revision: int
    donor: PeerId
    dirty: tuple[str, ...]
    greeting: int


@dataclass(frozen=True, slots=True)
class StateError:
    """The offers of one sync cannot be reconciled (different key sets): UsageError everywhere.
    greeting: of the Offer."""

    epoch: int
    seq: int
    text: str
    greeting: int


@dataclass(frozen=True, slots=True)
class Inspect:
    """Somebody asks for the run's status: how do your ops stand? Answered with one InFlight."""

    round: Round


@dataclass(frozen=True, slots=True)
class Bye:
    """The leaver is out; nobody needs it any more."""


@dataclass(frozen=True, slots=True)
class EvictedMsg:
    """The peer is not a member (any more): join again under a new id."""

    reason: str


# ---------------------------------------------------------------- anyone -> coordinator


@dataclass(frozen=True, slots=True)
class StatusRequest:
    """From `pccl status`: answered with one Status."""

    run: str
    nonce: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class Status:
    """The coordinator's view of the run as a JSON text."""

    json: str


FromPeer = (
    Hello | Lost | Timeout | Mismatch | Refresh | Leave | Answer | Sp | At | Repaired | Offer
    | StatusRequest | Measured | InFlight | Elected
)  # fmt: skip
FromCoordinator = (
    Refused | Waiting | Install | Flush | Ask | Target | Release | StatePlan | StateError | Bye
    | EvictedMsg | Status | Inspect
)  # fmt: skip
Message = FromPeer | FromCoordinator

CODES: dict[int, type[Message]] = {
    1: Hello, 2: Lost, 3: Timeout, 4: Mismatch, 5: Refresh, 6: Leave, 7: Answer, 8: Sp, 9: At,
    10: Repaired, 11: Offer, 12: StatusRequest, 13: Measured,
    14: InFlight, 15: Elected,
    64: Refused, 65: Waiting, 66: Install, 67: Flush, 68: Ask, 69: Target, 70: Release,
    71: StatePlan, 72: StateError, 73: Bye, 74: EvictedMsg, 75: Status,
    76: Inspect,
}  # fmt: skip
"""Wire code of each message. Codes are never reused; 64 and up travel to peers."""
