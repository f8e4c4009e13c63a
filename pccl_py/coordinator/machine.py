"""The coordinator as a pure machine (layer 2): (state, event, now) -> (state, actions).

Called by `server` with everything that happens, in order; does no input or output and has no clock.
A handler per message records facts; then `_settle` draws conclusions in a fixed order: deaths,
flush and view, admission, texts for people, the next timer. So a conclusion never depends on which
message brought the last fact.

    Hello          -> attached, newcomer, or out        membership
    Lost, Disconnected, Tick -> evidence, deaths        membership
    Timeout, Mismatch, Refresh, Leave, Repaired         membership (wishes)
    Answer         -> flush complete -> view            membership, views, verdicts
    Sp, At         -> safe point -> larger view         admission
    Offer, Elected -> StatePlan                         shared_state
    Measured       -> routes, now or at the next view   routes
    StatusRequest  -> Inspect; InFlight -> Status       inquiry
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from pccl_py.coordinator import (
    admission,
    faults,
    inquiry,
    invariants,
    membership,
    progress,
    routes,
    shared_state,
    trouble,
    views,
)
from pccl_py.coordinator.events import (
    Action,
    Close,
    Connection,
    Disconnected,
    Event,
    JournalFailed,
    JournalWorks,
    Received,
    Send,
    SetTimer,
    Started,
    Tick,
)
from pccl_py.coordinator.state import State, Turn
from pccl_py.errors import Code
from pccl_py.protocol.messages import (
    Answer,
    At,
    Elected,
    FromPeer,
    Hello,
    InFlight,
    Leave,
    Lost,
    Measured,
    Mismatch,
    Offer,
    Refresh,
    Refused,
    Repaired,
    Sp,
    StatusRequest,
    Timeout,
)

__all__ = ["step"]


def step(state: State, event: Event, now: float) -> tuple[State, tuple[Action, ...]]:
    """What the coordinator knows and does after `event`. `now`: monotonic seconds, never less than
    in the step before. Never raises for anything that a peer can send."""
    turn = Turn(state, now, [])
    match event:
        case Started():
            membership.started(turn, event)
        case Received(connection=connection, message=message):
            _receive(turn, connection, message)
        case Disconnected():
            membership.disconnected(turn, event)
        case JournalFailed():
            trouble.failed(turn, event)
        case JournalWorks():
            trouble.works(turn)
        case Tick():  # it is used up, also if it came a little early: ask again
            turn.state = replace(turn.state, timer=None)
        case _:
            assert_never(event)
    _settle(turn)
    actions = tuple(turn.actions)
    invariants.cheap(state, turn.state, actions)
    return turn.state, actions


def _receive(turn: Turn, connection: Connection, message: FromPeer) -> None:
    fault = faults.find(message)
    if fault:
        turn.actions += [Send(connection, Refused(Code.PROTOCOL, fault)), Close(connection)]
        turn.note("refused", ("text", fault))
        membership.disconnected(turn, Disconnected(connection, fault))
        return
    if isinstance(message, Hello):
        membership.hello(turn, connection, message)
        return
    if isinstance(message, StatusRequest):
        if turn.state.run is not None and message.run and message.run != turn.state.run:
            membership.refuse(turn, connection, Code.USAGE, membership.WRONG_RUN)
        else:
            inquiry.asked(turn, connection)
        return
    peer = turn.state.peer_of.get(connection)
    if peer is None or not turn.state.is_living(peer):
        return  # unknown or suspected: ignored
    if isinstance(message, Measured):
        routes.measured(turn, peer, message)
        return
    if isinstance(message, InFlight):
        inquiry.answered(turn, peer, message)
        return
    if message.epoch != turn.state.epoch:
        return  # stale
    match message:
        case Lost():
            membership.lost(turn, peer, message)
        case Timeout() | Mismatch() | Refresh() | Leave() | Repaired():
            membership.wish(turn, peer, message)
        case Answer():
            membership.answered(turn, peer, message)
        case Sp():
            admission.sp(turn, peer, message)
        case At():
            admission.at(turn, peer, message)
        case Offer():
            shared_state.offered(turn, peer, message)
        case Elected():
            shared_state.known(turn, peer, message)
        case _:
            assert_never(message)


def _settle(turn: Turn) -> None:
    membership.expire(turn)
    routes.advance(turn)
    views.advance(turn)
    trouble.advance(turn)
    admission.advance(turn)
    progress.tell(turn)
    inquiry.advance(turn)
    state = turn.state
    times = [
        *membership.deadlines(state),
        *views.deadlines(state),
        *trouble.deadlines(state),
        *admission.deadlines(state),
        *routes.deadlines(state),
        *progress.deadlines(state),
        *inquiry.deadlines(state),
    ]
    # what is due was looked at just now; if it could not be acted on, an event will change that
    at = min((time for time in times if time > turn.now), default=None)
    if at != state.timer:
        turn.state = replace(state, timer=at)
        turn.actions.append(SetTimer(at))
