"""What a user holds: the Communicator (layer 5). `joining` makes it.

Checks arguments, turns tensors into buffers, and joins three things that know nothing of each
other: the engine (bytes), the control thread (membership), and the user's threads, which wait here.
Nothing is decided here about membership or repair.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, overload

import xxhash

from pccl_py import arguments, forks
from pccl_py.dataplane import buffers
from pccl_py.dataplane.buffers import Buffer
from pccl_py.dataplane.engine import ROUTES, Engine, Stats, check_size
from pccl_py.errors import CoordinatorLost, PcclError, UsageError
from pccl_py.peer.control import Control
from pccl_py.peer.events import Drained, WantLeave
from pccl_py.state_sync import Syncer, buffers_of
from pccl_py.types import Member, OpInfo, PeerId, ReduceOp, SyncInfo, View
from pccl_py.work import Pending, Work

ALL_REDUCE = 0
BROADCAST = 1
PROGRESS_S = 10.0
LEAVE_S = 30.0
SWEEP_MIN = 64  # ops known before those that ended out of order are looked for

_OPS = {op.name.lower(): op for op in ReduceOp}
_log = logging.getLogger("pccl")


def sooner(until: float | None, seconds: float) -> float:
    """Monotonic time: `seconds` from now, or `until` if that is sooner."""
    soon = time.monotonic() + seconds
    return soon if until is None else min(soon, until)


class Communicator:
    """One membership of one group. Made by `join`; a context manager that leaves at its end.

    Threads: collectives may be called from any thread; concurrent submitters name their ops.
    `update`, `sync_state` and `leave` are called by one thread, with no submit beside them. After a
    fork only the parent may use it.
    """

    def __init__(
        self, peer: PeerId, group: str, engine: Engine, control: Control, deadline_s: float
    ) -> None:
        self._peer = peer
        self._group = group
        self._engine = engine
        self._control = control
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._pending: deque[Pending] = deque()
        self._sweep_at = SWEEP_MIN
        self._closed = ""
        self._syncer = Syncer(peer, control, self._start_broadcast)
        self._finalizer = weakref.finalize(self, _close, engine, control)
        forks.register(self)

    # ------------------------------------------------------------ who

    @property
    def view(self) -> View:
        """The group's current view, members in rank order."""
        record = self._control.mailbox.record
        assert record is not None
        members = tuple(m for m in record.members if m.group == self._group)
        rank = next(i for i, m in enumerate(members) if m.peer == self._peer)
        return View(record.epoch, record.line, rank, members)

    @property
    def world_size(self) -> int:
        """Members of the group now."""
        return self.view.world_size

    @property
    def rank(self) -> int:
        """This peer's position in order of joining; it may fall when members before it leave."""
        return self.view.rank

    @property
    def members(self) -> tuple[Member, ...]:
        """The group's members, in rank order."""
        return self.view.members

    @property
    def epoch(self) -> int:
        """The number of the view; it only grows."""
        return self.view.epoch

    @property
    def line(self) -> int:
        """Changes when members were added (inside `update`), never when they only left."""
        return self.view.line

    @property
    def name(self) -> str:
        """What people call this peer."""
        view = self.view
        return view.members[view.rank].name

    # ------------------------------------------------------------ collectives

    @overload
    def all_reduce(
        self,
        tensor: object,
        /,
        op: str | ReduceOp = ...,
        *,
        name: str | None = ...,
        strict: bool = ...,
        route: str = ...,
        timeout: float | None = ...,
        async_op: Literal[False] = ...,
    ) -> OpInfo: ...

    @overload
    def all_reduce(
        self,
        tensor: object,
        /,
        op: str | ReduceOp = ...,
        *,
        name: str | None = ...,
        strict: bool = ...,
        route: str = ...,
        timeout: float | None = ...,
        async_op: Literal[True],
    ) -> Work: ...

    def all_reduce(
        self,
        tensor: object,
        /,
        op: str | ReduceOp = "sum",
        *,
        name: str | None = None,
        strict: bool = False,
        route: str = "auto",
        timeout: float | None = None,
        async_op: bool = False,
    ) -> OpInfo | Work:
        """Reduces `tensor` over the group, in place; every member ends with the same bits.

        Args:
            tensor: torch tensor (CPU), numpy array or writable buffer (untyped: uint8); contiguous;
                any shape, empty and 0-d too; uint8, int8 to int64, float16, bfloat16, float32,
                float64; equal count and dtype on all members. Not to be touched until the op ends.
            op: "sum", "avg", "prod", "min", "max", or a ReduceOp. Integers wrap, in an avg before
                it divides (truncating toward zero); min and max propagate NaN; 16-bit floats are
                added in float32, rounded each time. avg divides by those who contributed.
            name: ops of one name match among themselves; needed when several threads submit.
            strict: a death that costs a segment raises PeerLost, the input restored, instead of
                finishing with the survivors' values (holds a copy of the tensor meanwhile).
            route: "auto" (direct up to 32 members, ring beyond), "direct" (owners rotate over the
                members), "star" (one fixed hub), "ring"; the same on all members. In a view with a
                broken link everything takes the ring, which avoids it.
            timeout: seconds, narrows `deadline_s` for this op. What happens then is agreed: the op
                ends with DeadlineExceeded everywhere, or well everywhere, if late.
            async_op: return a Work at once.
        Returns OpInfo: what it cost, and how many contributed (min and max over segments).
        Raises UsageError (arguments, or peers disagree: names both and the field), PeerLost,
            DeadlineExceeded (the op happened on no peer, inputs intact: retry), Evicted,
            CoordinatorLost (outcome unknown: sync_state when it is back), ResourceError.
        """
        reduce = op if isinstance(op, ReduceOp) else _OPS.get(op) if isinstance(op, str) else None
        if reduce is None:
            raise UsageError(f"op={arguments.shown(op)} must be one of {', '.join(_OPS)}")
        arguments.check_flag("strict", strict)
        arguments.check_flag("async_op", async_op)
        if route not in ROUTES:
            raise UsageError(f"route={arguments.shown(route)} must be one of {', '.join(ROUTES)}")
        buffer, root = buffers.of(tensor), PeerId(0)
        work = self._submit(
            buffer, ALL_REDUCE, reduce, root, name, strict, timeout, "all_reduce", route
        )
        return work if async_op else work.wait()

    def broadcast(
        self,
        tensor: object,
        /,
        src: int = 0,
        *,
        name: str | None = None,
        timeout: float | None = None,
    ) -> OpInfo:
        """Gives every member the bits that rank `src` has in `tensor`, in place.

        Args and errors as for all_reduce. If src dies before every segment has reached a survivor,
        PeerLost is raised everywhere and the destinations are undefined.
        """
        members = self.members
        if not arguments.is_whole(src, 0, len(members) - 1):
            raise UsageError(
                f"src={arguments.shown(src)} must be a rank from 0 to {len(members) - 1}"
            )
        root = members[src].peer
        return self._submit(
            buffers.of(tensor), BROADCAST, ReduceOp.SUM, root, name, False, timeout, "broadcast"
        ).wait()

    def barrier(self, *, timeout: float | None = None) -> OpInfo:
        """Returns when every member has called it: an all_reduce of nothing."""
        return self.all_reduce(bytearray(), timeout=timeout)

    def _submit(
        self,
        buffer: Buffer,
        kind: int,
        reduce: ReduceOp,
        root: PeerId,
        name: str | None,
        strict: bool,
        timeout: float | None,
        what: str,
        route: str = "auto",
    ) -> Work:
        self._check_usable()
        self._raise_dropped()
        limit_s = arguments.seconds(timeout)
        number, words = 0, ""
        if name is not None:
            arguments.check_op_name(name)
            number = xxhash.xxh3_64_intdigest(f"op\0{name}".encode()) or 1
            what, words = _in_words(what, name)
        pending = Pending(self._engine, buffer, what, words)
        work = Work(pending)
        pending.work = weakref.ref(work)
        with self._lock:
            self._pending.append(pending)
        try:
            self._engine.submit(
                pending.ticket,
                buffer,
                kind=kind,
                reduce=reduce,
                root=root,
                name=number,
                strict=strict,
                route=ROUTES.index(route),
                timeout_s=self._deadline_s if limit_s is None else min(limit_s, self._deadline_s),
            )
        except UsageError:
            self._check_usable()
            self._say_who_holds(buffer, pending)
            raise
        finally:
            if not pending.ticket.is_submitted:
                with self._lock:
                    self._pending.remove(pending)
        return work

    def _say_who_holds(self, buffer: Buffer, refused: Pending) -> None:
        """Raises UsageError that names the op in flight which `buffer` overlaps, if one does."""
        check_size(buffer)
        with self._lock:
            others = [pending for pending in self._pending if pending is not refused]
        for pending in others:
            if pending.holds(buffer):
                raise UsageError(
                    f"the buffer overlaps that of {pending.what}, which is in flight: wait for "
                    "that op first"
                ) from None

    def _start_broadcast(self, buffer: Buffer, root: PeerId, name: str) -> Work:
        return self._submit(buffer, BROADCAST, ReduceOp.SUM, root, name, False, None, "sync_state")

    def _raise_dropped(self) -> None:
        """Forgets ops that are over; the error of one that nobody can ask for any more is ours."""
        error = self._dropped_error()
        if error is not None:
            raise error

    def _dropped_error(self) -> PcclError | None:
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

    # ------------------------------------------------------------ membership

    def update(self) -> None:
        """A safe point: newcomers may be admitted here, and nowhere else.

        Every member's program calls it at the same positions (the same ops before it). With nobody
        waiting it sends nothing and takes microseconds; else it waits for the members to arrive
        here with their ops ended, and returns in the larger view: see `line`.
        Raises CoordinatorLost if the coordinator dies meanwhile and does not come back within
        `deadline_s`, Evicted.
        """
        self._check_usable()
        self._raise_dropped()
        position = self._engine.submitted()
        if not self._control.safe_point(position):
            return
        self._drain()
        self._control.post(Drained(position))
        mail = self._control.mailbox
        until = time.monotonic() + self._deadline_s
        while not mail.wait(lambda: mail.resumed is not None, sooner(until, PROGRESS_S)):
            if time.monotonic() >= until:
                raise CoordinatorLost(
                    f"held at a safe point for {self._deadline_s:.0f} s without an answer from the "
                    "coordinator"
                )
            _log.warning("update: %s", mail.progress or "waiting for the coordinator")

    def _drain(self) -> None:
        with self._lock:
            running = list(self._pending)
        for pending in running:
            pending.wait(None)  # bounded by the op's own deadline

    def sync_state(self, tensors: Mapping[str, object], /, revision: int = 0) -> SyncInfo:
        """Makes `tensors` the same, to the bit, on all members of the group, in place.

        The highest revision wins; within it the commonest content; ties go to who joined first.
        Only keys that differ somewhere are moved. All members call it at the same place in the
        program, with the same keys, dtypes and counts.

        Args: tensors: name -> tensor as for all_reduce; revision: 0 or more, e.g. the round number.
        Returns SyncInfo; its revision is the elected one, its keys those that changed here.
        Raises UsageError (other keys elsewhere), DeadlineExceeded (a member did not call it),
            CoordinatorLost, Evicted; the tensors are then as they were. Blocks up to `deadline_s`.
            When the donor dies it elects another. Keeps a copy of what it overwrites meanwhile.
        """
        self._check_usable()
        self._raise_dropped()
        if not arguments.is_whole(revision, 0, (1 << 63) - 1):
            raise UsageError(
                f"revision={arguments.shown(revision)} must be a number from 0 to 2**63 - 1"
            )
        return self._syncer.sync(buffers_of(tensors), revision, self._deadline_s)

    def leave(self) -> None:
        """Leaves gracefully: waits for own ops, serves those who still need this peer, closes.

        Idempotent; leaving the `with` block does it. If the coordinator does not answer within 30 s
        the sockets are closed all the same. Raises, when it has left, the error of an op whose Work
        was dropped.
        """
        if self._closed:
            return
        mail = self._control.mailbox
        dropped = None
        if mail.failure is None:
            self._drain()
            dropped = self._dropped_error()
            self._control.post(WantLeave())
            until = time.monotonic() + min(LEAVE_S, self._deadline_s)
            try:
                mail.wait(lambda: mail.left, until)
            except PcclError as error:  # evicted meanwhile: gone is gone
                _log.info("leave: %s", error)
        self.close()
        if dropped is not None:
            raise dropped

    def close(self) -> None:
        """Closes at once, without leaving: to the others this is a death. Idempotent; ops in flight
        end with Evicted for whoever waits for them, and their buffers are left alone."""
        if not self._closed:
            self._closed = "closed"
            with self._lock:
                running = list(self._pending)
            for pending in running:
                pending.poll()  # what has ended well stays so
            self._finalizer()

    def stats(self) -> Stats:
        """The engine's counters since joining. Never blocks."""
        self._check_usable(allow_failed=True)
        return self._engine.stats()

    def _check_usable(self, *, allow_failed: bool = False) -> None:
        if self._closed:
            raise UsageError(f"the communicator is {self._closed}")
        failure = self._control.mailbox.failure
        if failure is not None and not allow_failed:
            raise failure

    def _after_fork_in_child(self) -> None:
        """The parent's sockets are not this process's: close them, and refuse every call."""
        if self._closed:
            return
        self._closed = "not usable in a forked child: join there, or fork before joining"
        self._finalizer.detach()
        self._engine.abandon_after_fork()
        self._control.abandon_after_fork()

    def __enter__(self) -> Communicator:
        self._check_usable(allow_failed=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.leave()
        else:
            self.close()  # a program that failed leaves at once; the others go on without it


def _in_words(what: str, name: str) -> tuple[str, str]:
    """A named op for a sentence of ours, and what stands for its hash in the texts of others."""
    if what == "sync_state":
        key = name.split("/", 2)[2]
        return f"sync_state of {key!r}", f"sync_state of {key!r}"
    return f"{what} {name!r}", f"op {name!r}"


def _close(engine: Engine, control: Control) -> None:
    control.stop()
    engine.close()
