"""Whose shared state is the truth (layer 2): one election per sync_state call of a group.

Called by `machine` per Offer or Elected. When all members of a group have offered, the highest
revision wins; within it the commonest content; ties go to who joined first; among equals the donor
is who joined first. The outcome is remembered for the line: a member that missed it (its connection
broke, the view changed) offers again and is told the same. Over lives of the coordinator the
members remember it: who knows it says so in place of an offer, and one such word is the outcome.
So nothing else is elected while one member of the journaled view knows. Tensor bytes never come
here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from pccl_py.coordinator.grown import put
from pccl_py.coordinator.state import PLANS_MAX, OpKey, State, Turn
from pccl_py.protocol.messages import Elected, Offer, StateError, StatePlan
from pccl_py.types import Member, PeerId


def offered(turn: Turn, peer: PeerId, message: Offer) -> None:
    """Count an offer; answer it if the election is over, hold the election if it is the last."""
    state = turn.state
    key = (state.members[peer].group, message.seq)
    decided = state.plans.get(key)
    if decided is not None:
        _tell(turn, peer, message, decided)
        return
    soft = turn.soft
    if key not in soft.offers and len(soft.offers) >= PLANS_MAX:
        turn.note("ignored", ("what", "too many state elections at once"))
        return
    offers = put(soft.offers.get(key, {}), peer, message)
    turn.soft = replace(soft, offers=put(soft.offers, key, offers))
    group = _group(turn.state, key[0])
    if all(member.peer in offers and state.is_living(member.peer) for member in group):
        outcome = elect(state.epoch, group, offers)
        _decide(turn, key, outcome)
        if outcome.error:
            turn.note("state refused", ("text", outcome.error))
        else:
            fields = (("donor", f"{outcome.donor:016x}"), ("dirty", str(len(outcome.dirty))))
            turn.note("state", ("revision", str(outcome.revision)), *fields)


def known(turn: Turn, peer: PeerId, message: Elected) -> None:
    """A member knows an outcome: it is decided, if this life has not decided it itself. Also if the
    donor has gone since: whoever fetches from it is told so by its engine, and all try again."""
    key = (turn.state.members[peer].group, message.seq)
    if key not in turn.state.plans:
        _decide(turn, key, message)


def _group(state: State, group: str) -> list[Member]:
    """All of the view's, dead or not: one that is only thought to be gone may know an outcome, and
    another life of the coordinator may think again. The view without it comes soon."""
    return [member for member in state.members.values() if member.group == group]


def _decide(turn: Turn, key: OpKey, outcome: Elected) -> None:
    """Remember an outcome and tell all who have offered."""
    plans = put(turn.state.plans, key, outcome)
    for old in list(plans)[: max(0, len(plans) - PLANS_MAX)]:
        plans = {k: plan for k, plan in plans.items() if k != old}
    turn.state = replace(turn.state, plans=plans)
    soft = turn.soft
    turn.soft = replace(soft, offers={k: o for k, o in soft.offers.items() if k != key})
    for peer, offer in soft.offers.get(key, {}).items():
        _tell(turn, peer, offer, outcome)


def _tell(turn: Turn, peer: PeerId, offer: Offer, outcome: Elected) -> None:
    epoch, seq, greeting = turn.state.epoch, offer.seq, offer.greeting
    if outcome.error:
        turn.send(peer, StateError(epoch, seq, outcome.error, greeting))
    else:
        plan = (outcome.revision, outcome.donor, outcome.dirty)
        turn.send(peer, StatePlan(epoch, seq, *plan, greeting))


def elect(epoch: int, group: list[Member], offers: Mapping[PeerId, Offer]) -> Elected:
    """The outcome for a group (members in order of joining), all of whom have offered."""
    seq = offers[group[0].peer].seq
    contents = {m.peer: {k.key: k.digest for k in offers[m.peer].keys} for m in group}
    error = _different_keys(group, contents)
    if error:
        return Elected(epoch, seq, 0, PeerId(0), (), error)
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
    return Elected(epoch, seq, revision, donor, dirty, "")


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
