"""Every collective over real sockets against `reference`, drawn by hypothesis: worlds of one to
nine, all element types, sizes around the edges of segments, lists and blocks, in place and not,
groups and sub-groups, several ops in flight at once.

PCCL_PROPERTIES=N draws N examples per world, at random (`make properties`); without it a few fixed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pccl_py.coordinator import embedded
from pccl_py.types import DType, Kind, ReduceOp
from tests import reference
from tests.crew import Crew, crew
from tests.plans import KIB, Plan, run_all

WORLDS = range(1, 10)
EXAMPLES = int(os.environ.get("PCCL_PROPERTIES", "0"))
EDGES = [16 * KIB, 64 * KIB, 512 * KIB]
KINDS = [kind for kind in Kind if kind != Kind.RECV]


@pytest.fixture(scope="module")
def coordinator() -> Iterator[str]:
    with embedded.start() as own:
        yield own.address


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: f"world{world}")
def group(coordinator: str, request: pytest.FixtureRequest) -> Iterator[Crew]:
    """One at a time: pytest runs a world's tests together."""
    with crew(coordinator, request.param, deadline_s=30.0) as members:
        yield members


def sizes(bytes_max: int) -> st.SearchStrategy[tuple[int, int]]:
    """(bytes, elements more): around the edges, and in between."""
    edges = [edge for edge in EDGES if edge <= bytes_max]
    return st.one_of(
        st.tuples(st.just(0), st.sampled_from([0, 1, 2, 3, 7, 33, 1001])),
        st.tuples(st.sampled_from(edges), st.integers(-1, 1)),
        st.tuples(st.integers(0, bytes_max), st.just(0)),
    )


def plans(world: int) -> st.SearchStrategy[Plan]:
    everybody = st.just(tuple(range(world)))
    some = st.permutations(range(world)).flatmap(
        lambda order: st.integers(1, world).map(lambda size: tuple(order[:size]))
    )
    return st.builds(
        Plan,
        kind=st.sampled_from(KINDS),
        dtype=st.sampled_from(list(DType)),
        reduce=st.sampled_from(list(ReduceOp)),
        size=sizes((4 << 20) // world),
        route=st.sampled_from(["auto", "direct", "ring", "star"]),
        in_place=st.booleans(),
        whole=st.booleans(),
        uneven=st.booleans(),
        strict=st.booleans(),
        weighted=st.sampled_from([False, False, True]),
        root=st.integers(0, world - 1),
        among=st.one_of(everybody, some),
        is_group=st.booleans(),
        named=st.booleans(),
        seed=st.integers(0, 999),
    )


@pytest.mark.timeout(120 + EXAMPLES)
def test_anything(group: Crew) -> None:
    world = len(group)
    few = 14 if world > 5 else 24

    @settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
        print_blob=True,
    )
    @given(st.lists(plans(world), min_size=1, max_size=4), st.integers(0, 99))
    def drawn(batch: list[Plan], seed: int) -> None:
        run_all(group, batch, seed)

    drawn()


@pytest.mark.parametrize("group", [2, 3, 5], indirect=True, ids=lambda world: f"world{world}")
def test_every_type_and_reduction_in_flight_at_once(group: Crew) -> None:
    """Reductions, each on another route, into the tensor and elsewhere."""
    world = len(group)
    everybody = tuple(range(world))
    for dtype in DType:
        batch = [
            Plan(kind, dtype, reduce, size=(0, 1001), route=route, in_place=bool(reduce & 1),
                 root=world - 1, among=everybody, seed=int(reduce))
            for reduce in ReduceOp
            for kind in (Kind.ALL_REDUCE, Kind.REDUCE, Kind.REDUCE_SCATTER)
            for route in (("direct", "ring", "star") if kind == Kind.ALL_REDUCE else ("auto",))
        ]  # fmt: skip
        run_all(group, batch, int(dtype))


@pytest.mark.parametrize("group", [3], indirect=True, ids=lambda world: f"world{world}")
@pytest.mark.parametrize("route", ["direct", "ring", "star"])
def test_the_largest_segments(group: Crew, route: str) -> None:
    """17 MiB: segments of 512 KiB, more than a window of them."""
    plan = Plan(
        Kind.ALL_REDUCE, DType.INT32, ReduceOp.SUM, size=(17 << 20, 1), route=route,
        in_place=route == "ring", among=tuple(range(len(group))), seed=3,
    )  # fmt: skip
    run_all(group, [plan], 0)


@pytest.mark.parametrize("group", [3], indirect=True, ids=lambda world: f"world{world}")
@pytest.mark.parametrize("route", ["direct", "ring", "star"])
def test_weights_that_add_up_to_more_than_one_may_be(group: Crew, route: str) -> None:
    outs = [np.full(1000, 3.0 * (rank + 1)) for rank in range(3)]
    group.each(lambda c: c.all_reduce(outs[c.rank], "avg", weight=1e300, route=route))
    assert all((out == 6.0).all() for out in outs)


@pytest.mark.parametrize("group", [1, 2, 3], indirect=True, ids=lambda world: f"world{world}")
@pytest.mark.parametrize("route", ["direct", "ring", "star"])
def test_the_mean_of_nothing_is_no_number(group: Crew, route: str) -> None:
    outs = [np.full(1000, 3.0 * (rank + 1)) for rank in range(len(group))]
    infos = group.each(lambda c: c.all_reduce(outs[c.rank], "avg", weight=0, route=route))
    assert all(np.isnan(out).all() for out in outs)
    assert {(info.contributors_min, info.contributors_max) for info in infos} == {(0, 0)}


def test_the_reference_can_tell_orders_apart() -> None:
    rng = np.random.default_rng(0)
    ring = [rng.standard_normal(50_000).astype(np.float32) for _ in range(3)]
    by_owner = [
        reference.from_owner(DType.FLOAT32, ReduceOp.SUM, ring, owner, "direct")
        for owner in range(3)
    ]
    cut = reference.segments(50_000, 4)
    turned = np.concatenate([by_owner[(s + 2) % 3][part] for s, part in enumerate(cut)])
    assert len(cut) == 7
    assert reference.is_rotated(turned, by_owner, 4)
    assert not reference.is_rotated(by_owner[0], by_owner, 4)
    wrong = turned.copy()
    wrong[-1] = np.nextafter(wrong[-1], np.float32(9))
    assert not reference.is_rotated(wrong, by_owner, 4)
