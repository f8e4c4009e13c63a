"""The members of a storm as its conductor has them: started, heard, signalled, told to leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

from stress.storm import records
from stress.storm.book import Book
from stress.storm.peer import LEAVE, Spec
from stress.storm.profiles import Profile
from stress.storm.program import SLOTS
from stress.storm.records import Exited, Joined, Left, Lost, Record, Spawned, Stepped
from stress.storm.relay import Relay

ROOT = Path(__file__).resolve().parents[2]


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

    def tell_to_leave(self) -> None:
        self.is_going = True
        if self.to is not None:
            self.to.write(LEAVE)

    def signal(self, number: signal.Signals) -> None:
        if self.pidfd >= 0 and not self.has_ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)


class Crew:
    """lives: all that ever were, by name; p0 is the first."""

    def __init__(self, book: Book, profile: Profile, seed: int, relay: Relay) -> None:
        self._book, self._profile, self._seed, self._relay = book, profile, seed, relay
        self.lives: dict[str, Life] = {}

    @property
    def living(self) -> list[Life]:
        return [life for life in self.lives.values() if not life.has_ended]

    @property
    def staying(self) -> list[Life]:
        """Those that live and were not told to leave."""
        return [life for life in self.living if not life.is_going]

    @contextlib.asynccontextmanager
    async def nursery(self, own: Path) -> AsyncIterator[None]:
        """While it is entered members can be spawned; at its end all are killed."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("PCCL_")}
        env |= {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "PCCL_CHECKSUM": "full"}
        path = str(own / "members")
        server = await asyncio.start_unix_server(self._hear_member, path)
        with (self._book.folder / "members.log").open("ab") as errors:
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
            for life in self.lives.values():
                if life.to is not None:
                    life.to.close()

    async def spawn(self, coordinator: str, min_members: int = 1) -> str:
        """The name of a new member, which joins at that address."""
        taken = {life.slot for life in self.lives.values() if not life.has_ended}
        slot = min(set(range(SLOTS)) - taken)
        who = f"p{len(self.lives)}"
        profile = self._profile
        self.lives[who] = Life(who, slot)
        self._book.note(Spawned(self._book.now(), who, slot))
        entrance = await self._relay.open(who) if profile.proxied else 0
        spec = Spec(
            who, slot, coordinator, min_members, profile.deadline_s, self._seed,
            profile.count_max, profile.pace_s, self._book.origin, entrance,
        )  # fmt: skip
        assert self._parent.stdin is not None
        self._parent.stdin.write(json.dumps(asdict(spec)).encode() + b"\n")
        await self._parent.stdin.drain()
        return who

    async def _hear_nursery(self) -> None:
        assert self._parent.stdout is not None
        while text := await self._parent.stdout.readline():
            said = json.loads(text)
            life = self.lives[said["who"]]
            life.has_ended = True
            self._relay.close(life.who)
            if life.pidfd >= 0:
                os.close(life.pidfd)
                life.pidfd = -1
            self._book.note(Exited(self._book.now(), life.who, said["status"]))

    async def _hear_member(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """All that a member says. A line that its death tore is left out."""
        life: Life | None = None
        while (text := await reader.readline()).endswith(b"\n"):
            if text.startswith(b'{"hello"'):
                hello = json.loads(text)
                life = self.lives[hello["hello"]]
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
        self._book.note(record)
        match record:
            case Joined():
                life.peer = record.peer
            case Lost() | Left():
                life.peer = 0
            case Stepped():
                life.steps += 1
            case _:
                pass
