"""Twin of pccl_py.coordinator.journal."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pccl_py.coordinator import journal
from pccl_py.coordinator.journal import Journal, Remembered
from pccl_py.errors import ResourceError, UsageError
from pccl_py.types import GroupRecord, Member, PeerId, Record


def _record(epoch: int) -> Record:
    member = Member(PeerId(7), "a", "g", "127.0.0.1", 1)
    return Record(1, epoch, epoch == 1, (member,), (GroupRecord("g", (PeerId(7),)),))


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
            assert (tmp_path / "journal").stat().st_size < 1200
    _reopened(tmp_path)
    assert (tmp_path / "journal").stat().st_size < 150
    assert _reopened(tmp_path).record == _record(199)


def test_append_is_on_disk_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(tmp_path) as log:
        synced: list[int] = []
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
        log.append(_record(1), "run")
        assert synced == [(tmp_path / "journal").stat().st_size]


def test_every_torn_tail_gives_the_record_before_it(tmp_path: Path) -> None:
    with Journal(tmp_path) as log:
        log.append(_record(1), "run")
        before = (tmp_path / "journal").stat().st_size
        log.append(_record(2), "run")
    whole = (tmp_path / "journal").read_bytes()
    for cut in range(before, len(whole)):
        for tail in (b"", bytes(len(whole) - cut)):  # some file systems fill up with zeros
            (tmp_path / "journal").write_bytes(whole[:cut] + tail)
            past = journal._read(tmp_path / "journal")
            assert past.record == _record(1), cut
    with Journal(tmp_path) as log:  # and the next life writes over it
        log.append(_record(2), "run")
    assert _reopened(tmp_path).record == _record(2)


def test_damage_before_whole_entries_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path) as log:
        log.append(_record(1), "run")
        middle = (tmp_path / "journal").stat().st_size - 1
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

    def full(_fd: int, _data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal(tmp_path / "state") as log:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(ResourceError, match="No space left") as caught:
            log.append(_record(1), "run")
        assert caught.value.errno == errno.ENOSPC


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
