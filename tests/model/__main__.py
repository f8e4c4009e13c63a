"""All scenes at length: `make model`, `python -m tests.model --minutes 10 [--scene PART]`.

Half of the time is for the whole search of QUICK and LONG scenes, bounded in worlds, the rest is
shared by the FIELD. Prints what each came to; ends with 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tests.model.scenes import FIELD, LONG, QUICK
from tests.model.search import Counterexample, explore
from tests.model.wander import Wanderer
from tests.model.world import Scene

WORLDS_MAX = 20_000_000  # of one scene; 2 GB


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, default=300_000, help="worlds of a whole search")
    parser.add_argument("--scene", default="", help="only scenes with this in their names")
    options = parser.parse_args(argv)
    end = time.monotonic() + 60 * options.minutes
    whole = [scene for scene in (*QUICK, *LONG) if options.scene in scene.name]
    field = [scene for scene in FIELD if options.scene in scene.name]
    half = end - (30 * options.minutes if field else 0)
    good = True
    for number, scene in enumerate(whole):
        if time.monotonic() >= half:
            print(f"{len(whole) - number} of {len(whole)} scenes not searched: no time left")
            break
        good &= _searched(scene, options.limit)
    for number, scene in enumerate(field):
        seconds = max(0.0, end - time.monotonic()) / (len(field) - number)
        good &= _wandered(scene, options.seed, seconds)
    return 0 if good else 1


def _searched(scene: Scene, limit: int) -> bool:
    began = time.monotonic()
    try:
        result = explore(scene, limit=limit)
    except Counterexample as broken:
        print(broken, flush=True)
        return False
    bound = "" if result.complete else " (bounded)"
    seconds = time.monotonic() - began
    print(f"{scene.name}: {result.worlds:,} worlds{bound}, {seconds:.1f} s", flush=True)
    return True


def _wandered(scene: Scene, seed: int, seconds: float) -> bool:
    began = time.monotonic()
    wanderer = Wanderer(scene, seed)
    try:
        wanderer.go(WORLDS_MAX, lambda: time.monotonic() - began >= seconds)
    except Counterexample as broken:
        print(f"seed {seed}: {broken}", flush=True)
        return False
    finally:
        print(
            f"{scene.name}: {len(wanderer.seen):,} worlds, {wanderer.rests:,} of them at rest, "
            f"{wanderer.depth_max} steps deep, {wanderer.walks:,} walks, "
            f"{time.monotonic() - began:.1f} s",
            flush=True,
        )
    return True


if __name__ == "__main__":
    sys.exit(main())
