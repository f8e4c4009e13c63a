"""The coordinator's memory: an append-only file in a state directory (layer 4).

Called by the coordinator's server alone, which appends each view record before the first byte of it
is sent (R9). Only the last whole record matters, so the file is rewritten at each start and when it
has grown long. It decides nothing and knows no protocol rule.

    file    = MAGIC, entry...
    entry   = [payload bytes u32][CRC-32 of the payload u32][payload]      (little-endian)
    payload = b"B", boot number u64   |   b"V", encoding.encode_view(record, run)

A torn tail, what a crash in mid-write leaves, is cut off at the next start. A damaged entry with
whole ones behind it is no torn tail and is refused: going back to an older view would let epochs
be used twice.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pccl_py.errors import RemoteProtocolError, ResourceError, UsageError
from pccl_py.protocol import encoding
from pccl_py.types import Record

MAGIC = b"pccl-journal-1\n"
COMPACT_BYTES = 64 << 20
LEFTOVER_S = 60.0  # a directory this young may be of a coordinator that is about to lock it

_HEADER = struct.Struct("<II")
_BOOT = struct.Struct("<Q")
_PAYLOAD_BYTES_MAX = encoding.MESSAGE_BYTES_MAX + 1


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a journal holds: boots so far, and the last view with its run id, if there was one."""

    boot: int = 0
    record: Record | None = None
    run: str | None = None


class Journal:
    """An open, locked journal. `remembered.boot` is this life's boot number, already durable.

    One owner; every call blocks for a disk write or two. Close it, or leave its `with` block.
    """

    def __init__(self, state_dir: Path) -> None:
        """Raises UsageError (in use by another coordinator, damaged, or another version's),
        ResourceError (the operating system refused; errno kept)."""
        self._path = state_dir / "journal"
        with _os_errors(self._path):
            if state_dir.exists() and not state_dir.is_dir():
                raise UsageError(f"--state-dir {state_dir} is not a directory")
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = os.open(
                state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        self._fd = -1
        try:
            self._lock(state_dir)
            with _os_errors(self._path):
                past = _read(self._path)
                self.remembered = Remembered(past.boot + 1, past.record, past.run)
                self._rewrite()
        except BaseException:
            self.close()
            raise

    def _lock(self, state_dir: Path) -> None:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another coordinator runs on {state_dir}: stop it, or use another --state-dir"
            ) from None

    def append(self, record: Record, run: str) -> None:
        """Make `record` the journal's last; it is on disk on return. Raises ResourceError."""
        self.remembered = Remembered(self.remembered.boot, record, run)
        with _os_errors(self._path):
            if os.fstat(self._fd).st_size > COMPACT_BYTES:
                self._rewrite()
                return
            _write(self._fd, _entry(b"V" + encoding.encode_view(record, run)))
            os.fsync(self._fd)

    def _rewrite(self) -> None:
        """Replace the file by one that holds just `remembered`; the old one stands until then."""
        fresh = self._path.with_suffix(".new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, MAGIC + _whole(self.remembered))
            os.fsync(fd)
            fresh.rename(self._path)
            _sync_dir(self._path.parent)
        except BaseException:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

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


def _whole(remembered: Remembered) -> bytes:
    boot = _entry(b"B" + _BOOT.pack(remembered.boot))
    if remembered.record is None or remembered.run is None:
        return boot
    return boot + _entry(b"V" + encoding.encode_view(remembered.record, remembered.run))


def _entry(payload: bytes) -> bytes:
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ---------------------------------------------------------------- reading


def _read(path: Path) -> Remembered:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Remembered()
    if not data.startswith(MAGIC):
        raise UsageError(f"{path} is not a journal of this version: use another --state-dir")
    boot = 0
    view: bytes | None = None
    for payload in _payloads(data, path):
        if payload[:1] == b"B" and len(payload) == 1 + _BOOT.size:
            boot = max(boot, int(_BOOT.unpack_from(payload, 1)[0]))
        elif payload[:1] == b"V":
            view = payload[1:]
        else:
            raise UsageError(f"{path} holds an entry of an unknown kind: use another --state-dir")
    if view is None:
        return Remembered(boot)
    try:
        record, run = encoding.decode_view(view)
    except RemoteProtocolError as error:
        raise UsageError(f"{path}: {error}; use another --state-dir") from None
    return Remembered(boot, record, run)


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
    except (UsageError, ResourceError):
        raise
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        text = f"the journal {path} cannot be used: {error.strerror} ({name})"
        raise ResourceError(error.errno, text) from error
