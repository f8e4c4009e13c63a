"""Which ring a group's view takes, and who is dropped for broken links (layer 2; R3).

Called by `views` and `admission` with members in order of joining; knows no messages and no state.
Members stay together if every two of them reach each other: over a link of their own, or over a
third member that both reach and that passes on what is between them (one, not a row of them). Who
must be dropped for that is as few as possible, the latest-joined first. Among those who stay the
ring avoids broken edges if the search finds such a ring; the order of joining is kept wherever it
can be, so that ranks, rings and people's expectations agree (`routes` may find a shorter one).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pccl_py.types import PeerId

_POSITIONS_MAX = 20_000  # tried while looking for a ring
_STEPS_MAX = 2_000_000  # members looked at while doing so: fewer positions in a large group
_CHECKS_MAX = 200_000  # broken edges looked at while choosing whom to drop

Edge = tuple[PeerId, PeerId]


def edge(one: PeerId, other: PeerId) -> Edge:
    """An edge has no direction: smaller id first."""
    return (one, other) if one < other else (other, one)


def route(
    members: Sequence[PeerId], excluded: Collection[Edge]
) -> tuple[tuple[PeerId, ...], tuple[PeerId, ...]]:
    """The ring over those of `members` (order of joining) who stay, and who is dropped, the
    latest-joined first. Each excluded edge between two who stay has a relay; the ring uses none
    of them if it can be found so, and is in order of joining if not.

    A ring of one has no edge, a ring of two has one. The result is a pure function of the
    arguments: equal inputs give equal rings.
    """
    broken = frozenset(edge(a, b) for a, b in excluded)
    graph = _Graph.of(members, broken)
    dropped = graph.whom_to_drop()
    kept = [peer for peer in members if peer not in dropped]
    ring = _ring(kept, broken)
    return ring, tuple(peer for peer in reversed(members) if peer in dropped)


# ---- who stays


@dataclass(frozen=True, slots=True)
class _Graph:
    """members: in order of joining. broken: the edges among them. cuts: who is cut from whom."""

    members: tuple[PeerId, ...]
    broken: tuple[Edge, ...]
    cuts: Mapping[PeerId, frozenset[PeerId]]

    @staticmethod
    def of(members: Sequence[PeerId], broken: frozenset[Edge]) -> _Graph:
        cuts: dict[PeerId, set[PeerId]] = {peer: set() for peer in members}
        inside = sorted(pair for pair in broken if pair[0] in cuts and pair[1] in cuts)
        for one, other in inside:
            cuts[one].add(other)
            cuts[other].add(one)
        frozen = {peer: frozenset(others) for peer, others in cuts.items()}
        return _Graph(tuple(members), tuple(inside), frozen)

    def without_relay(
        self, kept: frozenset[PeerId], edges: Iterable[Edge] | None = None
    ) -> list[Edge]:
        """Those broken edges among `kept` that nobody in it can serve."""
        found = []
        for one, other in self.broken if edges is None else edges:
            if one not in kept or other not in kept:
                continue
            first, second = self.cuts[one], self.cuts[other]
            if len(first) + len(second) < len(kept):
                continue  # together they miss fewer than there are: both ends are among the missed
            if kept <= first | second:
                found.append((one, other))
        return found

    def whom_to_drop(self) -> frozenset[PeerId]:
        """Who is in fewer members, fewer can be a relay: an edge without one costs one of its ends,
        whoever else goes. So this looks for a smallest set with an end of each, and for the
        latest-joined such set; where that takes too long, for a small one."""
        kept = frozenset(self.members)
        hopeless = self.without_relay(kept)
        if not hopeless:
            return frozenset()
        search = _Search(self, {peer: i for i, peer in enumerate(self.members)})
        for size in range(_matching(hopeless), len(self.members)):
            search.walk(kept, hopeless, size)
            if search.best is not None:
                return kept.difference(search.best)
            if search.checks > _CHECKS_MAX:
                break
        return self._greedily(kept, hopeless)

    def _greedily(self, kept: frozenset[PeerId], hopeless: list[Edge]) -> frozenset[PeerId]:
        """Drop whoever is at most edges without a relay, until there is none."""
        rank = {peer: i for i, peer in enumerate(self.members)}
        while hopeless:
            ends = Counter(peer for pair in hopeless for peer in pair)
            worst = max(ends, key=lambda peer: (ends[peer], rank[peer]))
            kept -= {worst}
            hopeless = self.next_hopeless(kept, hopeless)
        return frozenset(self.members) - kept

    def next_hopeless(self, kept: frozenset[PeerId], hopeless: list[Edge]) -> list[Edge]:
        """The edges without a relay after somebody has gone: what had none has none now."""
        known = set(hopeless)
        still = [pair for pair in hopeless if pair[0] in kept and pair[1] in kept]
        others = (pair for pair in self.broken if pair not in known)
        return [*still, *self.without_relay(kept, others)]


@dataclass(slots=True)
class _Search:
    """The walk over sets of dropped members. best: who is kept by the best set found so far."""

    graph: _Graph
    rank: Mapping[PeerId, int]
    best: frozenset[PeerId] | None = None
    checks: int = 0

    def walk(self, kept: frozenset[PeerId], hopeless: list[Edge], may_drop: int) -> None:
        """Tries all ways to drop at most `may_drop` more. All sets found have one size: smaller
        ones have been tried."""
        if not hopeless:
            if self.best is None or self._ranks(kept) < self._ranks(self.best):
                self.best = kept
            return
        if _matching(hopeless) > may_drop:
            return
        for peer in hopeless[0]:
            self.checks += len(self.graph.broken)
            if self.checks > _CHECKS_MAX:
                return
            fewer = kept - {peer}
            self.walk(fewer, self.graph.next_hopeless(fewer, hopeless), may_drop - 1)

    def _ranks(self, kept: frozenset[PeerId]) -> list[int]:
        """Smaller: the latest-joined that one of two sets drops, and the other not, is dropped."""
        return sorted((rank for peer, rank in self.rank.items() if peer in kept), reverse=True)


def _matching(edges: Iterable[Edge]) -> int:
    """How many of the edges share no end with another counted: so many ends have to go."""
    ends: set[PeerId] = set()
    for one, other in edges:
        if one not in ends and other not in ends:
            ends.update((one, other))
    return len(ends) // 2


# ---- the ring


def fits(ring: Sequence[PeerId], broken: Collection[Edge]) -> bool:
    """Whether the ring uses none of the broken edges (smaller id first)."""
    if not broken or len(ring) < 2:
        return True
    pairs = zip(ring, [*ring[1:], ring[0]], strict=True)
    return not any(edge(a, b) in broken for a, b in pairs)


def _ring(members: Sequence[PeerId], broken: frozenset[Edge]) -> tuple[PeerId, ...]:
    """The first ring in order of joining that avoids the broken edges, by backtracking; the order
    of joining itself if there is none or the search takes too long."""
    if fits(members, broken):
        return tuple(members)
    positions = min(_POSITIONS_MAX, _STEPS_MAX // len(members))
    ring = [members[0]]
    used = {members[0]}
    untried = [iter(members[1:])]
    while untried and positions:
        positions -= 1
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
    return tuple(members)
