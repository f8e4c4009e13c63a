"""The ops of one communicator that are in flight (layer 5).

The communicator and its sub-groups start their ops here, so that they share one bound on time, one
account of who holds which memory, and one place where the error of an op that nobody waits for is
kept until the next call. What an op is among whom must not be known here.
"""

from __future__ import annotations

import weakref

from pccl_py import arguments
from pccl_py.dataplane.engine import Engine
from pccl_py.dataplane.op import Op
from pccl_py.errors import PcclError, UsageError
from pccl_py.peer.control import Mailbox
from pccl_py.work import Pending, Work

SWEEP_MIN = 64  # ops known before those that ended out of order are looked for


class Flight:
    """closed: why no op can be started any more, "" while one can. Any thread."""

    def __init__(self, engine: Engine, mailbox: Mailbox, deadline_s: float) -> None:
        self.closed = ""
        self.deadline_s = deadline_s
        self._engine = engine
        self._mailbox = mailbox
        # In order of submission. Threads share it without a lock: each step on it is one call of C.
        self._pending: dict[Pending, None] = {}
        self._sweep_at = SWEEP_MIN

    def check_usable(self, *, allow_failed: bool = False) -> None:
        """Raises UsageError if closed, and what has ended this membership, if it has ended."""
        if self.closed:
            raise UsageError(f"the communicator is {self.closed}")
        failure = self._mailbox.failure
        if failure is not None and not allow_failed:
            raise failure

    def start(self, op: Op, timeout: float | None, wait_ms: int = 0) -> Work:
        """Submits an op. timeout: seconds, narrows the deadline. wait_ms: how long to
        wait for its end in the same call of the engine, for one who is going to wait anyway.

        Raises what `check_usable` does, the error of a dropped op, UsageError (timeout, memory that
        is in flight), ResourceError (too many in flight).
        """
        self.check_usable()
        if self._pending:
            self.raise_dropped()
        limit_s = self.deadline_s
        if timeout is not None:
            limit_s = min(arguments.seconds(timeout) or limit_s, limit_s)
        pending = Pending(self._engine, op, self._pending)
        work = Work(pending)
        pending.work = weakref.ref(work)
        try:
            self._pending[pending] = None
            pending.submit(limit_s, wait_ms)
        except UsageError:
            self.check_usable()
            self._say_who_holds(op, pending)
            raise
        finally:
            if not pending.is_submitted:
                self._pending.pop(pending, None)
        return work

    def _say_who_holds(self, op: Op, refused: Pending) -> None:
        """Raises UsageError that names the op in flight whose memory `op` overlaps, if one does."""
        for pending in list(self._pending):
            if pending is not refused and pending.conflicts(op):
                raise UsageError(
                    f"the buffer overlaps that of {pending.what}, which is in flight: wait for "
                    "that op first"
                ) from None

    def called(self) -> dict[int, str]:
        """What the user calls the ops in flight, by the engine's op id. Any thread."""
        return {pending.op: pending.what for pending in list(self._pending)}

    def drain(self) -> None:
        """Waits for all ops; each is bounded by its own deadline."""
        for pending in list(self._pending):
            if pending.is_submitted:
                pending.wait(None)

    def collect_ended(self) -> None:
        """What has ended well stays so, whatever becomes of the engine."""
        for pending in list(self._pending):
            pending.poll()

    def raise_dropped(self) -> None:
        """Forgets ops that are over; the error of one that nobody can ask for any more is ours."""
        error = self.dropped_error()
        if error is not None:
            raise error

    def dropped_error(self) -> PcclError | None:
        """That error, once."""
        for pending in list(self._pending):  # most end in order
            if not pending.is_over:
                break
            self._pending.pop(pending, None)
        if len(self._pending) > self._sweep_at:
            for pending in list(self._pending):
                if pending.is_over:
                    self._pending.pop(pending, None)
            self._sweep_at = 2 * len(self._pending) + SWEEP_MIN
        for pending in list(self._pending):
            if not pending.is_dropped:
                continue
            result = pending.poll()
            if result is None and pending.is_submitted:
                continue  # else an interrupt came before it was, and again before it was forgotten
            if self._pending.pop(pending, pending) is None and result is not None:
                return result.error  # we took it out: no other thread tells it, too
        return None
