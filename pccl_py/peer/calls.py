"""Which of the listed coordinators a peer speaks to (layer 4).

Of all that are listed one acts and listens; the others stand by. So all are called at once, the
first to complete a handshake is spoken to and the calls to the others are taken back; when it is
lost all are called again. `control` owns the socket and its monitor and tells what it sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import zmq
import zmq.asyncio

from pccl_py.protocol.endpoint import Endpoint


class Calls:
    """The calls of one DEALER. Control thread only."""

    def __init__(self, socket: zmq.asyncio.Socket, endpoints: Sequence[Endpoint]) -> None:
        """endpoints: numeric, at least one."""
        self._socket = socket
        self._endpoints = {one.zmq_address: one for one in endpoints}
        self._called: set[str] = set()
        self._chosen: str | None = None
        self._fds: dict[str, int] = {}

    def begin(self) -> None:
        for address, endpoint in self._endpoints.items():
            if address not in self._called:
                self._socket.setsockopt(zmq.IPV6, int(endpoint.is_v6))
                self._socket.connect(address)
                self._called.add(address)

    def connected(self, address: str, fd: int) -> None:
        """A TCP connection stands; who is there has not spoken yet."""
        if address in self._called:
            self._fds[address] = fd

    def answered(self, address: str) -> bool:
        """A handshake is complete: whether this is the coordinator to speak to from now on."""
        if self._chosen is not None or address not in self._called:
            return False
        self._chosen = address
        for other in self._called - {address}:
            self._socket.disconnect(other)
            self._fds.pop(other, None)
        self._called = {address}
        return True

    def broke(self, address: str) -> bool:
        """A connection is gone: whether it was the one that was spoken over."""
        self._fds.pop(address, None)
        if address != self._chosen:
            return False
        self._chosen = None
        self.begin()
        return True

    def take_fds(self) -> tuple[int, ...]:
        """The descriptors of all connections, for a forked child to close; none afterwards."""
        fds = tuple(self._fds.values())
        self._fds.clear()
        return fds
