"""When the journal takes no record: a full disk, an etcd that is away (layer 2).

The shell undoes a step whose record could not be stored and says so (`JournalFailed`); from then on
no flush is begun and no view installed, and all that needs none goes on: running collectives, peers
that come back, state syncs, `pccl status`. Members held for newcomers are let go. Deaths, leaves
and newcomers wait. An op whose time is over meanwhile cannot get a verdict: after the detection
time its caller is told what it would find out without any coordinator.
"""

from __future__ import annotations

from dataclasses import replace

from pccl_py.coordinator import admission
from pccl_py.coordinator.events import Close, JournalFailed
from pccl_py.coordinator.state import State, Trouble, Turn
from pccl_py.errors import Code
from pccl_py.protocol.messages import Refused


def failed(turn: Turn, event: JournalFailed) -> None:
    """A record could not be stored."""
    old = turn.state.trouble
    if old is None:
        turn.note("journal_failed", ("reason", event.reason), grave=True)
    since = turn.now if old is None else old.since
    turn.state = replace(turn.state, trouble=Trouble(since, event.reason))
    admission.release(turn, "the journal takes no record")


def works(turn: Turn) -> None:
    """Records can be stored again: what waits is decided in this same step."""
    trouble = turn.state.trouble
    if trouble is not None:
        turn.state = replace(turn.state, trouble=None)
        turn.note("journal_works", ("after_s", f"{turn.now - trouble.since:.1f}"))


def advance(turn: Turn) -> None:
    """Tell members that wait for a verdict beyond their time that there is none to be had."""
    trouble = turn.state.trouble
    if trouble is None or turn.now < _until(turn.state, trouble):
        return
    text = (
        f"the coordinator can give no verdict: {trouble.reason}; outcomes are unknown, join again "
        "when it can, and synchronise state"
    )
    for peer in turn.state.living():
        connection = turn.state.connection_of.get(peer)
        if peer in turn.soft.overdue and connection is not None:
            turn.send(peer, Refused(Code.COORDINATOR_LOST, text))
            turn.actions.append(Close(connection))
            turn.note("no_verdict", ("peer", str(turn.state.members[peer])))
    turn.soft = replace(turn.soft, overdue=frozenset())


def deadlines(state: State) -> list[float]:
    """When `advance` may have something to do though nothing happens."""
    if state.trouble is None or not state.soft.overdue:
        return []
    return [_until(state, state.trouble)]


def _until(state: State, trouble: Trouble) -> float:
    return trouble.since + state.config.detection_s
