"""Shows a run of the demo while it goes on: a table on a terminal, calm lines elsewhere.

`conduct` calls `update` some times a second with everything known so far. Nothing here decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, assert_never

from rich.console import Console
from rich.console import Group as Together
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pccl_py.report import board
from pccl_py.report.oracle import status_text
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

REDRAW_S = 0.5  # the clock's beat while nothing happens

_COLOURS: dict[board.Doing, str] = {
    "waiting": "dim",
    "starting": "yellow",
    "joined": "cyan",
    "training": "green",
    "reducing": "blue",
    "dead": "bold red",
    "restarting": "yellow",
    "hung": "bold red",
    "done": "bold green",
}


class Show(Protocol):
    """Where a run is shown: a context manager while the run goes on."""

    def __enter__(self) -> Show: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def update(self, events: Sequence[Event], began: float, now: float, next_text: str) -> None:
        """events: all so far, each call's begin with the last one's. began, now: wall clock.
        next_text: what happens next, one line."""
        ...

    def say(self, text: str) -> None:
        """One line that stays."""
        ...


class LiveTable:
    """For terminals: one table, drawn again in place."""

    def __init__(self, console: Console, workers: Sequence[str], rounds: int) -> None:
        self._console = console
        self._workers, self._rounds = tuple(workers), rounds
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._told = 0
        self._drawn = -math.inf

    def __enter__(self) -> LiveTable:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def update(self, events: Sequence[Event], began: float, now: float, next_text: str) -> None:
        if len(events) == self._told and now - self._drawn < REDRAW_S:
            return
        self._drawn = now
        for event in events[self._told :]:
            if not isinstance(event, Rounded | Started) and (text := sentence(event)):
                self.say(f"{event.time - began:6.1f} s  {text}")
        self._told = len(events)
        self._live.update(self._draw(events, now - began, next_text), refresh=True)

    def say(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)

    def _draw(self, events: Sequence[Event], elapsed_s: float, next_text: str) -> Together:
        rows = board.rows(events, self._workers)
        done = max(row.round for row in rows)
        head = Text.assemble(
            (f"{elapsed_s:5.0f} s", "bold"), f"   round {done} of {self._rounds}   ", next_text
        )
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for name in ("worker", "state", "round", "loss", "sent", "round took", "state hash"):
            right = name in ("round", "loss", "sent", "round took")
            table.add_column(name, justify="right" if right else "left", min_width=8)
        for row in rows:
            table.add_row(
                row.worker,
                Text(row.doing, style=_COLOURS[row.doing]),
                str(row.round),
                "" if math.isnan(row.loss) else f"{row.loss:.3f}",
                board.bytes_text(row.bytes_sent),
                "" if math.isnan(row.round_s) else f"{row.round_s:.1f} s",
                row.digest[:8],
            )
        return Together(head, table)


class PlainLines:
    """For logs and pipes: a line per round and per thing that happened."""

    def __init__(self, console: Console, rounds: int) -> None:
        self._console, self._rounds = console, rounds
        self._told = 0
        self._round = 0
        self._next = ""

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def update(self, events: Sequence[Event], began: float, now: float, next_text: str) -> None:
        for event in events[self._told :]:
            text = sentence(event)
            if isinstance(event, Rounded):
                text = self._round_line(event)
            if text:
                self.say(f"{event.time - began:6.1f} s  {text}")
        self._told = len(events)
        if next_text != self._next:
            self._next = next_text
            self.say(f"{now - began:6.1f} s  -- {next_text}")

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _round_line(self, event: Rounded) -> str:
        """For the first member that finished a round; the others' lines would say the same."""
        if event.round <= self._round:
            return ""
        self._round = event.round
        mended = f", {event.repaired} segments repaired" if event.repaired else ""
        return (
            f"round {event.round}/{self._rounds}: loss {event.loss:.3f} ({event.worker}), "
            f"{event.world} members, {board.bytes_text(event.bytes_sent)} sent{mended}"
        )


def sentence(event: Event) -> str:
    """An event that is worth a line, else ""."""
    match event:
        case Started(_, worker, pid, restart):
            return f"{worker} {'starts again' if restart else 'starts'} (process {pid})"
        case Joined(_, worker, _, epoch, rank, world, number):
            place = f"rank {rank} of {world}, epoch {epoch}"
            return f"{worker} is a member: {place}, at round {number}"
        case Killed(_, worker, pid):
            return f"kill -9 {pid}: {worker}"
        case Exited(_, worker, pid, status):
            return "" if status == 0 else f"{worker} (process {pid}) {status_text(status)}"
        case Evaluated(_, _, _, number, loss):
            return f"validation loss of the outer parameters at round {number}: {loss:.3f}"
        case Left(_, worker, _, number, digest):
            return f"{worker} left after round {number}, state {digest[:16]}"
        case Hung(_, worker, _, seconds):
            return f"{worker} made no progress for {seconds:.0f} s"
        case Rounded() | Reducing():
            return ""
        case _:
            assert_never(event)
