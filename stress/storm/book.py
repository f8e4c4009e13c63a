"""Where a storm's records go, and the clock that they bear: log and schedule in its folder."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO

from stress.storm import records
from stress.storm.records import Began, Calm, Fault, Healed, Record


class Book:
    """Use as a context manager, inside a running loop. What goes wrong in a callback of that loop
    is kept: the storm itself is broken then, and its log says nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.origin = time.monotonic()
        self.failure = ""
        self._noted = asyncio.Event()
        self._log: IO[str]
        self._schedule: IO[str]

    def __enter__(self) -> Book:
        self.folder.mkdir(parents=True, exist_ok=True)
        asyncio.get_running_loop().set_exception_handler(self._note_failure)
        self._log = (self.folder / "log.jsonl").open("w")
        self._schedule = (self.folder / "schedule.jsonl").open("w", buffering=1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._log.close()
        self._schedule.close()

    def now(self) -> float:
        """Seconds since the storm began."""
        return time.monotonic() - self.origin

    def note(self, record: Record) -> None:
        """Into the log; what the nemesis did into the schedule, too."""
        text = records.line(record) + "\n"
        self._log.write(text)
        self._noted.set()
        if isinstance(record, Began | Fault | Healed | Calm):
            self._schedule.write(text)

    async def until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Waits for what shows in a record; gives up after so long."""
        until = time.monotonic() + seconds
        while not (condition() or self.failure):
            self._noted.clear()
            left = until - time.monotonic()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._noted.wait(), left)

    def _note_failure(self, loop: asyncio.AbstractEventLoop, what: dict[str, object]) -> None:
        self.failure = self.failure or f"{what.get('message')}: {what.get('exception')!r}"
        self._noted.set()
        loop.default_exception_handler(what)
