"""sync_state from the user's side (layer 5): hash, offer, be told who is right, fetch what differs.

The coordinator elects (coordinator/shared_state.py) and never sees a tensor byte. The keys that
differ anywhere are broadcast by the elected donor through the engine, under names that belong to
this sync, so that a death in between is repaired or aborts for all alike. A sync whose donor died
is undone and begun again among the survivors.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

import xxhash

from pccl_py import arguments
from pccl_py.among import check_apart
from pccl_py.dataplane import buffers
from pccl_py.dataplane.buffers import Buffer
from pccl_py.errors import (
    CoordinatorLost,
    DeadlineExceeded,
    PcclError,
    PeerLost,
    UsageError,
)
from pccl_py.peer.control import Control
from pccl_py.peer.events import ForgetState, StateElected, WantState
from pccl_py.protocol import encoding, shapes
from pccl_py.protocol.messages import StateKey
from pccl_py.types import PeerId, SyncInfo, peer_text
from pccl_py.work import Work

KEY_BYTES_MAX = 256
KEY_OVERHEAD_BYTES = 32  # of a key in a message: its digest and what frames them
BROADCASTS_MAX = 256  # keys in flight: a quarter of the ops that an engine takes
STALL_S = 5.0  # then, and at twice the age each time, who is awaited is logged
ATTEMPTS = 8  # each lost its donor; more deaths than that in one sync is somebody's bug

_log = logging.getLogger("pccl")

StartBroadcast = Callable[[Buffer, PeerId, str], Work]


def digest(buffer: Buffer) -> bytes:
    """XXH3-128 over dtype, shape and bytes: 16 bytes."""
    hasher = xxhash.xxh3_128(f"{int(buffer.dtype)}:{tuple(buffer.shape)}:".encode())
    if buffer.count:
        hasher.update((ctypes.c_char * buffer.nbytes).from_address(buffer.address))
    return hasher.digest()


def buffers_of(tensors: object) -> dict[str, Buffer]:
    """The buffers of what a caller of sync_state passed. Raises UsageError."""
    if not isinstance(tensors, Mapping):
        kind = type(tensors).__name__
        raise UsageError(f"sync_state takes a dict of names and tensors, not {kind}")
    _check_keys(tensors)
    found = {
        key: buffers.named(f"state key {arguments.shown(key)}", value, writable=True)
        for key, value in tensors.items()
    }
    check_apart("sync_state", found.values(), "", ())
    return found


class _Undo:
    """What a sync overwrites, kept until all of it has arrived: a donor that dies half-way must not
    leave some keys of its state among others of ours."""

    def __init__(self, buffers: Iterable[Buffer]) -> None:
        self._kept = [(b, ctypes.string_at(b.address, b.nbytes)) for b in buffers if b.count]

    def restore(self) -> None:
        for buffer, content in self._kept:
            ctypes.memmove(buffer.address, content, buffer.nbytes)


class Syncer:
    """The calls of sync_state of one communicator, numbered within a line."""

    def __init__(self, peer: PeerId, control: Control, start: StartBroadcast) -> None:
        self._peer = peer
        self._control = control
        self._start = start
        self._line = -1
        self._seq = 0

    def sync(self, found: Mapping[str, Buffer], revision: int, deadline_s: float) -> SyncInfo:
        """See Communicator.sync_state."""
        began = time.monotonic()
        until = began + deadline_s
        before = {key: digest(buffer) for key, buffer in found.items()}
        for attempt in range(ATTEMPTS):
            elected = self._elect(before, revision, until)
            undo = _Undo(found[key] for key in elected.dirty if elected.donor != self._peer)
            try:
                self._fetch(found, elected)
                break
            except PcclError as error:
                undo.restore()
                if not isinstance(error, PeerLost) or attempt + 1 == ATTEMPTS:
                    raise
        after = {key: digest(found[key]) for key in elected.dirty}
        changed = tuple(sorted(key for key in after if after[key] != before[key]))
        return SyncInfo(
            revision=elected.revision,
            donor=self._name_of(elected.donor) if elected.dirty else "",
            keys=changed,
            bytes=sum(found[key].nbytes for key in changed),
            seconds=time.monotonic() - began,
        )

    def _next_seq(self) -> int:
        record = self._control.mailbox.record
        assert record is not None
        if record.line != self._line:
            self._line, self._seq = record.line, 0
        self._seq += 1
        return self._seq

    def _give_up(self, seq: int, awaited: str) -> NoReturn:
        """Time is up and nobody has been elected."""
        self._control.post(ForgetState(seq))
        if not self._control.mailbox.connected:
            raise CoordinatorLost(
                "sync_state: the coordinator cannot be reached; the tensors are as they were: "
                "retry when it is back"
            )
        raise DeadlineExceeded(f"sync_state: {awaited}")

    def _elect(self, digests: Mapping[str, bytes], revision: int, until: float) -> StateElected:
        seq = self._next_seq()
        keys = tuple(StateKey(key, digests[key]) for key in sorted(digests))
        mail = self._control.mailbox
        mail.forget_progress()
        self._control.post(WantState(seq, revision, keys))
        began, pause_s = time.monotonic(), STALL_S
        while not mail.wait(lambda: seq in mail.elections, min(until, began + pause_s)):
            awaited = mail.progress or "waiting for all members to call sync_state"
            if time.monotonic() >= until:
                self._give_up(seq, awaited)
            _log.warning("sync_state has not ended for %.1f s: %s", pause_s, awaited)
            pause_s *= 2
        elected = mail.elections[seq]
        if elected.error:
            raise UsageError(elected.error)
        return elected

    def _fetch(self, found: Mapping[str, Buffer], elected: StateElected) -> None:
        """Broadcasts every dirty key from the donor, a bounded number at a time; raises when all
        have ended, if one failed. Also after a failure the rest is started: so do the others."""
        errors: list[PcclError] = []
        running: deque[Work] = deque()
        for key in elected.dirty:
            if len(running) == BROADCASTS_MAX:
                _collect(running.popleft(), errors)
            running.append(self._start(found[key], elected.donor, f"\0state/{elected.seq}/{key}"))
        for work in running:
            _collect(work, errors)
        if errors:
            raise errors[0]

    def _name_of(self, peer: PeerId) -> str:
        record = self._control.mailbox.record
        member = record.member(peer) if record is not None else None
        return member.name if member is not None else peer_text(peer)


def _check_keys(keys: Iterable[str]) -> None:
    """Raises UsageError for keys that one offer to the coordinator cannot carry."""
    count = size_bytes = 0
    for key in keys:
        if not arguments.is_utf8(key) or not 0 < len(key.encode()) <= KEY_BYTES_MAX:
            raise UsageError(
                f"state key {arguments.shown(key)} must be a text of 1 to {KEY_BYTES_MAX} bytes"
            )
        count += 1
        size_bytes += len(key.encode()) + KEY_OVERHEAD_BYTES
    if count > shapes.LIST_MAX or size_bytes > encoding.MESSAGE_BYTES_MAX:
        raise UsageError(
            f"sync_state: {count} keys are too many for one message ({shapes.LIST_MAX} keys and "
            f"{encoding.MESSAGE_BYTES_MAX >> 20} MiB at most): join tensors, or shorten the names"
        )


def _collect(work: Work, errors: list[PcclError]) -> None:
    try:
        work.wait()
    except PcclError as error:
        errors.append(error)
