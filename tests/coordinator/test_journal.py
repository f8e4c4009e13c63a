"""Twin of pccl_py.coordinator.journal."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pccl_py.coordinator import journal
from pccl_py.coordinator.journal import Journal
from pccl_py.coordinator.store import Deposed, NotStored, Remembered
from pccl_py.errors import ResourceError, UsageError
from pccl_py.types import GroupRecord, Member, PeerId, Record


def _record(epoch: int) -> Record:
    member = Member(PeerId(7), "a", "g", "127.0.0.1", 1)
    return Record(1, epoch, epoch == 1, (member,), (GroupRecord("g", (PeerId(7),)),))


def _whole_bytes(state_dir: Path) -> int:
    return journal._read(state_dir / "journal")[1]


def _reopened(state_dir: Path) -> Remembered:
    with Journal(state_dir) as log:
        return log.remembered


def test_boots_count_up_and_the_last_view_is_remembered(tmp_path: Path) -> None:
    with Journal(tmp_path / "new" / "dir") as log:
        assert log.remembered == Remembered(1)
        for epoch in (1, 2, 3):
            log.append(_record(epoch), "run")
    assert _reopened(tmp_path / "new" / "dir") == Remembered(2, _record(3), "run")
    assert _reopened(tmp_path / "new" / "dir") == Remembered(3, _record(3), "run")


def test_file_is_compacted_at_open_and_when_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "COMPACT_BYTES", 1000)
    with Journal(tmp_path) as log:
        for epoch in range(1, 200):
            log.append(_record(epoch), "run")
            assert _whole_bytes(tmp_path) < 1200
    _reopened(tmp_path)
    assert _whole_bytes(tmp_path) < 150
    assert _reopened(tmp_path).record == _record(199)


def test_append_is_on_disk_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(tmp_path) as log:
        synced: list[int] = []
        monkeypatch.setattr(os, "fsync", lambda _: synced.append(_whole_bytes(tmp_path)))
        log.append(_record(1), "run")
        assert synced == [_whole_bytes(tmp_path)]


def test_every_torn_tail_gives_the_record_before_it(tmp_path: Path) -> None:
    with Journal(tmp_path) as log:
        log.append(_record(1), "run")
        before = _whole_bytes(tmp_path)
        log.append(_record(2), "run")
        size = _whole_bytes(tmp_path)
    whole = (tmp_path / "journal").read_bytes()[:size]
    for cut in range(before, len(whole)):
        for tail in (b"", bytes(len(whole) - cut)):  # some file systems fill up with zeros
            (tmp_path / "journal").write_bytes(whole[:cut] + tail)
            past, end = journal._read(tmp_path / "journal")
            assert (past.record, end) == (_record(1), before), cut
    with Journal(tmp_path) as log:  # and the next life writes over it
        log.append(_record(2), "run")
    assert _reopened(tmp_path).record == _record(2)


def test_damage_before_whole_entries_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path) as log:
        log.append(_record(1), "run")
        middle = _whole_bytes(tmp_path) - 1
        log.append(_record(2), "run")
    data = bytearray((tmp_path / "journal").read_bytes())
    data[middle] ^= 1
    (tmp_path / "journal").write_bytes(data)
    with pytest.raises(UsageError, match="damaged at byte"):
        Journal(tmp_path)
    (tmp_path / "journal").write_bytes(b"something else")
    with pytest.raises(UsageError, match="not a journal"):
        Journal(tmp_path)


def test_second_coordinator_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(UsageError, match="another coordinator") as caught:
        Journal(tmp_path)
    assert "\n" not in str(caught.value)
    assert _reopened(tmp_path).boot == 2


def test_errors_of_the_operating_system_keep_errno(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError) as caught:
        Journal(tmp_path / "file" / "below")
    assert caught.value.errno == errno.ENOTDIR

    def broken(_fd: int, _data: object, _offset: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with Journal(tmp_path / "state") as log:
        monkeypatch.setattr(os, "pwrite", broken)
        with pytest.raises(ResourceError, match="cannot be used: Input/output error") as caught:
            log.append(_record(1), "run")
        assert caught.value.errno == errno.EIO
        assert not isinstance(caught.value, NotStored), "trying again would help nobody"


# ---------------------------------------------------------------- a full disk


@contextmanager
def _room(bytes_max: int) -> Iterator[None]:
    """No file of this process may be longer: as good as a full disk, and anybody can have it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_does_not_fit_is_not_stored_and_what_was_stays(tmp_path: Path) -> None:
    with Journal(tmp_path) as log:
        log.append(_record(1), "run")
        with _room(_whole_bytes(tmp_path) + 10):
            for _ in range(2):
                with pytest.raises(NotStored, match=r"takes no record: File too large \(EFBIG\)"):
                    log.append(_record(2), "run")
                with pytest.raises(NotStored):
                    log.probe()
            assert journal._read(tmp_path / "journal")[0].record == _record(1)
            assert log.remembered.record == _record(1)
        log.probe()
        assert journal._read(tmp_path / "journal")[0].record == _record(1), "a try is no entry"
        log.append(_record(2), "run")
    assert _reopened(tmp_path).record == _record(2)


def test_room_is_set_aside_for_views_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "COMPACT_BYTES", 4096)
    with Journal(tmp_path) as log:
        size = (tmp_path / "journal").stat().st_size
        assert size == _whole_bytes(tmp_path) + 4096
        assert os.stat(tmp_path / "journal").st_blocks * 512 >= 4096
        with _room(size):  # nothing may grow; a smaller file in its place is another matter
            for epoch in range(1, 40):
                log.append(_record(epoch), "run")
    assert _reopened(tmp_path).record == _record(39)


def test_a_life_begins_on_a_full_disk_if_a_few_bytes_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(tmp_path) as log:
        log.append(_record(1), "run")

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", lambda *_: full(0))
        with Journal(tmp_path) as log:
            assert log.remembered == Remembered(2, _record(1), "run")
            assert not (tmp_path / "journal.new").exists(), "it gives back what it took"
            log.append(_record(2), "run")
        patched.setattr(os, "fsync", full)
        with pytest.raises(NotStored, match="No space left"):
            Journal(tmp_path)
    assert _reopened(tmp_path) == Remembered(3, _record(2), "run"), "the last life never began"


def test_a_file_whose_fsync_failed_is_not_trusted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(tmp_path) as log:
        log.append(_record(1), "run")
        old, before = (tmp_path / "journal").stat().st_ino, _whole_bytes(tmp_path)

        def full(_fd: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(NotStored):
                log.append(_record(2), "run")
        now = _whole_bytes(tmp_path)
        assert now == before, "who is killed now leaves no view that has not happened"
        log.append(_record(3), "run")
        assert (tmp_path / "journal").stat().st_ino != old
    assert _reopened(tmp_path).record == _record(3)


# ---------------------------------------------------------------- whose it is


def test_a_journal_that_another_took_over_is_left_alone(tmp_path: Path) -> None:
    with Journal(tmp_path) as first:
        first.append(_record(1), "run")
        (tmp_path / "lock").unlink()  # as a network file system may lose one
        with Journal(tmp_path) as second:
            with pytest.raises(Deposed, match="another coordinator has taken"):
                first.append(_record(2), "run")
            second.append(_record(3), "run")
    assert _reopened(tmp_path).record == _record(3)


def test_a_journal_that_was_tidied_away_is_written_anew(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with Journal(folder) as log:
        shutil.rmtree(folder)
        log.append(_record(5), "run")
    assert _reopened(folder) == Remembered(2, _record(5), "run")


def test_only_the_owner_may_read_it_and_not_everybody_write_beside_it(tmp_path: Path) -> None:
    Journal(tmp_path / "new").close()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()}
    assert modes == {"journal": 0o600, "lock": 0o600}
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "new").chmod(0o777)
    with pytest.raises(UsageError, match="may be written by everybody: `chmod o-w` it"):
        Journal(tmp_path / "new")


def test_failed_open_releases_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(ResourceError):
            Journal(tmp_path)
    assert _reopened(tmp_path).boot == 1


def test_a_file_is_no_state_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match=r"--state-dir .*file is not a directory"):
        Journal(file)


def test_leftovers_are_swept_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    with Journal(tmp_path / "x-used"), Journal(tmp_path / "x-young"):
        pass
    for name in ("x-left", "y-other"):
        Journal(tmp_path / name).close()
    (tmp_path / "x-empty").mkdir()
    (tmp_path / "x-file").write_text("")
    (tmp_path / "x-link").symlink_to(tmp_path / "y-other")
    for name in ("x-used", "x-left", "y-other", "x-empty"):
        os.utime(tmp_path / name, (0, 0))
    with Journal(tmp_path / "x-used"):
        os.utime(tmp_path / "x-used", (0, 0))
        journal.sweep(tmp_path, "x-")
        left = {path.name for path in tmp_path.iterdir()}
    assert left == {"x-used", "x-young", "y-other", "x-file", "x-link"}
    assert (tmp_path / "y-other" / "journal").exists()


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """As root, on a file system of 64 KiB; the tests above are for everybody."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "pccl-test", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    try:
        with Journal(tmp_path) as log:
            log.append(_record(1), "run")
            _fill(tmp_path / "filler")
            with pytest.raises(NotStored, match=r"takes no record: No space left .*\(ENOSPC\)"):
                _append_many(log)
            stored = log.remembered.record
            (tmp_path / "filler").unlink()
            log.probe()
            assert journal._read(tmp_path / "journal")[0].record == stored
            log.append(_record(100), "run")
        assert _reopened(tmp_path).record == _record(100)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def _append_many(log: Journal) -> None:
    for epoch in range(2, 100):
        log.append(_record(epoch), "run")


# ---------------------------------------------------------------- killed at any instant


class _KilledError(BaseException):
    """SIGKILL: nothing after it takes effect."""


def _dies_at(patched: pytest.MonkeyPatch, call: int, half: bool) -> None:
    """From the call-th change of the file system on none happens; with `half` that one does in
    part, if it writes."""
    left = [call]

    def doomed(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def change(*args: object, **named: object) -> object:
            left[0] -= 1
            if left[0] >= 0:
                return real(*args, **named)
            if left[0] == -1 and half and name == "pwrite":
                fd, data, offset = args
                real(fd, data[: len(data) // 2], offset)  # type: ignore[index, arg-type]
            raise _KilledError

        patched.setattr(owner, name, change)

    for name in ("pwrite", "fsync", "ftruncate", "posix_fallocate"):
        doomed(os, name)
    for name in ("rename", "unlink", "mkdir"):
        doomed(Path, name)


@pytest.mark.parametrize("half", [False, True])
def test_killed_at_any_instant_it_holds_what_was_stored_or_is_being_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    monkeypatch.setattr(journal, "COMPACT_BYTES", 250)  # so that files are replaced, too
    epoch, boot = 0, 0
    for call in range(40):
        stored = epoch
        with monkeypatch.context() as patched, contextlib.suppress(_KilledError):
            _dies_at(patched, call, half)
            with Journal(tmp_path) as log:
                for _ in range(4):
                    log.append(_record(epoch + 1), "run")
                    stored = epoch = epoch + 1
        past = _reopened(tmp_path)
        found = 0 if past.record is None else past.record.epoch
        assert stored <= found <= stored + 1, call
        assert past.boot > boot, "no life counts as another's"
        epoch, boot = found, past.boot
    assert epoch > 60, "most were stored"
