"""When a coordinator may act: it opens its store, or stands by until the one that acts is gone
(layer 4).

`server` calls it and gets a `Store` that is ours alone. Knows where state is kept; decides nothing
about the run. `End` is how a process is told to stop, at any time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pccl_py.coordinator import etcd_store
from pccl_py.coordinator.journal import Journal, sweep
from pccl_py.coordinator.store import Busy, Deposed, Remembered, Store
from pccl_py.errors import UsageError
from pccl_py.types import Record

STATE_DIR_PREFIX = "pccl-coordinator-"
PARENT_POLL_S = 0.5
STANDBY_POLL_S = 0.05

_log = logging.getLogger("pccl.coordinator")


@dataclass(frozen=True, slots=True)
class Place:
    """Where views are kept. state_dir: None is a fresh temporary directory, removed at a clean end.
    standby: wait there for the end of a coordinator that acts, instead of being refused. etcd: keep
    them there instead. patient: it was reached before, and may be away for a while."""

    state_dir: Path | None = None
    standby: bool = False
    etcd: etcd_store.Place | None = None
    patient: bool = False


class End:
    """The end of this process: SIGTERM, SIGINT, or the parent that started it is gone. The parent
    is asked for, not signalled: the kernel's death signal goes off when the starting *thread* ends.
    Made on the main thread, in a running loop."""

    def __init__(self, parent_pid: int | None) -> None:
        self._parent_pid = parent_pid
        self._event = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._event.set)

    async def within(self, seconds: float) -> bool:
        """Whether it comes within that time; waits for it."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            if self._parent_pid is not None and os.getppid() != self._parent_pid:
                self._event.set()
        return self._event.is_set()

    async def wait(self) -> None:
        while not await self.within(PARENT_POLL_S):
            pass


@asynccontextmanager
async def begin(place: Place, run: str | None, end: End) -> AsyncIterator[Store | None]:
    """The store, ours alone until the block is left; None if the end came first. run: what the
    store must belong to, if anything. Raises Busy, UsageError, ResourceError."""
    if place.etcd is not None:
        if run is None or place.state_dir is not None:
            raise UsageError(
                "--etcd needs --run, the name under which it keeps views, and no --state-dir"
            )
        async with etcd_store.begin(
            place.etcd, run, place.standby, place.patient, end.within
        ) as store:
            if store is not None:
                check_run(run, store.remembered.run, "the view in etcd")
            yield store
        return
    if place.standby and place.state_dir is None:
        raise UsageError("--standby needs --state-dir or --etcd: what both coordinators share")
    with _state_dir(place.state_dir) as directory:
        journal = await _locked(directory, place.standby, end)
        if journal is None:
            yield None
            return
        with journal:
            check_run(run, journal.remembered.run, str(directory))
            yield _OnDisk(journal)


def retired(place: Place, error: Deposed) -> Place:
    """How to go on after another took our place: with etcd as its standby. A lost lock is a matter
    for whoever looks after the disk: raises the error."""
    if place.etcd is None:
        raise error
    return replace(place, standby=True, patient=True)


def check_run(asked: str | None, found: str | None, where: str) -> None:
    """Raises UsageError if what is there is another run's."""
    if asked is not None and found is not None and asked != found:
        raise UsageError(
            f"{where} belongs to run {found!r}, not to {asked!r}: use another --state-dir"
        )


async def _locked(directory: Path, standby: bool, end: End) -> Journal | None:
    """The journal, once nobody else has it. The kernel frees the lock of a process that died."""
    waits = False
    while True:
        try:
            return Journal(directory)
        except Busy:
            if not standby:
                raise
        if not waits:
            _log.info("standing by: another coordinator runs on %s", directory)
        waits = True
        if await end.within(STANDBY_POLL_S):
            return None


class _OnDisk:
    """A journal as a Store. Its calls block for a disk write or two; nothing else would be done
    meanwhile anyway but hearing more."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @property
    def remembered(self) -> Remembered:
        return self._journal.remembered

    async def append(self, record: Record, run: str) -> None:
        self._journal.append(record, run)

    async def probe(self) -> None:
        self._journal.probe()

    def check(self) -> None:
        """A lock holds as long as we live; the journal sees when its file is another's."""

    async def guard(self) -> None:
        await asyncio.Event().wait()


@contextmanager
def _state_dir(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    sweep(Path(tempfile.gettempdir()), STATE_DIR_PREFIX)
    fresh = Path(tempfile.mkdtemp(prefix=STATE_DIR_PREFIX))
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
