"""Runs the workers of one launcher: the thin shell around `policy`.

A `Supervisor` starts processes, reads what they write, watches them end, and does what the policy
says; `pccl run` and programs that show a run in their own way (the demo) use it through `run`,
`pid` and a callback. One loop, one task group: one task calls `policy.step`, one per living worker
tends its process, one keeps the coordinator. It must not know what a terminal is.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, assert_never

from pccl_py.config import DEFAULT_GROUP, DEFAULT_RUN
from pccl_py.coordinator.embedded import start as start_embedded
from pccl_py.errors import ResourceError
from pccl_py.launch import environment, events, inquiry, keeper, logs, policy, process

DRAIN_S = 2.0  # for the last lines of a worker whose runaway child still holds its pipes
READ_BYTES = 64 * 1024
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Spec:
    """What to run. command: what each worker executes. workers: how many, >= 1. env: the base of
    their environment. coordinator: HOST:PORT[,…] to join, None: an own one on loopback. secret:
    the run secret. log_dir: None keeps no files."""

    command: tuple[str, ...]
    workers: int
    env: Mapping[str, str] = field(repr=False)
    coordinator: str | None = None
    run: str = DEFAULT_RUN
    group: str = DEFAULT_GROUP
    secret: bytes | None = field(default=None, repr=False)
    limits: policy.Limits = field(default_factory=policy.Limits)
    log_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the run ended. code: the exit status for a command; workers: in rank order."""

    code: int
    workers: tuple[policy.Worker, ...]


class Supervisor:
    """One run of one `Spec`; `run` once.

    on_event is called on the loop's thread, in order, and must return soon; what it raises ends
    the run (workers killed) and comes out of `run`."""

    def __init__(
        self,
        spec: Spec,
        on_event: Callable[[events.Event], None],
        start_coordinator: keeper.StartCoordinator = start_embedded,
    ) -> None:
        self._spec = spec
        self._on_event = on_event
        self._start_coordinator = start_coordinator
        self._names = tuple(environment.worker_name(rank) for rank in range(spec.workers))
        self._state = policy.new(self._names, spec.limits)
        self._inbox: asyncio.Queue[policy.Event] = (
            asyncio.Queue()
        )  # an end per worker, two stops, a few looks
        self._living: dict[str, process.WorkerProcess] = {}
        self._keeper: keeper.Keeper | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stops = 0

    def pid(self, name: str) -> int | None:
        """The living process of a worker ("w2"), None between two lives. Any thread."""
        worker = self._living.get(name)
        return None if worker is None else worker.pid

    @property
    def coordinator_pid(self) -> int | None:
        """The own coordinator's process, None without one. Any thread."""
        return None if self._keeper is None else self._keeper.pid

    def request_stop(self, signum: int = signal.SIGTERM) -> None:
        """Ends the run: SIGTERM to the workers, SIGKILL after the grace; the second time at once.
        The outcome's code is 128 + signum. Any thread; before `run` it does nothing."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop, signum)

    async def run(self, signals: bool = True) -> Outcome:
        """Starts everything, returns when every worker has ended for good and nothing is left.

        signals: SIGINT, SIGTERM and SIGHUP ask for a stop (main thread only, else ignored).
        Raises PcclError: no coordinator, no process, no log directory; and what on_event raises.
        """
        self._loop = asyncio.get_running_loop()
        try:
            with _caught(STOP_SIGNALS if signals else (), self._stop), process.Undertaker() as u:
                _make_log_dir(self._spec.log_dir)
                async with self._coordinator(u) as address, asyncio.TaskGroup() as tasks:
                    if self._keeper is not None:
                        kept = tasks.create_task(self._keeper.keep())
                    else:
                        kept = None
                    code = await self._supervise(self._place(address), u, tasks)
                    if kept is not None:
                        kept.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            self._loop = None
        return Outcome(code, self._state.workers)

    def _stop(self, signum: int) -> None:
        self._stops += 1
        if self._stops == 1:
            grace = f"{self._spec.limits.grace_s:g} s"
            text = f"stopping; workers have {grace}, a second signal kills them at once"
            self._on_event(events.Notice(text))
        if self._stops <= 2:  # a third says nothing new
            self._inbox.put_nowait(policy.StopRequested(signum))

    @contextlib.asynccontextmanager
    async def _coordinator(self, undertaker: process.Undertaker) -> AsyncIterator[str]:
        spec = self._spec
        if spec.coordinator is not None:
            yield spec.coordinator
            return
        async with keeper.opened(
            self._start_coordinator,
            spec.secret,
            spec.run,
            spec.log_dir,
            self._on_event,
            undertaker,
        ) as self._keeper:
            yield self._keeper.address

    def _place(self, address: str) -> environment.Place:
        spec = self._spec
        return environment.Place(
            coordinator=address,
            run=spec.run,
            group=spec.group,
            secret=None if spec.secret is None else os.fsdecode(spec.secret),
            world_size=spec.workers,
            max_restarts=spec.limits.max_restarts,
            master_port=_free_port(),
        )

    async def _supervise(
        self, place: environment.Place, undertaker: process.Undertaker, tasks: asyncio.TaskGroup
    ) -> int:
        event: policy.Event = policy.Begin()
        while True:
            self._state, actions = policy.step(self._state, event, time.monotonic())
            for action in actions:
                match action:
                    case policy.Start():
                        self._start(action, place, undertaker, tasks)
                    case policy.Signal():
                        worker = self._living.get(action.name)
                        if worker is not None:  # else its end is in the inbox
                            worker.signal(action.signum)
                    case policy.Retry(name, status, delay_s, restart):
                        most = self._spec.limits.max_restarts
                        self._on_event(events.WorkerRetried(name, status, delay_s, restart, most))
                    case policy.GiveUp(name, status, reason):
                        self._on_event(events.WorkerFailed(name, status, reason))
                    case policy.Look():
                        tasks.create_task(self._look(place))
                    case policy.Abandon(names):
                        verb = "waits" if len(names) == 1 else "wait"
                        who = f"{', '.join(names)} {verb} alone to join"
                        self._on_event(events.Notice(f"{who}: the others have finished; ending it"))
                    case policy.Finish():
                        return action.code
                    case _:
                        assert_never(action)
            event = await self._next_event()

    async def _look(self, place: environment.Place) -> None:
        """Asks the coordinator whether all workers that run wait for a run that has no member."""
        ask, secret = inquiry.nobody_works, self._spec.secret
        if await asyncio.to_thread(ask, place.coordinator, place.run, secret, len(self._living)):
            await self._inbox.put(policy.Stranded())

    async def _next_event(self) -> policy.Event:
        wake = policy.next_wake(self._state)
        try:
            async with asyncio.timeout(None if wake is None else max(0.0, wake - time.monotonic())):
                return await self._inbox.get()
        except TimeoutError:
            return policy.Tick()

    def _start(
        self,
        action: policy.Start,
        place: environment.Place,
        undertaker: process.Undertaker,
        tasks: asyncio.TaskGroup,
    ) -> None:
        rank = self._names.index(action.name)
        env = environment.for_worker(self._spec.env, place, rank, action.restart)
        worker = process.WorkerProcess(self._spec.command, env)
        undertaker.watch(worker.pid)
        self._living[action.name] = worker
        tasks.create_task(self._tend(action, worker, undertaker))

    async def _tend(
        self,
        action: policy.Start,
        worker: process.WorkerProcess,
        undertaker: process.Undertaker,
    ) -> None:
        """One life of one worker: its lines, its end, what it left behind."""
        status = -signal.SIGKILL
        try:
            self._on_event(events.WorkerStarted(action.name, worker.pid, action.restart))
            await self._attend(action, worker)
        finally:
            status = worker.reap()
            undertaker.forget(worker.pid)
            del self._living[action.name]
        self._on_event(events.WorkerExited(action.name, worker.pid, status))
        await self._inbox.put(policy.Exited(action.name, status))

    async def _attend(self, action: policy.Start, worker: process.WorkerProcess) -> None:
        with _log(self._spec.log_dir, action, self._on_event) as write:

            def on_line(stream: events.StreamName, text: str) -> None:
                write(text)
                self._on_event(events.Line(action.name, stream, text))

            async with asyncio.TaskGroup() as pumps:
                readers = [
                    pumps.create_task(_pump(worker.stdout, "stdout", on_line)),
                    pumps.create_task(_pump(worker.stderr, "stderr", on_line)),
                ]
                await process.ended(worker.pid)
                worker.signal(signal.SIGKILL)  # its children hold the pipes
                await asyncio.wait(readers, timeout=DRAIN_S)
                for reader in readers:
                    reader.cancel()


def launch(
    spec: Spec,
    on_event: Callable[[events.Event], None],
    start_coordinator: keeper.StartCoordinator = start_embedded,
) -> Outcome:
    """`Supervisor(...).run()` for callers without a loop. Blocks until the run has ended."""
    return asyncio.run(Supervisor(spec, on_event, start_coordinator).run())


async def _pump(
    pipe: IO[bytes], stream: events.StreamName, on_line: Callable[[events.StreamName, str], None]
) -> None:
    """Hands on every line of a pipe until its end; the pipe is closed afterwards."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=READ_BYTES)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    splitter = logs.LineSplitter()
    try:
        while data := await reader.read(READ_BYTES):
            for text in splitter.feed(data):
                on_line(stream, text)
    finally:
        transport.close()
    for text in splitter.close():
        on_line(stream, text)


@contextlib.contextmanager
def _log(
    directory: Path | None, action: policy.Start, on_event: Callable[[events.Event], None]
) -> Iterator[Callable[[str], None]]:
    """A function that keeps a line, in the worker's file or (no directory, disk full) nowhere."""
    if directory is None:
        yield lambda text: None
        return
    file: logs.LogFile | None = None

    def lost(error: OSError) -> None:
        on_event(events.Notice(f"{action.name}'s log is not kept: {error}"))

    def write(text: str) -> None:
        nonlocal file
        if file is not None:
            try:
                file.write(text)
            except OSError as error:
                file = None
                lost(error)

    try:
        file = logs.LogFile(directory, action.name, action.restart)
    except OSError as error:
        lost(error)
    try:
        yield write
    finally:
        if file is not None:
            file.close()


@contextlib.contextmanager
def _caught(signums: tuple[signal.Signals, ...], handler: Callable[[int], None]) -> Iterator[None]:
    """Within the block these signals call `handler` on the loop."""
    if threading.current_thread() is not threading.main_thread():
        signums = ()
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
        signums = tuple(s for s in signums if s is not signal.SIGHUP)
    loop = asyncio.get_running_loop()
    for signum in signums:
        loop.add_signal_handler(signum, handler, signum)
    try:
        yield
    finally:
        for signum in signums:
            loop.remove_signal_handler(signum)


def _make_log_dir(directory: Path | None) -> None:
    try:
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        code = error.errno or errno.EIO
        raise ResourceError(code, f"{directory} cannot be made: {error.strerror}") from None


def _free_port() -> int:
    """A port for MASTER_PORT: free now, and unlikely to be taken before rank 0 listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first; what followed from it (cancelled tasks) is of no use to anybody."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
