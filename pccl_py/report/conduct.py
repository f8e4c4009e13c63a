"""Runs the demo: real workers under real launchers, one real SIGKILL, and everything written down.

`run` is called by `examples/demo.py`. The first workers run under a `Supervisor` here; the late one
under a second `pccl run`, a process of its own. When something is done is `director`'s decision,
whether it went well is `oracle`'s; this file only acts.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from pccl_py.launch import events as launched
from pccl_py.launch import policy, supervise
from pccl_py.report import director, records
from pccl_py.report.follow import Follower
from pccl_py.report.live import Show

POLL_S = 0.1
LATE_END_S = 20.0  # for the late worker to end after all others have
STDERR_LINES = 12  # kept per worker, for the case that it fails


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. command: a worker, without `--metrics` and `--name`; folder: an empty one for
    metrics and logs; env: the base of all processes' environment."""

    script: director.Script
    command: tuple[str, ...]
    folder: Path
    env: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Result:
    """events: by time. code: 0, or 128 + the signal that ended the demo. errors: what workers wrote
    to stderr last."""

    events: tuple[records.Event, ...]
    code: int
    errors: Mapping[str, tuple[str, ...]]


def run(plan: Plan, show: Show) -> Result:
    """Blocks until every process has ended. Raises PcclError when something cannot be started,
    ValueError when a worker's metrics make no sense."""
    return asyncio.run(_Conductor(plan, show).run())


class _Conductor:
    """One run. All methods on the loop's thread."""

    def __init__(self, plan: Plan, show: Show) -> None:
        self._plan, self._show = plan, show
        self._metrics = plan.folder / "metrics"
        self._follower = Follower(self._metrics)
        self._events: list[records.Event] = []
        self._errors: dict[str, deque[str]] = {}
        self._address: str | None = None
        self._hung = False
        expected = plan.script.expected
        self._first = supervise.Supervisor(
            supervise.Spec(
                command=(*plan.command, "--metrics", str(self._metrics)),
                workers=len(expected.first),
                env=plan.env,
                log_dir=plan.folder / "logs",
            ),
            self._on_first,
        )
        self._late: supervise.Supervisor | None = None

    async def run(self) -> Result:
        began = time.time()
        self._metrics.mkdir(parents=True, exist_ok=True)
        try:
            async with asyncio.TaskGroup() as tasks:
                first = tasks.create_task(self._first.run())
                late: asyncio.Task[supervise.Outcome] | None = None
                while not first.done():
                    self._look(began)
                    if late is None and director.late_due(self._events, self._plan.script):
                        late = tasks.create_task(self._start_late())
                    await asyncio.wait([first], timeout=POLL_S)
                if late is not None and self._late is not None:
                    await asyncio.wait([late], timeout=LATE_END_S if self._code(first) == 0 else 0)
                    self._late.request_stop()
        except BaseExceptionGroup as group:
            raise _first_error(group) from None
        self._look(began)
        errors = {worker: tuple(lines) for worker, lines in self._errors.items()}
        by_time = sorted(self._events, key=lambda event: event.time)
        return Result(tuple(by_time), self._code(first), errors)

    def _code(self, first: asyncio.Task[supervise.Outcome]) -> int:
        """128 + the signal that the user ended the demo with, else 0."""
        code = 0 if first.cancelled() or first.exception() else first.result().code
        return code if code >= 128 and not self._hung else 0

    def _look(self, began: float) -> None:
        """What is new, what is due, what is to be seen."""
        script, now = self._plan.script, time.time()
        self._add(*self._follower.poll())
        pid = self._first.pid(script.expected.victim)
        if pid is not None and director.kill_due(self._events, script, now):
            os.kill(pid, signal.SIGKILL)
            self._add(records.Killed(time.time(), script.expected.victim, pid))
        hung = None if self._hung else director.find_hung(self._events, script, began, now)
        if hung is not None:
            self._hung = True
            self._add(hung)
            self._first.request_stop()
            if self._late is not None:
                self._late.request_stop()
        self._show.update(self._events, began, now, director.next_text(self._events, script))

    def _add(self, *events: records.Event) -> None:
        """In the order in which things become known; the result is sorted by time."""
        self._events.extend(events)

    async def _start_late(self) -> supervise.Outcome:
        """A second launcher, as a user would type it, on another machine perhaps."""
        plan, late = self._plan, self._plan.script.expected.late
        assert self._address is not None
        launcher = (sys.executable, "-m", "pccl_py", "run", "-n", "1", "--coordinator")
        worker = plan.command[1:]  # `pccl run` brings Python itself
        tail = ("--metrics", str(self._metrics), "--name", late)
        self._late = supervise.Supervisor(
            supervise.Spec(
                command=(*launcher, self._address, *worker, *tail),
                workers=1,
                env=plan.env,
                coordinator=self._address,
                limits=policy.Limits(max_restarts=0),
                log_dir=plan.folder / "logs-late",
            ),
            self._on_late,
        )
        return await self._late.run(signals=False)

    def _on_first(self, event: launched.Event) -> None:
        if isinstance(event, launched.CoordinatorStarted):
            self._address = event.address
        self._on_event(event, None)

    def _on_late(self, event: launched.Event) -> None:
        self._on_event(event, self._plan.script.expected.late)

    def _on_event(self, event: launched.Event, renamed: str | None) -> None:
        now = time.time()
        match event:
            case launched.WorkerStarted(name, pid, restart):
                self._add(records.Started(now, renamed or name, pid, restart))
            case launched.WorkerExited(name, pid, status):
                self._add(*self._follower.poll())  # what it wrote comes before its end
                self._add(records.Exited(time.time(), renamed or name, pid, status))
            case launched.Line(name, stream, text):
                if stream == "stderr":
                    lines = self._errors.setdefault(renamed or name, deque(maxlen=STDERR_LINES))
                    lines.append(text)
            case launched.WorkerFailed(name, _, reason):
                self._show.say(f"{renamed or name} failed: {reason}")
            case launched.Notice(text):
                self._show.say(text)
            case launched.CoordinatorStarted() | launched.CoordinatorEnded():
                pass
            case launched.WorkerRetried():
                pass  # the Started that follows tells
            case _:
                assert_never(event)


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first, out of the groups that it is wrapped in."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
