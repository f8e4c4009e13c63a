"""One measured process: `python -m pccl_py.bench.worker SOCKET IMPLS INDEX WORLD COORDINATOR FILE`.

Started by `crew` (by mpiexec for MPI); opens the implementations that it is told, then obeys the
orders of `lines` until the line is closed. It measures its own op from the common start that the
parent names, so that the slowest rank's time is the op's, and decides nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pccl_py.bench import implementations, ops, values
from pccl_py.bench.calls import Call
from pccl_py.bench.implementations import Implementation, Place
from pccl_py.bench.lines import IN_PLACE, Line
from pccl_py.bench.ops import Job, Op
from pccl_py.bench.values import Span
from pccl_py.errors import PcclError, ResourceError
from pccl_py.protocol.encoding import printable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Buffers:
    """Source and target of one op at one size, apart or in place, as each implementation sees them.

    Apart the target is the front part of the buffer that both share when in place."""

    def __init__(
        self, op: Op, job: Job, dtype: str, implementations: Mapping[str, Implementation]
    ) -> None:
        self.op, self.job, self._dtype = op, job, dtype
        source_count, target_count = op.counts(job)
        source = values.filled(Span(job.input(), 0, source_count), dtype)
        shared = np.zeros(max(source_count, target_count), source.dtype)
        self._source = source
        self._pairs = {False: (source, shared[:target_count])}
        if op.in_place is not None:
            source_at, target_at = op.in_place(job)
            self._pairs[True] = (
                shared[source_at : source_at + source_count],
                shared[target_at : target_at + target_count],
            )
        self._calls = {
            (name, in_place): self._call(each, in_place)
            for name, each in implementations.items()
            for in_place in self._pairs
            if ops.lacks(name, op, dtype, job.reduce) is None
        }

    def _call(self, implementation: Implementation, in_place: bool) -> Call:
        source, target = self._pairs[in_place]
        return Call(
            job=self.job,
            in_place=in_place,
            source=implementation.wrap(source, self._dtype),
            target=implementation.wrap(target, self._dtype),
            copy=lambda: np.copyto(target, self._source),
        )

    def load(self, in_place: bool) -> None:
        """What they must be before an op."""
        source, target = self._pairs[in_place]
        target[:] = 0
        if in_place:
            np.copyto(source, self._source)

    def run(self, name: str, implementation: Implementation, in_place: bool) -> None:
        implementation.run(self.op, self._calls[name, in_place])

    def verdict(self, in_place: bool) -> tuple[int, str]:
        """Wrong elements of this rank's target and, out of place, of its source; a hash of the
        target."""
        target = self._pairs[in_place][1]
        expected = self.op.expected(self.job)
        wrong = values.wrong(target, expected, self._dtype) if expected else 0
        if not in_place:
            source = Span(self.job.input(), 0, self._source.size)
            wrong += values.wrong(self._source, [source], self._dtype)
        return wrong, values.hashed(target)


class Desk:
    """Obeys orders. The owner of the buffers; `implementations` belong to the caller."""

    def __init__(
        self, implementations: Mapping[str, Implementation], rank: int, world: int
    ) -> None:
        self._implementations = implementations
        self._rank, self._world = rank, world
        self._buffers: Buffers | None = None

    def obey(self, words: list[str]) -> tuple[object, ...]:
        """The answer's words. Raises the error of an op."""
        match words:
            case ["prepare", op, count, dtype, reduce]:
                self._buffers = None  # two sizes at once would be too much
                job = Job(reduce, int(count), self._rank, self._world)
                self._buffers = Buffers(ops.known()[op], job, dtype, self._implementations)
                return ("ok",)
            case ["fill", mode]:
                self._loaded().load(mode == IN_PLACE)
                return ("ok",)
            case ["time", name, mode, inner, start_ns]:
                return self._time(name, mode == IN_PLACE, int(inner), int(start_ns))
            case ["check", name, mode]:
                return self._check(name, mode == IN_PLACE)
            case _:
                raise PcclError(f"no such order: {' '.join(words)}")

    def _loaded(self) -> Buffers:
        assert self._buffers is not None
        return self._buffers

    def _time(self, name: str, in_place: bool, inner: int, start_ns: int) -> tuple[object, ...]:
        buffers, implementation = self._loaded(), self._implementations[name]
        forget_peak()
        time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))
        for _ in range(inner):
            buffers.run(name, implementation, in_place)
        return ("took", time.monotonic_ns() - start_ns, peak_bytes())

    def _check(self, name: str, in_place: bool) -> tuple[object, ...]:
        buffers, implementation = self._loaded(), self._implementations[name]
        buffers.load(in_place)
        buffers.run(name, implementation, in_place)
        told = ("-" if word is None else word for word in implementation.told())
        return ("wrong", *buffers.verdict(in_place), *told)


def forget_peak() -> None:
    """Let the peak of resident memory begin anew. Where that is not allowed it covers all ops."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """The peak of resident memory, bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def serve(line: Line, desk: Desk) -> None:
    """Until the line is closed. An error is told and ends it."""
    failed = False
    while not failed and (words := line.receive()) is not None:
        answer: tuple[object, ...]
        try:
            answer = desk.obey(words)
        except (PcclError, OSError, RuntimeError, MemoryError, ValueError, TypeError) as error:
            answer = ("error", printable(f"{type(error).__name__}: {error}"))
            failed = True
        with contextlib.suppress(ResourceError):  # the benchmark was ended meanwhile
            line.send(*answer)


def main(argv: list[str]) -> int:
    """See the module's docstring. Exit status 0 whenever the parent knows what happened."""
    path, names, index, world, coordinator, rendezvous = argv
    # Under mpiexec nobody else ends us when the benchmark is killed in the middle of an op.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    place = Place(int(index) if index != "-" else 0, int(world), coordinator, Path(rendezvous))
    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect(path)
        line = Line(connected, "the benchmark")
        try:
            opened = implementations.opened(names.split(","), place)
        except (PcclError, OSError, RuntimeError, ImportError) as error:
            line.send("error", printable(f"{type(error).__name__}: {error}"))
            return 0
        rank = next(iter(opened.values())).rank
        line.send("hello", names, rank, 0)
        serve(line, Desk(opened, rank, place.world))
        for each in opened.values():
            each.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
