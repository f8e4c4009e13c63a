"""Reads the workers' JSON lines while they are being written.

`conduct` polls it some times a second. A line counts once its newline is there, so a worker that is
killed in mid line leaves half a line and nothing else. It does not judge what it reads.
"""

from __future__ import annotations

from pathlib import Path

from pccl_py.report import records


class Follower:
    """Everything new in the `*.jsonl` files of a folder, file by file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = {}

    def poll(self) -> list[records.Event]:
        """Events since the last call, by time. Raises ValueError for a line that is none."""
        found: list[records.Event] = []
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._offsets[path] = self._offsets.get(path, 0) + len(whole)
            for line in whole.decode().splitlines():
                event = records.parse(line)
                if event is not None:
                    found.append(event)
        return sorted(found, key=lambda event: event.time)
