"""One submitted op, from the user's side (layer 5): waiting, and who owns the buffer meanwhile.

`Pending` is the communicator's record of an op in flight; it keeps the buffer alive and collects
the result exactly once. `Work` is what a user holds: dropping it lets the op finish, and its error is
then raised by the communicator's next call.
"""

from __future__ import annotations

import threading
import time
import weakref

from pccl_py.dataplane.buffers import Buffer
from pccl_py.dataplane.engine import Engine, Result
from pccl_py.errors import PcclError
from pccl_py.types import OpInfo

SLICE_MS = 100  # a wait looks for signals this often, so that Ctrl-C acts


class Pending:
    """An op in flight. buffer: kept until the engine is done with it."""

    def __init__(self, engine: Engine, ticket: int, buffer: Buffer, what: str) -> None:
        self.what = what
        self.work: weakref.ref[Work] | None = None
        self._engine = engine
        self._ticket = ticket
        self._buffer: Buffer | None = buffer
        self._lock = threading.Lock()
        self._result: Result | None = None

    def poll(self, timeout_ms: int = 0) -> Result | None:
        """The result, or None if the op has not ended within timeout_ms. Any thread."""
        with self._lock:
            if self._result is None:
                self._result = self._engine.wait(self._ticket, timeout_ms)
                if self._result is not None:
                    self._buffer = None
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

    @property
    def is_dropped(self) -> bool:
        """Nobody can ask for the outcome any more."""
        return self.work is None or self.work() is None


class Work:
    """A running collective, as returned with async_op=True."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending

    def wait(self, timeout: float | None = None) -> OpInfo:
        """Blocks until the op has ended; returns what it cost.

        Args: timeout: seconds to wait here; it does not narrow the op's deadline (the call's own
        `timeout=` does). Raises the op's error (Aborted: happened nowhere, retry; CoordinatorLost,
        Evicted, UsageError), or the builtin TimeoutError if the op is still running. Ctrl-C acts
        within 100 ms and leaves the op running.
        """
        until = None if timeout is None else time.monotonic() + timeout
        result = self._pending.wait(until)
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
        result = self._pending.poll()
        return None if result is None else result.error
