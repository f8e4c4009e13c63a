"""Frames as bytes (PROTOCOL.md), written apart from the C core, and a wire that perverts them."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping, Sequence
from types import ModuleType

NAMED = 1 << 32
SUM, COPY, MARK, READY, PART, ACK, CREDIT = range(1, 8)
TYPES = (SUM, COPY, MARK, READY, PART, ACK, CREDIT)
IN_FLAG_NAMED, IN_FLAG_CRC, IN_FLAG_RELAY = 1, 2, 8
# version, type, flags, length (24 bits), contributors, epoch, context, op, segment, held, crc
HEADER = struct.Struct("<BBB3sHIIIIII")
# count, name, root, members, layout; kind, dtype, reduce, strict, route; weight, for_you
RELAY = struct.Struct("<HH")  # from, to: behind the header of a relayed frame
DESC = struct.Struct("<QQQQQBBBBB3xdQ")
EDGES = (0, 1, 2, 3, 5, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
SEGMENT = 64


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
    context: int | None = None,
    held: int = 0,
    length: int | None = None,
    version: int = 2,
    relay: bytes = b"",
) -> bytes:
    """One frame with a checksum that is right, whatever it says. context: else the op's own."""
    if op & NAMED:
        flags |= IN_FLAG_NAMED
    if relay:
        flags |= IN_FLAG_RELAY
    if context is None:
        context = op >> 33
    size = len(payload) if length is None else length
    head = HEADER.pack(
        version, type_, flags, size.to_bytes(3, "little"), contributors, epoch, context,
        op & 0xFFFFFFFF, segment, held, 0,
    )  # fmt: skip
    covered = head + relay + (payload if flags & IN_FLAG_CRC else b"")
    crc = core.lib.pc_crc32c(0, covered, len(covered))
    return head[:28] + struct.pack("<I", crc) + relay + payload


def descriptor(count: int, dtype: int = 4, *, weight: float = 1.0, **fields: int) -> bytes:
    """The payload of a READY frame."""
    first = ("name", "root", "members", "layout", "kind")
    then = ("reduce", "strict", "route")
    return DESC.pack(
        count, *(fields.get(key, 0) for key in first), dtype,
        *(fields.get(key, 0) for key in then), weight, fields.get("for_you", 0),
    )  # fmt: skip


class Wire:
    """Cuts one direction of a link into frames, and gives them on as badly as the seed wants."""

    def __init__(
        self, core: ModuleType, rng: random.Random, rate: float, sizes: Mapping[int, Sequence[int]]
    ) -> None:
        """sizes: by op the bytes that a segment of it may have."""
        self.core, self.rng, self.rate, self.sizes = core, rng, rate, sizes
        self.partial = bytearray()
        self.seen: list[bytes] = []
        self.late: list[bytes] = []

    def put(self, blob: bytes) -> bytes:
        self.partial += blob
        out = b""
        while len(self.partial) >= 32:
            size = 32 + 4 * (self.partial[2] >> 3 & 1) + int.from_bytes(self.partial[3:6], "little")
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
        _, kind, flags, _, row, epoch, context, op, segment, held, _ = HEADER.unpack(whole[:32])
        start, rng = 36 if flags & IN_FLAG_RELAY else 32, self.rng
        relay, payload = whole[32:start], whole[start:]
        for _ in range(rng.choice((1, 1, 2, 3))):
            match rng.randrange(11):
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
                case 8:
                    context = rng.choice(
                        (0, context, self.number(context, 32), self.any_op() >> 33)
                    )
                case 9:
                    ends = (rng.randrange(5), self.number(rng.randrange(5), 16))
                    relay = rng.choice((b"", RELAY.pack(*ends), RELAY.pack(*ends[::-1])))
                case _ if kind == READY and len(payload) == DESC.size:
                    payload = self.other_descriptor(payload)
                case _:
                    payload = rng.randbytes(len(payload))
        return frame(
            self.core, kind, op, segment=segment, epoch=epoch, contributors=row, payload=payload,
            flags=flags & 3, held=held, context=context, relay=relay,
        )  # fmt: skip

    def other_descriptor(self, payload: bytes) -> bytes:
        """The same op, said otherwise: in what is compared, its weight, or what is to come."""
        rng, fields = self.rng, list(DESC.unpack(payload))
        at = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 11, 11, 11))
        if at == 10:
            fields[at] = rng.choice(
                (0.0, 0.5, -1.0, -0.0, 1e300, 1e308, float("nan"), float("inf"))
            )
        else:
            fields[at] = self.number(fields[at], 8 if 5 <= at < 10 else 64)
        return DESC.pack(*fields)

    def any_op(self) -> int:
        return self.rng.choice(list(self.sizes))

    def invent(self, whole: bytes) -> bytes:
        """A frame of the present epoch: one that could be, of an op that is, or nonsense."""
        epoch, rng = HEADER.unpack(whole[:32])[5], self.rng
        if rng.random() < 0.05:
            return self.nonsense(epoch)
        op = self.any_op()
        kind, payload = rng.choice((SUM, COPY, COPY, COPY, MARK, MARK, PART, ACK, ACK, CREDIT)), b""
        if kind in (SUM, COPY, PART):
            payload = bytes(rng.choice(self.sizes[op]))
        relay = RELAY.pack(rng.randrange(5), rng.randrange(5)) if rng.random() < 0.1 else b""
        return frame(
            self.core, kind, op, segment=rng.choice((0, 0, 1, 2, rng.randrange(30))), epoch=epoch,
            contributors=rng.randrange(1, 5), payload=payload, flags=rng.choice((0, 2)),
            relay=relay,
        )  # fmt: skip

    def nonsense(self, epoch: int) -> bytes:
        rng = self.rng
        kind = rng.choice(TYPES)
        op = rng.choice((rng.randrange(8), NAMED | 7, rng.randrange(1 << 33), self.any_op() + 1))
        payload = b""
        if kind == READY:
            payload = rng.choice((
                descriptor(rng.choice((0, 5, 40, 500, 1 << 63)), rng.randrange(10),
                           kind=rng.randrange(11), reduce=rng.randrange(5),
                           weight=rng.choice((1.0, 0.5, -1.0, float("nan")))),
                rng.randbytes(45) + bytes(3) + rng.randbytes(16),
                rng.randbytes(64),
            ))  # fmt: skip
        elif kind in (SUM, COPY, PART):
            payload = rng.randbytes(rng.choice((0, 8, 16, SEGMENT, SEGMENT, SEGMENT, SEGMENT + 1)))
        return frame(
            self.core, kind, op, segment=rng.choice((*range(12), self.number(0, 32))), epoch=epoch,
            contributors=rng.choice((*range(5), self.number(0, 16))), payload=payload,
            flags=rng.choice((0, 2)),
        )  # fmt: skip
