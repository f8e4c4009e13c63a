"""Rings that are short in round trips, and never longer than the one there is."""

from __future__ import annotations

import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from pccl_py.coordinator import paths, topology, tours
from pccl_py.types import Path, PeerId


def line(order: list[int], apart_us: int = 10_000) -> dict[PeerId, dict[PeerId, Path]]:
    """Members along a road, in this order: the shortest ring goes there and back."""
    at = {peer: place for place, peer in enumerate(order)}
    return {
        PeerId(a): {
            PeerId(b): Path(PeerId(b), apart_us * abs(at[a] - at[b]), 0) for b in order if b != a
        }
        for a in order
    }


def test_members_along_a_road() -> None:
    order = [5, 1, 4, 2, 6, 3]
    ring = tuple(PeerId(i) for i in range(1, 7))
    table = paths.table(ring, line(order))
    found = tours.shortest(ring, table, ())
    assert paths.ring_us(table, found) == 2 * 5 * 10_000
    assert found[0] == 1


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 7), st.randoms(use_true_random=False), st.integers(0, 4))
def test_never_worse_than_the_ring_there_is(n: int, rng: random.Random, cuts: int) -> None:
    members = tuple(PeerId(i) for i in range(1, n + 1))
    said = {
        a: {b: Path(b, rng.randrange(1, 1000), 0) for b in members if b != a and rng.random() < 0.8}
        for a in members
    }
    pairs = [(a, b) for a in members for b in members if a < b]
    broken = frozenset(rng.sample(pairs, min(cuts, len(pairs))))
    ring, dropped = topology.route(members, broken)
    if dropped or not topology.fits(ring, broken):
        return  # relays pass on what the broken edges would carry: there is no ring to shorten
    table = paths.table(members, said)
    found = tours.shortest(ring, table, broken)
    assert sorted(found) == sorted(ring)
    assert found[:1] == ring[:1]
    assert topology.fits(found, broken)
    assert paths.ring_us(table, found) <= paths.ring_us(table, ring)


def test_a_thousand_members_take_bounded_time() -> None:
    rng = random.Random(1)
    members = tuple(PeerId(i) for i in range(1, 1001))
    said = {
        a: {b: Path(b, rng.randrange(100, 300_000), 0) for b in rng.sample(members, 100) if b != a}
        for a in members
    }
    table = paths.table(members, said)
    start = time.process_time()
    found = tours.shortest(members, table, [(PeerId(1), PeerId(2))])
    assert time.process_time() - start < 2.0
    assert sorted(found) == list(members)
