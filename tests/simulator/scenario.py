"""What a simulated run is made of: members, their program, what goes wrong and when.

A `Scenario` is a value: `draw` makes one of a seed, `Scenario.text` and `parse` turn it into lines
that people read, commit and replay, and `shrink` takes things out of it. All else that happens in a
run - delays, pieces, orders, values - follows from its `seed`. Times are virtual seconds; members
are named by *slot*, the place that a worker and those that the launcher starts after it hold.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields

from tests.sim.programs import (
    ALL_REDUCE,
    ALL_TO_ALL,
    AVG,
    FLOAT32,
    INT64,
    MAX,
    ROUTES,
    SCATTER,
    SEND,
    SUM,
    UINT8,
)

DEADLINE_S = 4.0
DETECTION_S = DEADLINE_S / 4
NEWCOMERS_MAX = 6

ALL, SUB, PAIR = range(3)  # who takes part in an op


@dataclass(frozen=True)
class Step:
    """One op of the program that all run round by round.

    who: all of the group, some (those of `pick`'s bits, by place in the line's first view), or a
    pair (pick, root). root: place of the source or destination. flight: not waited for before the
    safe point. patience: seconds until the caller's deadline, 0: the default. late, late_s: the
    place of who submits it later than others, and by how much.
    """

    kind: int = ALL_REDUCE
    dtype: int = FLOAT32
    reduce: int = SUM
    size: int = 20
    route: int = 0
    who: int = ALL
    pick: int = 0
    root: int = 0
    strict: bool = False
    separate: bool = False
    named: bool = False
    flight: bool = False
    patience: float = 0.0
    late: int = -1
    late_s: float = 0.0


@dataclass(frozen=True)
class Fault:
    """what: one of `faults.KINDS`. who, other: slots; seconds: how long it lasts; how: which of its
    variants."""

    what: str = ""
    at: float = 0.0
    who: int = 0
    other: int = 0
    seconds: float = 0.0
    how: int = 0


@dataclass(frozen=True)
class Scenario:
    """world: slots at the start. begin: bits of slots whose loops begin with update(); the others'
    end with it. groups: labels that slots take in turn. segment, small, window: bytes of a segment,
    of a small op (0: the default), in flight on one link. delay, think: seconds, of a message and
    between two rounds. far: members measure long paths. syncs: a line begins with an election of
    the shared state. until: when all faults are over."""

    seed: int = 0
    world: int = 3
    begin: int = 0
    groups: int = 1
    segment: int = 64
    small: int = 0
    window: int = 100_000
    delay: float = 0.004
    think: float = 0.1
    far: bool = False
    syncs: bool = False
    secret: bool = False
    checksum: bool = True
    until: float = 2.0
    steps: tuple[Step, ...] = (Step(),)
    faults: tuple[Fault, ...] = ()

    def text(self) -> str:
        """One line for the run, one each for ops and faults; defaults are left out."""
        lines = [_line("run", self), *(_line("op", step) for step in self.steps)]
        return "\n".join([*lines, *(_line("fault", fault) for fault in self.faults)]) + "\n"


def _line(word: str, value: Scenario | Step | Fault) -> str:
    parts = [word]
    for field in fields(value):
        now = getattr(value, field.name)
        if field.name not in ("steps", "faults") and now != field.default:
            parts.append(f"{field.name}={now}")
    return " ".join(parts)


def parse(text: str) -> Scenario:
    """The scenario of such lines; `#` begins a comment. Raises ValueError."""
    run: dict[str, object] = {}
    steps: list[Step] = []
    faults: list[Fault] = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if not words:
            continue
        word, *parts = words
        match word:
            case "run":
                run = _values(Scenario, parts)
            case "op":
                steps.append(Step(**_values(Step, parts)))  # type: ignore[arg-type]
            case "fault":
                faults.append(Fault(**_values(Fault, parts)))  # type: ignore[arg-type]
            case _:
                raise ValueError(f"no such line: {line}")
    return Scenario(**run, steps=tuple(steps), faults=tuple(faults))  # type: ignore[arg-type]


def _values(kind: type, parts: list[str]) -> dict[str, object]:
    kinds: dict[str, Callable[[str], object]] = {}
    for field in fields(kind):
        assert field.default is not MISSING
        of = type(field.default)
        kinds[field.name] = (lambda word: word == "True") if of is bool else of
    found = (part.split("=", 1) for part in parts)
    return {name: kinds[name](word) for name, word in found}


# ---------------------------------------------------------------- drawing

SIZES = (0, 1, 8, 9, 20, 40, 75)
_FAULTS = (
    "kill", "kill", "kill", "second_kill", "die_early", "pause", "busy", "k_crash", "k_crash",
    "k_torn", "k_half", "k_full", "k_kill", "k_pause", "isolate", "one_way", "bridge", "cut",
    "reset", "control", "flap", "slow", "join", "second_join", "storm", "join_die", "leave",
    "leave_join", "mismatch", "mismatch", "stale", "stale", "rival",
)  # fmt: skip


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(f"scenario {seed}")
    world = rng.choice((1, 2, 2, 3, 3, 3, 4, 4, 5))
    groups = 2 if world > 2 and rng.random() < 0.1 else 1
    faults: list[Fault] = []
    at = 0.2
    for _ in range(rng.choice((1, 2, 2, 3, 3, 4))):
        at = round(at + rng.choice((0.0, 0.02, 0.1, 0.3, 0.6)) * (0.5 + rng.random()), 3)
        faults += _fault(rng, rng.choice(_FAULTS), at, world)
    return Scenario(
        seed=seed,
        world=world,
        begin=rng.choice((0, 0, (1 << 32) - 1, rng.getrandbits(16))),
        groups=groups,
        segment=rng.choice((64, 64, 128)),
        small=rng.choice((0, 0, 1, 200)),
        window=rng.choice((150, 600, 100_000)),
        delay=rng.choice((0.001, 0.004, 0.004, 0.02)),
        think=rng.choice((0.02, 0.1, 0.1, 0.2)),
        far=rng.random() < 0.15,
        syncs=rng.random() < 0.3,
        secret=rng.random() < 0.1,
        checksum=rng.random() < 0.3,
        until=round(max(1.2, max(f.at + f.seconds for f in faults) + 0.2), 3),
        steps=_steps(rng),
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
    )


def _steps(rng: random.Random) -> tuple[Step, ...]:
    """One of them is the whole group's, so that safe points move on."""
    kind = rng.choice((ALL_REDUCE, ALL_REDUCE, *range(SEND)))
    first = _step(rng, kind, ALL)
    return first, *(_step(rng) for _ in range(rng.choice((0, 1, 1, 2, 3))))


def _step(rng: random.Random, kind: int = -1, who: int = -1) -> Step:
    if kind < 0:
        kind = rng.choice((ALL_REDUCE, ALL_REDUCE, ALL_REDUCE, *range(SEND + 1)))
    if who < 0:
        who = PAIR if kind == SEND else rng.choice((ALL, ALL, ALL, SUB))
    dtype = rng.choice((INT64, FLOAT32, FLOAT32, UINT8))
    reduces = (SUM, SUM, AVG, MAX) if dtype == FLOAT32 else (SUM, MAX)
    is_late = rng.random() < 0.25
    return Step(
        kind=kind,
        dtype=dtype,
        reduce=rng.choice(reduces) if kind in (0, 2, 4) else SUM,
        size=rng.choice(SIZES),
        route=rng.choice(ROUTES) if kind <= SCATTER else 0,
        who=who,
        pick=rng.getrandbits(16) | 1 << rng.randrange(3) if who else 0,
        root=rng.randrange(4),
        strict=kind == ALL_REDUCE and rng.random() < 0.2,
        separate=kind < ALL_TO_ALL and rng.random() < 0.3,
        named=rng.random() < 0.25,
        flight=rng.random() < 0.3,
        patience=rng.choice((0.0, 0.0, 0.0, 0.02, 0.1)),
        late=rng.randrange(4) if is_late else -1,
        late_s=rng.choice((0.01, 0.1, 0.4)) if is_late else 0.0,
    )


def _fault(rng: random.Random, what: str, at: float, world: int) -> list[Fault]:
    """One thing that goes wrong, or two that belong together."""
    who = rng.randrange(world)
    other = (who + rng.randrange(1, max(2, world))) % max(2, world)
    soon = rng.choice((0.0, 0.005, 0.02, 0.1))
    long = rng.choice((0.1, 0.4, 1.3, 2.2))
    back = rng.choice((0.0, 0.05, 0.3))  # 0: nobody restarts it
    match what:
        case "second_kill":  # in the midst of what the first one's death brings about
            first = Fault("kill", at, who, seconds=back)
            return [first, Fault("kill", round(at + soon, 3), other)]
        case "die_early":
            return [Fault("die_early", at, who, seconds=back)]
        case "k_torn" | "k_half":  # at the next view, which a death brings about
            crash = Fault(
                "k_crash", at, seconds=rng.choice((0.05, 0.3)), how=1 + (what == "k_half")
            )
            return [crash, Fault("kill", round(at + 0.01, 3), who, seconds=back)]
        case "k_full":
            full = Fault("k_full", at, seconds=rng.choice((0.6, 1.3, 2.2)))
            return [full, Fault("kill", round(at + 0.01, 3), who, seconds=back)]
        case "k_kill":
            crash = Fault("k_crash", at, seconds=long)
            return [crash, Fault("kill", round(at + soon, 3), who, seconds=back)]
        case "k_crash":
            return [Fault("k_crash", at, seconds=rng.choice((0.02, 0.2, 0.7)))]
        case "second_join":
            return [
                Fault("join", at, how=1),
                Fault("join", round(at + 0.3 * rng.random(), 3), how=1),
            ]
        case "leave_join":
            return [Fault("join", at), Fault("leave", round(at + soon, 3), who)]
        case "storm":
            return [Fault("storm", at, how=rng.randrange(3, 6))]
        case "join_die":
            return [Fault("join_die", at, seconds=rng.choice((0.005, 0.02, 0.05, 0.15)))]
        case "kill" | "busy" | "slow":
            seconds = back if what == "kill" else long
            return [Fault(what, at, who, seconds=seconds)]
        case "one_way":
            return [Fault(what, at, who, other, long, how=rng.randrange(3))]
        case _:
            return [Fault(what, at, who, other, long, how=rng.randrange(1 << 10))]
