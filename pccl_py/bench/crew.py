"""The measured processes: started, met, ended, whatever happens.

Each implementation's processes form a group (pccl and gloo share theirs, so that noise hits both),
each process leads a session of its own and dies with this one. The conductor gives orders through
`Group`; nothing here measures.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pccl_py import config
from pccl_py.bench import ceiling, mpi
from pccl_py.bench.lines import Line, gather
from pccl_py.bench.mpi import Mpi
from pccl_py.errors import PcclError, ResourceError
from pccl_py.protocol.encoding import printable

START_S = 90.0
ANSWER_S = 300.0
END_S = 5.0
_ROOT = Path(__file__).resolve().parents[2]
_LAST_BYTES = 1 << 16
NOTICE_S = 0.5  # for an end that explains what went wrong


@dataclass(frozen=True, slots=True)
class Member:
    """A process that has reported. process: None where mpiexec started it."""

    line: Line
    process: subprocess.Popen[bytes] | None


class Group:
    """The processes of one or more implementations, in rank order."""

    def __init__(self, impls: Sequence[str], members: Sequence[Member], log: Path) -> None:
        self.impls = impls
        self._members, self._log = members, log
        self._lines = [member.line for member in members]

    def order(self, *words: object, timeout_s: float = ANSWER_S) -> list[list[str]]:
        """The same order to all; their answers. Raises PcclError: what one says, or how one ended
        (which is why the others complain) and what it left behind."""
        try:
            for line in self._lines:
                line.send(*words)
            return gather(self._lines, timeout_s)
        except PcclError as error:
            ended = self._ended()
            if ended is None and not isinstance(error, ResourceError):
                raise
            failed = error if ended is None else ResourceError(ended)
            raise _with_last_words(failed, self._log) from None

    def _ended(self) -> str | None:
        """Who has ended and how, in words: one that was killed before those that failed for it."""
        until = time.monotonic() + NOTICE_S
        while True:
            ends = [(member, _end_of(member.process)) for member in self._members]
            killed = [(member, end) for member, end in ends if end and end.is_kill]
            failed = [(member, end) for member, end in ends if end and end.status]
            if killed or time.monotonic() > until:
                named = next(iter(killed + failed), None)
                return None if named is None else _in_words(*named)
            time.sleep(0.01)

    def connect_ring(self, ports: Sequence[str]) -> None:
        """Tell each where its right neighbour listens."""
        for at, line in enumerate(self._lines):
            line.send("connect", ports[(at + 1) % len(ports)])
        gather(self._lines, START_S)


@contextmanager
def started(
    groups: Sequence[Sequence[str]], world: int, coordinator: str, mpis: Sequence[Mpi]
) -> Iterator[Mapping[str, Group]]:
    """Every implementation's group, by implementation, ready for orders.

    At the end the lines are closed, and what has not ended 5 s later (at once after an error) is
    killed. Raises UsageError (something is not installed), ResourceError (it does not start)."""
    with tempfile.TemporaryDirectory(prefix="pccl-bench-") as folder:
        hall = _Hall(Path(folder), world, coordinator, mpis)
        try:
            found: dict[str, Group] = {}
            for impls in groups:
                group = hall.start(impls)
                found |= dict.fromkeys(impls, group)
            yield found
        except BaseException:
            hall.end(0.0)
            raise
        hall.end(END_S)


@dataclass(frozen=True, slots=True)
class _Command:
    words: Sequence[str]
    env: Mapping[str, str]


class _Hall:
    """Where processes report. Owns them all."""

    def __init__(self, folder: Path, world: int, coordinator: str, mpis: Sequence[Mpi]) -> None:
        self._folder, self._world, self._coordinator = folder, world, coordinator
        self._mpis = mpis
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lines: list[Line] = []
        self._path = folder / "socket"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen(1024)

    def start(self, impls: Sequence[str]) -> Group:
        log = self._folder / f"{impls[0]}.log"
        before = len(self._processes)
        for command in self._commands(impls):
            with log.open("ab") as stderr:
                self._processes.append(_spawn(command, stderr.fileno()))
        try:
            met = self._meet(self._processes[before:])
        except PcclError as error:
            raise _with_last_words(error, log) from None
        group = Group(impls, [member for _, member in met], log)
        if impls[0] == "ceiling":
            group.connect_ring([words[3] for words, _ in met])
        return group

    def _commands(self, impls: Sequence[str]) -> Iterator[_Command]:
        env = environment()
        names = ",".join(impls)
        world = str(self._world)
        if names == "ceiling":
            program = str(ceiling.built())
            for index in range(self._world):
                yield _Command((program, str(self._path), str(index), world), env)
            return
        rest = (world, self._coordinator, str(self._folder / "gloo"))
        worker = (sys.executable, "-P", "-m", "pccl_py.bench.worker", str(self._path), names)
        found = mpi.chosen(names, self._mpis)
        if found is not None:
            over_tcp = not names.endswith(mpi.SHARED_MEMORY)
            words = found.command(self._world, (*worker, "-", *rest))
            yield _Command(words, found.environment(env, over_tcp=over_tcp))
            return
        for index in range(self._world):
            yield _Command((*worker, str(index), *rest), env)

    def _meet(self, processes: Sequence[subprocess.Popen[bytes]]) -> list[tuple[list[str], Member]]:
        """The hello of each rank and its member, in rank order."""
        until = time.monotonic() + START_S
        met: list[tuple[list[str], Member]] = []
        started = {process.pid: process for process in processes}
        self._listener.settimeout(0.1)
        while len(met) < self._world:
            try:
                connected = self._listener.accept()[0]
            except TimeoutError:
                _check_living(processes, until)
                continue
            line = Line(connected, "a process that starts")
            self._lines.append(line)
            pid = _pid_of(connected)
            (words,) = gather([line], max(0.1, until - time.monotonic()))
            line.name = f"{words[1]} rank {words[2]} (pid {pid})"
            met.append((words, Member(line, started.get(pid))))
        return sorted(met, key=lambda one: int(one[0][2]))

    def end(self, patience_s: float) -> None:
        for line in self._lines:
            line.close()
        self._listener.close()
        until = time.monotonic() + patience_s
        while time.monotonic() < until and not all(map(_end_of, self._processes)):
            time.sleep(0.01)
        for process in self._processes:
            # Before it is reaped: until then nobody else can own its number.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _spawn(command: _Command, stderr: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command.words,
            env=command.env,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            start_new_session=True,
        )
    except OSError as error:
        text = f"cannot start {command.words[0]}: {error.strerror}"
        raise ResourceError(error.errno, text) from error


def environment() -> dict[str, str]:
    env = {k: v for k, v in config.environment().items() if not k.startswith("PCCL_")}
    env["OMP_NUM_THREADS"] = "1"
    env["GLOO_SOCKET_IFNAME"] = "lo"
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), env.get("PYTHONPATH"))))
    return env


def _pid_of(connected: socket.socket) -> int:
    """Of the process at the other end."""
    size = struct.calcsize("3i")
    pid: int = struct.unpack(
        "3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )[0]
    return pid


@dataclass(frozen=True, slots=True)
class _End:
    """status: exit status, or the signal's number."""

    status: int
    is_kill: bool

    def __str__(self) -> str:
        if self.is_kill:
            return f"was killed by {signal.Signals(self.status).name}"
        return f"ended with status {self.status}"


def _end_of(process: subprocess.Popen[bytes] | None) -> _End | None:
    """None while it lives. It is reaped in `_Hall.end` only."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    found = None if process is None else os.waitid(os.P_PID, process.pid, flags)
    return found and _End(found.si_status, found.si_code != os.CLD_EXITED)


def _in_words(member: Member, end: _End) -> str:
    return f"{member.line.name} {end}"


def _check_living(processes: Sequence[subprocess.Popen[bytes]], until: float) -> None:
    ends = [end for end in map(_end_of, processes) if end is not None]
    if ends:
        raise ResourceError(f"a process {ends[0]} before it was ready")
    if time.monotonic() > until:
        raise ResourceError(f"not all processes were ready in {START_S:.0f} s")


def _with_last_words(error: PcclError, log: Path) -> PcclError:
    """The error, with the last line that the group's processes wrote, or the last that speaks of a
    signal or an error (mpiexec goes on to recommend its FAQ)."""
    lines = log.read_bytes()[-_LAST_BYTES:].decode(errors="replace").strip().splitlines()
    if not lines:
        return error
    said = getattr(error, "strerror", None) or str(error)
    telling = [line for line in lines if re.search("signal|error", line, re.IGNORECASE)]
    return ResourceError(f"{said}: {printable((telling or lines)[-1].strip())}")
