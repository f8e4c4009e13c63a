"""When a pair gets more links: only on long paths, only while that carries more."""

from __future__ import annotations

from types import ModuleType

import pytest

LONG, SHORT = 100_000, 300  # microseconds


class Pair:
    def __init__(self, core: ModuleType) -> None:
        self.lib = core.lib
        self.growth = core.ffi.new("struct pc_growth *")
        self.links = 1

    def interval(self, megabytes: float, rtt_us: int = LONG, *, blocked: bool = True) -> int:
        self.growth.bytes = int(megabytes * 1e6)
        self.growth.blocked = blocked
        self.links = self.lib.pc_grow(self.growth, self.links, rtt_us)
        assert self.growth.bytes == 0
        return self.links


def test_doubles_while_it_helps_up_to_the_bound(core: ModuleType) -> None:
    pair = Pair(core)
    assert [pair.interval(5 * 2**i) for i in range(5)] == [2, 4, 8, 8, 8]


def test_stops_for_good_when_more_links_carry_no_more(core: ModuleType) -> None:
    pair = Pair(core)
    assert [pair.interval(m) for m in (5, 10, 11, 30)] == [2, 4, 4, 4]


@pytest.mark.parametrize(
    ("rtt_us", "blocked", "megabytes"), [(SHORT, True, 9), (LONG, False, 9), (LONG, True, 0)]
)
def test_stays_with_one(core: ModuleType, rtt_us: int, blocked: bool, megabytes: float) -> None:
    pair = Pair(core)
    for _ in range(4):
        assert pair.interval(megabytes, rtt_us, blocked=blocked) == 1
