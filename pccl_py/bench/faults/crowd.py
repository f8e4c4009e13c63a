"""A thousand control peers in one process, forked by `nursery`: each has a connection of its own to
the coordinator and answers as a member does that stands at one safe point and never reduces.

One ROUTER makes all connections, since a socket per peer would make this process the slow one; for
the same reason equal messages are decoded once, not once for each peer. No engines, no links.

    storm COORDINATOR COUNT   -> members FIRST_NS LAST_NS VIEWS CPU_NS

FIRST: before the first Hello; LAST: when each has been sent a view of all; VIEWS: its epoch; CPU:
what this process took meanwhile.
"""

from __future__ import annotations

import os
import resource
import secrets
import time

import zmq

from pccl_py.bench.lines import Line
from pccl_py.errors import PcclError, ResourceError
from pccl_py.protocol import encoding, endpoint
from pccl_py.protocol.messages import (
    Answer,
    Ask,
    At,
    EvictedMsg,
    Flush,
    FromPeer,
    Hello,
    Install,
    Message,
    Refused,
    Sp,
    Target,
)
from pccl_py.types import PeerId

RUN = "crowd"
STORM_S = 60.0
_DESCRIPTORS = 256  # beside one for each connection


class Crowd:
    """The peers, by the routing ids that their connections have here. Use `close`."""

    def __init__(self, coordinator: str, count: int) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < count + _DESCRIPTORS:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + _DESCRIPTORS), hard))
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in ((zmq.ROUTER_MANDATORY, 1), (zmq.SNDHWM, 0), (zmq.RCVHWM, 0)):
            self._socket.setsockopt(option, value)
        self._ids = [f"c{number}".encode() for number in range(count)]
        address = endpoint.parse(coordinator).zmq_address
        for routing_id in self._ids:
            self._socket.setsockopt(zmq.CONNECT_ROUTING_ID, routing_id)
            self._socket.connect(address)
        self._last: tuple[bytes, Message] | None = None

    def greet(self) -> None:
        for number, routing_id in enumerate(self._ids):
            peer = PeerId(secrets.randbits(63) + 1)
            message = Hello(
                RUN, peer, f"c{number}", "default", "127.0.0.1", 1, 1, 0, False, None,
                os.urandom(16), b"",
            )  # fmt: skip
            self._send(routing_id, message)

    def await_members(self) -> int:
        """Until each is a member of a view of all; its epoch. Raises PcclError, ResourceError."""
        until = time.monotonic() + STORM_S
        inside: set[bytes] = set()
        epoch = 0
        while len(inside) < len(self._ids):
            if not self._socket.poll(max(0, int(1e3 * (until - time.monotonic())))):
                raise ResourceError(f"{len(inside)} of {len(self._ids)} were members in time")
            routing_id, data = self._socket.recv_multipart()
            match message := self._decoded(data):
                case Install(record):
                    if len(record.members) == len(self._ids):
                        inside.add(routing_id)
                        epoch = record.epoch
                case Refused() | EvictedMsg():
                    raise PcclError(f"the coordinator said {message}")
                case _:
                    answer = answered(message)
                    if answer is not None:
                        self._send(routing_id, answer)
        return epoch

    def _decoded(self, data: bytes) -> Message:
        if self._last is None or self._last[0] != data:
            self._last = (data, encoding.decode(data))
        return self._last[1]

    def _send(self, routing_id: bytes, message: FromPeer) -> None:
        self._socket.send_multipart((routing_id, encoding.encode(message)))

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()


def answered(message: Message) -> FromPeer | None:
    """What a member says that stands at position 0, drained, with nothing in flight."""
    match message:
        case Ask(epoch, number):
            return Sp(epoch, number, -1, 0)
        case Target(epoch, number, position):
            return At(epoch, number, position)
        case Flush(epoch):
            return Answer(epoch, 0, 0, (), (), (), False)
        case _:
            return None


def live(line: Line) -> None:
    """A child's whole life: until its line is closed."""
    while (words := line.receive()) is not None:
        match words:
            case ["storm", coordinator, count]:
                crowd = Crowd(coordinator, int(count))
                first_ns, cpu_ns = time.monotonic_ns(), time.process_time_ns()
                try:
                    crowd.greet()
                    epoch = crowd.await_members()
                except (PcclError, OSError) as error:
                    line.send("error", encoding.printable(f"{type(error).__name__}: {error}"))
                    return
                last_ns = time.monotonic_ns()
                crowd.close()
                line.send("members", first_ns, last_ns, epoch, time.process_time_ns() - cpu_ns)
            case _:
                raise AssertionError(f"no such order: {words}")
