"""Rings that avoid broken edges."""

from __future__ import annotations

from itertools import combinations, permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from pccl_py.coordinator.topology import edge, route
from pccl_py.types import PeerId


def peers(count: int) -> list[PeerId]:
    return [PeerId(i) for i in range(1, count + 1)]


def fits(ring: tuple[PeerId, ...], broken: set[tuple[PeerId, PeerId]]) -> bool:
    if len(ring) < 2:
        return True
    return all(edge(a, b) not in broken for a, b in zip(ring, ring[1:] + ring[:1], strict=True))


def test_order_of_joining_is_kept_without_broken_edges() -> None:
    assert route([PeerId(7), PeerId(3), PeerId(5)], ()) == ((7, 3, 5), ())


def test_a_broken_edge_that_the_ring_does_not_use_changes_nothing() -> None:
    assert route(peers(4), [(PeerId(1), PeerId(3))]) == ((1, 2, 3, 4), ())


def test_the_ring_goes_round_a_broken_edge() -> None:
    assert route(peers(4), [(PeerId(2), PeerId(1))]) == ((1, 3, 2, 4), ())


def test_three_and_a_cut_have_no_ring() -> None:
    assert route(peers(3), [(PeerId(1), PeerId(2))]) == ((1, 3), (2,))


def test_of_two_the_later_goes() -> None:
    assert route([PeerId(9), PeerId(2)], [(PeerId(2), PeerId(9))]) == ((9,), (2,))


def test_who_has_all_links_broken_goes_alone() -> None:
    broken = [(PeerId(1), PeerId(other)) for other in (2, 3, 4, 5)]
    assert route(peers(5), broken) == ((2, 3, 4, 5), (1,))


def test_one_and_none() -> None:
    assert route(peers(1), ()) == ((1,), ())
    assert route([], ()) == ((), ())


def test_a_thousand_members_and_many_cuts_take_no_time() -> None:
    broken = [(PeerId(i), PeerId(i + 1)) for i in range(1, 1000, 3)]
    ring, dropped = route(peers(1000), broken)
    assert dropped == ()
    assert fits(ring, {edge(a, b) for a, b in broken})
    assert sorted(ring) == peers(1000)


def test_hopeless_search_ends() -> None:
    """Two halves that share no edge: bounded search, and what is left is a ring."""
    broken = [(PeerId(a), PeerId(b)) for a in range(1, 13) for b in range(13, 25)]
    ring, dropped = route(peers(24), broken)
    assert fits(ring, {edge(a, b) for a, b in broken})
    assert set(ring) | set(dropped) == set(peers(24))
    assert len(ring) >= 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.data())
def test_as_few_as_possible_are_dropped(count: int, data: st.DataObject) -> None:
    edges = list(combinations(peers(count), 2))
    broken = set(data.draw(st.lists(st.sampled_from(edges)))) if edges else set()
    ring, dropped = route(peers(count), broken)
    assert fits(ring, broken)
    assert sorted((*ring, *dropped)) == peers(count)
    for size in range(len(ring) + 1, count + 1):
        for kept in combinations(peers(count), size):
            assert not any(fits(order, broken) for order in permutations(kept))
