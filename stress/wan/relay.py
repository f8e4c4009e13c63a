"""The process behind `ProxyNetwork`: carries TCP connections with delay, rate, a cap per connection
and cuts. Reads one JSON command a line from standard input, writes one JSON answer a line, and ends
when its input does. Nothing is lost or reordered here; what does not fit waits at its sender.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import uvloop

CHUNK_BYTES = 64 * 1024
WIRE_SHARE = 1448 / 1500  # payload in what a real link of Ethernet's MTU would carry
BURST_S = 0.005  # timers here are a millisecond or so late; a server may catch up by this
IN_FLIGHT_CHUNKS_MAX = 2048  # of one connection and direction: 128 MiB


@dataclass(slots=True)
class Server:
    """A FIFO server on bytes: one number, the time at which it is free."""

    free_s: float = 0.0

    def serve(self, from_s: float, payload_bytes: int, rate_mbit: float) -> float:
        """When the last byte is through."""
        if rate_mbit <= 0:
            return from_s
        self.free_s = max(from_s - BURST_S, self.free_s)
        self.free_s += payload_bytes / WIRE_SHARE * 8e-6 / rate_mbit
        return max(from_s, self.free_s)


@dataclass(slots=True)
class Relay:
    """All links. One event loop, no lock."""

    values: dict[str, float]
    chance: random.Random
    up: dict[int, Server] = field(default_factory=dict)
    down: dict[int, Server] = field(default_factory=dict)
    whole: dict[tuple[int, int], asyncio.Event] = field(default_factory=dict)
    payload_bytes: dict[int, int] = field(default_factory=dict)  # delivered, by receiving host
    servers: list[asyncio.Server] = field(default_factory=list)

    def link(self, src: int, dst: int) -> asyncio.Event:
        """Set while packets pass from src to dst."""
        pair = (src, dst)
        if pair not in self.whole:
            self.whole[pair] = asyncio.Event()
            self.whole[pair].set()
        return self.whole[pair]

    def arrival_s(self, src: int, dst: int, from_s: float, payload_bytes: int) -> float:
        rate = self.values["rate_mbit"]
        sent_s = self.up.setdefault(src, Server()).serve(from_s, payload_bytes, rate)
        jitter_ms = self.values["jitter_ms"]
        delay_ms = self.values["rtt_ms"] / 2 + self.chance.uniform(-jitter_ms, jitter_ms)
        there_s = sent_s + max(0.0, delay_ms / 1e3)
        return self.down.setdefault(dst, Server()).serve(there_s, payload_bytes, rate)

    async def carry(self, src: int, dst: int, target: tuple[str, int]) -> int:
        """Opens a port that leads from src to `target`, a port of dst."""

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer):
                try:
                    far_reader, far_writer = await asyncio.open_connection(*target)
                except OSError:
                    writer.transport.abort()  # the caller sees a reset instead of a refusal
                    return
                with contextlib.closing(far_writer):
                    await self.join(Pipe(src, dst, reader, far_writer), far_reader, writer)

        server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=CHUNK_BYTES)
        self.servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def join(
        self, there: Pipe, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        back = Pipe(there.dst, there.src, reader, writer)
        try:
            async with asyncio.TaskGroup() as tasks:
                for pipe in (there, back):
                    tasks.create_task(self.take_in(pipe))
                    tasks.create_task(self.give_out(pipe))
        except* ConnectionError:
            there.writer.transport.abort()
            back.writer.transport.abort()

    async def take_in(self, pipe: Pipe) -> None:
        """Reads as fast as the connection's cap and the host's queue allow."""
        while True:
            data = await pipe.reader.read(CHUNK_BYTES)
            now_s = time.monotonic()
            paced_s = pipe.flow.serve(now_s, len(data), self.values["flow_mbit"])
            await sleep_until(paced_s)
            there_s = self.arrival_s(pipe.src, pipe.dst, max(now_s, paced_s), len(data))
            await pipe.flying.put((there_s, data))
            if not data:
                return
            transit_ms = self.values["rtt_ms"] / 2 + self.values["jitter_ms"]
            await sleep_until(there_s - (transit_ms + self.values["queue_ms"]) / 1e3)

    async def give_out(self, pipe: Pipe) -> None:
        """Writes each chunk when it arrives, in order; a cut holds it until the link is healed."""
        while True:
            there_s, data = await pipe.flying.get()
            await sleep_until(there_s)
            await self.link(pipe.src, pipe.dst).wait()
            if not data:
                pipe.writer.write_eof()
                return
            pipe.writer.write(data)
            await pipe.writer.drain()
            self.payload_bytes[pipe.dst] = self.payload_bytes.get(pipe.dst, 0) + len(data)

    async def obey(self, command: Mapping[str, object]) -> dict[str, object]:
        match command:
            case {"do": "expose", "src": int(src), "dst": int(dst), "target": [str(at), int(port)]}:
                return {"port": await self.carry(src, dst, (at, port))}
            case {"do": "set", "values": dict(values)}:
                self.values.update(values)
            case {"do": "cut", "a": int(a), "b": int(b)}:
                self.link(a, b).clear()
                self.link(b, a).clear()
            case {"do": "heal", "a": int(a), "b": int(b)}:
                self.link(a, b).set()
                self.link(b, a).set()
            case {"do": "stats"}:
                return {"payload_bytes": {str(k): v for k, v in self.payload_bytes.items()}}
            case _:
                return {"error": f"not a command: {command}"}
        return {}


@dataclass(slots=True)
class Pipe:
    """One direction of one connection."""

    src: int
    dst: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    flow: Server = field(default_factory=Server)
    flying: asyncio.Queue[tuple[float, bytes]] = field(
        default_factory=lambda: asyncio.Queue(IN_FLIGHT_CHUNKS_MAX)
    )


async def sleep_until(at_s: float) -> None:
    wait_s = at_s - time.monotonic()
    if wait_s > 0:
        await asyncio.sleep(wait_s)


async def main(values: dict[str, float], seed: int) -> None:
    relay = Relay(values, random.Random(seed))
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    while line := await commands.readline():
        print(json.dumps(await relay.obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(json.loads(sys.argv[1]), int(sys.argv[2])))
