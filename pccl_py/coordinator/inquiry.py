"""The answer to `pccl status` (layer 2): asks the members how their ops stand, for a moment.

Called by `machine`. In a stable view the coordinator knows nothing of ops; so a StatusRequest makes
an inquiry: Inspect to every member with a connection, and one Status to all who ask meanwhile, when
all have answered or ANSWER_S is over. Who has not answered is named. Nobody asks: no message. What
the answer says is `progress`'.
"""

from __future__ import annotations

from dataclasses import replace

from pccl_py.coordinator import progress
from pccl_py.coordinator.events import Connection, Send
from pccl_py.coordinator.grown import put
from pccl_py.coordinator.state import Inquiry, State, Turn
from pccl_py.protocol.messages import InFlight, Inspect, Status
from pccl_py.types import PeerId

ANSWER_S = 1.0
ASKERS_MAX = 64


def asked(turn: Turn, connection: Connection) -> None:
    """Somebody wants to know. If too many do, this one gets what is known already."""
    inquiry = turn.state.inquiry
    if inquiry is None:
        _begin(turn, connection)
    elif len(inquiry.askers) < ASKERS_MAX:
        askers = (*inquiry.askers, connection)
        turn.state = replace(turn.state, inquiry=replace(inquiry, askers=askers))
    else:
        _tell(turn, (connection,), inquiry)


def answered(turn: Turn, peer: PeerId, message: InFlight) -> None:
    """A member's word; one that comes too late is for nobody."""
    inquiry = turn.state.inquiry
    if inquiry is None or inquiry.round != message.round or peer not in inquiry.awaited:
        return
    answers = put(inquiry.answers, peer, message)
    awaited = inquiry.awaited - {peer}
    turn.state = replace(turn.state, inquiry=replace(inquiry, awaited=awaited, answers=answers))


def advance(turn: Turn) -> None:
    """Answers when all have who can, or when it is time."""
    inquiry = turn.state.inquiry
    if inquiry is None:
        return
    can = inquiry.awaited & turn.state.connection_of.keys()
    if turn.now < inquiry.began + ANSWER_S and any(turn.state.is_living(peer) for peer in can):
        return
    turn.state = replace(turn.state, inquiry=None)
    _tell(turn, inquiry.askers, inquiry)


def deadlines(state: State) -> list[float]:
    """When `advance` may have something to do though nothing happens."""
    return [] if state.inquiry is None else [state.inquiry.began + ANSWER_S]


def _begin(turn: Turn, connection: Connection) -> None:
    state = turn.state
    round_ = (state.boot, state.inquiries + 1)
    awaited = frozenset(peer for peer in state.living() if peer in state.connection_of)
    inquiry = Inquiry(round_, turn.now, (connection,), awaited, {})
    turn.state = replace(state, inquiry=inquiry, inquiries=state.inquiries + 1)
    for peer in state.living():
        if peer in awaited:
            turn.send(peer, Inspect(round_))


def _tell(turn: Turn, askers: tuple[Connection, ...], inquiry: Inquiry) -> None:
    text = progress.status_json(turn.state, turn.now, inquiry.answers)
    turn.actions += [Send(asker, Status(text)) for asker in askers]
