"""What is known of the paths between a group's members, and what a route costs by it (layer 2).

Called by `routes` and `tours`; pure arithmetic on what members have measured. Both ends of a path
speak of its round trip, and the longer one counts: so who lies can make its own paths look long,
which any member can be, and short only where the other end says nothing; of paths between others it
cannot speak at all. A path of which nothing is known counts as long as the longest that is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pccl_py.types import Path, PeerId

Said = Mapping[PeerId, Mapping[PeerId, Path]]
"""By whom, to whom."""

RTT_US_MAX = 60_000_000
DEFAULT_RTT_US = 200  # of a path in a group of which nothing is known: one machine room


@dataclass(frozen=True, slots=True)
class Table:
    """One group's members in a fixed order, by which everything here is numbered.

    near[i][j]: round trip in microseconds, where it is known, for both (i, j) and (j, i).
    assumed_us: of all others. rates[i][j]: bytes a second that i has delivered to j, at best."""

    members: tuple[PeerId, ...]
    near: tuple[Mapping[int, int], ...]
    assumed_us: int
    rates: tuple[Mapping[int, int], ...]

    @property
    def is_empty(self) -> bool:
        return not any(self.near)

    def rtt_us(self, i: int, j: int) -> int:
        return self.near[i].get(j, self.assumed_us)


def table(members: Sequence[PeerId], said: Said) -> Table:
    """What `members` have said of each other; what they say of anybody else does not count."""
    place = {peer: i for i, peer in enumerate(members)}
    near: list[dict[int, int]] = [{} for _ in members]
    rates: list[dict[int, int]] = [{} for _ in members]
    for peer, i in place.items():
        for path in said.get(peer, {}).values():
            j = place.get(path.peer)
            if j is None or j == i:
                continue
            if path.rtt_us:
                rtt_us = max(min(path.rtt_us, RTT_US_MAX), near[i].get(j, 0))
                near[i][j] = near[j][i] = rtt_us
            if path.rate:
                rates[i][j] = path.rate
    longest = max((max(row.values()) for row in near if row), default=DEFAULT_RTT_US)
    return Table(tuple(members), tuple(near), longest, tuple(rates))


# ---------------------------------------------------------------- round trips


def reach_us(paths: Table, i: int) -> int:
    """The longest round trip between member i and any other."""
    known = paths.near[i]
    longest = max(known.values(), default=0)
    others = len(paths.members) - 1
    return longest if len(known) >= others else max(longest, paths.assumed_us)


def centre(paths: Table) -> int:
    """The 1-centre: the member whose longest round trip is the shortest; the first of equals."""
    return min(range(len(paths.members)), key=lambda i: reach_us(paths, i))


def farthest_us(paths: Table) -> int:
    """What a small op takes whose owner may be anybody: an input goes to the owner and its value
    comes back, a round trip of the two that are farthest apart."""
    return max(reach_us(paths, i) for i in range(len(paths.members)))


def ring_us(paths: Table, ring: Sequence[PeerId]) -> int:
    """What a small op takes round a ring: 2 (W - 1) hops, about as long as W round trips."""
    if len(ring) < 2:
        return 0
    place = {peer: i for i, peer in enumerate(paths.members)}
    at = [place[peer] for peer in ring]
    return sum(paths.rtt_us(i, j) for i, j in zip(at, [*at[1:], at[0]], strict=True))


# ---------------------------------------------------------------- bandwidth


@dataclass(frozen=True, slots=True)
class Bulk:
    """What a byte of a large all-reduce takes, in seconds: evenly spread (direct or ring), and over
    a star. slowest: bytes a second of the slowest member."""

    even_s: float
    star_s: float
    slowest: int

    @property
    def gain(self) -> float:
        return self.even_s / self.star_s


def capacities(paths: Table) -> list[int] | None:
    """Bytes a second that each member's own line carries either way: the lesser of the best rate
    it has sent at and the best that anybody has sent to it, so that nobody is fast by its own word.
    None while that of some member is not known."""
    up = [max(row.values(), default=0) for row in paths.rates]
    down = [max((row.get(i, 0) for row in paths.rates), default=0) for i in range(len(up))]
    found = [min(pair) for pair in zip(up, down, strict=True)]
    return found if found and all(found) else None


def bulk(rates: Sequence[int], hub: int) -> Bulk:
    """What a large all-reduce of one byte takes over lines of these rates, full duplex.

    Spread evenly, direct or round the ring, each of W members sends (W-1)/W of the tensor as inputs
    and as much as results, and receives the same, so the slowest line decides:

        even = 2 (W-1)/W / slowest

    Over a star each sends the tensor once and receives it once, both at the same time, segment by
    segment, and the hub receives and sends it W-1 times:

        star = max(1 / slowest but the hub, (W-1) / hub)

    So a star spares a slow member nearly half (W/2(W-1) of the time is left), if the hub's line can
    carry all the others' traffic: star < even where the hub is more than W/2 times as fast as the
    slowest. `routes` asks for even >= 1.2 star.
    """
    world = len(rates)
    slowest = min(rates)
    others = min(rate for i, rate in enumerate(rates) if i != hub)
    even_s = 2 * (world - 1) / world / slowest
    return Bulk(even_s, max(1 / others, (world - 1) / rates[hub]), slowest)
