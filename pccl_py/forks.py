"""What a fork does to communicators (layer 4): the child closes their sockets.

Otherwise a DataLoader's children would keep their parent's connections open and hide its death for
seconds. The set of living communicators is the one piece of module state in the package: `os` gives
no other way to be told of a fork.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    def leave(self) -> None: ...
    def _after_fork_in_child(self) -> None: ...


_living: weakref.WeakSet[Forkable] = weakref.WeakSet()


def register(communicator: Forkable) -> None:
    """From now on a forked child closes this communicator's sockets."""
    _living.add(communicator)


def living() -> list[Forkable]:
    """Those that nobody has let go of, closed ones included."""
    return list(_living)


def _in_child() -> None:
    for communicator in living():
        communicator._after_fork_in_child()


os.register_at_fork(after_in_child=_in_child)
