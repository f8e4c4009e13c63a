"""Worker output: bytes in, whole printable lines out, to terminal and file.

`LineSplitter` is pure and has one stream of one worker; `LogFile` keeps one life of one worker;
`Terminal` writes whole lines to two file descriptors. `supervise` uses the first two, `pccl run`
the third. None of them knows what a worker is.
"""

from __future__ import annotations

import os
import re
import select
from pathlib import Path

LINE_MAX = 16 * 1024  # bytes; what is longer is shown in pieces
_CUT = " …"
# Everything below space but tab and escape, and delete: binary output must not ring or move about.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1a\x1c-\x1f\x7f]")
_RESET = "\x1b[0m"
_COLOURS = (36, 33, 32, 35, 34)  # no red: a worker is no error


class LineSplitter:
    """Cuts a byte stream into lines, holding back at most LINE_MAX bytes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = [text for line in whole for text in _pieces(line)]
        while len(self._rest) > LINE_MAX:
            head, self._rest = self._rest[:LINE_MAX], self._rest[LINE_MAX:]
            lines.append(printable(head) + _CUT)
        return lines

    def close(self) -> list[str]:
        """What was left without a line end."""
        rest, self._rest = self._rest, b""
        return _pieces(rest) if rest else []


def _pieces(line: bytes) -> list[str]:
    parts = [line[at : at + LINE_MAX] for at in range(0, len(line), LINE_MAX)] or [b""]
    texts = [printable(part) for part in parts]
    return [text + _CUT for text in texts[:-1]] + texts[-1:]


def printable(raw: bytes) -> str:
    """One line as a terminal would end up showing it: a progress bar's last state, and no bytes
    that are not text."""
    text = raw.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", errors="replace")
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


class LogFile:
    """One life of one worker on disk, both streams, line by line.

    Raises OSError from the constructor and from `write`; the owner then says so once and goes on
    without the file."""

    def __init__(self, directory: Path, name: str, restart: int) -> None:
        self.path = directory / f"{name}.{restart}.log"
        self._file = self.path.open("w", encoding="utf-8", buffering=1, errors="replace")

    def write(self, text: str) -> None:
        self._file.write(text + "\n")

    def close(self) -> None:
        self._file.close()


class Terminal:
    """Writes whole lines with a prefix; colour only where a stream is a terminal.

    Raises BrokenPipeError when nobody reads any more. Blocks while the reader is slow: that holds
    the workers back too, as a plain pipe would."""

    def __init__(self, stdout_fd: int = 1, stderr_fd: int = 2) -> None:
        self._fds = {"stdout": stdout_fd, "stderr": stderr_fd}
        self._colour = {name: os.isatty(fd) for name, fd in self._fds.items()}

    def worker_line(self, name: str, stream: str, text: str) -> None:
        """One line of a worker, behind `[name] `."""
        if self._colour[stream]:
            colour = _COLOURS[sum(name.encode()) % len(_COLOURS)]
            tail = _RESET if "\x1b" in text else ""
            self._write(self._fds[stream], f"\x1b[{colour}m[{name}]{_RESET} {text}{tail}\n")
        else:
            self._write(self._fds[stream], f"[{name}] {text}\n")

    def say(self, text: str) -> None:
        """One line of the launcher itself, to stderr."""
        self._write(self._fds["stderr"], f"pccl run: {text}\n")

    def _write(self, fd: int, text: str) -> None:
        data = memoryview(text.encode("utf-8", errors="replace"))
        while data:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:  # a terminal that somebody else made non-blocking
                select.select([], [fd], [])
