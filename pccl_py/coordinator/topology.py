"""Which ring a group's view takes (layer 2): links that are known broken are avoided (R3).

Called by `views` and `admission` with members in order of joining; knows no messages and no state.
The order of joining is kept wherever it can be, so that ranks, rings and people's expectations
agree. This release has no star route: where no ring avoids the broken edges, members are dropped,
as few as possible and the latest-joined first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import combinations

from pccl_py.types import PeerId

_SEARCH_MAX = 20_000  # tried positions per call, over all sets of dropped members

Edge = tuple[PeerId, PeerId]


def edge(one: PeerId, other: PeerId) -> Edge:
    """An edge has no direction: smaller id first."""
    return (one, other) if one < other else (other, one)


def route(
    members: Sequence[PeerId], excluded: Collection[Edge]
) -> tuple[tuple[PeerId, ...], tuple[PeerId, ...]]:
    """The ring over `members` (order of joining) that uses no excluded edge, and who is dropped.

    A ring of one has no edge, a ring of two has one. The result is a pure function of the
    arguments: equal inputs give equal rings.
    """
    broken = frozenset(edge(a, b) for a, b in excluded)
    if _fits(members, broken):
        return tuple(members), ()
    suspects = [peer for peer in members if any(peer in pair for pair in broken)]
    budget = [_SEARCH_MAX]
    for dropped in _drops(suspects):
        kept = [peer for peer in members if peer not in dropped]
        ring = _ring(kept, broken, budget)
        if ring is not None:
            return ring, dropped
        if budget[0] <= 0:
            break
    return _without_suspects(members, broken)


def _fits(ring: Sequence[PeerId], broken: frozenset[Edge]) -> bool:
    if not broken or len(ring) < 2:
        return True
    pairs = zip(ring, [*ring[1:], ring[0]], strict=True)
    return not any(edge(a, b) in broken for a, b in pairs)


def _drops(suspects: Sequence[PeerId]) -> Iterator[tuple[PeerId, ...]]:
    """Sets of members to try without: the smallest first, among them the latest-joined first."""
    latest_first = list(reversed(suspects))
    for count in range(len(suspects) + 1):
        yield from combinations(latest_first, count)


def _ring(
    members: Sequence[PeerId], broken: frozenset[Edge], budget: list[int]
) -> tuple[PeerId, ...] | None:
    """The first ring in order of joining, by backtracking; None if there is none or the budget
    is spent."""
    if not members:
        return None
    if _fits(members, broken):
        return tuple(members)
    ring = [members[0]]
    used = {members[0]}
    untried = [iter(members[1:])]
    while untried:
        budget[0] -= 1
        if budget[0] <= 0:
            return None
        candidate = next(untried[-1], None)
        if candidate is None:
            untried.pop()
            used.discard(ring.pop())
            continue
        if edge(ring[-1], candidate) in broken:
            continue
        ring.append(candidate)
        used.add(candidate)
        if len(ring) == len(members) and edge(candidate, ring[0]) not in broken:
            return tuple(ring)
        untried.append(iter([peer for peer in members if peer not in used]))
    return None


def _without_suspects(
    members: Sequence[PeerId], broken: frozenset[Edge]
) -> tuple[tuple[PeerId, ...], tuple[PeerId, ...]]:
    """The way out of a search that is too long: take members in order of joining while they have
    no broken edge to anybody taken."""
    kept: list[PeerId] = []
    for peer in members:
        if not any(edge(peer, other) in broken for other in kept):
            kept.append(peer)
    return tuple(kept), tuple(peer for peer in members if peer not in kept)
