"""Whose shared state is the truth (layer 2): one election per sync_state call of a group.

Called by `machine` per Offer. When all members of a group have offered, the highest revision wins;
within it the commonest content; ties go to who joined first; among equals the donor is who joined
first. The decision is a pure function of offers and order of joining, and is remembered for the
line: a member that missed it (its connection broke, the view changed) offers again and is told the
same. Tensor bytes never come here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from pccl_py.coordinator.grown import put
from pccl_py.coordinator.state import PLANS_MAX, State, Turn
from pccl_py.protocol.messages import Offer, StateError, StatePlan
from pccl_py.types import Member, PeerId


def offered(turn: Turn, peer: PeerId, message: Offer) -> None:
    """Count an offer; answer it if the election is over, hold the election if it is the last."""
    state = turn.state
    key = (state.members[peer].group, message.seq)
    decided = state.plans.get(key)
    if decided is not None:
        turn.send(peer, replace(decided, epoch=state.epoch))
        return
    soft = turn.soft
    if key not in soft.offers and len(soft.offers) >= PLANS_MAX:
        turn.note("ignored", ("what", "too many state elections at once"))
        return
    offers = put(soft.offers.get(key, {}), peer, message)
    turn.soft = replace(soft, offers=put(soft.offers, key, offers))
    group = _group(turn.state, key[0])
    if all(member.peer in offers for member in group):
        _elect(turn, key, group, offers)


def _group(state: State, group: str) -> list[Member]:
    members = (state.members[peer] for peer in state.living())
    return [member for member in members if member.group == group]


def _elect(
    turn: Turn, key: tuple[str, int], group: list[Member], offers: Mapping[PeerId, Offer]
) -> None:
    outcome = elect(turn.state.epoch, group, offers)
    plans = put(turn.state.plans, key, outcome)
    for old in list(plans)[: max(0, len(plans) - PLANS_MAX)]:
        plans = {k: plan for k, plan in plans.items() if k != old}
    turn.state = replace(turn.state, plans=plans)
    soft = turn.soft
    turn.soft = replace(soft, offers={k: o for k, o in soft.offers.items() if k != key})
    for member in group:
        turn.send(member.peer, outcome)
    match outcome:
        case StatePlan(donor=donor, dirty=dirty, revision=revision):
            fields = (("donor", f"{donor:016x}"), ("dirty", str(len(dirty))))
            turn.note("state", ("revision", str(revision)), *fields)
        case StateError(text=text):
            turn.note("state refused", ("text", text))


def elect(
    epoch: int, group: list[Member], offers: Mapping[PeerId, Offer]
) -> StatePlan | StateError:
    """The outcome for a group (members in order of joining), all of whom have offered."""
    seq = offers[group[0].peer].seq
    contents = {m.peer: {k.key: k.digest for k in offers[m.peer].keys} for m in group}
    error = _different_keys(group, contents)
    if error:
        return StateError(epoch, seq, error)
    revision = max(offers[member.peer].revision for member in group)
    candidates = [m.peer for m in group if offers[m.peer].revision == revision]
    whole = {peer: tuple(sorted(contents[peer].items())) for peer in candidates}
    votes = Counter(whole.values())
    most = max(votes.values())
    donor = next(peer for peer in candidates if votes[whole[peer]] == most)
    truth = contents[donor]
    dirty = tuple(
        key
        for key in sorted(truth)
        if any(content[key] != truth[key] for content in contents.values())
    )
    return StatePlan(epoch, seq, revision, donor, dirty)


def _different_keys(group: list[Member], contents: Mapping[PeerId, Mapping[str, bytes]]) -> str:
    """Names a member and a key that is not on all members; empty if all have the same keys."""
    first = group[0]
    for member in group[1:]:
        mine, theirs = contents[first.peer].keys(), contents[member.peer].keys()
        if mine != theirs:
            key = min(mine ^ theirs)
            has, lacks = (first, member) if key in mine else (member, first)
            return (
                f"sync_state: {has} has the key {key!r}, {lacks} has not; "
                "all members must pass the same keys"
            )
    return ""
