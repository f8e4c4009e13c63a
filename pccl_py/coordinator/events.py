"""What can happen to the coordinator, and what it can want done (layer 2).

`machine.step(state, event, now) -> (state, actions)`: events come from the shell (`server.py`) or a
test, actions go back to it. Nothing here has behaviour. `now` is monotonic seconds. A *connection*
is an opaque number that the shell gives to one control connection of one peer; it is never reused.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccl_py.protocol.messages import FromCoordinator, FromPeer
from pccl_py.types import Record

Connection = int

# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Started:
    """First event of a life: the boot number (journaled), and the last whole record, if any."""

    boot: int
    record: Record | None
    run: str | None


@dataclass(frozen=True, slots=True)
class Received:
    """A decoded and, for Hello and StatusRequest, authenticated message."""

    connection: Connection
    message: FromPeer


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The control connection is gone (confirmed by EHOSTUNREACH, or missed heartbeats), or the
    machine closed it; of a connection that it no longer knows the machine takes no notice."""

    connection: Connection
    reason: str


@dataclass(frozen=True, slots=True)
class JournalFailed:
    """A record could not be stored, and the step that wished for it has not happened: the state is
    the one before it, and its event comes again after this one. reason: for people."""

    reason: str


@dataclass(frozen=True, slots=True)
class JournalWorks:
    """Records can be stored again, as it seems."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has reached what the last SetTimer asked for."""


Event = Started | Received | Disconnected | JournalFailed | JournalWorks | Tick

# ---------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class Send:
    connection: Connection
    message: FromCoordinator


@dataclass(frozen=True, slots=True)
class Close:
    """Nothing that this connection says matters any more."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Journal:
    """Make the record durable; the shell carries out nothing of the step before the fsync (R9)."""

    record: Record
    run: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Deliver a Tick at this time (monotonic seconds); replaces the previous wish; None: none."""

    at: float | None


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth a log line; `fields` are (name, value) pairs for people. grave: a warning."""

    name: str
    fields: tuple[tuple[str, str], ...] = ()
    grave: bool = False


Action = Send | Close | Journal | SetTimer | Note
