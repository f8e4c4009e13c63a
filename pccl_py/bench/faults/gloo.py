"""gloo after the same death, forked by `nursery`: what a program has that does not use us.

A member's all-reduce raises when the connection to the victim breaks, and its group is unusable
from then on; the survivors have to agree on a new one by other means (here the benchmark tells
them), initialise it, and start the op again from inputs that they saved.

    be OWN                         -> ok
    init FILE RANK WORLD           -> inited BEGIN_NS END_NS
    fill COUNT                     -> ok
    time START_NS                  -> took BEGIN_NS END_NS FAILED      (which drops the group)
    check EXPECTED                 -> checked WRONG
    drop                           -> ok        (destroys the group)
"""

from __future__ import annotations

import contextlib
import datetime
import time

import numpy as np
import torch
import torch.distributed as dist

from pccl_py.bench.faults import peer
from pccl_py.bench.lines import Line
from pccl_py.protocol.encoding import printable

TIMEOUT_S = 30.0


class Desk:
    """Obeys. Owns the group and the op's memory."""

    def __init__(self) -> None:
        self._own = 0
        self._data = np.zeros(0, np.float32)

    def obey(self, words: list[str]) -> tuple[object, ...]:
        """The answer's words. An op that fails is an answer, not an error."""
        match words:
            case ["be", own]:
                self._own = int(own)
            case ["init", file, rank, world]:
                began_ns = time.monotonic_ns()
                dist.init_process_group(
                    "gloo", init_method=f"file://{file}", rank=int(rank), world_size=int(world),
                    timeout=datetime.timedelta(seconds=TIMEOUT_S),
                )  # fmt: skip
                return ("inited", began_ns, time.monotonic_ns())
            case ["fill", count]:
                if self._data.size != int(count):
                    self._data = np.empty(int(count), np.float32)
                peer.fill(self._data, self._own)
            case ["time", start_ns]:
                return self._time(int(start_ns))
            case ["check", expected]:
                return ("checked", peer.verdict(self._data, int(expected), int(expected))[0])
            case ["drop"]:
                _drop()
            case _:
                raise AssertionError(f"no such order: {words}")
        return ("ok",)

    def _time(self, start_ns: int) -> tuple[object, ...]:
        time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))
        began_ns = time.monotonic_ns()
        failed = 0
        try:
            dist.all_reduce(torch.from_numpy(self._data))
        except RuntimeError:
            failed = 1
        ended_ns = time.monotonic_ns()
        if failed:  # or members without a connection to the victim wait until the time-out
            _drop()
        return ("took", began_ns, ended_ns, failed)


def _drop() -> None:
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def live(line: Line) -> None:
    """A child's whole life: until its line is closed."""
    torch.set_num_threads(1)
    desk = Desk()
    while (words := line.receive()) is not None:
        try:
            answer = desk.obey(words)
        except (RuntimeError, OSError) as error:
            line.send("error", printable(f"{type(error).__name__}: {error}"))
            return
        line.send(*answer)
