"""What each worker is doing now, folded from the events; pure. `live` draws it.

A worker's state, from its last event:

    waiting --Started--> starting --Joined--> joined --Rounded--> training <--> reducing
    any --Killed, Exited (not 0)--> dead --Started--> restarting --Joined--> joined
    training --Left, Exited 0--> done
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal, assert_never

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

Doing = Literal[
    "waiting", "starting", "joined", "training", "reducing", "dead", "restarting", "hung", "done"
]


@dataclass(frozen=True, slots=True)
class Row:
    """One worker. round: rounds done; loss: of its last inner step, NaN before; bytes_sent: by all
    its lives; round_s: seconds of its last round; digest: of the outer state, "" before."""

    worker: str
    doing: Doing = "waiting"
    round: int = 0
    loss: float = math.nan
    bytes_sent: int = 0
    round_s: float = math.nan
    digest: str = ""


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """One round over the members that finished it so far. loss: mean of their last inner steps."""

    round: int
    members: int
    loss: float
    bytes_sent: int
    repaired: int


def rows(events: Iterable[Event], workers: Sequence[str]) -> tuple[Row, ...]:
    """One row for each of `workers`, in that order. events: in order of time."""
    found = {worker: Row(worker) for worker in workers}
    for event in events:
        if event.worker in found:
            found[event.worker] = _after(found[event.worker], event)
    return tuple(found.values())


def _after(row: Row, event: Event) -> Row:
    match event:
        case Started():
            return replace(row, doing="restarting" if event.restart else "starting")
        case Joined():
            return replace(row, doing="joined", round=event.round)
        case Reducing():
            return replace(row, doing="reducing")
        case Rounded():
            return replace(
                row,
                doing="training",
                round=event.round,
                loss=event.loss,
                bytes_sent=row.bytes_sent + event.bytes_sent,
                round_s=event.seconds,
                digest=event.digest,
            )
        case Killed():
            return replace(row, doing="dead")
        case Exited():
            return replace(row, doing="done" if event.status == 0 else "dead")
        case Left():
            return replace(row, doing="done", round=event.round, digest=event.digest)
        case Hung():
            return replace(row, doing="hung")
        case Evaluated():
            return row
        case _:
            assert_never(event)


def round_summaries(events: Iterable[Event]) -> tuple[RoundSummary, ...]:
    """Every round that somebody finished, by number."""
    by_round: dict[int, list[Rounded]] = {}
    for event in events:
        if isinstance(event, Rounded):
            by_round.setdefault(event.round, []).append(event)
    return tuple(
        RoundSummary(
            round=number,
            members=len(done),
            loss=fmean(e.loss for e in done),
            bytes_sent=sum(e.bytes_sent for e in done),
            repaired=max(e.repaired for e in done),
        )
        for number, done in sorted(by_round.items())
    )


def bytes_text(count: int) -> str:
    """A number of bytes as people read it, decimal units."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.5 or unit == "GB":
            break
    return f"{value:.1f} {unit}"
