"""What a user holds: the Communicator (layer 5). `joining` makes it.

It joins three things that know nothing of each other: the engine (bytes), the control thread
(membership), and the user's threads, which wait here. What it can do with tensors is in
`collectives`; nothing is decided here about membership or repair.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Mapping
from types import TracebackType

import xxhash

from pccl_py import arguments, forks
from pccl_py.among import Among, Told
from pccl_py.collectives import Collectives
from pccl_py.dataplane.buffers import Buffer
from pccl_py.dataplane.engine import Engine
from pccl_py.dataplane.op import Op
from pccl_py.dataplane.results import Stats
from pccl_py.errors import CoordinatorLost, PcclError, UsageError
from pccl_py.flight import Flight
from pccl_py.peer.control import Control
from pccl_py.peer.events import Drained, WantLeave
from pccl_py.roster import Roster
from pccl_py.state_sync import Syncer, buffers_of
from pccl_py.subgroup import Subgroup, subgroup_of
from pccl_py.types import Kind, Member, PeerId, SyncInfo, View
from pccl_py.work import Work

PROGRESS_S = 10.0
LEAVE_S = 30.0

_log = logging.getLogger("pccl")


def sooner(until: float | None, seconds: float) -> float:
    """Monotonic time: `seconds` from now, or `until` if that is sooner."""
    soon = time.monotonic() + seconds
    return soon if until is None else min(soon, until)


class Communicator(Collectives):
    """One membership of one group. Made by `join`; a context manager that leaves at its end.

    Threads: collectives (see `Collectives`) may be called from any thread. `update`, `sync_state`
    and `leave` are called by one thread, with no submit beside them. After a fork only the parent
    may use it.
    """

    def __init__(
        self, peer: PeerId, group: str, engine: Engine, control: Control, deadline_s: float
    ) -> None:
        self._engine = engine
        self._control = control
        self._deadline_s = deadline_s
        self._flight = Flight(engine, control.mailbox, deadline_s)
        control.called = self._flight.called
        self._roster = Roster(peer, group, control.mailbox)
        self._told = Told()
        self._syncer = Syncer(peer, control, self._start_broadcast)
        self._finalizer = weakref.finalize(self, _close, engine, control)
        forks.register(self)

    # ------------------------------------------------------------ who

    @property
    def view(self) -> View:
        """The group's current view, members in rank order."""
        view = self._roster.view()
        self._told.note(view.line, view.world_size)
        return view

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

    def subgroup(self, ranks: object, /) -> Subgroup:
        """Some members, for collectives of their own. Sends nothing, opens no connection.

        Args: ranks: different ranks of this group as it is now, this member's among them; their
            order is that of the ranks inside. All of them make it in the same view, say after an
            `update`. Equal calls make one and the same sub-group, whose ops count together.
        Raises UsageError; PeerLost for a rank that was one until a member was lost.
        """
        return subgroup_of(self, self._flight, self._roster, self._among(), ranks)

    def _among(self) -> Among:
        self._flight.check_usable()
        return self._roster.among(self.members, "group", self._told)

    def _start_broadcast(self, buffer: Buffer, root: PeerId, name: str) -> Work:
        """A key of sync_state, under a name that no user can give."""
        words = f"sync_state of {name.split('/', 2)[2]!r}"
        number = xxhash.xxh3_64_intdigest(f"op\0{name}".encode()) or 1
        return self._flight.start(
            Op(
                Kind.BROADCAST,
                buffer.dtype,
                words,
                root=root,
                out=buffer,
                name=number,
                words=words,
            ),
            None,
        )

    # ------------------------------------------------------------ membership

    def update(self) -> None:
        """A safe point: newcomers may be admitted here, and nowhere else.

        Every member's program calls it at the same positions (the same ops before it). With nobody
        waiting it sends nothing and takes microseconds; else it waits for the members to arrive
        here with their ops ended, and returns in the larger view: see `line`.
        Raises CoordinatorLost if the coordinator dies meanwhile and does not come back within
        `deadline_s`, Evicted.
        """
        self._flight.check_usable()
        self._flight.raise_dropped()
        position = self._engine.submitted()
        if not self._control.safe_point(position):
            return
        self._flight.drain()
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

    def sync_state(self, tensors: Mapping[str, object], /, revision: int = 0) -> SyncInfo:
        """Makes `tensors` the same, to the bit, on all members of the group, in place.

        The highest revision wins; within it the commonest content; ties go to who joined first.
        Only keys that differ somewhere are moved. All members call it at the same place in the
        program, with the same keys, dtypes and counts.

        Args: tensors: name -> tensor as for all_reduce, each with memory of its own (tied weights:
            one name); revision: 0 or more, e.g. the round number.
        Returns SyncInfo; its revision is the elected one, its keys those that changed here.
        Raises UsageError (other keys elsewhere), DeadlineExceeded (a member did not call it),
            CoordinatorLost, Evicted; the tensors are then as they were. Blocks up to `deadline_s`.
            When the donor dies it elects another. Keeps a copy of what it overwrites meanwhile.
        """
        self._flight.check_usable()
        self._flight.raise_dropped()
        number = arguments.whole(revision, 0, (1 << 63) - 1)
        if number is None:
            raise UsageError(
                f"revision={arguments.shown(revision)} must be a number from 0 to 2**63 - 1"
            )
        return self._syncer.sync(buffers_of(tensors), number, self._deadline_s)

    def leave(self) -> None:
        """Leaves gracefully: waits for own ops, serves those who still need this peer, closes.

        Idempotent; leaving the `with` block does it. If the coordinator does not answer within 30 s
        the sockets are closed all the same. Raises, when it has left, the error of an op whose Work
        was dropped.
        """
        if self._flight.closed:
            return
        mail = self._control.mailbox
        dropped = None
        if mail.failure is None:
            self._flight.drain()
            dropped = self._flight.dropped_error()
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
        if not self._flight.closed:
            self._flight.closed = "closed"
            self._flight.collect_ended()
            self._finalizer()

    def stats(self) -> Stats:
        """The engine's counters since joining. Never blocks."""
        self._flight.check_usable(allow_failed=True)
        return self._engine.stats()

    def _after_fork_in_child(self) -> None:
        """The parent's sockets are not this process's: close them, and refuse every call."""
        if self._flight.closed:
            return
        self._flight.closed = "not usable in a forked child: join there, or fork before joining"
        self._finalizer.detach()
        self._engine.abandon_after_fork()
        self._control.abandon_after_fork()

    def __enter__(self) -> Communicator:
        self._flight.check_usable(allow_failed=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
            self.leave()
        else:
            self.close()  # a program that failed leaves at once; the others go on without it


def _close(engine: Engine, control: Control) -> None:
    control.stop()
    engine.close()
