"""Hostile peers against the C core: right checksums, absurd contents. Links close, nothing dies.

One or two members' streams are mutated between their core and the others': fields of frames are
rewritten and the checksum is made right again, frames are made up, repeated, reordered, cut. What
must hold, under the sanitizers too: no crash, no scratch beyond the bound, no table of ops beyond
its bound, and an op that ends has nothing left to send from memory that is its caller's again.
"""

from __future__ import annotations

import random
import struct
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.sim.cluster import AUTO, DIRECT, RAISED, RING, STABLE, STAR, Cluster, Node, Submission

NAMED = 1 << 32
SUM, COPY, MARK, READY, PART, ACK = range(1, 7)
TYPES = (SUM, COPY, MARK, READY, PART, ACK)
HEADER = struct.Struct("<BBB3sHIIIIII")
DESC = struct.Struct("<QQQBBBBB3x")
EDGES = (0, 1, 2, 3, 5, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
SEGMENT = 64
POOL_MAX = 512 + 200  # buffers: one for each possible link, and the windows of these small worlds


def frame(
    core: ModuleType,
    type_: int,
    op: int,
    *,
    segment: int = 0,
    epoch: int = 1,
    contributors: int = 0,
    payload: bytes = b"",
    flags: int = 0,
    context: int = 0,
    held: int = 0,
    length: int | None = None,
    version: int = 1,
) -> bytes:
    """One frame with a checksum that is right, whatever it says."""
    if op & NAMED:
        flags |= 1
    size = len(payload) if length is None else length
    head = struct.pack(
        "<BBHIHHIIII", version, type_, flags, epoch, context, contributors,
        op & 0xFFFFFFFF, segment, held, size,
    )  # fmt: skip
    covered = head + bytes(4) + (payload if flags & 2 else b"")
    return head + struct.pack("<I", core.lib.pc_crc32c(0, covered, len(covered))) + payload


def descriptor(count: int, dtype: int = 4, **fields: int) -> bytes:
    order = ("reduce", "strict", "route")
    return DESC.pack(
        count, fields.get("name", 0), fields.get("root", 0), fields.get("kind", 0), dtype,
        *(fields.get(key, 0) for key in order),
    )  # fmt: skip


class Wire:
    """Cuts one direction of a link into frames, and gives them on as badly as the seed wants."""

    def __init__(self, core: ModuleType, rng: random.Random, rate: float, counts: dict[int, int]):
        self.core, self.rng, self.rate, self.counts = core, rng, rate, counts
        self.partial = bytearray()
        self.seen: list[bytes] = []
        self.late: list[bytes] = []

    def put(self, blob: bytes) -> bytes:
        self.partial += blob
        out = b""
        while len(self.partial) >= 32:
            size = 32 + struct.unpack_from("<I", self.partial, 24)[0]
            if len(self.partial) < size:
                break
            whole = bytes(self.partial[:size])
            del self.partial[:size]
            self.seen = [*self.seen[-40:], whole]
            out += self.pervert(whole) if self.rng.random() < self.rate else whole
        return out

    def pervert(self, whole: bytes) -> bytes:
        rng = self.rng
        match rng.randrange(16):
            case 0:
                return whole + whole
            case 1:
                self.late.append(whole)
                return b""
            case 2:
                return whole + b"".join(self.late)
            case 3:
                return rng.choice(self.seen) + whole
            case 4:
                return b"".join(self.change(whole) for _ in range(3)) + whole
            case 5:
                return self.invent(whole) + whole
            case 6 if rng.random() < 0.1:
                return whole[: rng.randrange(len(whole))] + rng.randbytes(rng.randrange(80))
            case 7:
                return b"".join(self.invent(whole) for _ in range(rng.randrange(8))) + whole
            case 8:
                return self.change(whole)
            case _:
                return whole + self.invent(whole)

    def number(self, near: int, bits: int) -> int:
        value = self.rng.choice((self.rng.choice(EDGES), near + self.rng.randrange(-3, 4)))
        return value & (1 << bits) - 1

    def change(self, whole: bytes) -> bytes:
        """The same frame with one to three fields lying."""
        _, kind, flags, epoch, context, row, op, segment, held, _, _ = HEADER.unpack(whole[:32])
        payload, length, rng = whole[32:], None, self.rng
        for _ in range(rng.choice((1, 1, 2, 3))):
            match rng.randrange(9):
                case 0:
                    kind = rng.choice(TYPES)
                    payload = payload if rng.random() < 0.5 else b""
                case 1:
                    flags = flags ^ 1 << rng.randrange(2)
                case 2 if rng.random() < 0.3:
                    epoch = self.number(epoch, 32) if rng.random() < 0.2 else max(epoch, 1) - 1
                case 3:
                    row = self.number(row, 16)
                case 4:
                    op = self.number(op, 32)
                case 5 | 6:
                    segment = self.number(segment, 32)
                case 7:
                    payload = payload[: rng.randrange(len(payload) + 1)] if payload else b"12345678"
                case _:
                    payload = rng.randbytes(len(payload))
        return frame(
            self.core, kind, op, segment=segment, epoch=epoch, contributors=row, payload=payload,
            flags=flags & 3, held=held, length=length, context=context,
        )  # fmt: skip

    def invent(self, whole: bytes) -> bytes:
        """A frame of the present epoch: one that could be, of an op that is, or nonsense."""
        epoch, rng = HEADER.unpack(whole[:32])[3], self.rng
        if rng.random() < 0.05:
            return self.nonsense(epoch)
        op = rng.choice(list(self.counts))
        count = self.counts[op]
        segment = rng.randrange(max(1, -(-count // 8)))
        kind, payload = rng.choice((SUM, COPY, COPY, MARK, MARK, PART, ACK, ACK)), b""
        if kind in (SUM, COPY, PART):
            payload = bytes(8 * max(0, min(8, count - 8 * segment)))
        return frame(
            self.core, kind, op, segment=segment, epoch=epoch, contributors=rng.randrange(1, 5),
            payload=payload, flags=rng.choice((0, 2)),
        )  # fmt: skip

    def nonsense(self, epoch: int) -> bytes:
        rng = self.rng
        kind = rng.choice(TYPES)
        op = rng.choice((rng.randrange(8), NAMED | 7, rng.randrange(1 << 33)))
        payload = b""
        if kind == READY:
            payload = rng.choice((
                descriptor(rng.choice((0, 5, 40, 500, 1 << 63)), rng.randrange(10)),
                rng.randbytes(29) + bytes(3),
                rng.randbytes(32),
            ))  # fmt: skip
        elif kind in (SUM, COPY, PART):
            payload = rng.randbytes(rng.choice((0, 8, 16, SEGMENT, SEGMENT, SEGMENT, SEGMENT + 1)))
        return frame(
            self.core, kind, op, segment=rng.choice((*range(12), self.number(0, 32))), epoch=epoch,
            contributors=rng.choice((*range(5), self.number(0, 16))), payload=payload,
            flags=rng.choice((0, 2)),
        )  # fmt: skip


class Hostile(Cluster):
    """A cluster in which the traffic of some members goes through a Wire."""

    def __init__(self, core: ModuleType, world: int, seed: int, evil: set[int], rate: float):
        super().__init__(core, world, seed, links=1 + seed % 2, checksum=seed % 3 > 0)
        self.evil, self.rate, self.module = evil, rate, core
        self.wires: dict[tuple[int, int], Wire] = {}
        self.counts: dict[int, int] = {}  # elements of each op
        self.lag = self.random.choice((0.0, 0.5, 0.9))  # how often the honest do not get to send

    def transmit(self, node: Node, link: int, limit: int) -> bool:
        if node.index not in self.evil:
            if self.random.random() < self.lag:
                return False
            return super().transmit(node, link, limit)
        pipe = node.links[link].outgoing
        kept = bytes(pipe.data)
        pipe.data.clear()
        moved = super().transmit(node, link, limit)
        wire = self.wires.setdefault(
            (node.index, link), Wire(self.module, self.random, self.rate, self.counts)
        )
        pipe.data[:] = kept + wire.put(bytes(pipe.data))
        return moved

    def step(self) -> bool:
        """As the engine does: a link that broke the rules is closed, and called anew."""
        for node, link in self.broken:
            if link not in node.links:
                continue  # both ends complained
            self.wires.pop((node.index, link), None)
            far = self.close(node, link)
            self.wires = {k: w for k, w in self.wires.items() if k[1] in self.nodes[k[0]].links}
            self.connect(node, far)
        self.broken.clear()
        return super().step()

    def flush(self, node: Node) -> tuple[int, dict[int, dict[str, Any]]]:
        """What the evil report of themselves need not be so either."""
        stable, ops = super().flush(node)
        if node.index not in self.evil or self.random.random() < 0.6:
            return stable, ops
        for row in ops.values():
            if self.random.random() < 0.5:
                row["final"] = [self.random.random() < 0.7 for _ in row["final"]]
            if self.random.random() < 0.1:
                row["status"] = self.random.choice((STABLE, RAISED))
                row["code"] = 2
        return stable + (self.random.random() < 0.2) * self.random.randrange(4), ops

    def drain(self, node: Node) -> None:
        super().drain(node)
        for number in node.results:
            node.buffers.pop(number, None)  # the caller's memory is its own again
        stats = self.ffi.new("struct pccl_stats *")
        self.lib.pc_core_stats(node.core, stats)
        assert stats.scratch_bytes <= POOL_MAX * SEGMENT


def play(core: ModuleType, seed: int) -> Hostile:
    rng = random.Random(seed)
    world = rng.choice((2, 2, 3, 3, 4, 5))
    evil = set(rng.sample(range(world), rng.choice((1, 1, 2))))
    cluster = Hostile(core, world, seed, evil, rng.choice((0.02, 0.1, 0.5)))
    cluster.install_first()
    for number in range(1, 5):
        size = rng.choice((0, 1, 8, 8, 16, 40, 200))
        route = rng.choice((AUTO, RING, STAR, DIRECT))
        kind = int(rng.random() < 0.2)
        sub = Submission(
            number if number < 4 else NAMED | 7, 4, rng.randrange(5), kind=kind,
            root=rng.randrange(world), name=0 if number < 4 else 7, strict=rng.random() < 0.2,
            route=route,
        )  # fmt: skip
        cluster.counts[sub.op_id] = size
        for node in cluster.nodes:
            node.inputs[sub.op_id] = np.arange(size, dtype=np.int64)
            node.todo.append(sub)
    steps = rng.choice((150, 400, 800))
    for _ in range(rng.randrange(1, 5)):
        for _ in range(steps):
            cluster.step()
        if len(cluster.alive()) > 2 and rng.random() < 0.3:
            cluster.kill(rng.choice(cluster.alive()).index)
        cluster.repair()
    return cluster


@pytest.mark.parametrize("block", range(10))
def test_no_hostile_stream_kills_a_core(core: ModuleType, block: int) -> None:
    for seed in range(block * 40, block * 40 + 40):
        play(core, seed)
