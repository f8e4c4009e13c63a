"""What a peer's control side knows (layer 2): frozen values, and nothing that decides.

Everything a peer asks of the coordinator is kept here as a fact for as long as it holds, so that it
can be said again after each Hello and each install (VIEWS R15). `Turn` is one step under way; it
never leaves `machine.step`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pccl_py.peer.events import Action, OpMismatched, Send, StateElected, WantState
from pccl_py.protocol.messages import FromPeer, Hello, Round
from pccl_py.types import Path, PeerId, Record

WISHES_MAX = 1024


class End(enum.Enum):
    """Whether this peer's part is over."""

    NO = 0
    LEFT = 1
    FAILED = 2


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this peer is, as Hello says it. host, port: where its engine listens."""

    run: str
    peer: PeerId
    name: str
    group: str
    host: str
    port: int
    min_members: int
    deadline_ms: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """The user's thread is held in update() at `position`. repeated: that position was passed
    before (a loop that waits for others); drained: all its ops have ended."""

    position: int
    repeated: bool
    drained: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """away_since: since when there is no connection, None while there is one. stopped: the engine
    was flushed in this epoch. passed: the last safe point that the program went through. round,
    target: of the admission round that this peer holds for. lost: other -> reason. timed_out:
    op -> blame line. greetings: how often it has said Hello. elected: the last election that is
    known here (another member may have missed it, and the coordinator may have forgotten). paths:
    as last measured; paths_told: what the coordinator has been told of them, and when; tell_at:
    when to tell it again, None: no need. inspecting: which inquiry of the coordinator waits for the
    engine's word.
    """

    identity: Identity
    detection_s: float
    connected: bool = False
    greetings: int = 0
    away_since: float | None = None
    record: Record | None = None
    stopped: bool = False
    passed: int = -1
    round: Round | None = None
    target: int | None = None
    standing: Standing | None = None
    lost: Mapping[PeerId, str] = field(default_factory=dict)
    timed_out: Mapping[int, str] = field(default_factory=dict)
    mismatched: Mapping[int, OpMismatched] = field(default_factory=dict)
    repaired: bool = False
    full: bool = False
    leaving: bool = False
    offers: tuple[WantState, ...] = ()
    elected: StateElected | None = None
    paths: Mapping[PeerId, Path] = field(default_factory=dict)
    paths_told: Mapping[PeerId, Path] = field(default_factory=dict)
    paths_told_at: float = 0.0
    inspecting: Round | None = None
    tell_at: float | None = None
    timer: float | None = None
    end: End = End.NO

    @property
    def epoch(self) -> int:
        return self.record.epoch if self.record is not None else 0


def initial(
    *,
    run: str,
    peer: PeerId,
    name: str,
    group: str,
    host: str,
    port: int,
    min_members: int,
    detection_s: float,
    deadline_s: float = 0.0,
) -> State:
    """The state of a peer that has not connected yet. detection_s: see DESIGN §2, derived times.
    deadline_s: of its ops, told to the coordinator; 0: not told."""
    deadline_ms = int(1000 * deadline_s)
    who = Identity(run, peer, name, group, host, port, min_members, deadline_ms)
    return State(who, detection_s)


@dataclass(slots=True)
class Turn:
    """One step under way: the state so far and the actions so far."""

    state: State
    now: float
    actions: list[Action]

    def send(self, message: FromPeer) -> None:
        """To the coordinator, if there is a connection and, but for Hello, a view; if not, Hello
        and what follows it, or the install, says all that still holds."""
        if self.state.connected and (self.state.record is not None or isinstance(message, Hello)):
            self.actions.append(Send(message))

    def resume_at(self) -> None:
        """The user's thread, if held, has gone through the safe point where it stood."""
        if self.state.standing is not None:
            position = self.state.standing.position
            self.state = replace(self.state, passed=position, standing=None)
