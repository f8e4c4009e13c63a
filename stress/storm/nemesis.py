"""What is done to whom next: a draw from what is possible now. Pure: the seed is an argument.

The same seed draws the same faults from the same standings; which members stand where at a moment
is the machine's affair, so the log tells what was really done.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stress.storm.profiles import Profile

KILLS = ("kill", "stillborn")
LINKS = ("cut", "hold", "slow", "corrupt")  # whom: the two ends


@dataclass(frozen=True, slots=True)
class Standing:
    """members: by name, able to act; processes: that live, newcomers and stopped ones included;
    waiting: by name, those of them that are on their way in; stopped: members that are; pairs:
    links that have a fault; is_coordinator_up: and has been for a while, since ops that have lost
    somebody wait for it."""

    members: tuple[str, ...]
    processes: int
    waiting: tuple[str, ...]
    stopped: int
    pairs: frozenset[frozenset[str]]
    is_coordinator_up: bool


@dataclass(frozen=True, slots=True)
class Draw:
    """A fault to be: as `records.Fault`."""

    kind: str
    whom: tuple[str, ...] = ()
    seconds: float = 0.0


def draw(rng: random.Random, profile: Profile, now: Standing, detection_s: float) -> Draw | None:
    """One fault, or None where nothing can be done."""
    possible = {
        kind: weight
        for kind, weight in profile.weights.items()
        if weight and _POSSIBLE[kind](profile, now)
    }
    if not possible:
        return None
    kind = rng.choices(list(possible), list(possible.values()))[0]
    match kind:
        case "join":
            return Draw(kind)
        case "coordinator":  # and now and then again, as soon as it is back
            return Draw(kind, (), rng.choice((0.0, 0.0, 0.0, rng.uniform(0.01, 1.0))))
        case "kill":  # now and then two at once
            count = 2 if rng.random() < 0.25 and len(now.members) > profile.floor + 1 else 1
            return Draw(kind, tuple(rng.sample(now.members, count)))
        case "leave":
            return Draw(kind, (rng.choice(now.members),))
        case "stillborn":
            return Draw(kind, (rng.choice(now.waiting),))
        case "stop":  # for dead it is taken
            return Draw(kind, (rng.choice(now.members),), detection_s * rng.uniform(1.3, 2.0))
        case "nap":  # short enough for nobody to mind
            return Draw(kind, (rng.choice(now.members),), rng.uniform(0.05, detection_s / 4))
        case "corrupt":
            return Draw(kind, _pair(rng, now))
        case _:
            return Draw(kind, _pair(rng, now), rng.uniform(0.2, 1.5 * detection_s))


def _pair(rng: random.Random, now: Standing) -> tuple[str, ...]:
    free = [
        (a, b)
        for i, a in enumerate(now.members)
        for b in now.members[i + 1 :]
        if frozenset((a, b)) not in now.pairs
    ]
    return rng.choice(free)


def _can_join(profile: Profile, now: Standing) -> bool:
    return now.processes < profile.ceiling and len(now.waiting) < 3


def _can_spare(profile: Profile, now: Standing) -> bool:
    return len(now.members) > profile.floor


def _can_stop(profile: Profile, now: Standing) -> bool:
    return _can_spare(profile, now) and not now.stopped


def _has_links(profile: Profile, now: Standing) -> bool:
    """At most a quarter of the members with a broken link: others reach all."""
    return profile.proxied and len(now.members) >= 3 and len(now.pairs) < len(now.members) / 4


def _has_newcomers(profile: Profile, now: Standing) -> bool:
    return bool(now.waiting)


def _has_coordinator(profile: Profile, now: Standing) -> bool:
    return now.is_coordinator_up


_POSSIBLE: Mapping[str, Callable[[Profile, Standing], bool]] = {
    "join": _can_join,
    "kill": _can_spare,
    "stillborn": _has_newcomers,
    "leave": _can_spare,
    "stop": _can_stop,
    "nap": _can_stop,
    "cut": _has_links,
    "hold": _has_links,
    "slow": _has_links,
    "corrupt": _has_links,
    "coordinator": _has_coordinator,
}
KINDS = tuple(_POSSIBLE)
