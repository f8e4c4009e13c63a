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
from pccl_py.bench.implementations import Implementation, Place
from pccl_py.bench.lines import Line
from pccl_py.bench.ops import Job, Op, Tensors
from pccl_py.bench.values import Span
from pccl_py.errors import PcclError, ResourceError
from pccl_py.protocol.encoding import printable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Buffers:
    """Source and target of one op at one size, and how each implementation sees them."""

    def __init__(
        self, op: Op, job: Job, dtype: str, implementations: Mapping[str, Implementation]
    ) -> None:
        self.op, self.job, self._dtype = op, job, dtype
        source_count, target_count = op.counts(job.count, job.world)
        self._source = values.filled(Span(job.input(), 0, source_count), dtype)
        if op.in_place:
            self._target = self._source.copy()
        else:
            self._target = np.zeros(target_count, self._source.dtype)
        self.tensors = {
            name: Tensors(each.wrap(self._source, dtype), each.wrap(self._target, dtype))
            for name, each in implementations.items()
            if ops.lacks(name, op, dtype, job.reduce) is None
        }

    def load(self) -> None:
        """The target as it must be before an op."""
        if self.op.in_place:
            np.copyto(self._target, self._source)
        else:
            self._target[:] = 0

    def verdict(self) -> tuple[int, str]:
        """Wrong elements of this rank's target, and its hash."""
        wrong = values.wrong(self._target, self.op.expected(self.job), self._dtype)
        return wrong, values.hashed(self._target)


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
            case ["fill"]:
                self._loaded().load()
                return ("ok",)
            case ["time", name, mode, inner, start_ns]:
                return self._time(name, mode, int(inner), int(start_ns))
            case ["check", name, mode]:
                self._loaded().load()
                self._once(self._loaded(), name, mode)
                route, links = self._implementations[name].told()
                told = ("-" if word is None else word for word in (route, links))
                return ("wrong", *self._loaded().verdict(), *told)
            case _:
                raise PcclError(f"no such order: {' '.join(words)}")

    def _loaded(self) -> Buffers:
        assert self._buffers is not None
        return self._buffers

    def _once(self, buffers: Buffers, name: str, mode: str) -> None:
        if mode == "out" and buffers.op.in_place:
            buffers.load()
        op, tensors = buffers.op, buffers.tensors[name]
        self._implementations[name].run(op, tensors, buffers.job.reduce)

    def _time(self, name: str, mode: str, inner: int, start_ns: int) -> tuple[object, ...]:
        buffers = self._loaded()
        forget_peak()
        time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))
        for _ in range(inner):
            self._once(buffers, name, mode)
        return ("took", time.monotonic_ns() - start_ns, peak_bytes())


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
