"""What bounds an engine's long links: the best that got through, and no less in bad times."""

from __future__ import annotations

from types import ModuleType

QUIET_US, QUEUED_US = 100_000, 160_000
RTT_NS = 100_000_000


class Links:
    def __init__(self, core: ModuleType) -> None:
        self.lib, self.ffi = core.lib, core.ffi
        self.pace = core.ffi.new("struct pc_pace *")
        self.recent = core.lib.PC_PACE_RECENT

    def interval(self, megabytes_s: float, *, rtt_us: int = QUIET_US, again: float = 0.0) -> float:
        """The bound afterwards, MB/s; 0: none."""
        delivered = int(megabytes_s * 1e6 * RTT_NS / 1e9)
        sample = {"ns": RTT_NS, "delivered": delivered, "again": int(again * delivered),
                  "rtt_us": rtt_us, "rtt_us_min": QUIET_US}  # fmt: skip
        self.lib.pc_pace(self.pace, self.ffi.new("struct pc_pace_sample *", sample))
        return self.pace.rate / 1e6

    def learn(self, megabytes_s: float) -> float:
        for _ in range(self.recent):
            rate = self.interval(megabytes_s, rtt_us=QUEUED_US)
        return rate


def test_slow_start_is_not_bound(core: ModuleType) -> None:
    links = Links(core)
    assert [links.interval(2**i) for i in range(7)] == [0] * 7
    assert [links.interval(1) for _ in range(3 * links.recent)][-1] == 0  # nor what is idle


def test_a_filled_path_is_learnt(core: ModuleType) -> None:
    for filled in ({"rtt_us": QUEUED_US}, {"again": 0.1}):
        links = Links(core)
        rates = [links.interval(120, **filled) for _ in range(links.recent)]
        assert set(rates[:-1]) == {0}
        assert 0.95 * 120 < rates[-1] < 120


def test_bad_times_do_not_lower_the_bound(core: ModuleType) -> None:
    links = Links(core)
    rate = links.learn(100)
    for _ in range(500):
        assert links.interval(3, rtt_us=4 * QUEUED_US, again=0.5) == rate
    assert links.interval(0) == rate


def test_a_short_burst_of_acknowledgements_is_not_taken_for_capacity(core: ModuleType) -> None:
    links = Links(core)
    links.learn(100)
    assert links.interval(200) < 107


def test_it_asks_now_and_then_and_takes_what_is_there(core: ModuleType) -> None:
    links = Links(core)
    rate = links.learn(100)
    rates = [rate := links.interval(min(rate, 150)) for _ in range(4000)]
    assert rates[0] < 100 < max(rates[:100])
    assert 130 < sorted(rates)[2000] < 150  # found, though it asks for an eighth at a time


def test_without_more_it_keeps_to_what_it_knows(core: ModuleType) -> None:
    links = Links(core)
    rate = links.learn(100)
    rates = [rate := links.interval(min(rate, 100)) for _ in range(2000)]
    assert sum(rate > 100 for rate in rates) < 0.07 * len(rates)
    assert max(rates) < 113
