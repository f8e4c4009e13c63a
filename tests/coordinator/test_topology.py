"""Who stays together in spite of broken edges, and rings that avoid them."""

from __future__ import annotations

import random
import time
from collections.abc import Collection
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl_py.coordinator.topology import edge, route
from pccl_py.types import PeerId


def peers(count: int) -> list[PeerId]:
    return [PeerId(i) for i in range(1, count + 1)]


Broken = set[tuple[PeerId, PeerId]]


def are_joined(members: Collection[PeerId], broken: Broken) -> bool:
    """Each broken edge among them has a member that reaches both ends."""
    return all(
        any(edge(one, via) not in broken and edge(via, other) not in broken
            for via in members if via not in (one, other))
        for one, other in broken if one in members and other in members
    )  # fmt: skip


def fits(ring: tuple[PeerId, ...], broken: Broken) -> bool:
    if len(ring) < 2:
        return True
    return all(edge(a, b) not in broken for a, b in zip(ring, ring[1:] + ring[:1], strict=True))


def test_order_of_joining_is_kept_without_broken_edges() -> None:
    assert route([PeerId(7), PeerId(3), PeerId(5)], ()) == ((7, 3, 5), ())


def test_a_broken_edge_that_the_ring_does_not_use_changes_nothing() -> None:
    assert route(peers(4), [(PeerId(1), PeerId(3))]) == ((1, 2, 3, 4), ())


def test_the_ring_goes_round_a_broken_edge() -> None:
    assert route(peers(4), [(PeerId(2), PeerId(1))]) == ((1, 3, 2, 4), ())


def test_three_and_a_cut_stay_in_order_of_joining() -> None:
    assert route(peers(3), [(PeerId(1), PeerId(2))]) == ((1, 2, 3), ())


def test_three_and_two_cuts_lose_whom_nobody_reaches() -> None:
    one, two, three = peers(3)
    assert route(peers(3), [(one, two), (one, three)]) == ((2, 3), (1,))


def test_who_reaches_only_one_stays_for_its_sake() -> None:
    broken = [(PeerId(1), PeerId(other)) for other in (2, 3, 4)]
    assert route(peers(5), broken) == ((1, 2, 3, 4, 5), ())


def test_a_ring_is_not_enough() -> None:
    """Six in a ring, 1 and 4 cut, and nobody beside them: what one has for the other alone has no
    way, so one of them goes."""
    near = {edge(PeerId(i), PeerId(i % 6 + 1)) for i in range(1, 7)}
    broken = set(combinations(peers(6), 2)) - near
    ring, dropped = route(peers(6), broken)
    assert fits(tuple(peers(6)), broken)
    assert not are_joined(peers(6), broken)
    assert are_joined(ring, broken)
    assert dropped == (6, 5, 4)


def test_of_two_the_later_goes() -> None:
    assert route([PeerId(9), PeerId(2)], [(PeerId(2), PeerId(9))]) == ((9,), (2,))


def test_who_has_all_links_broken_goes_alone() -> None:
    broken = [(PeerId(1), PeerId(other)) for other in (2, 3, 4, 5)]
    assert route(peers(5), broken) == ((2, 3, 4, 5), (1,))


def test_edges_of_others_say_nothing() -> None:
    assert route(peers(2), [(PeerId(1), PeerId(7)), (PeerId(7), PeerId(8))]) == ((1, 2), ())


def test_one_and_none() -> None:
    assert route(peers(1), ()) == ((1,), ())
    assert route([], ()) == ((), ())


def test_a_thousand_members_and_many_cuts_take_no_time() -> None:
    broken = [(PeerId(i), PeerId(i + 1)) for i in range(1, 1000, 3)]
    ring, dropped = route(peers(1000), broken)
    assert dropped == ()
    assert fits(ring, {edge(a, b) for a, b in broken})
    assert sorted(ring) == peers(1000)


def stars(count: int, centres: int) -> list[tuple[PeerId, PeerId]]:
    """Some members, last in the order of joining, that reach each other alone."""
    first = count - centres
    return [
        (PeerId(a), PeerId(b)) for a in range(1, first + 1) for b in range(first + 1, count + 1)
    ]


def halves(count: int) -> list[tuple[PeerId, PeerId]]:
    return stars(count, count // 2)


def most_edges(count: int, share: float) -> list[tuple[PeerId, PeerId]]:
    rng = random.Random(count)
    return [pair for pair in combinations(peers(count), 2) if rng.random() < share][:4096]


@pytest.mark.parametrize(
    ("count", "broken", "least"),
    [
        pytest.param(24, halves(24), 12, id="two halves"),
        pytest.param(128, halves(128), 64, id="two large halves"),
        pytest.param(1000, stars(1000, 1)[1:], 1000, id="one that reaches only one"),
        pytest.param(1000, stars(1000, 1), 999, id="one that reaches nobody"),
        pytest.param(1000, stars(1000, 4), 996, id="four that reach nobody else"),
        pytest.param(60, most_edges(60, 0.9), 6, id="hardly a link"),
        pytest.param(90, most_edges(90, 0.7), 60, id="few links"),
    ],
)
def test_a_hard_case_ends_soon(count: int, broken: list[tuple[PeerId, PeerId]], least: int) -> None:
    """The searches are bounded; what is left is joined, even where it is not the most."""
    began = time.process_time()
    ring, dropped = route(peers(count), broken)
    assert time.process_time() - began < 10
    assert are_joined(ring, set(broken))
    assert sorted((*ring, *dropped)) == peers(count)
    assert len(ring) >= least


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 7), st.data())
def test_as_few_as_possible_are_dropped(count: int, data: st.DataObject) -> None:
    """Of the sets that could go the smallest, and of those the latest-joined; the ring avoids
    what it can."""
    edges = list(combinations(peers(count), 2))
    broken = set(data.draw(st.lists(st.sampled_from(edges)))) if edges else set()
    ring, dropped = route(peers(count), broken)
    assert sorted((*ring, *dropped)) == peers(count)
    latest_first = peers(count)[::-1]
    best = next(
        gone
        for size in range(count)
        for gone in combinations(latest_first, size)
        if are_joined(set(latest_first) - set(gone), broken)
    )
    assert dropped == best
    if not fits(ring, broken):
        assert list(ring) == sorted(ring)
        first, *others = ring
        assert not any(fits((first, *order), broken) for order in permutations(others))
