"""A run on which a fault case plays: a coordinator, and peers forked as they are needed.

`Nursery` starts the process that forks; a `Stage` owns one coordinator and the peers that live,
each in a slot (the power of two that it contributes). It gives orders and kills; what is measured
is the cases'. Everything that it starts ends with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pccl_py.bench import crew
from pccl_py.bench.lines import Line, gather
from pccl_py.coordinator import embedded
from pccl_py.errors import ResourceError

START_S = 60.0
ANSWER_S = 60.0
END_S = 5.0
LEAD_S = 0.004  # from an order to the common start, and as much for each four peers more
_PACKET_BYTES = 256


@dataclass(frozen=True, slots=True)
class Peer:
    """A forked process. slot: its number on the stage."""

    slot: int
    pid: int
    line: Line

    @property
    def own(self) -> int:
        """What it contributes."""
        return 1 << self.slot


class Nursery:
    """The forking process. what: `peer` or `gloo`. Use as a context manager. Children that are not
    reaped when it ends are killed: they are all in its process group."""

    def __init__(self, what: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders = ours
        self._orders.settimeout(START_S)
        with theirs, tempfile.TemporaryFile() as log:
            self._log = os.dup(log.fileno())
            self._process = subprocess.Popen(
                (sys.executable, "-P", "-m", "pccl_py.bench.faults.nursery",
                 str(theirs.fileno()), what),
                env=crew.environment(),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )  # fmt: skip
        try:
            self._answer()
        except BaseException:
            self.end()
            raise

    def fork(self, slot: int) -> Peer:
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._orders, [b"fork"], [theirs.fileno()])
            pid = int(self._answer())
        return Peer(slot, pid, Line(ours, f"peer {slot} (pid {pid})"))

    def kill(self, peer: Peer) -> None:
        """SIGKILL, and wait for its end; also if it has ended."""
        peer.line.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(peer.pid, signal.SIGKILL)
        self._orders.send(f"reap {peer.pid}".encode())
        self._answer()

    def last_words(self) -> str:
        """The last line that a child has left."""
        size = os.fstat(self._log).st_size
        text = os.pread(self._log, 4096, max(0, size - 4096)).decode(errors="replace")
        return (text.strip().splitlines() or [""])[-1]

    def _answer(self) -> str:
        try:
            packet = self._orders.recv(_PACKET_BYTES)
        except TimeoutError:
            packet = b""
        if not packet:
            raise ResourceError(f"the process that forks peers has ended: {self.last_words()}")
        return packet.decode()

    def end(self) -> None:
        self._orders.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._log)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


class Stage:
    """One run. `peers` by slot, living ones only."""

    def __init__(self, nursery: Nursery, folder: Path, deadline_s: float) -> None:
        self._nursery = nursery
        self._folder = folder
        self.deadline_s = deadline_s
        self.peers: dict[int, Peer] = {}
        self._joined = 0
        self._coordinator = self._start("127.0.0.1:0")

    def _start(self, bind: str) -> embedded.Embedded:
        return embedded.start(
            bind=bind,
            state_dir=self._folder,
            log_path=self._folder / "log",
            deadline_s=self.deadline_s,
        )

    @property
    def address(self) -> str:
        return self._coordinator.address

    def kill_coordinator(self) -> int:
        """SIGKILL; when, in monotonic nanoseconds."""
        at_ns = time.monotonic_ns()
        os.kill(self._coordinator.pid, signal.SIGKILL)
        self._coordinator.stop()
        return at_ns

    def restart_coordinator(self) -> None:
        """On the same journal and port; returns when it listens."""
        self._coordinator = self._start(self.address)

    # ------------------------------------------------------------ peers

    def fork(self, slots: Iterable[int]) -> list[Peer]:
        """New processes, which know what they contribute and have not joined."""
        forked = []
        for slot in slots:
            assert slot not in self.peers
            peer = self.peers[slot] = self._nursery.fork(slot)
            peer.line.send("be", peer.own)
            forked.append(peer)
        self.answers(forked)
        return forked

    def entry(self, peer: Peer, members: int) -> tuple[object, ...]:
        """The words with which a peer joins, under a name of its own."""
        self._joined += 1
        return self.address, f"p{peer.slot}.{self._joined}", members, self.deadline_s

    def fill_up(self, world: int) -> None:
        """The first `world` members, joined."""
        forked = self.fork(range(world))
        for peer in forked:
            peer.line.send("join", *self.entry(peer, world))
        self.answers(forked)

    def living(self, but: Sequence[int] = ()) -> list[Peer]:
        return [peer for slot, peer in self.peers.items() if slot not in but]

    def mask(self, but: Sequence[int] = ()) -> int:
        """What the sum of all their contributions is."""
        return sum(peer.own for peer in self.living(but))

    def order(self, *words: object, to: Sequence[Peer] | None = None) -> list[list[str]]:
        """The same order to all (to some), and their answers."""
        peers = self.living() if to is None else to
        for peer in peers:
            peer.line.send(*words)
        return self.answers(peers)

    def answers(self, peers: Sequence[Peer]) -> list[list[str]]:
        """One answer of each. Raises PcclError, ResourceError: what one says, or that it ended."""
        try:
            return gather([peer.line for peer in peers], ANSWER_S)
        except ResourceError as error:
            said = self._nursery.last_words()
            raise ResourceError(f"{error.strerror}: {said}" if said else error.strerror) from None

    def soon_ns(self) -> int:
        """A common start that everybody will hear of in time."""
        return time.monotonic_ns() + int(LEAD_S * (1 + len(self.peers) / 4) * 1e9)

    def kill(self, slot: int, signal_number: int = signal.SIGKILL) -> int:
        """Sends it; when, in monotonic nanoseconds. Not reaped yet: see `bury`."""
        at_ns = time.monotonic_ns()
        os.kill(self.peers[slot].pid, signal_number)
        return at_ns

    def bury(self, slots: Iterable[int]) -> None:
        """Ends and forgets peers, whatever they are doing."""
        for slot in slots:
            self._nursery.kill(self.peers.pop(slot))

    def end(self) -> None:
        self.bury(list(self.peers))
        self._coordinator.stop()


@contextmanager
def opened(nursery: Nursery, deadline_s: float) -> Iterator[Stage]:
    """A stage with no peers yet."""
    with tempfile.TemporaryDirectory(prefix="pccl-faults-") as folder:
        stage = Stage(nursery, Path(folder), deadline_s)
        try:
            yield stage
        finally:
            stage.end()


def by_slot(peers: Sequence[Peer], answers: Sequence[Sequence[str]]) -> Mapping[int, list[int]]:
    """The numbers of each peer's answer, without its first word."""
    return {
        peer.slot: [int(word) for word in words[1:]]
        for peer, words in zip(peers, answers, strict=True)
    }
