"""Which hub, ring and route a view names, and when a better one is worth a view."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from pccl_py.coordinator import paths, routes, topology
from pccl_py.coordinator.routes import Choice
from pccl_py.types import GroupRecord, Path, PeerId, Route

A, B, C, D = (PeerId(i) for i in range(1, 5))
RING = (A, B, C, D)
MS = 1_000
NOTHING = Choice(RING)


def said(lengths: dict[tuple[PeerId, PeerId], int], rates: dict[PeerId, int] | None = None,
         ) -> dict[PeerId, dict[PeerId, Path]]:  # fmt: skip
    """Round trips by pair, microseconds; rates by member, of all its paths."""
    found: dict[PeerId, dict[PeerId, Path]] = {peer: {} for peer in RING}
    for (a, b), us in lengths.items():
        rate = min(rates[a], rates[b]) if rates else 0
        found[a][b], found[b][a] = Path(b, us, rate), Path(a, us, rate)
    return found


def even(us: int) -> dict[tuple[PeerId, PeerId], int]:
    return {(a, b): us for a in RING for b in RING if a < b}


FAR = {**even(80 * MS), (A, B): 40 * MS, (B, C): 40 * MS, (B, D): 40 * MS}  # b in the middle


def test_the_middle_becomes_the_hub() -> None:
    assert routes.choose(RING, None, said(FAR), ()) == Choice(RING, B)


def test_where_all_are_near_or_nothing_is_known_there_is_no_hub() -> None:
    assert routes.choose(RING, None, {}, ()) == NOTHING
    assert routes.choose(RING, None, said(even(300)), ()) == NOTHING
    assert routes.choose(RING, None, said(even(90 * MS)), ()) == NOTHING
    near = {**even(900), (A, B): 300, (B, C): 300, (B, D): 300}
    assert routes.choose(RING, None, said(near), ()) == NOTHING


def test_many_members_get_a_hub_without_being_measured() -> None:
    many = tuple(PeerId(i) for i in range(1, 41))
    assert routes.choose(many, None, {}, ()) == Choice(many, A)
    too_many = tuple(PeerId(i) for i in range(1, routes.HUB_WORLD_MAX + 2))
    assert routes.choose(too_many, None, {}, ()) == Choice(too_many)


def test_a_broken_edge_leaves_no_hub() -> None:
    ring, _ = topology.route(RING, [(A, B)])
    assert routes.choose(ring, None, said(FAR), [(A, B)]).hub == 0


def test_what_was_known_holds_until_more_is() -> None:
    old = GroupRecord("g", RING, hub=B, large=Route.STAR)
    assert routes.choose((A, B, C), old, {}, ()) == Choice((A, B, C), B, Route.STAR)
    assert routes.choose((A, C, D), old, {}, ()) == Choice((A, C, D))


def test_slow_members_and_a_fast_hub_make_a_star_for_large_ops() -> None:
    rates = {A: 10**7, B: 10**8, C: 10**7, D: 10**8}
    assert routes.choose(RING, None, said(FAR, rates), ()) == Choice(RING, B, Route.STAR)
    alike = dict.fromkeys(RING, 10**7)
    assert routes.choose(RING, None, said(FAR, alike), ()) == Choice(RING, B)
    quick = {A: 10**9, B: 10**10, C: 10**9, D: 10**10}
    assert routes.choose(RING, None, said(FAR, quick), ()) == Choice(RING, B)
    # nobody is in the middle: the fastest is the hub, for the large ops' sake
    assert routes.choose(RING, None, said(even(MS), rates), ()) == Choice(RING, B, Route.STAR)


def test_a_shorter_ring_only_if_clearly_shorter() -> None:
    short = {**even(100 * MS), (A, C): 10 * MS, (C, B): 10 * MS, (B, D): 10 * MS, (D, A): 10 * MS}
    ring = routes.choose(RING, None, said(short), ()).ring
    assert set(pairwise((*ring, ring[0]))) <= {
        pair for a, b in ((A, C), (C, B), (B, D), (D, A)) for pair in ((a, b), (b, a))
    }
    old = GroupRecord("g", ring)
    assert routes.choose(RING, old, said(short), ()).ring == ring, "and it stays"
    slightly = {**even(100 * MS), (A, C): 90 * MS}
    assert routes.choose(RING, None, said(slightly), ()).ring == RING


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 200 * MS), min_size=6, max_size=6), st.permutations(RING))
def test_no_choice_is_worse_than_the_present(drawn: list[int], present: list[PeerId]) -> None:
    known = said(dict(zip(even(0), drawn, strict=True)))
    old = GroupRecord("g", tuple(present))
    new = routes.choose(RING, old, known, ())
    table = paths.table(RING, known)
    assert paths.ring_us(table, new.ring) <= paths.ring_us(table, old.ring)
    if new.hub:
        assert paths.reach_us(table, RING.index(new.hub)) <= 0.75 * paths.farthest_us(table)
    again = GroupRecord("g", new.ring, hub=new.hub, large=new.large)
    assert routes.choose(RING, again, known, ()) == new, "it settles"
    assert routes.wish(again, new, known, ()) == ""


def test_what_is_worth_a_view() -> None:
    old = GroupRecord("g", RING)
    hub = Choice(RING, B)
    assert routes.wish(old, hub, said(FAR), ()) == "small ops can take 40 ms instead of 80"
    assert routes.wish(old, NOTHING, said(FAR), ()) == ""
    close = {pair: us // 10 for pair, us in FAR.items()}  # 4 ms would be saved
    assert routes.choose(RING, None, said(close), ()) == hub, "at a view that comes anyway"
    assert routes.wish(old, hub, said(close), ()) == ""
    rates = {A: 10**7, B: 10**8, C: 10**7, D: 10**8}
    star = Choice(RING, B, Route.STAR)
    reason = routes.wish(old, star, said(even(MS), rates), ())
    assert reason == "large ops can be 1.5 times as fast"
