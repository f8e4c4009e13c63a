"""What routes cost by what members have measured; a lie reaches no further than its own paths."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pccl_py.coordinator import paths
from pccl_py.types import Path, PeerId


def said(*rows: tuple[int, int, int, int]) -> dict[PeerId, dict[PeerId, Path]]:
    """(by, to, rtt_us, rate), each."""
    found: dict[PeerId, dict[PeerId, Path]] = {}
    for by, to, rtt_us, rate in rows:
        found.setdefault(PeerId(by), {})[PeerId(to)] = Path(PeerId(to), rtt_us, rate)
    return found


def peers(count: int) -> list[PeerId]:
    return [PeerId(i) for i in range(1, count + 1)]


def test_both_ends_speak_of_a_round_trip_and_the_longer_counts() -> None:
    table = paths.table(peers(3), said((1, 2, 10, 0), (2, 1, 30, 0), (3, 1, 20, 0)))
    assert [table.rtt_us(0, 1), table.rtt_us(1, 0), table.rtt_us(0, 2)] == [30, 30, 20]


def test_what_nobody_has_measured_is_as_long_as_the_longest() -> None:
    table = paths.table(peers(3), said((1, 2, 70, 0), (1, 3, 20, 0)))
    assert table.rtt_us(1, 2) == 70
    assert [paths.reach_us(table, i) for i in range(3)] == [70, 70, 70]
    assert paths.table(peers(2), {}).rtt_us(0, 1) == paths.DEFAULT_RTT_US


def test_strangers_and_oneself_do_not_count() -> None:
    table = paths.table(peers(2), said((1, 9, 5, 5), (9, 1, 5, 5), (1, 1, 5, 5), (1, 2, 0, 0)))
    assert table.is_empty
    assert paths.capacities(table) is None


matrices = st.integers(2, 7).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(st.integers(0, 9), min_size=n * n, max_size=n * n),
    )
)


@settings(max_examples=300, deadline=None)
@given(matrices)
def test_the_hub_is_the_centre_by_brute_force(drawn: tuple[int, list[int]]) -> None:
    n, cells = drawn
    rows = [(i + 1, j + 1, cells[i * n + j], 0) for i in range(n) for j in range(n) if i != j]
    table = paths.table(peers(n), said(*rows))
    reaches = [max(table.rtt_us(i, j) for j in range(n) if j != i) for i in range(n)]
    assert [paths.reach_us(table, i) for i in range(n)] == reaches
    assert paths.centre(table) == reaches.index(min(reaches))
    assert paths.farthest_us(table) == max(reaches)


@settings(max_examples=300, deadline=None)
@given(matrices, st.data())
def test_a_lie_is_about_the_liars_own_paths_only(
    drawn: tuple[int, list[int]], data: st.DataObject
) -> None:
    n, cells = drawn
    honest = [(i + 1, j + 1, cells[i * n + j] + 1, cells[j * n + i])
              for i in range(n) for j in range(n) if i != j]  # fmt: skip
    liar = data.draw(st.integers(1, n))
    anything = st.integers(0, 2**63)
    lies = [
        (liar, to, data.draw(anything), data.draw(anything)) if by == liar else (by, to, us, rate)
        for by, to, us, rate in honest
    ]
    truth, told = (paths.table(peers(n), said(*rows)) for rows in (honest, lies))
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            if liar not in (i + 1, j + 1):
                assert told.near[i][j] == truth.near[i][j]
                assert told.rates[i].get(j) == truth.rates[i].get(j)
            else:  # the honest end has spoken too: the path is no shorter than it says
                theirs = next(us for by, to, us, _ in honest if {by, to} == {i + 1, j + 1}
                              and by != liar)  # fmt: skip
                assert told.near[i][j] >= theirs
    was, now = paths.capacities(truth), paths.capacities(told)
    if was and now:  # nobody is faster by its own word than others have sent to it
        sent = max(rate for by, to, _, rate in honest if to == liar)
        assert now[liar - 1] <= sent


def test_a_star_pays_where_the_hub_carries_the_others() -> None:
    slow = paths.bulk([10, 10, 10, 100], 3)
    assert slow.slowest == 10
    assert round(slow.gain, 2) == 1.5
    assert paths.bulk([10, 10, 10, 20], 3).gain == 1.0  # W/2 times as fast: as good as even
    assert paths.bulk([10, 10, 10, 10], 3).gain == 0.5
    assert paths.bulk([10, 10], 0).gain == 1.0
