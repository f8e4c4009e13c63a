"""Bare TCP streams between two hosts, with nothing on top: what the network gives to a program that
does nothing wrong. Run as a program by measure.py, inside the hosts.

    stream.py sink ADDRESS STREAMS      prints its port, then takes all that comes
    stream.py source ADDRESS PORT STREAMS WARM_S SECONDS CONGESTION     prints {"bytes", "seconds"}
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import struct
import sys
import time

CHUNK_BYTES = 1 << 20
LOOK_S = 0.05
# Places in struct tcp_info (linux/tcp.h), which only grows at its end.
TCP_INFO_BYTES = 256
SEND_MSS_AT = 16
DELIVERED_AT = 192


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def sink(address: str, streams: int) -> None:
    listener = socket.create_server((address, 0), family=family(address))
    print(listener.getsockname()[1], flush=True)
    selector = selectors.DefaultSelector()
    for _ in range(streams):
        stream = listener.accept()[0]
        stream.setblocking(False)
        selector.register(stream, selectors.EVENT_READ, stream)
    buffer = bytearray(CHUNK_BYTES)
    with contextlib.suppress(ConnectionError):
        while all(key.data.recv_into(buffer) for key, _ in selector.select()):
            pass


def delivered_bytes(stream: socket.socket) -> int:
    """Payload that the other kernel has told it has, also beyond a gap: a program there sees what
    lies beyond late and all at once, which would blur a short measurement by some percent."""
    info = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    mss, packets = (struct.unpack_from("=I", info, at)[0] for at in (SEND_MSS_AT, DELIVERED_AT))
    return int(mss * packets)


def connect(address: str, port: int, congestion: str) -> socket.socket:
    stream = socket.socket(family(address))
    if congestion:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
    stream.connect((address, port))
    stream.setblocking(False)
    return stream


def source(
    address: str, port: int, streams: int, warm_s: float, seconds: float, congestion: str
) -> None:
    """Keeps all streams full; counts `seconds`, from warm_s after the last one connected."""
    selector = selectors.DefaultSelector()
    opened = [connect(address, port, congestion) for _ in range(streams)]
    for stream in opened:
        selector.register(stream, selectors.EVENT_WRITE, stream)
    chunk = bytes(CHUNK_BYTES)
    looks: list[tuple[float, int]] = []
    due_s = time.monotonic() + warm_s
    while len(looks) < 2:
        for key, _ in selector.select(LOOK_S):
            with contextlib.suppress(BlockingIOError):
                key.data.send(chunk)
        if time.monotonic() >= due_s:
            looks.append((time.monotonic(), sum(map(delivered_bytes, opened))))
            due_s += seconds
    (from_s, before), (to_s, after) = looks
    print(json.dumps({"bytes": after - before, "seconds": to_s - from_s}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["sink", where, count]:
            sink(where, int(count))
        case ["source", where, number, count, warm, duration, control]:
            source(where, int(number), int(count), float(warm), float(duration), control)
        case _:
            sys.exit(__doc__)
