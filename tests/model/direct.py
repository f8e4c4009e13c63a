"""The collectives of the model that go from member to member: all_gather (FIXED), all_to_all
(EXCHANGE), gather and send (TO_ROOT), scatter (FROM_ROOT).

A block travels whole in one DATA frame to each receiver. Who holds all that it is to hold says HAVE
to all others, in each view anew; an op ends when all receivers are known to hold all, so nobody
returns one before. Called by `engine`, whose rules of epochs and flushes hold here too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pccl_py.types import OnLoss

if TYPE_CHECKING:
    from tests.model.engine import Draft, Frame, Op, Value


def at_first(op: Op, me: int) -> tuple[Value | None, ...]:
    """What a member holds when it submits: its own, and what nobody is to send it."""
    root, on_loss = op.spec.root, op.spec.on_loss
    to_come = {
        OnLoss.TO_ROOT: set(op.among) if me == root else set(),
        OnLoss.FROM_ROOT: {root},
    }.get(on_loss, set(op.among)) - {me}
    return tuple(None if peer in to_come else (0, (peer,)) for peer in op.among)


def start(draft: Draft, op: Op) -> None:
    """Send all that this view asks of this member."""
    me = draft.engine.me
    for segment, receiver in _sends(draft, op):
        _send(draft, op, "D", segment, receiver)
    if None not in op.final and me in _receivers(draft, op):
        for other in draft.ring(op):
            if other != me:
                _send(draft, op, "H", 0, other)
    _end(draft, op)


def receive(draft: Draft, op: Op, frame: Frame) -> None:
    if frame.among != op.among:
        draft.say_mismatch(op)
        return
    if frame.type == "H":
        op = replace(op, heard=op.heard | {frame.src})
        draft.put(op)
        _end(draft, op)
    elif op.final[frame.segment] is None:
        final = list(op.final)
        final[frame.segment] = frame.value
        op = replace(op, final=tuple(final))
        draft.put(op)
        if None not in op.final:
            for other in draft.ring(op):
                if other != draft.engine.me:
                    _send(draft, op, "H", 0, other)
        _end(draft, op)


def _sends(draft: Draft, op: Op) -> list[tuple[int, int]]:
    """Which slot of `final` goes to whom."""
    me, root = draft.engine.me, op.spec.root
    others = [peer for peer in draft.ring(op) if peer != me]
    mine = op.among.index(me)
    if op.spec.on_loss is OnLoss.FIXED:
        plans = [draft.plan(op, segment) for segment in range(len(op.among))]
        served = [i for i, (how, owner) in enumerate(plans) if how == "copy" and owner == me]
        return [(segment, other) for segment in served for other in others]
    if op.spec.on_loss is OnLoss.TO_ROOT:
        others = [peer for peer in others if peer == root]
    if op.spec.on_loss is OnLoss.FROM_ROOT and me != root:
        others = []
    return [(mine, other) for other in others]


def _receivers(draft: Draft, op: Op) -> set[int]:
    """Whose HAVE an end needs."""
    ring = set(draft.ring(op))
    if op.spec.on_loss is OnLoss.TO_ROOT:
        return ring & {op.spec.root}
    return ring - {op.spec.root}


def _send(draft: Draft, op: Op, kind: str, segment: int, receiver: int) -> None:
    from tests.model.engine import Frame

    engine = draft.engine
    value = op.final[segment] if kind == "D" else None
    draft.send(
        Frame(
            kind, engine.epoch, op.number, segment, engine.me, receiver,
            value=value, among=op.among,
        )
    )  # fmt: skip


def _end(draft: Draft, op: Op) -> None:
    from tests.model.engine import OK, RUNNING

    heard = op.heard | {draft.engine.me}
    if op.status == RUNNING and None not in op.final and _receivers(draft, op) <= heard:
        draft.end(op, OK)
