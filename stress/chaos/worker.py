"""The workers of a chaos run, forked from one process that has imported everything already.

`python -m stress.chaos.worker SOCKET` reads lines "NAME COORDINATOR MEMBERS DEADLINE ARENA" and
forks a worker for each, which joins the group, says so on SOCKET, and does the steps it is told.
All memory of ops lies in a file, the arena, that the judge reads. When stdin ends all workers are
killed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Client, Connection

import numpy as np

import pccl_py as pccl
from pccl_py.collectives import Collectives
from stress.chaos.steps import (
    JUNK,
    Array,
    Done,
    Joined,
    Op,
    Piece,
    Said,
    Step,
    block_count,
    values,
    weight,
)

ARENA_BYTES = 256 << 20
WAIT_S = 60.0
TRIES = 20  # submissions of one op: members can be lost between two looks


class Memory:
    """The arena of one step, handed out from the front."""

    def __init__(self, arena: mmap.mmap) -> None:
        self._arena = arena
        self._at = 0

    def new(self, dtype: str, contents: Array | int, count: int) -> tuple[Array, int]:
        at = self._at
        nbytes = count * np.dtype(dtype).itemsize
        self._at = (at + nbytes + 127) // 64 * 64
        tensor = np.frombuffer(self._arena, dtype, count, at)
        tensor[:] = contents
        return tensor, at


class Starting:
    """One op on its way into the engine: its memory, and who this worker thinks takes part."""

    def __init__(self, op: Op, me: str, whom: Collectives, memory: Memory) -> None:
        self.op, self.me, self.whom, self.memory = op, me, whom, memory
        self.members = tuple(member.name for member in whom.members)
        self.root = self.members[op.root % len(self.members)]
        self.pieces: list[Piece] = []
        self.how: dict[str, object] = {"async_op": True}
        if op.timeout:
            self.how["timeout"] = op.timeout
        if op.name is not None and op.kind != "send":
            self.how["name"] = op.name

    def given(self, whom: str = "", count: int | None = None) -> Array:
        contents = values(self.op, self.me, whom, count)
        tensor, at = self.memory.new(self.op.dtype, contents, contents.size)
        self.pieces.append(Piece("in", whom, at, tensor.size))
        return tensor

    def result(self, whom: str = "", count: int | None = None) -> Array:
        size = self.op.count if count is None else count
        tensor, at = self.memory.new(self.op.dtype, JUNK, size)
        self.pieces.append(Piece("out", whom, at, size))
        return tensor

    def changed(self) -> Array:
        """An input where the result goes too."""
        contents = values(self.op, self.me)
        tensor, at = self.memory.new(self.op.dtype, contents, contents.size)
        self.pieces.append(Piece("out", "", at, tensor.size))
        return tensor

    def outs(self) -> list[Array]:
        return [self.result(m, block_count(self.op, m, self.me)) for m in self.members]

    def ins(self) -> list[Array]:
        return [self.given(m, block_count(self.op, self.me, m)) for m in self.members]

    def start(self) -> pccl.Work:
        return _START[self.op.kind](self)

    @property
    def rank_of_root(self) -> int:
        return self.op.root % len(self.members)


def _all_reduce(s: Starting) -> pccl.Work:
    op = s.op
    how = s.how | {"route": op.route, "strict": op.strict}
    if op.weighted:
        how["weight"] = weight(op, s.me)
    if op.in_place:
        return s.whom.all_reduce(s.changed(), op.reduction, **how)
    return s.whom.all_reduce(s.given(), op.reduction, out=s.result(), **how)


def _reduce(s: Starting) -> pccl.Work:
    out = s.result() if s.root == s.me else None
    return s.whom.reduce(s.given(), s.rank_of_root, s.op.reduction, out=out, **s.how)


def _broadcast(s: Starting) -> pccl.Work:
    tensor = s.given() if s.root == s.me else s.result()
    return s.whom.broadcast(tensor, s.rank_of_root, **s.how)


def _all_gather(s: Starting) -> pccl.Work:
    mine = s.given("", block_count(s.op, s.me, ""))
    return s.whom.all_gather(s.outs(), mine, **s.how)


def _reduce_scatter(s: Starting) -> pccl.Work:
    out = s.result("", block_count(s.op, "", s.me))
    return s.whom.reduce_scatter(out, s.ins(), s.op.reduction, **s.how)


def _gather(s: Starting) -> pccl.Work:
    mine = s.given("", block_count(s.op, s.me, ""))
    outs = s.outs() if s.root == s.me else None
    return s.whom.gather(mine, outs, s.rank_of_root, **s.how)


def _scatter(s: Starting) -> pccl.Work:
    out = s.result("", block_count(s.op, "", s.me))
    ins = s.ins() if s.root == s.me else None
    return s.whom.scatter(out, ins, s.rank_of_root, **s.how)


def _all_to_all(s: Starting) -> pccl.Work:
    return s.whom.all_to_all(s.outs(), s.ins(), **s.how)


def _send(s: Starting) -> pccl.Work:
    source, destination = s.op.ends
    tag = s.op.number % 4
    if s.me == source:
        return s.whom.send(s.given(), s.members.index(destination), tag, **s.how)
    return s.whom.recv(s.result(), s.members.index(source), tag, **s.how)


def _barrier(s: Starting) -> pccl.Work:
    return s.whom.barrier(**s.how)


_START: dict[str, Callable[[Starting], pccl.Work]] = {
    "all_reduce": _all_reduce,
    "reduce": _reduce,
    "broadcast": _broadcast,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "gather": _gather,
    "scatter": _scatter,
    "all_to_all": _all_to_all,
    "send": _send,
    "barrier": _barrier,
}


class Worker:
    def __init__(self, comm: pccl.Communicator, name: str, arena: mmap.mmap) -> None:
        self.comm, self.name, self.arena = comm, name, arena
        self.groups: list[Collectives | None] = []
        self._started: list[tuple[Op, Starting | None, pccl.Work | pccl.PcclError | None]] = []
        signal.signal(signal.SIGUSR1, self._say_what_runs)

    def _say_what_runs(self, *_: object) -> None:
        """Whoever hangs is asked what it waits for."""
        lines = [f"{self.name}: {self.comm.view} {self.comm.stats()}"]
        for op, start, work in self._started:
            if isinstance(work, pccl.Work):
                how = repr(work.exception()) if work.is_completed() else "runs"
                lines.append(f"  {how}: {start.members if start else ''} {op}")
        sys.stderr.write("\n".join(lines) + "\n")

    def do(self, step: Step) -> Done:
        """All ops of a step. What ends the membership ends every op of it."""
        try:
            if step.update:
                self.comm.update()
            if step.groups is not None:
                self.groups = [self._group(names) for names in step.groups]
        except pccl.PcclError as error:
            return Done(step.number, (_failed(Op(-1, "update"), error),), ())
        memory = Memory(self.arena)
        pause = dict(step.pauses).get(self.name, 0.0)
        dies = dict(step.dies).get(self.name)
        ops = list(step.ops)
        if all(op.name is not None for op in ops):
            random.Random(f"{step.number}/{self.name}").shuffle(ops)
        self._started = started = []
        for i, op in enumerate(ops):
            if i == dies:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(pause)
            started.append(self._submit(op, memory))
        if dies is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        said = tuple(self._end(op, start, work) for op, start, work in started)
        names: tuple[str, ...] = ()
        with contextlib.suppress(pccl.PcclError):
            names = tuple(member.name for member in self.comm.members)
        return Done(step.number, said, names)

    def _group(self, names: Sequence[str]) -> Collectives | None:
        """A sub-group that this worker is in."""
        ranks = {member.name: rank for rank, member in enumerate(self.comm.members)}
        if self.name not in names:
            return None
        return self.comm.subgroup([ranks[name] for name in names if name in ranks])

    def _submit(
        self, op: Op, memory: Memory
    ) -> tuple[Op, Starting | None, pccl.Work | pccl.PcclError | None]:
        whom = self.comm if op.group is None else self.groups[op.group]
        if whom is None or (op.kind == "send" and self.name not in op.ends):
            return op, None, None
        start = None
        for _ in range(TRIES):  # as a program does: look again, and retry
            try:
                start = Starting(op, self.name, whom, memory)
                if op.kind == "send" and not set(op.ends) <= set(start.members):
                    return op, start, pccl.PeerLost("the other end is gone")
                return op, start, start.start()
            except pccl.PeerLost as error:
                failed: pccl.PcclError = error
            except pccl.PcclError as error:
                return op, start, error
        return op, start, failed

    def _end(self, op: Op, start: Starting | None, work: pccl.Work | pccl.PcclError | None) -> Said:
        if work is None:
            return Said(op.number, "none")
        error = work if isinstance(work, pccl.PcclError) else None
        contributors = (0, 0)
        if not isinstance(work, pccl.PcclError):
            try:
                info = work.wait(WAIT_S)
                contributors = (info.contributors_min, info.contributors_max)
            except pccl.PcclError as raised:
                error = raised
        if start is None:
            assert error is not None
            return _failed(op, error)
        return Said(
            op.number,
            "ok" if error is None else type(error).__name__,
            str(error or ""),
            start.members,
            start.root,
            contributors,
            tuple(start.pieces),
        )


def _failed(op: Op, error: pccl.PcclError) -> Said:
    return Said(op.number, type(error).__name__, str(error))


def work(line: str, to: Connection) -> None:
    """One worker's life."""
    name, coordinator, members, deadline, path = line.split()
    with open(path, "r+b") as file:
        arena = mmap.mmap(file.fileno(), ARENA_BYTES)
    comm = pccl.join(
        coordinator,
        name=name,
        min_members=int(members),
        timeout=60.0,
        deadline_s=float(deadline),
    )
    worker = Worker(comm, name, arena)
    to.send(Joined(name, os.getpid()))
    with contextlib.suppress(EOFError, OSError):
        while (step := to.recv()) is not None:
            to.send(worker.do(step))
    comm.leave()
    to.send(None)


def _fork(line: str, socket: str) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        with Client(socket, "AF_UNIX") as to:
            to.send((line.partition(" ")[0], os.getpid()))
            work(line, to)
        status = 0
    except Exception as error:  # noqa: BLE001  a worker's last words
        sys.stderr.write(f"{line.partition(' ')[0]}: {type(error).__name__}: {error}\n")
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Children are never waited for, so that their pids stay theirs until the end."""
    children = []
    try:
        for line in sys.stdin:
            children.append(_fork(line.strip(), sys.argv[1]))
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main()
