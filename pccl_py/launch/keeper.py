"""The launcher's own coordinator: started, started again when it dies, stopped last.

A run keeps one address and one journal (a temporary directory of this file) for all lives of its
coordinator, so that members re-attach after a death and go on from the next epoch. `supervise`
is the only caller. How a coordinator process is made is `coordinator.embedded`'s business and an
argument here, so that tests need none.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

from pccl_py.errors import PcclError
from pccl_py.launch import events, policy, process

START_TIMEOUT_S = 10.0


class CoordinatorChild(Protocol):
    """A running coordinator process, a child of ours. `stop` also reaps; it may be dead before."""

    @property
    def address(self) -> str: ...
    @property
    def pid(self) -> int: ...
    def stop(self) -> None: ...


class StartCoordinator(Protocol):
    """`coordinator.embedded.start`. Returns when it listens; raises PcclError when it cannot."""

    def __call__(
        self,
        secret: bytes | None,
        run: str | None,
        bind: str,
        state_dir: Path | None,
        log_path: Path | None,
        timeout_s: float,
    ) -> CoordinatorChild: ...


class Keeper:
    """Owns the coordinator of one run. Use `opened`."""

    def __init__(
        self,
        start: StartCoordinator,
        secret: bytes | None,
        run: str,
        state_dir: Path,
        log_dir: Path,
        on_event: Callable[[events.Event], None],
        undertaker: process.Undertaker,
    ) -> None:
        self._start = start
        self._secret, self._run = secret, run
        self._state_dir, self._log_dir = state_dir, log_dir
        self._on_event, self._undertaker = on_event, undertaker
        self._restart = 0
        self._child = self._launch("127.0.0.1:0")

    @property
    def address(self) -> str:
        """HOST:PORT, the same in all its lives."""
        return self._child.address

    @property
    def pid(self) -> int:
        return self._child.pid

    async def keep(self) -> None:
        """Starts the coordinator again whenever it dies; ends only by cancellation."""
        streak = 0
        address = self._child.address
        while True:
            born = time.monotonic()
            await process.ended(self._child.pid)
            streak = 1 if time.monotonic() - born >= policy.STABLE_S else streak + 1
            self._reap()
            delay_s = policy.backoff_s(streak)
            self._on_event(events.CoordinatorEnded(self._child.pid, delay_s))
            while True:
                await asyncio.sleep(delay_s)
                self._restart += 1
                try:
                    # Not in a thread: a coordinator may be bound to the life of the thread that
                    # starts it. The loop stands still for a fraction of a second.
                    self._child = self._launch(address)
                    break
                except PcclError as error:
                    streak += 1
                    delay_s = policy.backoff_s(streak)
                    text = f"no coordinator at {address}: {error}; next attempt in {delay_s:g} s"
                    self._on_event(events.Notice(text))

    def stop(self) -> None:
        """Ends the coordinator; to be called when all workers have ended."""
        self._reap()

    def _reap(self) -> None:
        self._child.stop()
        self._undertaker.forget(self._child.pid)

    def _launch(self, bind: str) -> CoordinatorChild:
        child = self._start(
            secret=self._secret,
            run=self._run,
            bind=bind,
            state_dir=self._state_dir,
            log_path=self._log_dir / f"coordinator.{self._restart}.log",
            timeout_s=START_TIMEOUT_S,
        )
        self._undertaker.watch(child.pid)
        self._on_event(events.CoordinatorStarted(child.address, child.pid, self._restart))
        return child


@contextlib.asynccontextmanager
async def opened(
    start: StartCoordinator,
    secret: bytes | None,
    run: str,
    log_dir: Path | None,
    on_event: Callable[[events.Event], None],
    undertaker: process.Undertaker,
) -> AsyncIterator[Keeper]:
    """A coordinator that lives as long as the block, and its directory with it.

    log_dir: where `coordinator.N.log` goes; None: beside the journal, gone with it.
    Raises PcclError when the first start fails."""
    with tempfile.TemporaryDirectory(prefix="pccl-run-", ignore_cleanup_errors=True) as directory:
        undertaker.inherit(Path(directory))
        state_dir = Path(directory) / "state"
        state_dir.mkdir()
        logs = Path(directory) if log_dir is None else log_dir
        keeper = Keeper(start, secret, run, state_dir, logs, on_event, undertaker)
        try:
            yield keeper
        finally:
            keeper.stop()
