"""Which control connections the coordinator knows, and who is let in (layer 4).

Bookkeeping for `server`: a ROUTER gives each connection a random routing id; this table gives those
that have greeted properly a number for the pure machine, remembers the file descriptor they came
in on (that is all that the socket monitor names when one breaks; descriptors are reused at once),
and forgets what those who misbehaved say. It opens and sends nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from pccl_py.errors import Code, RemoteProtocolError
from pccl_py.protocol import encoding
from pccl_py.protocol.messages import Hello, Message, Refused, StatusRequest

LINKS_MAX = 16384
BANNED_MAX = 4096


@dataclass(frozen=True, slots=True)
class Link:
    """One control connection that has greeted. number: never reused; fd: -1 if unknown."""

    number: int
    routing_id: bytes
    fd: int


class Connections:
    """The table of links, and the routing ids whose messages are thrown away unread."""

    def __init__(self) -> None:
        self._by_id: dict[bytes, Link] = {}
        self._by_number: dict[int, Link] = {}
        self._by_fd: dict[int, dict[int, Link]] = {}
        self._banned: OrderedDict[bytes, None] = OrderedDict()
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def of_id(self, routing_id: bytes) -> Link | None:
        return self._by_id.get(routing_id)

    def of_number(self, number: int) -> Link | None:
        return self._by_number.get(number)

    def at_fd(self, fd: int) -> tuple[Link, ...]:
        return tuple(self._by_fd.get(fd, {}).values())

    def add(self, routing_id: bytes, fd: int) -> Link:
        """A new link; the caller has checked that it is new and that there is room."""
        assert routing_id not in self._by_id
        assert len(self._by_id) < LINKS_MAX
        self._last_number += 1
        link = Link(self._last_number, routing_id, fd)
        self._by_id[routing_id] = self._by_number[link.number] = link
        self._by_fd.setdefault(fd, {})[link.number] = link
        return link

    def drop(self, link: Link) -> None:
        """Forget a link; idempotent."""
        self._by_id.pop(link.routing_id, None)
        self._by_number.pop(link.number, None)
        at_fd = self._by_fd.get(link.fd, {})
        at_fd.pop(link.number, None)
        if not at_fd:
            self._by_fd.pop(link.fd, None)

    def ban(self, routing_id: bytes) -> None:
        """Ignore this connection from now on. The oldest bans are forgotten when there are many:
        such a connection is then judged anew by what it says."""
        self._banned[routing_id] = None
        if len(self._banned) > BANNED_MAX:
            self._banned.popitem(last=False)

    def is_banned(self, routing_id: bytes) -> bool:
        return routing_id in self._banned


def refusal_of(error: RemoteProtocolError) -> Refused:
    """What to tell an end whose bytes could not be read."""
    if isinstance(error, encoding.VersionMismatch):
        return Refused(
            Code.USAGE,
            f"you speak version {error.version} of pccl's control protocol, this coordinator "
            f"version {encoding.PROTOCOL_VERSION}: install the same pccl-py on both",
        )
    return Refused(Code.PROTOCOL, f"the coordinator cannot read what this peer says: {error}")


def check_proof(secret: bytes | None, message: Message) -> Refused | None:
    """None if the greeting is authentic under the coordinator's secret, else what to tell."""
    assert isinstance(message, Hello | StatusRequest)
    if secret is None:
        if not message.proof:
            return None
        text = "this coordinator runs without a secret: start it with PCCL_SECRET, or unset it here"
    elif not message.proof:
        text = "this run has a secret: set PCCL_SECRET or PCCL_SECRET_FILE to the coordinator's"
    elif encoding.proof_is_good(secret, message):
        return None
    else:
        text = "wrong run secret: PCCL_SECRET or PCCL_SECRET_FILE differs from the coordinator's"
    return Refused(Code.USAGE, text)
