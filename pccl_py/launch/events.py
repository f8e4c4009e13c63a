"""What a supervisor tells its caller while a run goes on: a closed union of values.

Made by `supervise` and `keeper`, consumed by `pccl run` (which prints them) and by programs that
show a run in their own way (the demo's table). Nothing here decides or does anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StreamName = Literal["stdout", "stderr"]


@dataclass(frozen=True, slots=True)
class CoordinatorStarted:
    """The launcher's own coordinator listens. restart: 0 the first time."""

    address: str
    pid: int
    restart: int


@dataclass(frozen=True, slots=True)
class CoordinatorEnded:
    """The launcher's own coordinator died unasked; it is started again in `delay_s` seconds."""

    pid: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """restart: 0 for a worker's first life."""

    name: str
    pid: int
    restart: int


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """After the worker's last line. status: exit code, or minus the signal."""

    name: str
    pid: int
    status: int


@dataclass(frozen=True, slots=True)
class WorkerRetried:
    """The worker ended and is started again after `delay_s` seconds, for the `restart`-th time of
    at most `max_restarts`."""

    name: str
    status: int
    delay_s: float
    restart: int
    max_restarts: int


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """The worker ended and stays so; the others go on."""

    name: str
    status: int
    reason: str


@dataclass(frozen=True, slots=True)
class Line:
    """One line that a worker wrote, without its end; printable (see `logs.LineSplitter`)."""

    name: str
    stream: StreamName
    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something worth a line that changes nothing, such as a log file that cannot be written."""

    text: str


Event = (
    CoordinatorStarted
    | CoordinatorEnded
    | WorkerStarted
    | WorkerExited
    | WorkerRetried
    | WorkerFailed
    | Line
    | Notice
)
