"""Reading lines while they are written: each once, whole ones only, in order of time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pccl_py.report.follow import Follower
from pccl_py.report.records import Reducing


def line(time: float, worker: str) -> str:
    return json.dumps({"event": "reducing", "time": time, "worker": worker, "pid": 1, "round": 0})


def test_each_line_once_and_by_time(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    assert follower.poll() == []
    (tmp_path / "a.jsonl").write_text(line(2, "a") + "\n")
    (tmp_path / "b.jsonl").write_text(line(1, "b") + "\n")
    assert follower.poll() == [Reducing(1, "b", 1, 0), Reducing(2, "a", 1, 0)]
    assert follower.poll() == []


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    follower, path = Follower(tmp_path), tmp_path / "a.jsonl"
    text = line(1, "ä") + "\n"
    for cut in (0, 10, len(text.encode()) - 1):
        path.write_bytes(text.encode()[:cut])
        assert follower.poll() == []
    path.write_text(text)
    assert follower.poll() == [Reducing(1, "ä", 1, 0)]


def test_nonsense_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"event": "reducing"}\n')
    with pytest.raises(ValueError, match="time is None"):
        Follower(tmp_path).poll()


def test_other_files_and_a_missing_folder_are_nothing(tmp_path: Path) -> None:
    (tmp_path / "began").write_text("1.0")
    assert Follower(tmp_path).poll() == []
    assert Follower(tmp_path / "not there").poll() == []
