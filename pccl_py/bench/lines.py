"""The line between the benchmark and one of its processes: words, one line per order and answer.

The processes are Python workers (`worker`) and the C ceiling; both obey these orders, each answered
before the next: `connect PORT`, `prepare OP COUNT DTYPE REDUCE`, `fill MODE`, `time IMPL MODE INNER
START_NS` (took NS RSS_BYTES), `check IMPL MODE` (wrong COUNT HASH ROUTE LINKS TRANSPORT); MODE is
`in` or `out` of place; an answer that begins with `error` ends the benchmark with its text. `-`
stands for what is not known. A process ends when its line is closed.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence

from pccl_py.errors import PcclError, ResourceError

IN_PLACE, OUT_OF_PLACE = "in", "out"
_PART_BYTES = 4096


class Line:
    """One end of a connected socket. Raises ResourceError when the other end is gone."""

    def __init__(self, connected: socket.socket, name: str) -> None:
        self.name = name
        self._socket = connected
        self._read = b""

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, *words: object) -> None:
        data = " ".join(str(word) for word in words).encode() + b"\n"
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ResourceError(error.errno, f"{self.name} has ended") from None

    def receive(self) -> list[str] | None:
        """The words of the next line, blocking; None when the other end has closed it."""
        while b"\n" not in self._read:
            try:
                part = self._socket.recv(_PART_BYTES)
            except ConnectionError:
                return None
            if not part:
                return None
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        return line.decode(errors="replace").split()

    def close(self) -> None:
        self._socket.close()


def gather(lines: Sequence[Line], timeout_s: float) -> list[list[str]]:
    """One answer of each, in their order. Raises ResourceError (one ended, or none in time),
    PcclError (with the text of an `error`)."""
    until = time.monotonic() + timeout_s
    poller = select.poll()
    waiting = {line.fileno(): at for at, line in enumerate(lines)}
    for fd in waiting:
        poller.register(fd, select.POLLIN)
    answers: list[list[str]] = [[] for _ in lines]
    while waiting:
        ready = poller.poll(max(0.0, until - time.monotonic()) * 1000)
        if not ready:
            late = ", ".join(lines[at].name for at in waiting.values())
            raise ResourceError(f"no answer in {timeout_s:.0f} s from {late}")
        for fd, _ in ready:
            at = waiting.pop(fd)
            poller.unregister(fd)
            answers[at] = _checked(lines[at])
    return answers


def _checked(line: Line) -> list[str]:
    words = line.receive()
    if words is None:
        raise ResourceError(f"{line.name} has ended")
    if words[:1] == ["error"]:
        raise PcclError(f"{line.name}: {' '.join(words[1:])}")
    return words
