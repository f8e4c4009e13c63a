"""A log put together again: who was a member when, and what held it up. Pure; for the oracle, the
figures and the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from stress.storm.records import (
    Began,
    Calm,
    Exited,
    Fault,
    Healed,
    Joined,
    Left,
    Lost,
    Over,
    Record,
    Spawned,
    Stepped,
    Synced,
)


@dataclass(slots=True)
class Membership:
    """From a `join` that returned to its end. end: "left", "lost", "died", or "" if the log ends
    before it; ended: when, seconds."""

    who: str
    joined: Joined
    steps: list[Stepped] = field(default_factory=list)
    syncs: list[Synced] = field(default_factory=list)
    end: str = ""
    ended: float = math.inf
    lost: Lost | None = None

    @property
    def told(self) -> list[Stepped]:
        """The steps whose outcome binds: not the last before a death or an expulsion, which the
        others may have ended differently without it."""
        return self.steps[:-1] if self.end in ("lost", "died") else self.steps

    @property
    def told_syncs(self) -> list[Synced]:
        return self.syncs[:-1] if self.end in ("lost", "died") else self.syncs


@dataclass(slots=True)
class Life:
    """A process. stops: from when to when it was stopped."""

    who: str
    slot: int
    spawned: float
    memberships: list[Membership] = field(default_factory=list)
    stops: list[tuple[float, float]] = field(default_factory=list)
    exited: Exited | None = None

    def stopped_s(self, start: float, end: float) -> float:
        """Seconds of [start, end] in which it could do nothing."""
        return sum(max(0.0, min(end, b) - max(start, a)) for a, b in self.stops)


@dataclass(slots=True)
class History:
    """A whole storm. records: of its log, in order."""

    records: Sequence[Record]
    began: Began
    lives: dict[str, Life] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    healed: dict[int, float] = field(default_factory=dict)
    calm: Calm | None = None
    over: float = math.inf

    @property
    def memberships(self) -> Iterable[Membership]:
        for life in self.lives.values():
            yield from life.memberships

    def without_coordinator_s(self, start: float, end: float) -> float:
        """Seconds of [start, end] in which none listened."""
        return sum(
            max(0.0, min(end, self.healed.get(f.number, math.inf)) - max(start, f.at))
            for f in self.faults
            if f.kind == "coordinator"
        )

    def faults_on(self, who: str, since: float, until: float) -> list[Fault]:
        """Faults that it suffered or that lasted in [since, until]."""
        return [
            fault
            for fault in self.faults
            if who in fault.whom
            and fault.at <= until
            and max(fault.at, self.healed.get(fault.number, fault.at)) >= since
        ]


def of(records: Sequence[Record]) -> History:
    """Raises ValueError for a log that does not begin as one."""
    first = records[0] if records else None
    if not isinstance(first, Began):
        raise ValueError("a log begins with Began")
    made = History(records, first)
    for record in records[1:]:
        _take(made, record)
    for fault in made.faults:
        if fault.kind in ("stop", "nap"):
            end = made.healed.get(fault.number, math.inf)
            made.lives[fault.whom[0]].stops.append((fault.at, end))
    return made


def _take(made: History, record: Record) -> None:
    match record:
        case Spawned():
            made.lives[record.who] = Life(record.who, record.slot, record.at)
        case Joined():
            made.lives[record.who].memberships.append(Membership(record.who, record))
        case Stepped():
            _current(made, record.who).steps.append(record)
        case Synced():
            _current(made, record.who).syncs.append(record)
        case Left():
            _end(_current(made, record.who), "left", record.at)
        case Lost():
            _current(made, record.who).lost = record
            _end(_current(made, record.who), "lost", record.at)
        case Exited() if record.who in made.lives:
            life = made.lives[record.who]
            life.exited = record
            if life.memberships and not life.memberships[-1].end:
                _end(life.memberships[-1], "died", record.at)
        case Fault():
            made.faults.append(record)
        case Healed():
            made.healed[record.number] = record.at
        case Calm():
            made.calm = record
        case Over():
            made.over = record.at
        case _:
            pass


def _current(made: History, who: str) -> Membership:
    life = made.lives[who]
    if not life.memberships:
        raise ValueError(f"{who} acts before it has joined")
    return life.memberships[-1]


def _end(membership: Membership, how: str, at: float) -> None:
    membership.end, membership.ended = how, at
