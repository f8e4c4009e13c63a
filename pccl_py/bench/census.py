"""How many control messages a coordinator has exchanged with its peers.

The conductor asks before and after the timed repeats: a collective in a stable view costs none.
One connection for all questions; they are not counted themselves.
"""

from __future__ import annotations

import json
import os
import time
from types import TracebackType

import zmq

from pccl_py.errors import CoordinatorLost
from pccl_py.protocol import encoding, endpoint
from pccl_py.protocol.messages import Status, StatusRequest

ANSWER_S = 10.0
NONCE_BYTES = 16


class Census:
    """A connection to a coordinator without a secret. Use as a context manager."""

    def __init__(self, coordinator: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint.parse(coordinator).zmq_address)

    def count(self) -> int:
        """Messages in both directions so far. Raises CoordinatorLost."""
        request = StatusRequest("", os.urandom(NONCE_BYTES), b"")
        self._socket.send(encoding.encode(request))
        until = time.monotonic() + ANSWER_S
        while self._socket.poll(max(0, int(1000 * (until - time.monotonic())))):
            message = encoding.decode(self._socket.recv())
            if isinstance(message, Status):
                return int(json.loads(message.json)["control_messages"])
        raise CoordinatorLost(f"the coordinator did not answer in {ANSWER_S:.0f} s")

    def __enter__(self) -> Census:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        self._context.term()
