"""Named properties that hold after every step of the coordinator (layer 2).

`cheap` runs always, in `machine.step`; `check` is for tests and costs time proportional to the
state. A violation is a bug of ours: AssertionError with the property's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pccl_py.coordinator.events import Action, Journal, Send
from pccl_py.coordinator.state import FORMER_MAX, PENDING_MAX, State
from pccl_py.protocol.messages import Install
from pccl_py.types import Outcome


def cheap(before: State, after: State, actions: Sequence[Action]) -> None:
    """The properties that cost next to nothing."""
    assert after.epoch >= before.epoch or before.record is None, "epochs only grow"
    both = after.soft.flush is not None and after.soft.admission is not None
    assert not both, "no admission during a flush"
    if after.trouble is not None:
        assert after.record is before.record, "no view that cannot be stored"
    assert len(after.pending) <= PENDING_MAX, "bounded"
    assert len(after.former) <= FORMER_MAX, "bounded"
    if after.record is not before.record and before.record is not None:
        assert after.epoch == before.epoch + 1, "one view at a time"


def check(before: State, after: State, actions: Sequence[Action]) -> None:
    """All properties; for tests."""
    cheap(before, after, actions)
    for name, holds in PROPERTIES.items():
        assert holds(before, after, actions), name


def _journal_before_send(before: State, after: State, actions: Sequence[Action]) -> bool:
    durable = before.record
    for action in actions:
        if isinstance(action, Journal):
            durable = action.record
        elif isinstance(action, Send) and isinstance(action.message, Install):
            whole = action.message.record == durable
            if not whole:
                return False
    return durable == after.record or before.boot != after.boot


def _rings_are_members(before: State, after: State, actions: Sequence[Action]) -> bool:
    record = after.record
    if record is None:
        return True
    in_groups = {m.peer: m.group for m in record.members}
    in_rings = {peer: group.group for group in record.groups for peer in group.ring}
    total = sum(len(group.ring) for group in record.groups)
    return in_groups == in_rings and total == len(record.members)


def _broken_edges_have_relays(before: State, after: State, actions: Sequence[Action]) -> bool:
    """Also where the ring avoids all of them: other ops go from member to member."""
    record = after.record
    if record is None:
        return True
    broken = {*record.excluded, *((b, a) for a, b in record.excluded)}
    rings = [set(group.ring) for group in record.groups]
    return all(
        any((one, via) not in broken and (via, other) not in broken for via in ring)
        for one, other in record.excluded
        for ring in rings
        if one in ring and other in ring
    )


def _hubs_are_sound(before: State, after: State, actions: Sequence[Action]) -> bool:
    """A hub reaches all: it is in its group's ring, whose members have no broken edge."""
    record = after.record
    return record is None or all(
        not group.hub
        or (
            group.hub in group.ring
            and not any(set(pair) <= set(group.ring) for pair in record.excluded)
        )
        for group in record.groups
    )


def _members_keep_their_order(before: State, after: State, actions: Sequence[Action]) -> bool:
    old = [p for p in before.members if p in after.members]
    return old == [p for p in after.members if p in before.members]


def _only_safe_points_grow(before: State, after: State, actions: Sequence[Action]) -> bool:
    if before.record is None or after.record is None or after.record is before.record:
        return True
    grown = bool(after.members.keys() - before.members.keys())
    same_line = after.record.line == before.record.line
    return after.record.fresh == grown and same_line != grown


def _holders_are_in_the_ring(before: State, after: State, actions: Sequence[Action]) -> bool:
    record = after.record
    return record is None or all(
        holder < len(group.ring) and (not verdict.holders or verdict.outcome is Outcome.RUN)
        for group in record.groups
        for verdict in group.verdicts
        for holder in verdict.holders
    )


def _fresh_views_have_no_past(before: State, after: State, actions: Sequence[Action]) -> bool:
    record = after.record
    if record is None or not record.fresh:
        return True
    return not any(group.verdicts or group.stable for group in record.groups)


def _nobody_is_two_things(before: State, after: State, actions: Sequence[Action]) -> bool:
    return not (
        after.pending.keys() & after.members.keys()
        or after.pending.keys() & after.former.keys()
        or after.connection_of.keys() & after.absent_until.keys()
    )


def _soft_state_is_of_the_living(before: State, after: State, actions: Sequence[Action]) -> bool:
    soft = after.soft
    living = set(after.living())
    if not living >= soft.repaired or not living >= soft.leaving:
        return False
    flush = soft.flush
    if flush is not None and not (living == flush.asked >= flush.answers.keys()):
        return False
    if soft.admission is not None:
        return living >= soft.admission.sps.keys() | soft.admission.ats.keys()
    return soft.gone.keys() <= after.members.keys()


def _connections_agree(before: State, after: State, actions: Sequence[Action]) -> bool:
    return all(after.peer_of.get(c) == peer for peer, c in after.connection_of.items())


PROPERTIES: dict[str, Callable[[State, State, Sequence[Action]], bool]] = {
    "a view is journaled before it is sent, whole (R9)": _journal_before_send,
    "each group's ring has each of its members once": _rings_are_members,
    "each broken edge in a group has a member beside it that reaches both ends (R3)": (
        _broken_edges_have_relays
    ),
    "a hub is a member that reaches all": _hubs_are_sound,
    "order of joining never changes": _members_keep_their_order,
    "only a fresh line has new members": _only_safe_points_grow,
    "holders are places in the ring": _holders_are_in_the_ring,
    "a new line begins without a past (R11)": _fresh_views_have_no_past,
    "nobody is two things": _nobody_is_two_things,
    "soft state speaks of the living": _soft_state_is_of_the_living,
    "connections agree": _connections_agree,
}
