"""Which routes a group's view takes, by what its members have measured (layer 2).

`views` and `admission` ask at each new view (`choose`); `machine` hands over what members measure
(`measured`) and lets `advance` judge now and then whether a view for a better route's sake alone is
worth its flush: a wish (R24), never during a flush or an admission, at most one a minute. What a
route costs is `paths`', how a short ring is found `tours`', which rings are possible `topology`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from pccl_py.coordinator import paths, topology, tours, verdicts
from pccl_py.coordinator.grown import put
from pccl_py.coordinator.paths import Table
from pccl_py.coordinator.state import PATHS_MAX, State, Turn
from pccl_py.protocol.messages import Measured
from pccl_py.types import GroupRecord, PeerId, Route

DIRECT_WORLD_MAX = 32  # more members take the ring by themselves; as PC_DIRECT_WORLD_MAX
HUB_WORLD_MAX = 256  # a hub has a link to each
GAIN = 0.25  # share of what a route takes now that another must save
GAIN_US = 1_000  # and so many microseconds, at a view that comes anyway
WISH_GAIN_US = 5_000  # or for whose sake alone a view is changed
STAR_MARGIN = 1.2  # how much faster a large op must be over a star
WISH_STAR_MARGIN = 1.25
SLOW_RATE = 125_000_000  # bytes a second: faster members do not wait for their lines

GATHER_S = 2.0  # after the first news, for the others'
PACE_S = 60.0
AGAIN_S = 10.0  # when it was not the time

Edge = tuple[PeerId, PeerId]
NOBODY = PeerId(0)


@dataclass(frozen=True, slots=True)
class Choice:
    """hub: whom small all-reduces go over, 0: nobody; large: the route of large ones."""

    ring: tuple[PeerId, ...]
    hub: PeerId = NOBODY
    large: Route = Route.AUTO

    def of(self, group: GroupRecord) -> GroupRecord:
        return replace(group, hub=self.hub, large=self.large)


# ---------------------------------------------------------------- the choice


def choose(
    ring: Sequence[PeerId],
    old: GroupRecord | None,
    said: paths.Said,
    excluded: Collection[Edge],
) -> Choice:
    """The routes of a view. `ring`: one that avoids the excluded edges, by which equals are ordered
    and which is kept where nothing is known; `old`: the group's part of the record before."""
    known = paths.table(ring, said)
    broken = [pair for pair in excluded if set(pair) <= set(ring)]
    best = _ring(_present(ring, old, broken, known), known, broken)
    if broken or not 2 < len(ring) <= HUB_WORLD_MAX:
        return Choice(best)
    choice = _over_hub(best, paths.table(best, said))
    if old is None or old.hub not in ring or _is_measured(choice.hub, known):
        return choice
    if _is_measured(old.hub, known):
        return choice
    return Choice(best, old.hub, old.large)  # newcomers are no reason to forget what was known


def _is_measured(hub: PeerId, known: Table) -> bool:
    """Whether there is a hub and all its paths are known."""
    return bool(hub) and len(known.near[known.members.index(hub)]) == len(known.members) - 1


def _present(
    ring: Sequence[PeerId], old: GroupRecord | None, broken: Sequence[Edge], known: Table
) -> tuple[PeerId, ...]:
    """The ring as it is: the old order as far as it stays whole, newcomers at the end."""
    if old is None or known.is_empty:
        return tuple(ring)
    inside = set(ring)
    kept = [peer for peer in old.ring if peer in inside]
    order = (*kept, *(peer for peer in ring if peer not in set(kept)))
    return order if topology.fits(order, broken) else tuple(ring)


def _ring(present: tuple[PeerId, ...], known: Table, broken: Sequence[Edge]) -> tuple[PeerId, ...]:
    """Another order only if it is clearly shorter."""
    if sum(map(len, known.near)) <= 2 * len(present):  # no more is known than one ring
        return present
    if not topology.fits(present, broken):  # no ring was found that avoids them
        return present
    found = tours.shortest(present, known, broken)
    now_us, then_us = paths.ring_us(known, present), paths.ring_us(known, found)
    is_better = _saves(now_us, then_us, GAIN_US) and topology.fits(found, broken)
    return found if is_better else present


def _over_hub(ring: tuple[PeerId, ...], known: Table) -> Choice:
    """The 1-centre is the hub if small ops are clearly sooner over it; else the fastest member, if
    large ones are."""
    rates = paths.capacities(known)
    hub = paths.centre(known)
    now_us = _small_us(ring, NOBODY, known, broken=False)
    if not _saves(now_us, paths.reach_us(known, hub), GAIN_US):
        if rates is None:
            return Choice(ring)
        hub = rates.index(max(rates))
        if not _is_star_better(rates, hub):
            return Choice(ring)
    star = rates is not None and _is_star_better(rates, hub)
    return Choice(ring, known.members[hub], Route.STAR if star else Route.AUTO)


def _is_star_better(rates: Sequence[int], hub: int) -> bool:
    cost = paths.bulk(rates, hub)
    return cost.slowest < SLOW_RATE and cost.gain >= STAR_MARGIN


def _small_us(ring: Sequence[PeerId], hub: PeerId, known: Table, *, broken: bool) -> int:
    """What a small all-reduce takes by round trips alone."""
    if broken or (not hub and len(ring) > DIRECT_WORLD_MAX):
        return paths.ring_us(known, ring)
    if hub:
        return paths.reach_us(known, known.members.index(hub))
    return paths.farthest_us(known)


def _saves(now_us: int, then_us: int, least_us: int) -> bool:
    return now_us - then_us >= max(least_us, GAIN * now_us)


# ---------------------------------------------------------------- a view for its sake


def wish(old: GroupRecord, new: Choice, said: paths.Said, excluded: Collection[Edge]) -> str:
    """Why the group's view should change to `new`, or empty."""
    if (old.ring, old.hub, old.large) == (new.ring, new.hub, new.large):
        return ""
    known = paths.table(sorted(old.ring), said)
    broken = any(set(pair) <= set(old.ring) for pair in excluded)
    now_us = _small_us(old.ring, old.hub, known, broken=broken)
    then_us = _small_us(new.ring, new.hub, known, broken=broken)
    if _saves(now_us, then_us, WISH_GAIN_US):
        return f"small ops can take {then_us / 1000:.0f} ms instead of {now_us / 1000:.0f}"
    if broken or len(old.ring) > DIRECT_WORLD_MAX:
        now_us, then_us = (paths.ring_us(known, each.ring) for each in (old, new))
        if _saves(now_us, then_us, WISH_GAIN_US):
            return f"the ring can be {then_us / 1000:.0f} ms long instead of {now_us / 1000:.0f}"
    rates = paths.capacities(known)
    if broken or rates is None or min(rates) >= SLOW_RATE:
        return ""
    now_s, then_s = (_bulk_s(known, rates, each.hub, each.large) for each in (old, new))
    if now_s >= WISH_STAR_MARGIN * then_s:
        return f"large ops can be {now_s / then_s:.1f} times as fast"
    return ""


def _bulk_s(known: Table, rates: Sequence[int], hub: PeerId, large: Route) -> float:
    cost = paths.bulk(rates, known.members.index(hub) if hub else 0)
    return cost.star_s if hub and large is Route.STAR else cost.even_s


def measured(turn: Turn, peer: PeerId, message: Measured) -> None:
    """What a member knows of its paths now, instead of what it said before."""
    state = turn.state
    group = state.members[peer].group
    rows = {
        path.peer: path
        for path in message.paths
        if path.peer != peer
        and state.is_living(path.peer)
        and state.members[path.peer].group == group
    }
    others = sum(len(said) for who, said in state.measured.items() if who != peer)
    if others + len(rows) > PATHS_MAX or state.measured.get(peer) == rows:
        return
    due = state.judge_at
    if due is None:
        due = max(turn.now + GATHER_S, state.rerouted_at + PACE_S)
    turn.state = replace(state, measured=put(state.measured, peer, rows), judge_at=due)


def advance(turn: Turn) -> None:
    """Wish for another view if a better route is worth one."""
    state = turn.state
    if state.judge_at is None or turn.now < state.judge_at:
        return
    record = state.record
    if record is None or not _is_quiet(state):
        turn.state = replace(state, judge_at=turn.now + AGAIN_S)
        return
    turn.state = replace(state, judge_at=None)
    for old in record.groups:
        joined = [p for p in state.members if state.members[p].group == old.group]
        ring, dropped = topology.route(joined, record.excluded)
        if dropped:
            continue
        new = choose(ring, old, state.measured, record.excluded)
        reason = wish(old, new, state.measured, record.excluded)
        if reason:
            turn.state = replace(turn.state, rerouted_at=turn.now)
            turn.soft = replace(turn.soft, reroute=f"a better route: {reason}")
            return


def _is_quiet(state: State) -> bool:
    """Nothing runs that a flush would cut short, nothing is due that makes a view anyway."""
    soft = state.soft
    assert state.record is not None
    repaired = len(soft.repaired) >= state.living_count or not verdicts.has_plan(state.record)
    waits = any(peer in state.connection_of for peer in state.pending)
    busy = soft.flush is not None or soft.admission is not None or bool(soft.gone)
    here = all(peer in state.connection_of for peer in state.members)
    return repaired and here and not waits and not busy


def deadlines(state: State) -> list[float]:
    """When `advance` may have something to do though nothing happens."""
    return [] if state.judge_at is None else [state.judge_at]
