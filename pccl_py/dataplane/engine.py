"""The C engine behind typed Python (layer 3): handles, structs and status codes stop here.

With `rows` the only file in which cffi's untyped objects (`Any`) live. One Engine is one peer's
data plane; the control thread gives it views, user threads submit and wait. Every cffi call
releases the GIL. See native/include/pccl.h for what each promises about threads and ownership.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from pccl_py.dataplane import rows
from pccl_py.dataplane._pccl import ffi as _ffi
from pccl_py.dataplane._pccl import lib as _lib
from pccl_py.dataplane.op import Op
from pccl_py.dataplane.results import NO_INFO, Result, Stats, no_port, with_blame
from pccl_py.errors import Evicted, PcclError, ResourceError, UsageError, from_code
from pccl_py.peer.events import (
    EngineFull,
    EngineRepaired,
    Flushed,
    Inspected,
    LinkLost,
    OpMismatched,
    OpSettled,
    OpTimedOut,
    PathsMeasured,
)
from pccl_py.types import OpInfo, Path, PeerId, Phase, Record, Route, op_text

ffi: Any = _ffi
lib: Any = _lib

_TICKET = ffi.typeof("struct pccl_ticket *")

SCRATCH_BYTES = 64 << 20
SEGMENTS_MAX = 65536
SEGMENT_BYTES_MAX = 512 << 10
BUFFER_BYTES_MAX = SEGMENTS_MAX * SEGMENT_BYTES_MAX
ROUTES = tuple(route.name.lower() for route in Route)
CALLS_END_S = 5.0  # a call takes a slice of a wait, and those of failed ops end at once
CALLS_LOOK_S = 0.001
CLOSED = "the communicator was closed before the op ended"

EngineEvent = (
    LinkLost | OpTimedOut | OpSettled | OpMismatched | Flushed | EngineRepaired | EngineFull
    | PathsMeasured | Inspected
)  # fmt: skip


class Ticket:
    """Where the engine writes an op's number and its result. Made before the op is submitted and
    kept until it has ended, so that an interrupt (Ctrl-C) between two lines loses neither."""

    __slots__ = ("cell", "words")

    def __init__(self, words: str = "") -> None:
        """words: what a user calls the op; error texts then say that instead of a hash."""
        self.words = words
        self.cell: Any = ffi.new(_TICKET)

    @property
    def is_submitted(self) -> bool:
        return self.cell.number != 0  # type: ignore[no-any-return]

    @property
    def op(self) -> int:
        return int(self.cell.op)

    @property
    def called(self) -> str:
        """The op, as error texts call it."""
        return self.words or op_text(self.op)

    def in_words(self, text: str) -> str:
        """A text of the coordinator or the engine, who know a named op by its hash alone."""
        return text.replace(op_text(self.op), self.words) if self.words else text


class Engine:
    """One peer's end of the data plane: one listening port, one I/O thread.

    Args: bind_host: numeric address; bind_port: 0 lets the system choose; run: 64-bit hash of the
    run id; peer: this peer's id; proof: 32 bytes that every link must show.
    Raises UsageError (address), ResourceError (port in use, descriptors, memory).
    """

    def __init__(
        self,
        *,
        bind_host: str,
        bind_port: int,
        run: int,
        peer: PeerId,
        proof: bytes,
        checksum_payload: bool,
        scratch_bytes: int = SCRATCH_BYTES,
        links: int = 0,
        handshake_ms: int = 10_000,
        silence_ms: int = 0,
    ) -> None:
        host = ffi.new("char[]", bind_host.encode())
        config = ffi.new(
            "struct pccl_config *",
            {
                "bind_host": host,
                "bind_port": bind_port,
                "run": run,
                "peer": peer,
                "proof": list(proof),
                "scratch_bytes": scratch_bytes,
                "handshake_ms": handshake_ms,
                "checksum_payload": int(checksum_payload),
                "links": links,
                "silence_ms": silence_ms,
            },
        )
        handle = ffi.new("pccl_engine **")
        os_error = ffi.new("int *")
        status = lib.pccl_engine_new(config, handle, os_error)
        if status == lib.PCCL_USAGE:
            raise UsageError(f"{bind_host!r} is not an address that the data port can listen on")
        if status != lib.PCCL_OK:
            raise no_port(bind_host, bind_port, os_error[0])
        self._handle: Any = handle[0]
        self._peer = peer
        self._alone = True
        self._calls: set[object] = set()  # of user threads, in progress
        self._closing = threading.Lock()
        self._closed = False
        self._abandoned = False

    # ------------------------------------------------------------ life

    @property
    def port(self) -> int:
        return int(lib.pccl_engine_port(self._handle))

    @property
    def event_fd(self) -> int:
        """Readable while events wait."""
        return int(lib.pccl_engine_event_fd(self._handle))

    @contextmanager
    def _call(self) -> Iterator[bool]:
        """A user thread's call in progress, which `close` waits for; False: too late, do not.

        Written out in `submit` and `wait`, which every op comes by. No lock is taken: either the
        call sees `_closed`, or `close` sees the call. Nor can an interrupt leave one behind."""
        call = object()
        try:
            self._calls.add(call)
            yield not self._closed
        finally:
            self._calls.discard(call)

    def close(self) -> None:
        """Ends the I/O thread and closes every socket; ops in flight end with Evicted for whoever
        waits for them. Idempotent. The control thread must have ended."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        lib.pccl_engine_fail(self._handle, lib.PCCL_EVICTED, CLOSED.encode())
        until = time.monotonic() + CALLS_END_S
        while self._calls and time.monotonic() < until:
            time.sleep(CALLS_LOOK_S)
        lib.pccl_engine_free(self._handle)
        self._handle = ffi.NULL

    def abandon_after_fork(self) -> None:
        """In a forked child: closes the inherited sockets; every wait is refused from now on."""
        self._abandoned = True
        if not self._closed:
            self._closed = True
            lib.pccl_engine_abandon_after_fork(self._handle)

    @property
    def is_abandoned(self) -> bool:
        """This is a forked child, where the engine's threads are not."""
        return self._abandoned

    def fail(self, code: int, text: str) -> None:
        """Ends every op, now and later, with this error; links are closed."""
        lib.pccl_engine_fail(self._handle, code, text.encode()[:1023])

    # ------------------------------------------------------------ views

    def set_view(self, record: Record) -> None:
        """Installs this peer's group's part of a record."""
        me = record.member(self._peer)
        assert me is not None
        part = record.of_group(me.group)
        keep: list[Any] = []
        members = ffi.new("struct pccl_member[]", len(part.ring))
        place = {peer: index for index, peer in enumerate(part.ring)}
        cuts = [(place[a], place[b]) for a, b in record.excluded if a in place and b in place]
        edges = ffi.new("struct pccl_edge[]", cuts)
        for row, peer in zip(members, part.ring, strict=True):
            member = record.member(peer)
            assert member is not None
            row.peer, row.port = peer, member.port
            row.host = member.host.encode()
        verdicts = ffi.new("struct pccl_verdict[]", max(1, len(part.verdicts)))
        for row, verdict in zip(verdicts, part.verdicts, strict=False):
            holders = ffi.new("int32_t[]", list(verdict.holders))
            text = ffi.new("char[]", verdict.text.encode()[:1023])
            keep += [holders, text]
            row.op, row.outcome, row.status = verdict.op, int(verdict.outcome), verdict.code
            row.holder_count, row.holders, row.text = len(verdict.holders), holders, text
        view = ffi.new(
            "struct pccl_view *",
            {
                "epoch": record.epoch,
                "fresh": int(record.fresh),
                "self": part.ring.index(self._peer),
                "member_count": len(part.ring),
                "members": members,
                "cut_count": len(cuts),
                "cuts": edges,
                "stable": part.stable,
                "verdict_count": len(part.verdicts),
                "verdicts": verdicts,
                "hub": part.ring.index(part.hub) if part.hub in part.ring else -1,
                "large": int(part.large),
            },
        )
        self._alone = len(part.ring) == 1
        status = lib.pccl_engine_set_view(self._handle, view)
        if status != lib.PCCL_OK:
            raise from_code(status, f"view {record.epoch} cannot be installed")

    def flush(self, epoch: int) -> None:
        """Stops the epoch's frames; a Flushed event follows."""
        if lib.pccl_engine_flush(self._handle, epoch) != lib.PCCL_OK:
            raise ResourceError(errno.ENOMEM, "out of memory while answering a flush")

    # ------------------------------------------------------------ ops

    def submit(
        self, ticket: Ticket, op: Op, *, timeout_s: float, wait_ms: int = 0
    ) -> Result | None:
        """Starts an op, and waits for it as `wait` does; the memory it names belongs to the engine
        until there is a result of `ticket`, a new one. Raises UsageError (memory that is in flight,
        too many blocks), ResourceError (too many in flight)."""
        check_size(op)
        row, _keep = rows.op_row(op, timeout_s)
        cell = ticket.cell
        try:
            self._calls.add(ticket)
            if self._closed:
                raise UsageError("the communicator is closed")
            status = lib.pccl_engine_submit(self._handle, row, cell, wait_ms)
        finally:
            self._calls.discard(ticket)
        if status == lib.PCCL_PENDING:
            return None
        if status:
            raise _refused(status)
        return self._result(ticket)

    def wait(self, ticket: Ticket, timeout_ms: int) -> Result | None:
        """The result of a submitted ticket, or None after timeout_ms. Any thread, several at once;
        blocks without the GIL. A result that was there once, and lost to an interrupt, stays."""
        cell, call = ticket.cell, object()
        try:
            self._calls.add(call)
            if not self._closed:
                status = lib.pccl_engine_wait(self._handle, cell, timeout_ms)
            elif cell.ended:
                status = lib.PCCL_OK
            else:
                return Result(NO_INFO, Evicted(f"{ticket.called}: {CLOSED}"))
        finally:
            self._calls.discard(call)
        assert status != lib.PCCL_USAGE, "a ticket is of one engine"
        return None if status else self._result(ticket)

    def _result(self, ticket: Ticket) -> Result:
        row = ticket.cell.result
        alone = self._alone
        info = OpInfo(
            row.contributors_min,
            row.contributors_max,
            row.repaired,
            row.bytes_sent,
            row.bytes_received,
            row.elapsed_ns / 1e9,
            "self" if alone else ROUTES[row.route],
            "none" if alone else "tcp",
        )
        status = row.status
        if not status:
            return Result(info, None)
        text = ticket.in_words(rows.text(row.text))
        phase = Phase(row.phase)
        told = with_blame(status, text, ticket.called, phase, info.seconds, row.missing)
        return Result(info, from_code(status, told))

    def inspect(self) -> None:
        """Asks how the ops in flight stand; an Inspected event follows, or none if memory is out:
        who asks waits for a while only. Control thread only."""
        lib.pccl_engine_inspect(self._handle)

    def submitted(self) -> int:
        """Ops submitted in this line: the safe-point position."""
        with self._call() as usable:
            return int(lib.pccl_engine_submitted(self._handle)) if usable else 0

    # ------------------------------------------------------------ events

    def next_event(self) -> EngineEvent | None:
        """The oldest event that waits, or None. Control thread only."""
        event = ffi.new("struct pccl_event *")
        while lib.pccl_engine_next_event(self._handle, event) == lib.PCCL_OK:
            found = self._event(event)
            if found is not None:
                return found
        return None

    def _event(self, event: Any) -> EngineEvent | None:
        kind = event.type
        if kind == lib.PCCL_EVENT_LINK_LOST:
            return LinkLost(event.epoch, PeerId(event.peer), rows.text(event.reason))
        if kind == lib.PCCL_EVENT_TIMEOUT:
            return OpTimedOut(event.op, rows.text(event.reason))
        if kind == lib.PCCL_EVENT_SETTLED:
            return OpSettled(event.op)
        if kind == lib.PCCL_EVENT_MISMATCH:
            return OpMismatched(
                event.op,
                PeerId(event.peer),
                rows.text(event.field),
                rows.text(event.mine),
                rows.text(event.theirs),
            )
        if kind == lib.PCCL_EVENT_FLUSHED:
            return self._report()
        if kind == lib.PCCL_EVENT_REPAIRED:
            return EngineRepaired(event.epoch)
        if kind == lib.PCCL_EVENT_PATHS:
            return PathsMeasured(self.paths())
        if kind == lib.PCCL_EVENT_INSPECTED:
            return self._inspected()
        assert kind == lib.PCCL_EVENT_FULL
        return EngineFull()

    def _inspected(self) -> Inspected | None:
        found = ffi.new("struct pccl_inspection *")
        if lib.pccl_engine_inspection(self._handle, found) != lib.PCCL_OK:
            return None  # two answers were there, and the later one was taken already
        return rows.inspected(found)

    def _report(self) -> Flushed | None:
        out = ffi.new("struct pccl_report **")
        if lib.pccl_engine_report(self._handle, out) != lib.PCCL_OK:
            return None  # a newer flush has been reported already
        report = out[0]
        try:
            ops = tuple(rows.op_report(report.ops[i]) for i in range(report.op_count))
            told = (report.contexts[i] for i in range(report.context_count))
            contexts = tuple((row.context, row.stable) for row in told)
            return Flushed(report.epoch, report.submitted, report.stable, contexts, ops)
        finally:
            lib.pccl_report_free(report)

    def paths(self) -> tuple[Path, ...]:
        """What is known of the paths to other members, at most one sample a second."""
        found, count = ffi.new("struct pccl_path[]", lib.PCCL_MEMBERS_MAX), ffi.new("uint32_t *")
        with self._call() as usable:
            if usable:
                lib.pccl_engine_paths(self._handle, len(found), found, count)
        return tuple(Path(PeerId(r.peer), r.rtt_us, r.rate) for r in found[0 : count[0]])

    def stats(self) -> Stats:
        row = ffi.new("struct pccl_stats *")
        with self._call() as usable:
            if usable:
                lib.pccl_engine_stats(self._handle, row)
        return Stats(*(getattr(row, field.name) for field in fields(Stats)))


def check_size(op: Op) -> None:
    """Raises UsageError if its memory is too large for one op."""
    nbytes = op.nbytes
    if nbytes > BUFFER_BYTES_MAX:
        raise UsageError(
            f"the buffers have {nbytes} bytes; {BUFFER_BYTES_MAX} ({SEGMENTS_MAX} segments) is "
            "most for one op: pass it in parts"
        )


def _refused(status: int) -> PcclError:
    """Why an op was not submitted."""
    if status == lib.PCCL_USAGE:
        return UsageError("the buffer overlaps one that is in flight: wait for that op first")
    return ResourceError(
        errno.ENOMEM,
        f"no room for another op: {int(lib.PCCL_OPS_MAX)} may be in flight, of "
        f"{int(lib.PCCL_CONTEXTS_MAX)} sub-groups and (source, destination, tag)s; wait for some",
    )
