"""Safe points as one peer sees them (layer 2; VIEWS peer rule 8).

Called by `machine` for Ask, Target, Release, SafePoint and Drained. A safe point is a position, the
number of ops submitted in this line. Without a round update() passes at once; from `Ask` on it is
held until the target is known, below the target it is passed, at or beyond it is held until the
round ends. A position that was passed before is held too: the program waits there for others, and
the coordinator may take it as it stands, or takes the round back.
"""

from __future__ import annotations

from dataclasses import replace

from pccl_py.peer.events import Drained, Hold, Resume, SafePoint
from pccl_py.peer.state import Standing, State, Turn
from pccl_py.protocol.messages import Ask, At, Release, Sp, Target


def asked(turn: Turn, message: Ask) -> None:
    """Hold from now on (R20), and say where this peer is."""
    state = turn.state
    if state.round is not None and message.round < state.round:
        return
    if message.round != state.round:
        turn.state = replace(state, round=message.round, target=None)
    standing = turn.state.standing
    passed = turn.state.passed
    submitted = standing.position if standing is not None else max(passed, 0)
    turn.send(Sp(message.epoch, message.round, passed, submitted))


def targeted(turn: Turn, message: Target) -> None:
    """Pass what lies before the target, stand at it."""
    if message.round != turn.state.round:
        return
    turn.state = replace(turn.state, target=message.position)
    standing = turn.state.standing
    if standing is not None and not _must_stand(turn.state, standing):
        turn.resume_at()
        turn.actions.append(Resume(grown=False))
    else:
        say_at(turn)


def released(turn: Turn, message: Release) -> None:
    """The round is over without newcomers (R16)."""
    if turn.state.round is None or message.round < turn.state.round:
        return
    turn.state = replace(turn.state, round=None, target=None)
    if turn.state.standing is not None:
        turn.resume_at()
        turn.actions.append(Resume(grown=False))


def safe_point(turn: Turn, event: SafePoint) -> None:
    """The program calls update()."""
    state = turn.state
    standing = Standing(event.position, repeated=event.position == state.passed)
    if state.round is None or not _must_stand(state, standing):
        turn.state = replace(state, passed=event.position)
        return
    turn.state = replace(state, standing=standing)
    turn.actions.append(Hold())


def drained(turn: Turn, event: Drained) -> None:
    """All ops of the held program have ended (R19)."""
    standing = turn.state.standing
    if standing is not None and standing.position == event.position:
        turn.state = replace(turn.state, standing=replace(standing, drained=True))
        say_at(turn)


def say_at(turn: Turn) -> None:
    """Tell that this peer stands at a safe point, if it does and the target is known."""
    state = turn.state
    standing = state.standing
    if state.round is None or state.target is None:
        return
    if standing is not None and standing.drained:
        turn.send(At(state.epoch, state.round, standing.position))


def _must_stand(state: State, standing: Standing) -> bool:
    return state.target is None or standing.repeated or standing.position >= state.target
