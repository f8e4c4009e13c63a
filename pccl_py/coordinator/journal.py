"""The coordinator's memory: an append-only file in a state directory (layer 4).

Opened by `tenure`; the server appends each view record before the first byte of it is sent (R9).
Only the last whole record matters, so the file is rewritten at each start and when it has grown
long. It decides nothing and knows no protocol rule.

    file    = MAGIC, entry...
    entry   = [payload bytes u32][CRC-32 of the payload u32][payload]      (little-endian)
    payload = b"B", boot number u64   |   b"V", encoding.encode_view(record, run)

A torn tail, what a crash in mid-write leaves, is cut off at the next start. A damaged entry with
whole ones behind it is no torn tail and is refused: going back to an older view would let epochs be
used twice. A full disk is `NotStored`: what was written of the record is cut off again, and `probe`
tells when there is room; before that, COMPACT_BYTES were set aside where that can be done, zeros at
the end that are no entries. A file whose fsync has failed is never trusted again (the kernel may
have thrown its pages away): the next record goes into a new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from pccl_py.coordinator.store import Busy, Deposed, NotStored, Remembered
from pccl_py.errors import PcclError, RemoteProtocolError, ResourceError, UsageError
from pccl_py.protocol import encoding
from pccl_py.types import Record

MAGIC = b"pccl-journal-1\n"
COMPACT_BYTES = 1 << 20  # asked of the file system ahead, too: room for views on a full disk
LEFTOVER_S = 60.0  # a directory this young may be of a coordinator that is about to lock it

_HEADER = struct.Struct("<II")
_BOOT = struct.Struct("<Q")
_PAYLOAD_BYTES_MAX = encoding.MESSAGE_BYTES_MAX + 1
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

Sync = Callable[[int], None]


class Journal:
    """An open, locked journal. `remembered.boot` is this life's boot number, already durable.

    One owner; every call blocks for a disk write or two. Close it, or leave its `with` block.
    """

    def __init__(self, state_dir: Path, *, sync: Sync | None = None) -> None:
        """sync: makes a file's bytes durable, given its descriptor; fsync, but in simulations.

        Raises Busy (in use by another coordinator), UsageError (damaged, another version's, or
        open to everybody), ResourceError (the operating system refused; errno kept)."""
        self._path = state_dir / "journal"
        self._sync: Sync = sync or _fsync
        self._fd = self._lock_fd = -1
        self._end = 0  # bytes of whole entries
        self._is_suspect = False  # an fsync of this file has failed
        self._wanted_bytes = 0  # what did not fit
        try:
            with _os_errors(self._path):
                _make(state_dir)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                self._lock_fd = os.open(state_dir / "lock", flags, 0o600)
                self._lock(state_dir)
                past, whole_bytes = _read(self._path)
                self.remembered = Remembered(past.boot + 1, past.record, past.run)
                self._begin(whole_bytes)
        except BaseException:
            self.close()
            raise

    def _lock(self, state_dir: Path) -> None:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(
                f"another coordinator runs on {state_dir}: stop it, use another --state-dir, or "
                "wait for its end with --standby"
            ) from None

    def _begin(self, whole_bytes: int) -> None:
        """Count this boot: in a new file, or on a full disk, which may yet have the few bytes that
        this takes, in the old one."""
        try:
            self._rewrite(self.remembered)
        except OSError as error:
            if error.errno not in _NO_ROOM or not whole_bytes:
                raise
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            os.ftruncate(self._fd, whole_bytes)
            self._end = whole_bytes
            self._extend(_boot(self.remembered.boot))

    def append(self, record: Record, run: str) -> None:
        """Make `record` the journal's last; it is on disk on return. Raises NotStored (no room),
        Deposed (the file is another coordinator's), ResourceError."""
        whole = Remembered(self.remembered.boot, record, run)
        entry = _view(record, run)
        self._wanted_bytes = len(entry)
        with _os_errors(self._path):
            self._check_ours()
            if self._is_suspect or self._end > COMPACT_BYTES:
                try:
                    self._rewrite(whole)
                except OSError as error:
                    if self._is_suspect or error.errno not in _NO_ROOM:
                        raise
                    self._extend(entry)
            else:
                self._extend(entry)
        self.remembered = whole

    def probe(self) -> None:
        """Returns if there is room for a record as long as the last one tried. Raises as append."""
        with _os_errors(self._path):
            self._check_ours()
            try:  # zeros are no entry: if we die here they are a torn tail
                _write(self._fd, bytes(self._wanted_bytes), self._end)
                self._sync(self._fd)
            finally:
                self._cut()

    def _check_ours(self) -> None:
        """A lock is lost without a word with the lock file, or by a network file system."""
        try:
            found = self._path.stat()
        except FileNotFoundError:  # somebody tidied up; the run goes on
            _make(self._path.parent)
            self._is_suspect = True
            return
        ours = os.fstat(self._fd)
        if (found.st_dev, found.st_ino) != (ours.st_dev, ours.st_ino):
            raise Deposed(f"another coordinator has taken {self._path} over: this one stops")

    def _extend(self, entry: bytes) -> None:
        try:
            _write(self._fd, entry, self._end)
        except OSError:
            self._cut()
            raise
        try:
            self._sync(self._fd)
        except OSError:
            self._is_suspect = True
            with contextlib.suppress(OSError):  # it has not happened: no later life may find it
                self._cut()
                self._sync(self._fd)
            raise
        self._end += len(entry)

    def _rewrite(self, remembered: Remembered) -> None:
        """Replace the file by one that holds just that; the old one stands until then."""
        fresh = self._path.with_suffix(".new")
        data = MAGIC + _whole(remembered)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, data, 0)
            self._sync(fd)
            fresh.rename(self._path)
        except BaseException:
            os.close(fd)
            fresh.unlink(missing_ok=True)  # what it took may be what is missing
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._end, self._is_suspect = fd, len(data), True
        _sync_dir(self._path.parent)
        self._is_suspect = False
        with contextlib.suppress(OSError):  # not every file system can, and a full one cannot
            os.posix_fallocate(fd, len(data), COMPACT_BYTES)

    def _cut(self) -> None:
        """Take back what is no whole entry. What was set aside goes with it."""
        os.ftruncate(self._fd, self._end)

    def close(self) -> None:
        """Release the file and the lock. Idempotent."""
        for fd in (self._fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock_fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def sweep(folder: Path, prefix: str, older_than_s: float = LEFTOVER_S) -> None:
    """Removes state directories that a coordinator killed with -9 has left in a folder for
    temporary files: this user's, of a while ago, and with a lock that nobody holds."""
    for path in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # somebody else's, or gone meanwhile
            found = path.lstat()
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
            if not is_ours or time.time() - found.st_mtime < older_than_s:
                continue
            lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock_fd)


def _make(state_dir: Path) -> None:
    """The directory, ours alone if it is new. Who may write there may decide who is a member."""
    if state_dir.exists() and not state_dir.is_dir():
        raise UsageError(f"--state-dir {state_dir} is not a directory")
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if state_dir.stat().st_mode & stat.S_IWOTH:
        raise UsageError(
            f"--state-dir {state_dir} may be written by everybody: `chmod o-w` it, or use another"
        )


def _whole(remembered: Remembered) -> bytes:
    if remembered.record is None or remembered.run is None:
        return _boot(remembered.boot)
    return _boot(remembered.boot) + _view(remembered.record, remembered.run)


def _boot(number: int) -> bytes:
    return _entry(b"B" + _BOOT.pack(number))


def _view(record: Record, run: str) -> bytes:
    return _entry(b"V" + encoding.encode_view(record, run))


def _entry(payload: bytes) -> bytes:
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def _fsync(fd: int) -> None:
    os.fsync(fd)


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _sync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ---------------------------------------------------------------- reading


def _read(path: Path) -> tuple[Remembered, int]:
    """What the file holds, and the length of what is whole in it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Remembered(), 0
    if not data.startswith(MAGIC):
        raise UsageError(f"{path} is not a journal of this version: use another --state-dir")
    boot = 0
    end = len(MAGIC)
    view: bytes | None = None
    for payload in _payloads(data, path):
        end += _HEADER.size + len(payload)
        if payload[:1] == b"B" and len(payload) == 1 + _BOOT.size:
            boot = max(boot, int(_BOOT.unpack_from(payload, 1)[0]))
        elif payload[:1] == b"V":
            view = payload[1:]
        else:
            raise UsageError(f"{path} holds an entry of an unknown kind: use another --state-dir")
    if view is None:
        return Remembered(boot), end
    try:
        record, run = encoding.decode_view(view)
    except RemoteProtocolError as error:
        raise UsageError(f"{path}: {error}; use another --state-dir") from None
    return Remembered(boot, record, run), end


def _payloads(data: bytes, path: Path) -> Iterator[bytes]:
    """All whole payloads up to a torn tail. Raises UsageError if damage is followed by more."""
    offset = len(MAGIC)
    while (payload := _payload_at(data, offset)) is not None:
        yield payload
        offset += _HEADER.size + len(payload)
    if offset + _HEADER.size <= len(data):
        claimed_bytes = _HEADER.unpack_from(data, offset)[0]
        if _payload_at(data, offset + _HEADER.size + claimed_bytes) is not None:
            raise UsageError(
                f"{path} is damaged at byte {offset}: restore it, or use another --state-dir "
                "(which starts a new run)"
            )


def _payload_at(data: bytes, offset: int) -> bytes | None:
    """The payload of the entry at `offset`, or None if there is no whole one."""
    if offset + _HEADER.size > len(data):
        return None
    size_bytes, crc = _HEADER.unpack_from(data, offset)
    start = offset + _HEADER.size
    payload = data[start : start + size_bytes]
    whole = 0 < size_bytes <= _PAYLOAD_BYTES_MAX and len(payload) == size_bytes
    return payload if whole and zlib.crc32(payload) == crc else None


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except PcclError:
        raise
    except OSError as error:
        why = f"{error.strerror} ({errno.errorcode.get(error.errno or 0, '?')})"
        if error.errno in _NO_ROOM:
            raise NotStored(error.errno, f"the journal {path} takes no record: {why}") from error
        raise ResourceError(error.errno, f"the journal {path} cannot be used: {why}") from error
