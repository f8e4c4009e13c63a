"""Random collectives among two to five processes, with kills, stops and restarts at random moments.

The profile `ops`: in lock step, every kind of collective at once, each judged in its memory. Prints
what it did and the seed, in one line. The same seed draws the same ops and victims; when a signal
arrives is the machine's affair.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter

from stress.chaos.group import Group, Worker
from stress.chaos.judge import Wrong
from stress.chaos.steps import DTYPES, KINDS, REDUCTIONS, Op, Step

WORLD_MAX = 5
COUNTS = (0, 1, 5, 1000, 9000, 70_000, 400_000)
STOP_SHARE = 0.08  # of the deaths
DEADLINE_S = 16.0  # who is silent is dead after a quarter of it


def drawn_op(rng: random.Random, number: int, groups: list[list[str]], busy: bool) -> Op:
    kind = rng.choice(KINDS)
    dtype = rng.choice(DTYPES)
    reduction = rng.choice(REDUCTIONS)
    weighted = kind == "all_reduce" and reduction == "avg" and dtype != "int64"
    group = rng.randrange(len(groups)) if groups and rng.random() < 0.3 else None
    ends = ("", "")
    pairs = [i for i, one in enumerate(groups) if len(one) == 2]
    if kind == "send" and not pairs:
        kind = "barrier"
    elif kind == "send":  # in a group of two no rank can pass to a third
        group = rng.choice(pairs)
        ends = (groups[group][0], groups[group][1])
    is_late = not busy and rng.random() < 0.03
    return Op(
        number,
        kind,
        dtype,
        reduction,
        count=rng.choice(COUNTS),
        root=rng.randrange(WORLD_MAX),
        group=group,
        ends=ends,
        name=f"n{number}" if rng.random() < 0.2 else None,
        route=rng.choice(("auto", "direct", "ring", "star")),
        weighted=weighted and rng.random() < 0.5,
        in_place=rng.random() < 0.5,
        strict=rng.random() < 0.3,
        timeout=rng.choice((0.005, 0.05)) if is_late else 0.0,
    )


class Chaos:
    def __init__(self, group: Group, rng: random.Random) -> None:
        self.group, self.rng = group, rng
        self.counts: Counter[str] = Counter()
        self._ops = 0
        self._groups: list[list[str]] = []
        self._typical_s = 0.05

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self.group.begin(self.rng.randint(2, WORLD_MAX))
        while time.monotonic() < until:
            self._regroup()
            for _ in range(self.rng.randint(1, 4)):
                self._step()
            room = WORLD_MAX - len(self.group.living)
            if room and self.rng.random() < 0.8:
                count = self.rng.randint(1, room)
                self.counts["restarts"] += count
                self.group.start(count, 1)
                self._step()
            self.group.settle()

    def _regroup(self) -> None:
        """Sub-groups, made while nobody dies."""
        self.group.settle()
        world = self.group.run(Step(0))[0].world
        groups = [self.rng.sample(world, self.rng.randint(1, len(world))) for _ in range(2)]
        groups += [self.rng.sample(world, 2) for _ in range(2) if len(world) > 1]
        self.group.run(Step(0, groups=tuple(map(tuple, groups)), update=False))
        self._groups = groups

    def _step(self) -> None:
        rng, living = self.rng, self.group.living
        names = [w.name for w in living]
        busy = not self.group.is_complete
        if busy:  # an admission: sub-groups are made anew after it
            self._groups = []
        ops = []
        for _ in range(rng.choice((1, 1, 2, 4, 8))):
            ops.append(drawn_op(rng, self._ops, self._groups, busy))
            self._ops += 1
        victims = rng.sample(living, min(len(living) - 1, rng.choice((0, 1, 1, 1, 2))))
        suicides = [w for w in victims if rng.random() < 0.3]
        step = Step(
            0,
            tuple(ops),
            pauses=tuple((n, rng.choice((0.0, 0.0, 0.002, 0.02))) for n in names),
            dies=tuple((w.name, rng.randint(0, len(ops))) for w in suicides),
        )
        began = time.monotonic()
        self.group.tell(step)
        for victim in victims:
            self.group.listen(rng.uniform(0.0, 1.2 * self._typical_s))
            if victim in suicides:
                self.counts["kills"] += 1
            elif rng.random() < STOP_SHARE:
                self._stop(victim)
            else:
                self.counts["kills"] += 1
                victim.kill()
        self.group.finish()
        self.counts["steps"] += 1
        if not victims:
            self._typical_s += 0.1 * (time.monotonic() - began - self._typical_s)

    def _stop(self, victim: Worker) -> None:
        self.counts["stops"] += 1
        victim.stop()
        self.group.listen(self.rng.choice((0.01, 0.3, 0.3, 1.5 * DEADLINE_S / 4)))
        victim.resume()


def run(seconds: float, seed: int) -> int:
    """Prints what there was. 1 if something was wrong, else 0."""
    wrong: Counter[str] = Counter()
    with Group(DEADLINE_S) as group:
        chaos = Chaos(group, random.Random(seed))
        try:
            chaos.run(seconds)
        except Wrong as error:
            wrong[error.sort] += 1
            print(f"seed {seed}: {error}", file=sys.stderr)
        said = {**chaos.counts, "ops": sum(n for end, n in group.ends.items() if " " in end)}
        ends = ", ".join(f"{end} {count}" for end, count in sorted(group.ends.items()))
    faults = ", ".join(f"{wrong[sort]} {sort}" for sort in ("wrong", "bits", "mixture", "hang"))
    print(f"chaos: seed {seed}: {said}; {faults}; ends: {ends}")
    return 1 if wrong else 0
