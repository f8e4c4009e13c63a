"""Real processes in chaos, judged. Exit status: 0 nothing wrong, 1 something, with what.

The profiles storm, suite and pccl let members run freely while a nemesis kills, stops, starts and
dismisses them, breaks their links and kills the coordinator; they leave a log, the schedule and a
report. The profile ops does random batches of every collective in lock step. The same seed draws
the same; what a machine makes of it is in the log.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from dataclasses import replace
from pathlib import Path

from stress.chaos import ops
from stress.storm import conclude
from stress.storm.conduct import Storm
from stress.storm.profiles import PROFILES


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m stress.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--profile", choices=(*PROFILES, "ops"), default="storm")
    add("--minutes", type=float, default=1.0, help="of faults (default %(default)g)")
    add("--seconds", type=float, help="the same, in seconds")
    add("--seed", type=int, help="default: of the clock")
    add("--world", type=int, metavar="N", help="members at the beginning, 2 to 12")
    add("--repeat", type=Path, metavar="SCHEDULE", help="do what this schedule.jsonl tells")
    add("--out", type=Path, default=Path("build/chaos"), help="a folder (default %(default)s)")
    args = parser.parse_args()
    seed = time.time_ns() % 1_000_000 if args.seed is None else args.seed
    seconds = 60.0 * args.minutes if args.seconds is None else args.seconds
    if args.profile == "ops":
        return ops.run(seconds, seed)
    name, faults = args.profile, []
    if args.repeat is not None:
        old = conclude.schedule(args.repeat)
        name, seed, seconds, faults = (
            old.began.profile,
            old.began.seed,
            old.began.seconds,
            old.faults,
        )
    profile = PROFILES[name]
    if args.world is not None:
        if not 2 <= args.world <= 12:
            parser.error("--world: from 2 to 12")
        profile = replace(profile, world=args.world, ceiling=max(args.world, profile.ceiling))
    asyncio.run(Storm(name, profile, seed, seconds, args.out, faults).run())
    again = f"python -m stress.chaos --profile {name} --seconds {seconds:g} --seed {seed}"
    again += "" if args.world is None else f" --world {args.world}"
    return conclude.conclude(args.out, again)


if __name__ == "__main__":
    sys.exit(main())
