"""What can happen to a peer's control side, and what it can want done (layer 2).

`machine.step(state, event, now) -> (state, actions)`. Events come from the control connection, the
engine, the user's thread and the clock; actions go to the control connection, the engine and the
user's waiting thread. Nothing here has behaviour. `now` is monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccl_py.protocol.messages import FromCoordinator, FromPeer, OpReport, StateKey
from pccl_py.types import OpInFlight, Path, PeerId, Record

# ---------------------------------------------------------------- events: control connection


@dataclass(frozen=True, slots=True)
class Connected:
    """The connection finished its handshake (also after each reconnect): say Hello."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection broke; the shell keeps trying to reconnect by itself."""


@dataclass(frozen=True, slots=True)
class Received:
    message: FromCoordinator


# ---------------------------------------------------------------- events: engine


@dataclass(frozen=True, slots=True)
class LinkLost:
    """A data link in use in view `epoch` broke."""

    epoch: int
    other: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class OpTimedOut:
    op: int
    detail: str


@dataclass(frozen=True, slots=True)
class OpSettled:
    """An op that had timed out has ended all the same: no verdict is wanted any more."""

    op: int


@dataclass(frozen=True, slots=True)
class OpMismatched:
    op: int
    other: PeerId
    field: str
    mine: str
    theirs: str


@dataclass(frozen=True, slots=True)
class Flushed:
    """The engine has stopped in `epoch`; its report (see messages.Answer)."""

    epoch: int
    submitted: int
    stable: int
    contexts: tuple[tuple[int, int], ...]
    ops: tuple[OpReport, ...]


@dataclass(frozen=True, slots=True)
class EngineRepaired:
    epoch: int


@dataclass(frozen=True, slots=True)
class EngineFull:
    """The engine's table of ended named ops is full (messages.Refresh)."""


@dataclass(frozen=True, slots=True)
class PathsMeasured:
    """All that the engine knows of its paths to other members, after something has changed."""

    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Inspected:
    """How the ops in flight stand here: the oldest of them, and how many there are in all."""

    ops: tuple[OpInFlight, ...]
    running: int


# ---------------------------------------------------------------- events: the user's thread


@dataclass(frozen=True, slots=True)
class SafePoint:
    """The program called update() at `position` (ops submitted in this line). If the answer is no
    `Hold` action the point is passed; else the user's thread waits for `Resume`."""

    position: int


@dataclass(frozen=True, slots=True)
class Drained:
    """The thread that holds at `position` has seen all its ops end (R19)."""

    position: int


@dataclass(frozen=True, slots=True)
class WantState:
    """sync_state was called for the `seq`-th time in this line."""

    seq: int
    revision: int
    keys: tuple[StateKey, ...]


@dataclass(frozen=True, slots=True)
class ForgetState:
    """The caller of sync_state gave up (its deadline passed); offer it no more."""

    seq: int


@dataclass(frozen=True, slots=True)
class WantLeave:
    """leave() was called and all own ops have ended."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has reached what the last SetTimer asked for."""


Event = (
    Connected | Disconnected | Received | LinkLost | OpTimedOut | OpSettled | OpMismatched | Flushed
    | EngineRepaired | EngineFull | PathsMeasured | Inspected | SafePoint | Drained | WantState
    | ForgetState | WantLeave | Tick
)  # fmt: skip

# ---------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class Send:
    message: FromPeer


@dataclass(frozen=True, slots=True)
class InstallView:
    """Give the record to the engine and make it the communicator's view."""

    record: Record


@dataclass(frozen=True, slots=True)
class FlushEngine:
    epoch: int


@dataclass(frozen=True, slots=True)
class InspectEngine:
    """Ask the engine how its ops stand; an Inspected event follows."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Answer to SafePoint: the user's thread stays, drains its ops, says Drained."""


@dataclass(frozen=True, slots=True)
class Resume:
    """The user's thread at the safe point goes on. grown: a view with newcomers was installed."""

    grown: bool


@dataclass(frozen=True, slots=True)
class StateElected:
    """The outcome of sync_state call `seq`: broadcast `dirty` from `donor`; or an error text."""

    seq: int
    revision: int
    donor: PeerId
    dirty: tuple[str, ...]
    error: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Who or what is awaited, for a waiting join() or update()."""

    text: str


@dataclass(frozen=True, slots=True)
class Left:
    """Bye was received: close everything."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Terminal for this peer id (rule 10): close all links, raise for every op, now and later."""

    code: int
    text: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    at: float | None


@dataclass(frozen=True, slots=True)
class Note:
    name: str
    fields: tuple[tuple[str, str], ...] = ()


Action = (
    Send | InstallView | FlushEngine | InspectEngine | Hold | Resume | StateElected | Progress
    | Left | Fail | SetTimer | Note
)  # fmt: skip
