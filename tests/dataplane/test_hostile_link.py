"""A member that lies to a real engine, over a real socket: it loses links, the engine works on."""

from __future__ import annotations

import random
import socket
import struct
import time
from contextlib import suppress
from types import ModuleType

import numpy as np

from pccl_py.dataplane.engine import Engine
from pccl_py.types import GroupRecord, Member, PeerId, Record
from tests.dataplane.test_engine import PROOF, RUN, call, crc32c, handshake, refused, submit
from tests.sim.wire import READY, TYPES, Wire, descriptor, frame

COUNT = 10000  # elements of each op: three segments of at least 32 KiB
LIAR = 2


def view_of(engine: Engine, epoch: int, members: tuple[int, ...]) -> Record:
    rows = tuple(
        Member(PeerId(i), f"m{i}", "g", "127.0.0.1", engine.port if i == 1 else 9) for i in members
    )
    return Record(1, epoch, epoch == 1, rows, (GroupRecord("g", tuple(m.peer for m in rows)),))


def greet(engine: Engine, beat_ms: int = 0) -> socket.socket:
    """A link that the engine takes for the liar's."""
    liar = call(engine)
    liar.settimeout(5.0)
    liar.sendall(handshake(peer=LIAR, to=1, beat_ms=beat_ms))
    answer = b""
    while len(answer) < 96:
        answer += liar.recv(96 - len(answer))
    return liar


def lies(core: ModuleType, rng: random.Random) -> bytes:
    """A descriptor that is right, and then what could be, what cannot, and noise."""
    ready = frame(core, READY, 1 + rng.randrange(3), payload=descriptor(COUNT, 8),
                  contributors=2, segment=rng.choice((0, 9, 0xFFFFFFFF)))  # fmt: skip
    wire = Wire(core, rng, 1.0, dict.fromkeys((1, 2, 3), (32768, COUNT * 8 % 32768)))
    sizes = (32768, 32768, 8 * COUNT - 2 * 32768, 64)
    likely = b"".join(
        frame(core, rng.choice([t for t in TYPES if t != READY]), rng.randrange(4),
              segment=rng.randrange(4), payload=rng.choice((b"", bytes(rng.choice(sizes)))),
              flags=rng.choice((0, 2)))
        for _ in range(rng.randrange(6))
    )  # fmt: skip
    return ready + likely + wire.nonsense(1) + rng.randbytes(rng.randrange(100))


def test_a_lying_member_costs_itself_its_links(core: ModuleType) -> None:
    rng = random.Random(7)
    assert crc32c(b"123456789") == core.lib.pc_crc32c(0, b"123456789", 9)
    with_settings = {"bind_host": "127.0.0.1", "bind_port": 0, "run": RUN, "proof": PROOF}
    engine = Engine(**with_settings, checksum_payload=True, peer=PeerId(1))
    try:
        engine.set_view(view_of(engine, 1, (1, LIAR)))
        tensors = [np.ones(COUNT) for _ in range(3)]
        for tensor in tensors:
            submit(engine, tensor)
        for _ in range(60):
            with greet(engine) as liar, suppress(ConnectionError):
                liar.sendall(lies(core, rng))
                with suppress(OSError):  # it may have been closed there
                    liar.shutdown(socket.SHUT_WR)  # else a frame's end would be waited for
                if rng.random() < 0.5:
                    liar.recv(100)
        end = time.monotonic() + 10
        while refused(engine) < 20:
            assert time.monotonic() < end, f"only {refused(engine)} links were refused"
            time.sleep(0.01)
    finally:
        engine.close()


def test_hostile_handshakes(core: ModuleType) -> None:
    """Each byte of a good handshake changed, with its checksum made right again or not."""
    rng = random.Random(8)
    engine = Engine(
        bind_host="127.0.0.1", bind_port=0, run=RUN, proof=PROOF, checksum_payload=True,
        peer=PeerId(1),
    )  # fmt: skip
    try:
        engine.set_view(view_of(engine, 1, (1, LIAR)))
        for at in range(96):
            shake = bytearray(handshake(peer=LIAR, to=1))
            shake[at] ^= 1 << rng.randrange(8)
            if rng.random() < 0.8:
                covered = bytes(shake[:92])
                shake[92:] = struct.pack("<I", core.lib.pc_crc32c(0, covered, 92))
            with call(engine) as stranger, suppress(ConnectionError):
                stranger.sendall(bytes(shake[: rng.choice((96, 96, 96, 50))]) + rng.randbytes(64))
        with greet(engine):
            assert refused(engine) > 0
    finally:
        engine.close()
