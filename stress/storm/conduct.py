"""A storm as it happens: processes, signals, links, the coordinator; everything goes to the log.

One event loop in the conductor's process, which also relays the links. Members and the coordinator
are real processes. Nothing is judged here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from pccl_py.coordinator import embedded
from stress.storm import nemesis, records
from stress.storm.nemesis import Draw, Standing
from stress.storm.peer import LEAVE, RUN, Spec
from stress.storm.profiles import Profile
from stress.storm.program import SLOTS
from stress.storm.records import (
    Began,
    Calm,
    Closed,
    Exited,
    Fault,
    Flipped,
    Footprint,
    Healed,
    Joined,
    Left,
    Lost,
    Over,
    Record,
    Spawned,
    Stepped,
)
from stress.storm.relay import Pair, Relay

ROOT = Path(__file__).resolve().parents[2]
BEGIN_S = 60.0
CALM_STEPS = 3  # that everybody takes after the last fault
CALM_S = 40.0
LEAVE_S = 40.0
SLOW_LINK = (0.02, 100.0)  # seconds one way, Mbit/s
COORDINATOR_AWAY_S = 0.5  # at most, before it is started again


@dataclass(eq=False)
class Life:
    """A member's process."""

    who: str
    slot: int
    pid: int = 0
    pidfd: int = -1
    to: asyncio.StreamWriter | None = None
    peer: int = 0  # 0: not a member
    steps: int = 0
    is_stopped: bool = False
    is_going: bool = False  # told to leave, or killed
    has_ended: bool = False

    @property
    def is_member(self) -> bool:
        return bool(self.peer) and not (self.is_stopped or self.is_going or self.has_ended)

    def signal(self, number: signal.Signals) -> None:
        if self.pidfd >= 0 and not self.has_ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)


class Storm:
    """seconds: of faults; after them all is healed, and everybody leaves. folder: of the log."""

    def __init__(self, name: str, profile: Profile, seed: int, seconds: float, folder: Path):
        self.name, self.profile, self.seed, self.seconds = name, profile, seed, seconds
        self.folder = folder
        self._rng = random.Random(seed)
        self._origin = time.monotonic()
        self._lives: dict[str, Life] = {}
        self._faults = 0
        self._pairs: dict[frozenset[str], int] = {}  # with a fault that lasts
        self._coordinator_since = math.inf
        self._healing: set[asyncio.Task[None]] = set()
        self._failure = ""
        self._noted = asyncio.Event()
        self._log: IO[str] | None = None
        self._schedule: IO[str] | None = None

    @property
    def detection_s(self) -> float:
        return min(5.0, self.profile.deadline_s / 4)

    def now(self) -> float:
        return time.monotonic() - self._origin

    def note(self, record: Record) -> None:
        """Into the log; what the nemesis did into the schedule, too."""
        assert self._log is not None
        assert self._schedule is not None
        self._log.write(records.line(record) + "\n")
        self._noted.set()
        if isinstance(record, Began | Fault | Healed | Calm):
            self._schedule.write(records.line(record) + "\n")

    def _note_failure(self, loop: asyncio.AbstractEventLoop, what: dict[str, object]) -> None:
        self._failure = self._failure or f"{what.get('message')}: {what.get('exception')!r}"
        self._noted.set()
        loop.default_exception_handler(what)

    async def run(self) -> None:
        """Raises RuntimeError when the storm itself broke down: its log says nothing then."""
        asyncio.get_running_loop().set_exception_handler(self._note_failure)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (
            (self.folder / "log.jsonl").open("w") as self._log,
            (self.folder / "schedule.jsonl").open("w", buffering=1) as self._schedule,
            tempfile.TemporaryDirectory(prefix="pccl-storm-") as own,
        ):
            profile = self.profile
            self.note(
                Began(0.0, self.name, self.seed, self.seconds, profile.deadline_s,
                      self.detection_s, profile.proxied)
            )  # fmt: skip
            relay = Relay(random.Random(self.seed + 1), self._hear_relay)
            async with relay, self._nursery(Path(own)), self._coordinator(Path(own)):
                self._relay = relay
                for _ in range(profile.world):
                    await self._spawn(profile.world)
                await self._until(lambda: self._members() >= profile.world, BEGIN_S)
                await self._rage()
                await self._settle()
                await self._end()
                self.note(Over(self.now()))
        if self._failure:
            raise RuntimeError(self._failure)

    # ------------------------------------------------------------ processes

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
            status = self._own._process.returncode
            self.note(Exited(self.now(), "coordinator", status))

    async def _start_coordinator(self) -> None:
        self._own = await asyncio.to_thread(
            embedded.start,
            run=RUN,
            bind=self._address,
            state_dir=self._state,
            log_path=self.folder / "coordinator.log",
            timeout_s=30.0,
            deadline_s=self.profile.deadline_s,
        )
        self._address = self._own.address
        self._coordinator_since = self.now()

    def _measure_coordinator(self, when: str) -> None:
        proc = Path(f"/proc/{self._own.pid}")
        rss = int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        fds, threads = len(os.listdir(proc / "fd")), len(os.listdir(proc / "task"))
        self.note(Footprint(self.now(), "coordinator", when, rss, fds, threads))

    @contextlib.asynccontextmanager
    async def _nursery(self, own: Path) -> AsyncIterator[None]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("PCCL_")}
        env |= {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "PCCL_CHECKSUM": "full"}
        path = str(own / "members")
        server = await asyncio.start_unix_server(self._hear_member, path)
        with (self.folder / "members.log").open("ab") as errors:
            self._parent = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "stress.storm.nursery", path,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors,
                env=env, cwd=ROOT,
            )  # fmt: skip
        hearing = asyncio.create_task(self._hear_nursery())
        try:
            yield
        finally:
            assert self._parent.stdin is not None
            self._parent.stdin.close()
            await self._parent.wait()
            await hearing
            server.close()
            for life in self._lives.values():
                if life.to is not None:
                    life.to.close()

    async def _spawn(self, min_members: int = 1) -> str:
        taken = {life.slot for life in self._lives.values() if not life.has_ended}
        slot = min(set(range(SLOTS)) - taken)
        who = f"p{len(self._lives)}"
        profile = self.profile
        self._lives[who] = Life(who, slot)
        self.note(Spawned(self.now(), who, slot))
        entrance = await self._relay.open(who) if profile.proxied else 0
        spec = Spec(
            who, slot, self._address, min_members, profile.deadline_s, self.seed,
            profile.count_max, profile.pace_s, self._origin, entrance,
        )  # fmt: skip
        assert self._parent.stdin is not None
        self._parent.stdin.write(json.dumps(asdict(spec)).encode() + b"\n")
        await self._parent.stdin.drain()
        return who

    async def _hear_nursery(self) -> None:
        assert self._parent.stdout is not None
        while text := await self._parent.stdout.readline():
            said = json.loads(text)
            life = self._lives[said["who"]]
            life.has_ended = True
            self._relay.close(life.who)
            if life.pidfd >= 0:
                os.close(life.pidfd)
                life.pidfd = -1
            self.note(Exited(self.now(), life.who, said["status"]))

    async def _hear_member(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """All that a member says. A line that its death tore is left out."""
        life: Life | None = None
        while (text := await reader.readline()).endswith(b"\n"):
            if text.startswith(b'{"hello"'):
                hello = json.loads(text)
                life = self._lives[hello["hello"]]
                life.pid, life.to = hello["pid"], writer
                if not life.has_ended:
                    with contextlib.suppress(ProcessLookupError):
                        life.pidfd = os.pidfd_open(life.pid)
                continue
            assert life is not None, "hello comes first"
            if text.startswith(b'{"port"'):
                if not life.has_ended:
                    self._relay.lead(life.who, json.loads(text)["port"])
                continue
            self._note_member(life, records.parse(text.decode()))

    def _note_member(self, life: Life, record: Record) -> None:
        self.note(record)
        match record:
            case Joined():
                life.peer = record.peer
            case Lost() | Left():
                life.peer = 0
            case Stepped():
                life.steps += 1
            case _:
                pass

    def _hear_relay(self, what: str, link: int, pair: Pair) -> None:
        whom = tuple(life.who for life in self._lives.values() if life.peer in pair)
        made = Flipped(self.now(), link, whom) if what == "flipped" else Closed(self.now(), link)
        self.note(made)

    # ------------------------------------------------------------ phases

    def _living(self) -> list[Life]:
        return [life for life in self._lives.values() if not life.has_ended]

    def _members(self) -> int:
        return sum(life.is_member for life in self._lives.values())

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not (condition() or self._failure):
            self._noted.clear()
            left = until - time.monotonic()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._noted.wait(), left)

    def _standing(self) -> Standing:
        living = [life for life in self._living() if not life.is_going]
        members = tuple(life.who for life in living if life.is_member)
        return Standing(
            members,
            processes=len(self._living()),
            waiting=sum(not life.peer for life in living),
            stopped=sum(life.is_stopped for life in living),
            pairs=frozenset(self._pairs),
            is_coordinator_up=self.now() - self._coordinator_since > self.detection_s,
        )

    async def _rage(self) -> None:
        until = time.monotonic() + self.seconds
        while (left := until - time.monotonic()) > 0 and not self._failure:
            await asyncio.sleep(min(left, self._rng.uniform(*self.profile.pause_s)))
            drawn = nemesis.draw(self._rng, self.profile, self._standing(), self.detection_s)
            if drawn is not None and time.monotonic() < until:
                await self._strike(drawn)

    async def _strike(self, drawn: Draw) -> None:
        whom = drawn.whom
        if drawn.kind == "join":
            whom = (await self._spawn(),)
        number = self._faults = self._faults + 1
        self.note(Fault(self.now(), number, drawn.kind, whom, drawn.seconds))
        lives = [self._lives[who] for who in whom]
        match drawn.kind:
            case "kill":
                lives[0].is_going = True
                lives[0].signal(signal.SIGKILL)
            case "leave":
                self._tell_to_leave(lives[0])
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

    def _tell_to_leave(self, life: Life) -> None:
        life.is_going = True
        if life.to is not None:
            life.to.write(LEAVE)

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
        self.note(Healed(self.now(), number))

    def _later(self, seconds: float, number: int, heal: Callable[[], None]) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            heal()
            self.note(Healed(self.now(), number))

        self._keep(asyncio.create_task(wait()))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._healing.add(task)
        task.add_done_callback(self._healing.discard)

    async def _settle(self) -> None:
        """All faults end; who remains takes some steps in peace."""
        while self._healing:
            await asyncio.gather(*self._healing)
        remain = [life for life in self._living() if not life.is_going]
        self.note(Calm(self.now(), tuple(life.who for life in remain)))
        reached = {life.who: life.steps + CALM_STEPS for life in remain}
        await self._until(
            lambda: all(life.has_ended or life.steps >= reached[life.who] for life in remain),
            CALM_S,
        )

    async def _end(self) -> None:
        """Everybody leaves, one after the other or together; who does not is asked where it is."""
        together = self._rng.random() < 0.5
        for life in self._living():
            self._tell_to_leave(life)
            if not together:
                await asyncio.sleep(self._rng.uniform(0.0, 0.2))
        await self._until(lambda: not self._living(), LEAVE_S)
        for life in self._living():
            life.signal(signal.SIGUSR1)
        if self._living():
            await asyncio.sleep(1.0)
