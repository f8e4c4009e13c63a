"""One submitted op, from the user's side (layer 5): waiting, and who owns its memory meanwhile.

`Pending` is the communicator's record of an op in flight; it keeps the buffers alive and collects
the result exactly once. `Work` is what a user holds: dropping it lets the op finish, and its error
is then raised by the communicator's next call.
"""

from __future__ import annotations

import time
import weakref

from pccl_py import arguments
from pccl_py.dataplane.engine import Engine, Ticket
from pccl_py.dataplane.op import Op
from pccl_py.dataplane.results import Result
from pccl_py.errors import PcclError, UsageError
from pccl_py.types import OpInfo

SLICE_MS = 100  # a wait looks for signals this often, so that Ctrl-C acts


class Pending:
    """An op in flight, kept with its buffers until the engine is done with them. Made before the op
    is submitted, so that an interrupt cannot leave an op that nobody knows of. No lock: threads may
    wait for one op at once, and find the same result."""

    __slots__ = ("_engine", "_kept", "_op", "_result", "_ticket", "_told", "what", "work")

    def __init__(self, engine: Engine, op: Op, kept: dict[Pending, None]) -> None:
        """kept: where it is kept, and taken from when the user has been told."""
        self.what = op.what
        self.work: weakref.ref[Work] | None = None
        self._engine = engine
        self._kept = kept
        self._ticket = Ticket(op.words)
        self._op: Op | None = op
        self._result: Result | None = None
        self._told = False

    def submit(self, timeout_s: float, wait_ms: int) -> None:
        """As `Engine.submit`."""
        op = self._op
        assert op is not None
        self._set(self._engine.submit(self._ticket, op, timeout_s=timeout_s, wait_ms=wait_ms))

    @property
    def is_submitted(self) -> bool:
        return self._ticket.is_submitted

    @property
    def op(self) -> int:
        """The engine's id of it, 0 before it is submitted."""
        return self._ticket.op

    def _set(self, result: Result | None) -> None:
        if result is not None:  # None is no news: another thread may have one
            self._result = result
            self._op = None

    def poll(self, timeout_ms: int = 0) -> Result | None:
        """The result, or None if the op has not ended within timeout_ms. Any thread."""
        if self._result is not None:
            return self._result
        if self._engine.is_abandoned:
            raise UsageError(f"{self.what}: its result is the parent's, not a forked child's")
        if self._ticket.is_submitted:
            self._set(self._engine.wait(self._ticket, timeout_ms))
        return self._result

    def wait(self, until: float | None) -> Result | None:
        """As poll, up to monotonic time `until` (None: as long as the op takes)."""
        while True:
            left_ms = SLICE_MS
            if until is not None:
                left_ms = min(SLICE_MS, max(0, int((until - time.monotonic()) * 1000)))
            result = self.poll(left_ms)
            if result is not None or (until is not None and time.monotonic() >= until):
                return result

    def collect(self, until: float | None) -> Result | None:
        """As wait, for one who will tell the user: the communicator then says nothing of it."""
        result = self._result or self.wait(until)
        if result is not None:
            self._told = True
            self._kept.pop(self, None)
        return result

    def conflicts(self, op: Op) -> bool:
        """Whether it is in flight and memory that one of the two writes is the other's too."""
        own = None if self.poll() is not None else self._op
        return own is not None and own.conflicts(op)

    @property
    def is_dropped(self) -> bool:
        """Nobody has asked for the outcome, and nobody can any more."""
        return not self._told and (self.work is None or self.work() is None)

    @property
    def is_over(self) -> bool:
        """It has ended and the communicator has nothing to keep it for: no error, or one that the
        user was told."""
        result = self.poll()
        return result is not None and (result.error is None or self._told)


class Work:
    """A running collective, as returned with async_op=True."""

    __slots__ = ("__weakref__", "_pending")

    def __init__(self, pending: Pending) -> None:
        self._pending = pending

    def wait(self, timeout: float | None = None) -> OpInfo:
        """Blocks until the op has ended; returns what it cost.

        Args: timeout: seconds to wait here, 0 or more (None, inf: to the op's end); it does not
        narrow the op's deadline (the call's own `timeout=` does). Raises the op's error (Aborted:
        happened nowhere, retry; CoordinatorLost, Evicted, UsageError), or the builtin TimeoutError,
        no PcclError, if the op is still running: it goes on, wait again. Ctrl-C acts within 100 ms
        and leaves the op running.
        """
        until = None
        if timeout is not None:
            limit_s = arguments.seconds(timeout, may_be_zero=True)
            until = None if limit_s is None else time.monotonic() + limit_s
        result = self._pending.collect(until)
        if result is None:
            raise TimeoutError(f"{self._pending.what} is still running after {timeout} s")
        if result.error is not None:
            raise result.error
        return result.info

    def is_completed(self) -> bool:
        """Whether the op has ended, well or not. Never blocks."""
        return self._pending.poll() is not None

    def exception(self) -> PcclError | None:
        """The op's error, or None if it ended well or is still running. Never blocks."""
        result = self._pending.collect(time.monotonic())
        return None if result is None else result.error
