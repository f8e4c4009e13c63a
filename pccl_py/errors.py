"""The error taxonomy, named after what the caller does next (layer 0).

`UsageError`: fix the program. `Aborted` (`PeerLost`, `DeadlineExceeded`): the op happened on no
peer, retry. `Evicted`: join again. `CoordinatorLost`: outcome unknown, synchronise state when it is
back. `ResourceError`: ask the operator. `ProtocolError`: someone broke the wire rules. A bug is an
assertion and none of these. The C enum `pccl_status` has the same members (a test compares them).
"""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """Error classes as they travel on the wire and across the C boundary; 0 is success."""

    OK = 0
    USAGE = 1
    PEER_LOST = 2
    DEADLINE_EXCEEDED = 3
    EVICTED = 4
    COORDINATOR_LOST = 5
    RESOURCE = 6
    PROTOCOL = 7


class PcclError(Exception):
    """Base of every error that pccl_py raises on purpose."""


class UsageError(PcclError, ValueError):
    """Wrong argument, wrong moment, or peers disagree about an op: fix the program."""


class Aborted(PcclError):
    """The op happened on no peer: retry it on the new view."""


class PeerLost(Aborted, ConnectionError):
    """A peer that the op cannot do without is gone; retry."""


class DeadlineExceeded(Aborted, TimeoutError):
    """The deadline passed and the op was agreed to have happened nowhere; retry."""


class Evicted(PcclError):
    """This peer is no longer a member: join again under a new id, then synchronise state."""


class CoordinatorLost(PcclError, ConnectionError):
    """No verdict can be had; outcomes are unknown: when it is back, join again and synchronise."""


class ResourceError(PcclError, OSError):
    """The operating system refused something (fds, memory, a port); `errno` is kept when known."""


class ProtocolError(PcclError):
    """Somebody broke the rules of the wire."""


class LocalProtocolError(ProtocolError):
    """This process tried to send something the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """The other end sent something the protocol forbids; it costs that end its connection."""


_CLASSES: dict[Code, type[PcclError]] = {
    Code.USAGE: UsageError,
    Code.PEER_LOST: PeerLost,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.EVICTED: Evicted,
    Code.COORDINATOR_LOST: CoordinatorLost,
    Code.RESOURCE: ResourceError,
    Code.PROTOCOL: ProtocolError,
}


def from_code(code: int, text: str) -> PcclError:
    """The exception for an error code from the wire or the engine; `code` must not be OK."""
    return _CLASSES[Code(code)](text)


def code_of(error: PcclError) -> Code:
    """The code under which an error travels: the class's own, or its nearest base's."""
    return next(code for code, kind in _CLASSES.items() if isinstance(error, kind))
