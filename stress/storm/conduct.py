"""A storm as it happens: what the nemesis draws is done to the members, their links and the
coordinator; then all is healed, and everybody leaves.

One event loop in the conductor's process, which also relays the links. Members and the coordinator
are real processes. Nothing is judged here.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from pccl_py.coordinator import embedded
from stress.storm import nemesis
from stress.storm.book import Book
from stress.storm.crew import Crew, Life
from stress.storm.nemesis import Draw, Standing
from stress.storm.peer import RUN
from stress.storm.profiles import Profile
from stress.storm.records import (
    Began,
    Calm,
    Closed,
    Exited,
    Fault,
    Flipped,
    Footprint,
    Healed,
    Over,
)
from stress.storm.relay import Pair, Relay

BEGIN_S = 60.0
CALM_STEPS = 3  # that everybody takes after the last fault
CALM_S = 40.0
LEAVE_S = 40.0
SLOW_LINK = (0.02, 100.0)  # seconds one way, Mbit/s
COORDINATOR_AWAY_S = 0.5  # at most, before it is started again


class Storm:
    """seconds: of faults; after them all is healed, and everybody leaves. folder: of the log.
    faults: of an earlier storm, to do the same at the same distances instead of drawing any; what
    cannot be done, since it came otherwise, is left out."""

    def __init__(
        self,
        name: str,
        profile: Profile,
        seed: int,
        seconds: float,
        folder: Path,
        faults: Sequence[Fault] = (),
    ) -> None:
        self.name, self.profile, self.seed, self.seconds = name, profile, seed, seconds
        self._folder, self._again = folder, faults
        self._rng = random.Random(seed)
        self._faults = 0
        self._pairs: dict[frozenset[str], int] = {}  # with a fault that lasts
        self._coordinator_since = math.inf
        self._healing: set[asyncio.Task[None]] = set()

    @property
    def detection_s(self) -> float:
        return min(5.0, self.profile.deadline_s / 4)

    async def run(self) -> None:
        """Raises RuntimeError when the storm itself broke down: its log says nothing then."""
        profile = self.profile
        with Book(self._folder) as book, tempfile.TemporaryDirectory(prefix="pccl-storm-") as own:
            self._book = book
            book.note(
                Began(0.0, self.name, self.seed, self.seconds, profile.deadline_s,
                      self.detection_s, profile.proxied)
            )  # fmt: skip
            relay = Relay(random.Random(self.seed + 1), self._hear_relay)
            crew = Crew(book, profile, self.seed, relay)
            self._relay, self._crew = relay, crew
            async with relay, crew.nursery(Path(own)), self._coordinator(Path(own)):
                for _ in range(profile.world):
                    await crew.spawn(self._address, profile.world)
                await book.until(lambda: all(life.is_member for life in crew.living), BEGIN_S)
                await (self._repeat() if self._again else self._rage())
                await self._settle()
                await self._end()
                book.note(Over(book.now()))
        if book.failure:
            raise RuntimeError(book.failure)

    @contextlib.asynccontextmanager
    async def _coordinator(self, own: Path) -> AsyncIterator[None]:
        self._state = own / "state"
        self._address = "127.0.0.1:0"
        await self._start_coordinator()
        try:
            self._measure_coordinator("before")
            yield
            self._measure_coordinator("after")
        finally:
            self._own.stop()
            assert self._own.status is not None
            self._book.note(Exited(self._book.now(), "coordinator", self._own.status))

    async def _start_coordinator(self) -> None:
        self._own = await asyncio.to_thread(
            embedded.start,
            run=RUN,
            bind=self._address,
            state_dir=self._state,
            log_path=self._folder / "coordinator.log",
            timeout_s=30.0,
            deadline_s=self.profile.deadline_s,
        )
        self._address = self._own.address
        self._coordinator_since = self._book.now()

    def _measure_coordinator(self, when: str) -> None:
        proc = Path(f"/proc/{self._own.pid}")
        rss = int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        fds, threads = len(os.listdir(proc / "fd")), len(os.listdir(proc / "task"))
        self._book.note(Footprint(self._book.now(), "coordinator", when, rss, fds, threads))

    def _hear_relay(self, what: str, link: int, pair: Pair) -> None:
        whom = tuple(life.who for life in self._crew.lives.values() if life.peer in pair)
        now = self._book.now()
        self._book.note(Flipped(now, link, whom) if what == "flipped" else Closed(now, link))

    # ------------------------------------------------------------ faults

    def _standing(self) -> Standing:
        living = self._crew.staying
        members = tuple(life.who for life in living if life.is_member)
        return Standing(
            members,
            processes=len(self._crew.living),
            waiting=tuple(life.who for life in living if not life.peer and life.pidfd >= 0),
            stopped=sum(life.is_stopped for life in living),
            pairs=frozenset(self._pairs),
            is_coordinator_up=self._book.now() - self._coordinator_since > self.detection_s,
        )

    async def _rage(self) -> None:
        until = time.monotonic() + self.seconds
        while (left := until - time.monotonic()) > 0 and not self._book.failure:
            await asyncio.sleep(min(left, self._rng.uniform(*self.profile.pause_s)))
            drawn = nemesis.draw(self._rng, self.profile, self._standing(), self.detection_s)
            if drawn is not None and time.monotonic() < until:
                await self._strike(drawn)

    async def _repeat(self) -> None:
        shift = self._book.now() - self._again[0].at
        for fault in self._again:
            await asyncio.sleep(max(0.0, fault.at + shift - self._book.now()))
            there = [self._crew.lives[who] for who in fault.whom if who in self._crew.lives]
            if fault.kind == "join" or (
                len(there) == len(fault.whom)
                and all(life.is_member or fault.kind == "stillborn" for life in there)
            ):
                await self._strike(Draw(fault.kind, fault.whom, fault.seconds))

    async def _strike(self, drawn: Draw) -> None:
        whom = drawn.whom
        if drawn.kind == "join":
            whom = (await self._crew.spawn(self._address),)
        number = self._faults = self._faults + 1
        self._book.note(Fault(self._book.now(), number, drawn.kind, whom, drawn.seconds))
        lives = [self._crew.lives[who] for who in whom]
        match drawn.kind:
            case "kill" | "stillborn":
                for life in lives:
                    life.is_going = True
                    life.signal(signal.SIGKILL)
            case "leave":
                lives[0].tell_to_leave()
            case "stop" | "nap":
                lives[0].is_stopped = True
                lives[0].signal(signal.SIGSTOP)
                self._later(drawn.seconds, number, lambda: self._resume(lives[0]))
            case "coordinator":
                self._coordinator_since = math.inf
                os.kill(self._own.pid, signal.SIGKILL)
                self._keep(asyncio.create_task(self._restart_coordinator(number, drawn.seconds)))
            case "cut" | "hold" | "slow" | "corrupt":
                self._harm_link(drawn, number, frozenset(life.peer for life in lives))
            case _:
                pass

    def _harm_link(self, drawn: Draw, number: int, pair: Pair) -> None:
        match drawn.kind:
            case "cut":
                self._relay.cut(pair)
            case "hold":
                self._relay.hold(pair)
            case "slow":
                self._relay.slow(pair, *SLOW_LINK)
            case _:
                self._relay.corrupt(pair)
                return
        names = frozenset(drawn.whom)
        self._pairs[names] = number

        def heal() -> None:
            self._relay.heal(pair)
            self._pairs.pop(names, None)

        self._later(drawn.seconds, number, heal)

    def _resume(self, life: Life) -> None:
        life.is_stopped = False
        life.signal(signal.SIGCONT)

    async def _restart_coordinator(self, number: int, again_s: float) -> None:
        await asyncio.to_thread(self._own.stop)
        await asyncio.sleep(self._rng.uniform(0.0, COORDINATOR_AWAY_S))
        await self._start_coordinator()
        if again_s:
            await asyncio.sleep(again_s)
            self._coordinator_since = math.inf
            os.kill(self._own.pid, signal.SIGKILL)
            await self._restart_coordinator(number, 0.0)
            return
        self._book.note(Healed(self._book.now(), number))

    def _later(self, seconds: float, number: int, heal: Callable[[], None]) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            heal()
            self._book.note(Healed(self._book.now(), number))

        self._keep(asyncio.create_task(wait()))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._healing.add(task)
        task.add_done_callback(self._healing.discard)

    async def _settle(self) -> None:
        """All faults end; who remains takes some steps in peace."""
        while self._healing:
            await asyncio.gather(*self._healing)
        remain = self._crew.staying
        self._book.note(Calm(self._book.now(), tuple(life.who for life in remain)))
        reached = {life.who: life.steps + CALM_STEPS for life in remain}
        await self._book.until(
            lambda: all(life.has_ended or life.steps >= reached[life.who] for life in remain),
            CALM_S,
        )

    async def _end(self) -> None:
        """Everybody leaves, one after the other or together; who does not is asked where it is."""
        together = self._rng.random() < 0.5
        for life in self._crew.living:
            life.tell_to_leave()
            if not together:
                await asyncio.sleep(self._rng.uniform(0.0, 0.2))
        await self._book.until(lambda: not self._crew.living, LEAVE_S)
        for life in self._crew.living:
            life.signal(signal.SIGUSR1)
        if self._crew.living:
            await asyncio.sleep(1.0)
