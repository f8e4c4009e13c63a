"""What happened in a run of the demo: one closed union of values, and its JSON lines.

Workers write lines (`examples/train_gpt.py --metrics`), `follow` reads them here, `conduct` adds
what it did and saw itself; `oracle`, `live` and `html` only ever see these values. Times are
wall-clock seconds (`time.time()`), the one clock that all processes of a machine share. Nothing
here reads a file or decides anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Started:
    """The launcher started a worker's process. restart: 0 for its first life."""

    time: float
    worker: str
    pid: int
    restart: int


@dataclass(frozen=True, slots=True)
class Killed:
    """The demo sent SIGKILL to a worker."""

    time: float
    worker: str
    pid: int


@dataclass(frozen=True, slots=True)
class Exited:
    """A worker's process ended. status: exit code, or minus the signal."""

    time: float
    worker: str
    pid: int
    status: int


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is a member and holds the shared state of `round`."""

    time: float
    worker: str
    pid: int
    epoch: int
    rank: int
    world: int
    round: int


@dataclass(frozen=True, slots=True)
class Reducing:
    """A worker has done its inner steps of the round after `round` and calls all_reduce."""

    time: float
    worker: str
    pid: int
    round: int


@dataclass(frozen=True, slots=True)
class Rounded:
    """A worker finished a round. loss: of its last inner step, nats per byte; seconds: the whole
    round, reduce_s of it in all_reduce; epoch: of the view after it; world: members that began it;
    digest: hash of the outer state after it."""

    time: float
    worker: str
    pid: int
    round: int
    loss: float
    seconds: float
    reduce_s: float
    bytes_sent: int
    epoch: int
    world: int
    contributors_min: int
    contributors_max: int
    repaired: int
    digest: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Validation loss of the outer parameters after `round`, nats per byte; bigram_loss: of the
    same split, NaN when it was not asked for."""

    time: float
    worker: str
    pid: int
    round: int
    valid_loss: float
    bigram_loss: float = math.nan


@dataclass(frozen=True, slots=True)
class Left:
    """A worker left the run in good order, with this state."""

    time: float
    worker: str
    pid: int
    round: int
    digest: str


@dataclass(frozen=True, slots=True)
class Hung:
    """The demo lost patience: no worker made progress for `seconds`, or this one did not."""

    time: float
    worker: str
    pid: int
    seconds: float


Event = Started | Killed | Exited | Joined | Reducing | Rounded | Evaluated | Left | Hung
"""Everything the report knows."""


def parse(line: str) -> Event | None:
    """The event of one JSON line of a worker; None for an event that the report does not use.

    Raises ValueError, naming what is wrong, for a line that is not such an event.
    """
    found: object = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError(f"not a JSON object: {line[:80]!r}")
    make = _READERS.get(str(found.get("event")))
    return None if make is None else make(_Fields(found))


class _Fields:
    """Typed access to a decoded object; raises ValueError with the field's name."""

    def __init__(self, found: Mapping[str, object]) -> None:
        self._found = found

    def integer(self, name: str) -> int:
        value = self._found.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} is {value!r}, not an integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._found.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} is {value!r}, not a number")
        return float(value)

    def text(self, name: str) -> str:
        value = self._found.get(name)
        if not isinstance(value, str):
            raise ValueError(f"{name} is {value!r}, not a text")
        return value


def _joined(f: _Fields) -> Event:
    return Joined(
        f.number("time"), f.text("worker"), f.integer("pid"), f.integer("epoch"),
        f.integer("rank"), f.integer("world"), f.integer("round"),
    )  # fmt: skip


def _reducing(f: _Fields) -> Event:
    return Reducing(f.number("time"), f.text("worker"), f.integer("pid"), f.integer("round"))


def _rounded(f: _Fields) -> Event:
    return Rounded(
        time=f.number("time"),
        worker=f.text("worker"),
        pid=f.integer("pid"),
        round=f.integer("round"),
        loss=f.number("loss"),
        seconds=f.number("seconds"),
        reduce_s=f.number("reduce_s"),
        bytes_sent=f.integer("bytes_sent"),
        epoch=f.integer("epoch"),
        world=f.integer("world"),
        contributors_min=f.integer("contributors_min"),
        contributors_max=f.integer("contributors_max"),
        repaired=f.integer("repaired"),
        digest=f.text("digest"),
    )


def _evaluated(f: _Fields) -> Event:
    return Evaluated(
        f.number("time"), f.text("worker"), f.integer("pid"), f.integer("round"),
        f.number("valid_loss"), f.number("bigram_loss", math.nan),
    )  # fmt: skip


def _left(f: _Fields) -> Event:
    return Left(
        f.number("time"), f.text("worker"), f.integer("pid"), f.integer("round"), f.text("digest")
    )


_READERS: Mapping[str, Callable[[_Fields], Event]] = {
    "joined": _joined,
    "reducing": _reducing,
    "round": _rounded,
    "evaluated": _evaluated,
    "left": _left,
}
