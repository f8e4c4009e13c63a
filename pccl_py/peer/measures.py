"""When a peer tells the coordinator what it has measured (layer 2).

Called by `machine` for each sample of the engine in which something has changed, and at the end of
each step. Who has only near members on fast paths says nothing, as no route is better than another
there, and a quiet run costs no message. Else all that is known is told, first when there is a path
to every member (or some time has passed), then when something is clearly other than was told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pccl_py.peer.events import PathsMeasured
from pccl_py.peer.state import State, Turn
from pccl_py.protocol.messages import Measured
from pccl_py.types import Path, PeerId

NEAR_US = 1_000  # differences below do not matter to anybody
SLOW_RATE = 125_000_000  # bytes a second: rates matter where some path carries less
CHANGE = 0.25
PACE_S = 10.0


def measured(turn: Turn, event: PathsMeasured) -> None:
    """Take the sample; note when it is to be told, if it is."""
    state = turn.state
    if state.record is None:
        return
    group = state.identity.group
    mates = {m.peer for m in state.record.members if m.group == group} - {state.identity.peer}
    known = {path.peer: path for path in event.paths if path.peer in mates}
    state = replace(state, paths=known)
    if not (_is_worth_telling(known) and _is_news(known, state.paths_told)):
        turn.state = replace(state, tell_at=None)
        return
    if state.paths_told:
        at = state.paths_told_at + PACE_S
    else:
        at = turn.now if len(known) == len(mates) else turn.now + PACE_S
    if state.tell_at is not None:
        at = min(at, state.tell_at)
    turn.state = replace(state, tell_at=at)


def forgotten(turn: Turn) -> None:
    """There is a new connection, perhaps to a coordinator that knows nothing: tell it again."""
    state = turn.state
    again = turn.now if state.paths_told else state.tell_at
    turn.state = replace(state, paths_told={}, tell_at=again)


def advance(turn: Turn) -> None:
    """Tell, if it is time."""
    state = turn.state
    if state.tell_at is None or turn.now < state.tell_at or not state.connected:
        return
    paths = tuple(state.paths.values())
    turn.send(Measured(state.epoch, paths))
    turn.state = replace(state, paths_told=state.paths, paths_told_at=turn.now, tell_at=None)


def deadline(state: State) -> float | None:
    """When `advance` has something to do though nothing happens."""
    return state.tell_at if state.connected else None


def _is_worth_telling(known: Mapping[PeerId, Path]) -> bool:
    return any(path.rtt_us >= NEAR_US or 0 < path.rate < SLOW_RATE for path in known.values())


def _is_news(known: Mapping[PeerId, Path], told: Mapping[PeerId, Path]) -> bool:
    slow = any(0 < path.rate < SLOW_RATE for path in known.values())
    for peer, path in known.items():
        before = told.get(peer)
        if before is None or (slow and _differs(before.rate, path.rate)):
            return True
        apart_us = abs(before.rtt_us - path.rtt_us)
        if apart_us >= NEAR_US and _differs(before.rtt_us, path.rtt_us):
            return True
    return False


def _differs(a: int, b: int) -> bool:
    return abs(a - b) > CHANGE * min(a, b)
