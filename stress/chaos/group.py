"""Workers as the judge sees them: starts, steps, signals, and what each has said."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path

from pccl_py.coordinator import embedded
from stress.chaos.judge import Witness, Wrong, check
from stress.chaos.steps import Done, Joined, Step
from stress.chaos.worker import ARENA_BYTES

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path("/dev/shm")
JOIN_S = 60.0


@dataclass(eq=False)
class Worker:
    name: str
    pid: int
    to: Connection
    memory: memoryview
    joined: bool = False
    alive: bool = True
    stopped: bool = False
    ended: bool = False
    done: dict[int, Done] = field(default_factory=dict)

    def witness(self, step: int, op: int) -> Witness:
        """Raises Wrong if it did not come to the op."""
        said = self.done[step].said
        for one in said:
            if one.number == op:
                return Witness(self.name, one, self.memory)
        raise Wrong("wrong", f"{self.name} could not begin: {said}")

    def signal(self, number: signal.Signals) -> None:
        if not self.ended:
            os.kill(self.pid, number)  # children are not waited for: the pid is still its own

    def kill(self) -> None:
        self.alive = False
        self.signal(signal.SIGKILL)

    def stop(self) -> None:
        self.stopped = True
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.stopped = False
        self.signal(signal.SIGCONT)


class Group:
    """Use as a context manager. deadline_s: of every member; hang_s: when a step is given up."""

    def __init__(self, deadline_s: float = 20.0, hang_s: float = 60.0) -> None:
        self.deadline_s, self.hang_s = deadline_s, hang_s
        self.workers: list[Worker] = []
        self.ends: dict[str, int] = {}
        self.steps = 0
        self._names = 0
        self._pending = 0
        self._step: Step | None = None
        self._told: list[Worker] = []
        self._agreed = False  # all knew of all deaths when the step began

    def __enter__(self) -> Group:
        with contextlib.ExitStack() as stack:
            shared = SHARED if SHARED.is_dir() else None
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="pccl-chaos-", dir=shared)
            )
            self._folder = Path(folder)
            self._coordinator = stack.enter_context(embedded.start())
            self._listener = stack.enter_context(Listener(str(self._folder / "s"), "AF_UNIX"))
            stack.enter_context(self._forking())
            stack.callback(self._end)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def _forking(self) -> Iterator[None]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("PCCL_")}
        env |= {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "stress.chaos.worker", str(self._folder / "s")],
            stdin=subprocess.PIPE,
            text=True,
            env=env,
        )
        try:
            yield
        finally:
            assert self._parent.stdin is not None
            self._parent.stdin.close()
            self._parent.wait(30.0)

    def _end(self) -> None:
        for worker in self.workers:
            worker.to.close()

    # ------------------------------------------------------------ members

    @property
    def living(self) -> list[Worker]:
        return [w for w in self.workers if w.alive and w.joined]

    @property
    def is_complete(self) -> bool:
        """Nobody is on the way in."""
        return all(w.joined or not w.alive for w in self.workers)

    def start(self, count: int, members: int) -> None:
        """`count` more workers; members: what their group must have before its first view."""
        for _ in range(count):
            name = f"w{self._names}"
            self._names += 1
            arena = self._folder / name
            with arena.open("wb") as file:
                file.truncate(ARENA_BYTES)
            assert self._parent.stdin is not None
            line = f"{name} {self._coordinator.address} {members} {self.deadline_s} {arena}"
            self._parent.stdin.write(f"{line}\n")
            self._parent.stdin.flush()
            to = self._listener.accept()
            said, pid = to.recv()
            assert said == name
            self.workers.append(Worker(name, pid, to, _mapped(arena)))

    def begin(self, count: int) -> None:
        self.start(count, count)
        self._until(lambda: self.is_complete, JOIN_S)

    # ------------------------------------------------------------ steps

    def tell(self, step: Step) -> None:
        """Sends a step to all members; those that join meanwhile do it too."""
        self._step = step = replace(step, number=self.steps)
        self.steps += 1
        self._told = self.living
        for worker in self._told:
            self._send(worker, step)

    def finish(self) -> Sequence[Done]:
        """Waits for the step's end at all who live; checks every op. Raises Wrong."""
        step = self._step
        assert step is not None
        if not self._until(
            lambda: all(step.number in w.done for w in self._awaited()), self.hang_s
        ):
            late = [w for w in self._awaited() if step.number not in w.done]
            for worker in late:
                worker.signal(signal.SIGUSR1)
            self.listen(1.0)
            raise Wrong(
                "hang", f"{[w.name for w in late]} have not ended {step} in {self.hang_s:g} s"
            )
        self._drop_evicted(step.number)
        survivors = [w for w in self._awaited() if step.number in w.done]
        told = frozenset(w.name for w in self._told)
        died = told - {w.name for w in survivors} if self._agreed else None
        for op in step.ops:
            witnesses = [w.witness(step.number, op.number) for w in survivors]
            key = f"{op.kind} {check(op, witnesses, told, died)}"
            self.ends[key] = self.ends.get(key, 0) + 1
        seen = [set(w.done[step.number].world) for w in survivors]
        self._agreed = all(world == {w.name for w in survivors} for world in seen)
        return [w.done[step.number] for w in survivors]

    def run(self, step: Step) -> Sequence[Done]:
        self.tell(step)
        return self.finish()

    def _drop_evicted(self, number: int) -> None:
        """Who was found dead while it was stopped, and knows it now: it is no survivor."""
        for worker in self._awaited():
            done = worker.done.get(number)
            if done is not None and any(s.end == "Evicted" for s in done.said):
                self.ends["evicted"] = self.ends.get("evicted", 0) + 1
                worker.kill()

    def _awaited(self) -> list[Worker]:
        return [w for w in self._told if w.alive]

    def _send(self, worker: Worker, step: Step) -> None:
        with contextlib.suppress(OSError):
            worker.to.send(step)

    def listen(self, seconds: float) -> None:
        """Takes what workers say for that long."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            waiting = {w.to: w for w in self.workers if not w.ended}
            for one in wait(list(waiting), max(0.0, left)):
                assert isinstance(one, Connection)
                self._hear(waiting[one])
            if left <= 0:
                return

    def _until(self, condition: object, seconds: float) -> bool:
        assert callable(condition)
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                return False
            self.listen(0.002)
        return True

    def _hear(self, worker: Worker) -> None:
        try:
            said = worker.to.recv()
        except (EOFError, OSError):
            worker.ended, was_alive = True, worker.alive
            worker.alive = False
            if was_alive and not self._may_die(worker):
                raise Wrong("wrong", f"{worker.name} has ended by itself") from None
            return
        match said:
            case Joined():
                worker.joined = True
                (self._folder / worker.name).unlink()  # its memory lasts as long as it does
                if self._step is not None and self._awaited() and not self._is_over():
                    self._told.append(worker)
                    self._send(worker, replace(self._step, update=False))
            case Done():
                worker.done = {said.step: said}

    def _may_die(self, worker: Worker) -> bool:
        return self._step is not None and worker.name in dict(self._step.dies)

    def _is_over(self) -> bool:
        step = self._step
        return step is not None and all(step.number in w.done for w in self._awaited())

    def settle(self) -> None:
        """Ends with all who are on their way in joined, and nobody stopped."""
        for worker in self.workers:
            if worker.stopped:
                worker.resume()
        until = time.monotonic() + JOIN_S
        while not self.is_complete:
            if time.monotonic() > until:
                raise Wrong("hang", "a worker cannot join")
            if self.living:
                self.run(Step(0))
            else:
                self.listen(0.05)


def _mapped(path: Path) -> memoryview:
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), ARENA_BYTES))
