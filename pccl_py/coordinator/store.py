"""What a coordinator's memory can do, whatever it is kept in (layer 2, values and one interface).

`journal` keeps it in a file, `etcd_store` in etcd; `tenure` opens one or the other and the server
sees only this. A record is durable when `append` returns, or nothing of it may be sent (R9).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pccl_py.errors import ResourceError, UsageError
from pccl_py.types import Record


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a store holds: boots so far, and the last view with its run id, if there was one."""

    boot: int = 0
    record: Record | None = None
    run: str | None = None


class NotStored(ResourceError):
    """No record can be stored now (a full disk, an etcd that does not answer). What was stored
    before stands; `probe` tells when it is worth another try."""


class Deposed(ResourceError):
    """Another coordinator acts in our place, or may: stop at once."""


class Busy(UsageError):
    """Another coordinator acts on this store: wait for its end, or go away."""


class Store(Protocol):
    """An open store that is ours alone. `remembered.boot` is this life's, already durable."""

    @property
    def remembered(self) -> Remembered: ...

    async def append(self, record: Record, run: str) -> None:
        """Make `record` the last. Raises NotStored, Deposed, ResourceError (give up)."""

    async def probe(self) -> None:
        """After NotStored: returns if a record as long as that one would be taken now. Raises as
        `append`."""

    def check(self) -> None:
        """Raises Deposed if we cannot be sure that nobody acts in our place."""

    async def guard(self) -> None:
        """Runs beside whoever uses the store, until cancelled. Raises Deposed."""
