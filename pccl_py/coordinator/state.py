"""What the coordinator knows (layer 2): frozen values, and nothing that decides.

Only `record` (journaled) must survive a crash; everything else is soft: it may vanish at any step
and peers say it again (VIEWS R14, R15). What is true for one epoch only lives in `Soft` and is
thrown away whole with the view. `Turn` is one step under way; it never leaves `machine.step`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter

from pccl_py.coordinator.events import Action, Connection, Note, Send
from pccl_py.protocol.messages import (
    Answer,
    Elected,
    FromCoordinator,
    InFlight,
    Mismatch,
    Offer,
    Round,
    Sp,
)
from pccl_py.types import Member, Path, PeerId, Record

PENDING_MAX = 4096
FORMER_MAX = 65536
EXCLUDED_MAX = 4096
KEYS_MAX = 65536
OPS_MAX = 8192
SEGMENTS_MAX = 65536
GROUP_MAX = 1024
CONTEXT_MAX = 1 << 31
PLANS_MAX = 64
PATHS_MAX = 1 << 18
WISHES_MAX = 8192

PATIENCE_SHARE = 0.4  # of detection_s: how long wishes wait for a plan to be carried out
ABSENCE_SHARE = 0.4  # of detection_s: how long a lost control connection may take to come back
OUT_OF_REACH_SHARE = 0.1  # of detection_s: how long who has no data link may take to answer a flush
EDGE_GRACE_S = 0.2  # a lost link is a broken edge only if neither end's control breaks by then
CHANCE_S = 60.0  # so long an edge that broke again is taken for broken, whoever is dropped for it
EARLY_HOLD_S = 0.25  # how long a member is kept at a repeated safe point that not all stand at
LEFT = "left"  # in `former`: gone with a Bye

OpKey = tuple[str, int]  # (group, op id)
Edge = tuple[PeerId, PeerId]


@dataclass(frozen=True, slots=True)
class Config:
    """run: None adopts the first joiner's. Times in seconds. strict: the deadline was asked for, it
    is not the default: peers whose own does not go with it are refused."""

    run: str | None
    detection_s: float
    deadline_s: float
    progress_s: float = 5.0
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Newcomer:
    member: Member
    min_members: int


@dataclass(frozen=True, slots=True)
class Evidence:
    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Rolled:
    """A timed-out op that goes on. late: the members that had timed out when that was decided;
    their engines give the op one more deadline. until: when it is over for the coordinator."""

    until: float
    late: frozenset[PeerId]


@dataclass(frozen=True, slots=True)
class FlushRun:
    """A flush under way. asked: the members that must answer; answers: of such only."""

    started: float
    reason: str
    asked: frozenset[PeerId]
    answers: Mapping[PeerId, Answer]

    @property
    def awaited(self) -> frozenset[PeerId]:
        """Who has not answered; costs time proportional to the members."""
        return self.asked - self.answers.keys()

    @property
    def is_answered(self) -> bool:
        return len(self.answers) == len(self.asked)


@dataclass(frozen=True, slots=True)
class Admission:
    """An admission round. targets: per group, once all have said Sp; early_since: when the first
    member came to stand at a repeated safe point below its target."""

    round: Round
    started: float
    sps: Mapping[PeerId, Sp]
    targets: Mapping[str, int] | None
    ats: Mapping[PeerId, int]
    early_since: float | None


@dataclass(frozen=True, slots=True)
class Trouble:
    """The journal takes no record, since when and why: no new view until it does."""

    since: float
    reason: str


@dataclass(frozen=True, slots=True)
class Inquiry:
    """Members are being asked how their ops stand. askers: who wants to know; awaited: members that
    have not answered."""

    round: Round
    began: float
    askers: tuple[Connection, ...]
    awaited: frozenset[PeerId]
    answers: Mapping[PeerId, InFlight]


@dataclass(frozen=True, slots=True)
class Soft:
    """What is true in one epoch only.

    gone: members that are dead, overdue or have left, and why. evidence: (reporter, other) -> a
    lost link. stopped: a member stands in a flush that this life knows nothing of (R14).
    timeouts, mismatches: wishes for a verdict, with who asked. overdue: who has asked for one
    because of the time. wished: when the first wish came.
    offers_told: how many had offered when the others were last named to them; offers_since: when
    that came to be out of date.
    reroute: why a view with other routes is wished for.
    """

    gone: Mapping[PeerId, str] = field(default_factory=dict)
    evidence: Mapping[Edge, Evidence] = field(default_factory=dict)
    stopped: bool = False
    timeouts: Mapping[OpKey, tuple[PeerId, str]] = field(default_factory=dict)
    overdue: frozenset[PeerId] = frozenset()
    mismatches: Mapping[OpKey, tuple[PeerId, Mismatch]] = field(default_factory=dict)
    leaving: frozenset[PeerId] = frozenset()
    refresh: bool = False
    reroute: str = ""
    wished: float | None = None
    repaired: frozenset[PeerId] = frozenset()
    flush: FlushRun | None = None
    admission: Admission | None = None
    offers: Mapping[OpKey, Mapping[PeerId, Offer]] = field(default_factory=dict)
    offers_told: Mapping[OpKey, int] = field(default_factory=dict)
    offers_since: float | None = None


@dataclass(frozen=True, slots=True)
class State:
    """members: of `record`, by id, in order of joining. shrunk: there may have been more in this
    line. newcomers: who may still be at epoch 0 in this record. absent_until: members and pending
    peers without a connection, and when that makes them dead. unheard: members of a former life's
    record that have not said Hello in this one, and until when a lost link of theirs is no death:
    this coordinator was away, not they. deadlines: seconds that connected peers give their ops,
    where they say. former: ids that were members once, and why not now (R12). rolled: timed-out ops
    that were rolled forward. plans: decided state elections of this line. measured: by whom, to
    whom. judge_at: when to see whether other routes are worth a view; rerouted_at: when they last
    were. chances: edges that members were asked to link over again, since somebody would have
    been dropped for them, and when. retry_at: no admission round before. inquiry: under way;
    inquiries: so many began.
    trouble: with the journal. told, told_at: the last Waiting; looked_at: when its text was last
    made; untold: pending peers that have heard nothing yet."""

    config: Config
    boot: int = 0
    run: str | None = None
    record: Record | None = None
    members: Mapping[PeerId, Member] = field(default_factory=dict)
    shrunk: bool = False
    newcomers: frozenset[PeerId] = frozenset()
    peer_of: Mapping[Connection, PeerId] = field(default_factory=dict)
    connection_of: Mapping[PeerId, Connection] = field(default_factory=dict)
    absent_until: Mapping[PeerId, float] = field(default_factory=dict)
    deadlines: Mapping[PeerId, float] = field(default_factory=dict)
    unheard: Mapping[PeerId, float] = field(default_factory=dict)
    pending: Mapping[PeerId, Newcomer] = field(default_factory=dict)
    former: Mapping[PeerId, str] = field(default_factory=dict)
    rolled: Mapping[OpKey, Rolled] = field(default_factory=dict)
    plans: Mapping[OpKey, Elected] = field(default_factory=dict)
    measured: Mapping[PeerId, Mapping[PeerId, Path]] = field(default_factory=dict)
    judge_at: float | None = None
    rerouted_at: float = float("-inf")
    chances: Mapping[Edge, float] = field(default_factory=dict)
    rounds: int = 0
    inquiry: Inquiry | None = None
    inquiries: int = 0
    retry_at: float = 0.0
    trouble: Trouble | None = None
    disagreement: str = ""
    untold: frozenset[PeerId] = frozenset()
    told: str = ""
    told_at: float = 0.0
    looked_at: float = 0.0
    timer: float | None = None
    soft: Soft = field(default_factory=Soft)

    @property
    def epoch(self) -> int:
        return self.record.epoch if self.record is not None else 0

    @property
    def living_count(self) -> int:
        return len(self.members) - len(self.soft.gone)

    def is_living(self, peer: PeerId) -> bool:
        return peer in self.members and peer not in self.soft.gone

    def living(self) -> tuple[PeerId, ...]:
        """Members not gone, in order of joining."""
        return tuple(peer for peer in self.members if peer not in self.soft.gone)


_NAMES = tuple(each.name for each in fields(State))
_VALUES = attrgetter(*_NAMES)


def initial(config: Config) -> State:
    """The state before the first event, which must be `Started`."""
    return State(config, run=config.run)


@dataclass(slots=True)
class Turn:
    """One step under way: the state so far and the actions so far."""

    state: State
    now: float
    actions: list[Action]

    @property
    def soft(self) -> Soft:
        return self.state.soft

    @soft.setter
    def soft(self, soft: Soft) -> None:
        # Set for each message of each member; `replace` would ask every field what it is.
        values = dict(zip(_NAMES, _VALUES(self.state), strict=True))
        values["soft"] = soft
        self.state = State(**values)

    def send(self, peer: PeerId, message: FromCoordinator) -> None:
        """To a peer that is connected; to one that is not, nothing: Hello brings it up to date."""
        connection = self.state.connection_of.get(peer)
        if connection is not None:
            self.actions.append(Send(connection, message))

    def note(self, name: str, *fields: tuple[str, str], grave: bool = False) -> None:
        self.actions.append(Note(name, fields, grave))
