"""When the demo kills, when it starts the late worker, and when it loses patience; pure.

`conduct` asks some times a second, with everything that has happened and the wall-clock time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import assert_never

from pccl_py.report.oracle import Expected, joins
from pccl_py.report.records import (
    Evaluated,
    Event,
    Exited,
    Hung,
    Joined,
    Killed,
    Left,
    Reducing,
    Rounded,
    Started,
)

START_S = 90.0  # from a worker's start until it is a member: importing torch on a busy machine


@dataclass(frozen=True, slots=True)
class Script:
    """kill_round: the victim is killed in the middle of the round after this one; late_round: the
    late worker's launcher is started when this round is done, and the kill. limit_s: the whole
    run's limit."""

    expected: Expected
    kill_round: int
    late_round: int
    limit_s: float


def kill_due(events: Iterable[Event], script: Script, now: float) -> bool:
    """Whether the victim is in the middle of its fatal round, and not dead yet."""
    victim, last = script.expected.victim, None
    for event in events:
        if event.worker == victim:
            if isinstance(event, Killed | Exited | Left):
                return False
            if isinstance(event, Rounded):
                last = event
    if last is None or last.round < script.kill_round:
        return False
    if last.round > script.kill_round:  # rounds are quicker than we look
        return True
    return now - last.time >= last.seconds / 2


def late_due(events: Sequence[Event], script: Script) -> bool:
    """Whether it is time for the late worker."""
    killed = any(isinstance(event, Killed) for event in events)
    return killed and _last_round(events) >= script.late_round


def find_hung(events: Iterable[Event], script: Script, began: float, now: float) -> Hung | None:
    """The first worker that is silent for too long, or anybody if the whole run is too long."""
    last = {event.worker: event for event in events}
    for event in last.values():
        limit = _patience(event, script.expected.hang_s)
        if limit is not None and now - event.time > limit:
            return Hung(now, event.worker, event.pid, now - event.time)
    if now - began > script.limit_s:
        slowest = min(last.values(), key=lambda e: e.time, default=None)
        worker = script.expected.first[0] if slowest is None else slowest.worker
        return Hung(now, worker, 0 if slowest is None else slowest.pid, now - began)
    return None


def _patience(event: Event, hang_s: float) -> float | None:
    """For how long this may be a worker's last event; None: for ever."""
    match event:
        case Started():
            return START_S
        case Joined() | Rounded() | Reducing() | Evaluated() | Left() | Killed():
            return hang_s
        case Exited() | Hung():
            return None
        case _:
            assert_never(event)


def next_text(events: Sequence[Event], script: Script) -> str:
    """What happens next, one line for the table's head."""
    expected = script.expected
    kill = next((event for event in events if isinstance(event, Killed)), None)
    ended = {event.worker for event in events if isinstance(event, Exited) and event.status == 0}
    if ended == set(expected.everybody):
        return "finished"
    if not joins(events, expected.first[0]):
        return f"next: {len(expected.first)} workers join"
    if kill is None:
        return f"next: kill -9 {expected.victim} in mid round {script.kill_round + 1}"
    if not any(event.time > kill.time for event in joins(events, expected.victim)):
        return f"next: the launcher restarts {expected.victim}, which rejoins and catches up"
    if not any(event.worker == expected.late for event in events):
        return f"next: a second `pccl run` brings {expected.late}, at round {script.late_round}"
    if not joins(events, expected.late):
        return f"next: {expected.late} joins"
    if _last_round(events) < expected.rounds:
        return f"next: the end, at round {expected.rounds}"
    return "next: the outer parameters are tested"


def _last_round(events: Iterable[Event]) -> int:
    return max((event.round for event in events if isinstance(event, Rounded)), default=0)
