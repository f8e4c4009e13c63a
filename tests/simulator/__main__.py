"""`make sim`: many seeds, or one of them with all that happens in it.

    python -m tests.simulator [--first N] [--least N] [--seconds S]    many seeds
    python -m tests.simulator --seed N [--steps N]                     one, told line by line
    python -m tests.simulator --file SCENARIO [--steps N]              a committed one
    ... --shrink                                                       the shortest that fails so

A seed that breaks an invariant is shrunk, and its scenario written to build/sim/.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.conftest import ROOT, load_core
from tests.simulator.campaign import campaign
from tests.simulator.run import simulate
from tests.simulator.scenario import Scenario, draw, parse
from tests.simulator.shrink import shrink

SHRUNK_MAX = 3  # of a campaign's failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--steps", type=int, default=0, help="stop after so many delivered events")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--least", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--shrink", action="store_true")
    asked = parser.parse_args()
    if asked.seed is not None or asked.file is not None:
        scenario = draw(asked.seed) if asked.file is None else parse(asked.file.read_text())
        return _one(scenario, asked.steps, shrinks=asked.shrink)
    return _many(asked.first, asked.least, asked.seconds)


def _one(scenario: Scenario, steps: int, *, shrinks: bool) -> int:
    core = load_core()
    if shrinks:
        scenario = _shrunk(scenario) or scenario
    print(scenario.text())
    run, broken = simulate(core, scenario, tell=print, events_max=steps)
    print(f"{run.net.delivered} events delivered")
    print(f"BROKEN: {broken}" if broken else "no invariant broken")
    return int(broken is not None)


def _shrunk(scenario: Scenario) -> Scenario | None:
    """The shortest scenario that breaks the same invariant, or None if none is broken."""
    core = load_core()
    _, broken = simulate(core, scenario)
    if broken is None:
        return None

    def fails(smaller: Scenario) -> bool:
        found = simulate(core, smaller)[1]
        return found is not None and found.name == broken.name

    return shrink(scenario, fails)


def _many(first: int, least: int, seconds: float) -> int:
    began = time.monotonic()
    tally = campaign(first, least, seconds, lambda line: print(line, flush=True))
    for line in tally.lines():
        print(line)
    took = time.monotonic() - began
    print(f"{took:.0f} s; the slowest call took {tally.longest:.2f} s more than its own deadline")
    for seed, _, text in tally.broken:
        print(f"seed {seed}: {text}")
    for seed, _, _ in tally.broken[:SHRUNK_MAX]:
        small = _shrunk(draw(seed))
        if small is not None:
            path = ROOT / "build" / "sim" / f"seed-{seed}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(small.text())
            print(f"shrunk to {path}:\n{small.text()}")
    rare = tally.rare()
    if rare:
        print(f"too rare to be tested: {', '.join(rare)}")
    return int(bool(tally.broken or rare))


if __name__ == "__main__":
    sys.exit(main())
