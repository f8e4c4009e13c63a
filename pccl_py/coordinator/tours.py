"""A ring that is short in round trips (layer 2): nearest neighbour, then 2-opt, in bounded time.

Called by `routes` with a ring that is in use or would be; knows no state. Broken edges are avoided;
what is found is only offered, `routes` decides whether it is so much better that it is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pccl_py.coordinator.paths import Table
from pccl_py.coordinator.topology import edge
from pccl_py.types import PeerId

MOVES_MAX = 100_000  # looked at per search: some tens of milliseconds
_NEVER_US = 1 << 40  # more than any ring of whole edges


class _Map:
    """Lengths by place, a broken edge longer than everything."""

    def __init__(self, paths: Table, broken: Collection[tuple[PeerId, PeerId]]) -> None:
        place = {peer: i for i, peer in enumerate(paths.members)}
        self.near = [dict(row) for row in paths.near]
        self.assumed_us = paths.assumed_us
        for a, b in broken:
            if a in place and b in place:
                self.near[place[a]][place[b]] = self.near[place[b]][place[a]] = _NEVER_US

    def us(self, i: int, j: int) -> int:
        return self.near[i].get(j, self.assumed_us)

    def round_us(self, tour: Sequence[int]) -> int:
        return sum(self.us(i, j) for i, j in zip(tour, [*tour[1:], tour[0]], strict=True))


def shortest(
    ring: Sequence[PeerId], paths: Table, broken: Collection[tuple[PeerId, PeerId]]
) -> tuple[PeerId, ...]:
    """The shortest ring found over the members of `ring`, never longer than it; `ring` must avoid
    the broken edges, and so does the result. It begins where `ring` begins."""
    if len(ring) < 4:  # all rings of three are one
        return tuple(ring)
    place = {peer: i for i, peer in enumerate(paths.members)}
    present = [place[peer] for peer in ring]
    lengths = _Map(paths, [edge(a, b) for a, b in broken])
    found = _two_opt(_nearest(present, lengths), lengths)
    if lengths.round_us(found) >= lengths.round_us(present):
        return tuple(ring)
    return tuple(paths.members[i] for i in found)


def _nearest(present: Sequence[int], lengths: _Map) -> list[int]:
    """From each member to the nearest that is left; where none is known, to the next in order."""
    left = dict.fromkeys(present)
    tour = [present[0]]
    del left[present[0]]
    while left:
        row = lengths.near[tour[-1]]
        known = [(us, i) for i, us in row.items() if i in left and us < lengths.assumed_us]
        if known:
            best = min(known)[1]
        else:
            best = next((i for i in left if row.get(i, 0) < _NEVER_US), next(iter(left)))
        tour.append(best)
        del left[best]
    return tour


def _two_opt(tour: list[int], lengths: _Map) -> list[int]:
    """Turns stretches round while that makes the ring shorter, and moves are left."""
    count, moves = len(tour), MOVES_MAX
    us = lengths.us
    better = True
    while better:
        better = False
        for i in range(count - 2):
            for j in range(i + 2, count if i else count - 1):
                moves -= 1
                if moves < 0:
                    return tour
                a, b = tour[i], tour[i + 1]
                c, d = tour[j], tour[(j + 1) % count]
                if us(a, c) + us(b, d) < us(a, b) + us(c, d):
                    tour[i + 1 : j + 1] = reversed(tour[i + 1 : j + 1])
                    better = True
    return tour
