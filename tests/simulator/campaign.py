"""Many seeds: as many as fit a time, over all processors, counted and judged.

What each seed came by is counted once, so that a share is one of seeds. A campaign has failed if a
seed broke an invariant, or if a kind of fault or a corner occurred in less than one in a hundred:
then the draw does not test what it says it does.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field

from tests.conftest import load_core
from tests.simulator.faults import KINDS
from tests.simulator.run import EVENTS_MIN, simulate
from tests.simulator.scenario import draw
from tests.simulator.watch import CORNERS

CHUNK = 10
SHARE_MIN = 0.01
EXPECTED = (
    *(f"fault: {kind}" for kind in sorted({*KINDS, "k_half", "time-out"})),
    "journal: torn tail cut",
    "state: elected",
    *(f"corner: {name}" for name in CORNERS),
)


@dataclass
class Tally:
    """seen: in how many seeds each thing occurred. broken: seed, invariant, what it says. longest:
    seconds that a call took beyond its deadline, at most."""

    seeds: int = 0
    delivered: int = 0
    fewest: int = 1 << 60
    longest: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)
    broken: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.seeds += other.seeds
        self.delivered += other.delivered
        self.fewest = min(self.fewest, other.fewest)
        self.longest = max(self.longest, other.longest)
        self.seen += other.seen
        self.broken += other.broken

    def rare(self) -> list[str]:
        """What occurred too seldom to be tested."""
        return [name for name in EXPECTED if self.seen[name] < SHARE_MIN * self.seeds]

    def lines(self) -> Iterator[str]:
        for name in EXPECTED:
            count = self.seen[name]
            rare = "   TOO RARE" if name in self.rare() else ""
            yield f"  {count:7d} {100 * count / max(1, self.seeds):5.1f} %  {name}{rare}"
        mean = self.delivered / max(1, self.seeds)
        yield (
            f"{self.seeds} seeds, {self.delivered} events delivered, {mean:.0f} a seed and "
            f"{self.fewest} at least; {len(self.broken)} broke an invariant"
        )


def run_seeds(first: int, count: int) -> Tally:
    """The tally of some seeds, one after another."""
    core = load_core()
    tally = Tally()
    for seed in range(first, first + count):
        try:
            run, broken = simulate(core, draw(seed))
        except Exception as error:
            error.add_note(f"in seed {seed}")
            raise
        tally.seeds += 1
        tally.delivered += run.net.delivered
        tally.longest = max(tally.longest, run.watch.longest)
        tally.seen.update(run.seen.keys())
        if broken is not None:
            tally.broken.append((seed, broken.name, str(broken)))
        else:
            tally.fewest = min(tally.fewest, run.net.delivered)
            assert run.net.delivered >= EVENTS_MIN
    return tally


def campaign(
    first: int, least: int, seconds: float, tell: Callable[[str], None] = lambda line: None
) -> Tally:
    """Seeds from `first` on, `least` of them and as many more as fit `seconds`."""
    load_core()  # built once, before all want it
    tally, until = Tally(), time.monotonic() + seconds
    count = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    told = time.monotonic()
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        running = {pool.submit(run_seeds, first + i * CHUNK, CHUNK) for i in range(2 * count)}
        begun = 2 * count * CHUNK
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                tally.add(future.result())
                if begun < least or time.monotonic() < until:
                    running.add(pool.submit(run_seeds, first + begun, CHUNK))
                    begun += CHUNK
            if time.monotonic() - told > 60.0:
                told = time.monotonic()
                tell(f"{tally.seeds} seeds, {len(tally.broken)} broke an invariant")
    return tally
