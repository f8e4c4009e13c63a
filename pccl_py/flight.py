"""The ops of one communicator that are in flight (layer 5).

The communicator and its sub-groups start their ops here, so that they share one bound on time, one
account of who holds which memory, and one place where the error of an op that nobody waits for is
kept until the next call. What an op is among whom must not be known here.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque

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
        self._lock = threading.Lock()
        self._pending: deque[Pending] = deque()
        self._sweep_at = SWEEP_MIN

    def check_usable(self, *, allow_failed: bool = False) -> None:
        """Raises UsageError if closed, and what has ended this membership, if it has ended."""
        if self.closed:
            raise UsageError(f"the communicator is {self.closed}")
        failure = self._mailbox.failure
        if failure is not None and not allow_failed:
            raise failure

    def start(self, op: Op, timeout: float | None) -> Work:
        """Submits an op. timeout: seconds, narrows the deadline.

        Raises what `check_usable` does, the error of a dropped op, UsageError (timeout, memory that
        is in flight), ResourceError (too many in flight).
        """
        self.check_usable()
        self.raise_dropped()
        limit_s = arguments.seconds(timeout)
        pending = Pending(self._engine, op)
        work = Work(pending)
        pending.work = weakref.ref(work)
        with self._lock:
            self._pending.append(pending)
        try:
            self._engine.submit(
                pending.ticket,
                op,
                timeout_s=self.deadline_s if limit_s is None else min(limit_s, self.deadline_s),
            )
        except UsageError:
            self.check_usable()
            self._say_who_holds(op, pending)
            raise
        finally:
            if not pending.ticket.is_submitted:
                with self._lock:
                    self._pending.remove(pending)
        return work

    def _say_who_holds(self, op: Op, refused: Pending) -> None:
        """Raises UsageError that names the op in flight whose memory `op` overlaps, if one does."""
        for pending in self._running():
            if pending is not refused and pending.conflicts(op):
                raise UsageError(
                    f"the buffer overlaps that of {pending.what}, which is in flight: wait for "
                    "that op first"
                ) from None

    def _running(self) -> list[Pending]:
        with self._lock:
            return list(self._pending)

    def drain(self) -> None:
        """Waits for all ops; each is bounded by its own deadline."""
        for pending in self._running():
            pending.wait(None)

    def collect_ended(self) -> None:
        """What has ended well stays so, whatever becomes of the engine."""
        for pending in self._running():
            pending.poll()

    def raise_dropped(self) -> None:
        """Forgets ops that are over; the error of one that nobody can ask for any more is ours."""
        error = self.dropped_error()
        if error is not None:
            raise error

    def dropped_error(self) -> PcclError | None:
        """That error, once."""
        with self._lock:
            while self._pending and self._pending[0].is_over:  # most end in order
                self._pending.popleft()
            if len(self._pending) > self._sweep_at:
                self._pending = deque(p for p in self._pending if not p.is_over)
                self._sweep_at = 2 * len(self._pending) + SWEEP_MIN
            dropped = next((p for p in self._pending if p.is_dropped and p.poll()), None)
            if dropped is None:
                return None
            self._pending.remove(dropped)
        result = dropped.poll()
        return None if result is None else result.error
