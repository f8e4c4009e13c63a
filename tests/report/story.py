"""A run of the demo that went well, as events, for the tests to spoil."""

from __future__ import annotations

from dataclasses import replace

from pccl_py.report.oracle import Expected
from pccl_py.report.records import (
    Evaluated,
    Event,
    Exited,
    Joined,
    Killed,
    Left,
    Reducing,
    Rounded,
    Started,
)

EXPECTED = Expected(("w0", "w1", "w2"), "w2", "w3", rounds=6, loss_limit=2.35)
BEGAN = 1000.0
PIDS = {"w0": 10, "w1": 11, "w2": 12, "w3": 14}
SECOND_LIFE = 13  # of w2


def good() -> list[Event]:
    """w2 is killed in round 3 (which takes 3 s instead of 2), is back at round 4; w3 joins at 5."""
    events: list[Event] = []
    for worker in EXPECTED.first:
        events.append(Started(BEGAN, worker, PIDS[worker], 0))
        events.append(Joined(BEGAN + 1, worker, PIDS[worker], 1, int(worker[1]), 3, 0))
    events.append(Evaluated(BEGAN + 1.5, "w0", 10, 0, 5.5))
    ends = {1: 3.0, 2: 5.0, 3: 8.0, 4: 10.0, 5: 12.0, 6: 14.0}
    present = {
        1: "w0 w1 w2",
        2: "w0 w1 w2",
        3: "w0 w1",
        4: "w0 w1",
        5: "w0 w1 w2",
        6: "w0 w1 w2 w3",
    }
    for number, end in ends.items():
        for worker in present[number].split():
            pid = SECOND_LIFE if worker == "w2" and number > 3 else PIDS[worker]
            events.append(Reducing(BEGAN + end - 0.1, worker, pid, number - 1))
            events.append(rounded(BEGAN + end, worker, pid, number))
    events += [
        Killed(BEGAN + 6, "w2", 12),
        Exited(BEGAN + 6.1, "w2", 12, -9),
        Started(BEGAN + 6.2, "w2", SECOND_LIFE, 1),
        Joined(BEGAN + 10.1, "w2", SECOND_LIFE, 3, 2, 3, 4),
        Started(BEGAN + 9, "w3", 900, 0),  # the second launcher
        Joined(BEGAN + 12.1, "w3", 14, 4, 3, 4, 5),
        Evaluated(BEGAN + 15, "w0", 10, 6, 1.9, 2.45),
    ]
    for worker in EXPECTED.everybody:
        pid = SECOND_LIFE if worker == "w2" else PIDS[worker]
        events.append(Left(BEGAN + 15.5, worker, pid, 6, "hash6"))
        events.append(Exited(BEGAN + 16, worker, 900 if worker == "w3" else pid, 0))
    return sorted(events, key=lambda event: event.time)


def rounded(time: float, worker: str, pid: int, number: int) -> Rounded:
    return Rounded(
        time, worker, pid, number, loss=5.0 - number / 2, seconds=2.0, reduce_s=0.1,
        bytes_sent=1_000_000, epoch=1, world=3, contributors_min=2 if number == 3 else 3,
        contributors_max=3, repaired=4 if number == 3 else 0, digest=f"hash{number}",
    )  # fmt: skip


def without(events: list[Event], kind: type[Event], **fields: object) -> list[Event]:
    """All events but those of `kind` whose `fields` have these values."""
    return [event for event in events if not _matches(event, kind, fields)]


def changed(
    events: list[Event], kind: type[Event], fields: dict[str, object], **new: object
) -> list[Event]:
    """With `new` values in the events of `kind` whose `fields` have these values."""
    return [
        replace(e, **new) if _matches(e, kind, fields) else e  # type: ignore[arg-type]
        for e in events
    ]


def _matches(event: Event, kind: type[Event], fields: dict[str, object]) -> bool:
    return isinstance(event, kind) and all(getattr(event, k) == v for k, v in fields.items())
