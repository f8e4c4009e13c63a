"""A worker for the tests of the demo's machinery: writes the metrics of a calm run, trains nothing.

Rounds follow the wall clock from the moment that the first worker began, so that all lives of all
workers are at the same round, as members of a real run are. FAKE_DIVERGES names a worker whose
state is another one, FAKE_HANGS one that stops after joining, FAKE_FAILS one that ends with 2
(which the launcher takes for hopeless).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

ROUND_S = 0.1


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    parser.add_argument("--name")
    args, _ = parser.parse_known_args()
    name = args.name or f"w{os.environ['RANK']}"
    clock = args.metrics / "began"
    try:
        with clock.open("x") as file:
            file.write(str(time.time()))
    except FileExistsError:
        time.sleep(0.05)
    began = float(clock.read_text())
    with (args.metrics / f"{name}-{os.getpid()}.jsonl").open("a", buffering=1) as out:

        def write(event: str, **values: object) -> None:
            line = {"event": event, "time": time.time(), "worker": name, "pid": os.getpid()}
            out.write(json.dumps({**line, **values}) + "\n")

        def now() -> int:
            return min(int(args.rounds), int((time.time() - began) / ROUND_S))

        done = now()
        write("joined", epoch=1, rank=int(name[1:]), world=4, round=done)
        if name == os.environ.get("FAKE_HANGS"):
            time.sleep(3600)
        if name == "w0":
            write("evaluated", round=0, valid_loss=5.5)
        while done < args.rounds:
            time.sleep(0.02)
            if now() > done:
                done += 1
                write("reducing", round=done - 1)
                write(
                    "round", round=done, loss=5.0 - done / 20, seconds=ROUND_S, reduce_s=0.01,
                    bytes_sent=1000, epoch=1, world=4, contributors_min=4, contributors_max=4,
                    repaired=0, digest=_digest(name, done),
                )  # fmt: skip
        if name == "w0":
            write("evaluated", round=done, valid_loss=2.0, bigram_loss=2.4)
        write("left", round=done, digest=_digest(name, done))
    if name == os.environ.get("FAKE_FAILS"):
        print("something went wrong", file=sys.stderr)
        return 2
    return 0


def _digest(name: str, done: int) -> str:
    own = name if name == os.environ.get("FAKE_DIVERGES") else "same"
    return f"{own}-{done}"


if __name__ == "__main__":
    sys.exit(main())
