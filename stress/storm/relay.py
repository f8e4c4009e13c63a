"""What lies between members: every link of a storm goes through here, and can be cut, held, slowed
or have a bit turned, for one pair of members.

Each member has an entrance, the address that it advertises. Who calls is read from the handshake
(PROTOCOL §1.1), so a pair has its own way although all call the same entrance. Runs in the
conductor's loop; knows peer ids, no names.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stress.wan.relay import Server, sleep_until

HANDSHAKE_BYTES = 96
CHUNK_BYTES = 256 * 1024
FLYING_CHUNKS_MAX = 16  # of a link and direction: what does not fit waits at its sender
TARGET_S = 5.0

Pair = frozenset[int]
Tell = Callable[[str, int, Pair], None]
"""Called with "flipped" or "closed", the link's number, and its pair."""


@dataclass(slots=True)
class Way:
    """How it is between two. flips: bits still to be turned."""

    is_cut: bool = False
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    delay_s: float = 0.0
    rate_mbit: float = 0.0
    flips: int = 0
    links: set[Link] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.is_open.set()


@dataclass(slots=True, eq=False)
class Link:
    """One connection, of which the relay has two ends."""

    number: int
    pair: Pair
    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    is_flipped: bool = False

    def abort(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


@dataclass(slots=True)
class Entrance:
    """Where a member is called. target: its engine's port, once it is known."""

    server: asyncio.Server
    port: int
    target: asyncio.Future[int]


class Relay:
    """Use as an asynchronous context manager: leaving it ends every link."""

    def __init__(self, rng: random.Random, tell: Tell) -> None:
        self._rng, self._tell = rng, tell
        self._ways: dict[Pair, Way] = {}
        self._entrances: dict[str, Entrance] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._links = 0

    async def __aenter__(self) -> Relay:
        return self

    async def __aexit__(self, *_: object) -> None:
        for who in list(self._entrances):
            self.close(who)
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def open(self, who: str) -> int:
        """The port of a new member's entrance."""

        async def called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._serving.add(task)
            try:
                if who in self._entrances:
                    await self._serve(self._entrances[who], reader, writer)
            finally:
                writer.close()
                self._serving.discard(task)

        server = await asyncio.start_server(called, "127.0.0.1", 0, limit=CHUNK_BYTES)
        port = int(server.sockets[0].getsockname()[1])
        target = asyncio.get_running_loop().create_future()
        self._entrances[who] = Entrance(server, port, target)
        return port

    def lead(self, who: str, port: int) -> None:
        """Where its engine listens now."""
        entrance = self._entrances[who]
        if entrance.target.done():  # it joins anew
            entrance.target = asyncio.get_running_loop().create_future()
        entrance.target.set_result(port)

    def close(self, who: str) -> None:
        """It is gone; its links end by themselves."""
        entrance = self._entrances.pop(who, None)
        if entrance is not None:
            entrance.server.close()

    # ------------------------------------------------------------ faults

    def way(self, pair: Pair) -> Way:
        return self._ways.setdefault(pair, Way())

    def cut(self, pair: Pair) -> None:
        """All links of the two are reset, and none is made until it is healed."""
        way = self.way(pair)
        way.is_cut = True
        for link in list(way.links):
            link.abort()

    def hold(self, pair: Pair) -> None:
        """A black hole: nothing arrives, nothing is reset."""
        self.way(pair).is_open.clear()

    def slow(self, pair: Pair, delay_s: float, rate_mbit: float) -> None:
        way = self.way(pair)
        way.delay_s, way.rate_mbit = delay_s, rate_mbit

    def corrupt(self, pair: Pair) -> None:
        """One bit of what passes next between the two."""
        self.way(pair).flips += 1

    def heal(self, pair: Pair) -> None:
        way = self.way(pair)
        way.is_cut = False
        way.is_open.set()
        way.delay_s = way.rate_mbit = 0.0
        way.flips = 0

    # ------------------------------------------------------------ links

    async def _serve(
        self, entrance: Entrance, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            hello = await asyncio.wait_for(reader.readexactly(HANDSHAKE_BYTES), TARGET_S)
            port = await asyncio.wait_for(asyncio.shield(entrance.target), TARGET_S)
            pair = frozenset(int.from_bytes(hello[at : at + 8], "little") for at in (16, 24))
            way = self.way(pair)
            if way.is_cut:
                writer.transport.abort()
                return
            far_reader, far_writer = await asyncio.open_connection(
                "127.0.0.1", port, limit=CHUNK_BYTES
            )
            self._links += 1
            link = Link(self._links, pair, (writer, far_writer))
            way.links.add(link)
            try:
                far_writer.write(hello)
                if not await self._carry(link, way, reader, far_reader):
                    link.abort()
            finally:
                far_writer.close()
                way.links.discard(link)
                if link.is_flipped:
                    self._tell("closed", link.number, pair)

    async def _carry(
        self, link: Link, way: Way, near: asyncio.StreamReader, far: asyncio.StreamReader
    ) -> bool:
        """Until an end of it closes: a member's links have no half that lives on. Whether it did so
        in order, so that what is under way still arrives."""
        both = [
            asyncio.create_task(self._pipe(link, way, near, link.writers[1])),
            asyncio.create_task(self._pipe(link, way, far, link.writers[0])),
        ]
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            return all(task.exception() is None for task in done)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _pipe(
        self, link: Link, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        flying: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(FLYING_CHUNKS_MAX)
        giving = asyncio.create_task(self._give_out(way, flying, writer))
        pace = Server()
        try:
            while data := await reader.read(CHUNK_BYTES):
                if way.flips:
                    data = self._flipped(link, way, data)
                now = time.monotonic()
                due = pace.serve(now, len(data), way.rate_mbit) + way.delay_s
                await flying.put((due, data))
            await flying.put((0.0, b""))
            await giving
        finally:
            giving.cancel()

    async def _give_out(
        self, way: Way, flying: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        while True:
            due, data = await flying.get()
            await sleep_until(due)
            await way.is_open.wait()
            if not data:
                return
            writer.write(data)
            await writer.drain()

    def _flipped(self, link: Link, way: Way, data: bytes) -> bytes:
        way.flips -= 1
        turned = bytearray(data)
        turned[self._rng.randrange(len(turned))] ^= 1 << self._rng.randrange(8)
        link.is_flipped = True
        self._tell("flipped", link.number, link.pair)
        return bytes(turned)
