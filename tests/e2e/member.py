"""A member as a program: joins, reduces in a loop, checks every value, says what happened as JSON
lines. Started by the tests of this folder as a real process; dies by SIGKILL when they say so."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from itertools import combinations

import numpy as np

import pccl_py as pccl


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def values(name: str, op: int, count: int) -> np.ndarray:
    """What the peer of this name puts into its op-th reduction: integers, so sums are exact."""
    seed = int.from_bytes(hashlib.sha256(f"{name}/{op}".encode()).digest()[:8], "little")
    return np.random.default_rng(seed).integers(-999, 999, count, np.int16).astype(np.float32)


def is_a_right_sum(got: np.ndarray, op: int, names: list[str]) -> bool:
    """Every element is the sum over all who began the op, or over all but one or two of them."""
    parts = {name: values(name, op, got.size) for name in names}
    total = sum(parts.values())
    right = got == total
    for lost in (*combinations(names, 1), *combinations(names, 2)):
        if right.all():
            break
        right |= got == total - sum(parts[name] for name in lost)
    return bool(right.all())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("coordinator")
    parser.add_argument("--name", required=True)
    parser.add_argument("--min-members", type=int, default=1)
    parser.add_argument("--ops", type=int, default=20)
    parser.add_argument("--count", type=int, default=1 << 20)
    parser.add_argument("--deadline", type=float, default=20.0)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--update", action="store_true")
    args = parser.parse_args()
    before: list[str] = []
    with pccl.join(
        args.coordinator, name=args.name, min_members=args.min_members, deadline_s=args.deadline
    ) as comm:
        state = {"step": np.zeros(1, np.int64)}
        comm.sync_state(state, revision=0)
        line = comm.line
        say(event="joined", pid=os.getpid(), epoch=comm.epoch, world=comm.world_size)
        while state["step"][0] < args.ops:
            op = int(state["step"][0])
            before = [m.name for m in comm.members]
            tensor = values(args.name, op, args.count)
            say(event="begin", op=op)
            began = time.monotonic()
            info = comm.all_reduce(tensor)
            say(
                event="reduced",
                op=op,
                seconds=time.monotonic() - began,
                right=is_a_right_sum(tensor, op, before),
                bits=hashlib.sha256(tensor.tobytes()).hexdigest(),
                low=info.contributors_min,
                high=info.contributors_max,
                repaired=info.repaired,
                world=len(before),
            )
            state["step"] += 1
            if args.update:
                comm.update()
                if comm.line != line:
                    line = comm.line
                    comm.sync_state(state, revision=int(state["step"][0]))
            time.sleep(args.pause)
    say(event="left")


if __name__ == "__main__":
    main()
