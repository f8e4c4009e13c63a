"""A wide-area network of hosts on one machine, as a context manager: starts the link (native/wan),
speaks to its control socket, starts programs inside the hosts, and ends all of it. What the packets
meet is decided in the link; what a bare stream reaches is measured in measure.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeAlias

from stress.wan import build, measure, sysctl
from stress.wan.settings import Settings, WanUnavailable, check_hosts

ANSWER_BYTES_MAX = 64 * 1024
ANSWER_S = 20.0
ENTRY_POLL_S = 0.001
TUN = Path("/dev/net/tun")
TUN_NUMBER = (10, 200)

# Buffers for long fat pipes, as an operator of such machines would set them; no memory of earlier
# connections, so that runs do not depend on each other; super-segments of full size whatever the
# round trip, so that two slow cores carry some Gbit/s (the link sees to the packets inside).
SYSCTLS = {
    "net.ipv4.tcp_rmem": "4096 131072 67108864",
    "net.ipv4.tcp_wmem": "4096 131072 67108864",
    "net.ipv4.tcp_no_metrics_save": "1",
    "net.ipv4.tcp_tso_rtt_log": "20",
}

Stream: TypeAlias = int | IO[bytes] | None


@dataclass(frozen=True, slots=True)
class HostStats:
    """Packets on the wire (each piece of a super-segment is one), their bytes with headers."""

    sent_packets: int
    sent_bytes: int
    delivered_packets: int  # to this host
    delivered_bytes: int
    lost_packets: int  # by chance; this and the next two: sent by this host
    queue_dropped_packets: int
    cut_packets: int


@dataclass(frozen=True, slots=True)
class Stats:
    late_ms_max: float  # how late, at worst, the link handed a packet over since the last look
    refused_packets: int  # by the receiving kernel
    other_packets: int  # to no host of ours (multicast and the like)
    frames_bytes: int  # memory of packets in flight
    hosts: tuple[HostStats, ...]


class Network:
    """`with Network(hosts=4, rtt_ms=100, rate_mbit=1000) as net: net.run(0, ["ping", ...])`.

    Each host has its own loopback, addresses and ports, and reaches only the other hosts. Leaving
    the block, by whatever way, kills what runs inside; so does the death of this process.

    Args:
        hosts: 1 to 64, named by index from 0.
        rtt_ms, rate_mbit, flow_mbit, loss, jitter_ms, queue_ms: see `Settings`.
        seed: of loss and jitter; equal seeds lose the same packets by pair and number.
        mtu: IP bytes, 1280 to 9000.
        congestion: TCP congestion control inside, None for the machine's default.
        sysctls: more of /proc/sys, by dotted name, for each host.
        link: the link's program, None builds it.
    """

    def __init__(
        self, hosts: int = 2, *, rtt_ms: float = 100.0, rate_mbit: float = 1000.0,
        flow_mbit: float = 0.0, loss: float = 0.0, jitter_ms: float = 0.0,
        queue_ms: float = 100.0, seed: int = 1, mtu: int = 1500, congestion: str | None = None,
        sysctls: Mapping[str, str] | None = None, link: Path | None = None,
    ) -> None:  # fmt: skip
        self.hosts = check_hosts(hosts)
        self.settings = Settings(rtt_ms, rate_mbit, flow_mbit, loss, jitter_ms, queue_ms)
        self.seed = seed
        if not 1280 <= mtu <= 9000:
            raise ValueError(f"mtu={mtu!r}: from 1280 to 9000")
        self.mtu = mtu
        self._sysctls = {**SYSCTLS, **(sysctls or {})}
        if congestion is not None:
            self._sysctls["net.ipv4.tcp_congestion_control"] = congestion
        self._program = link
        self._link: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._asking = threading.Lock()  # one command and its answer at a time
        self._namespaces: list[str] = []
        self._inside: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        """Builds and starts the link, makes the hosts.

        Raises:
            WanUnavailable: no root, no compiler, no TUN device, or the kernel refuses.
        """
        demand_root()
        program = self._program or build.link()
        try:
            self._start(program)
            self._apply(self.settings)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._close()

    def _start(self, program: Path) -> None:
        settings = [f"{name.replace('.', '/')}={text}" for name, text in self._sysctls.items()]
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(ANSWER_S)
        congestion = self._sysctls.get("net.ipv4.tcp_congestion_control")
        with theirs, sysctl.congestion_allowed(congestion):
            fd = theirs.fileno()
            numbers = [str(fd), str(self.hosts), str(self.mtu), str(self.seed)]
            self._link = subprocess.Popen(
                [program, *numbers, *settings], pass_fds=(fd,), start_new_session=True,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            theirs.close()  # so that the link's death is seen
            head, _, rest = self._receive(self._control).partition(" ")
        if head != "ready":
            kind = WanUnavailable if rest.endswith(os.strerror(errno.EPERM)) else RuntimeError
            raise kind(f"the WAN emulator's link cannot start: {rest or 'it died'}")
        self._namespaces = [f"/proc/{self._link.pid}/fd/{fd}" for fd in rest.split()]

    def _close(self) -> None:
        """Kills what runs inside, and ends the link and with it the hosts. Idempotent.

        Raises:
            RuntimeError: the link had died, or died of this (a sanitizer's finding, for one).
        """
        was_up = bool(self._namespaces)
        self._namespaces.clear()
        if self._control is not None:
            # Not only close: a forked child of ours may hold the socket too.
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
            self._control.close()
            self._control = None
        link, self._link = self._link, None
        if link is not None:
            try:
                link.wait(timeout=10)
            except subprocess.TimeoutExpired:
                link.kill()
                link.wait()
        for process in self._inside:
            process.kill()
            process.wait()
        self._inside.clear()
        if was_up and link is not None and link.returncode != 0:
            raise RuntimeError(f"the WAN emulator's link ended with status {link.returncode}")

    @staticmethod
    def _receive(control: socket.socket) -> str:
        return control.recv(ANSWER_BYTES_MAX).decode()

    def _ask(self, command: str) -> str:
        if self._control is None:
            raise RuntimeError("the network is not up: use it inside its with block")
        with self._asking:
            self._control.send(command.encode())
            answer = self._receive(self._control)
        if not answer or answer.startswith("error"):
            raise RuntimeError(f"link: {command}: {answer or 'it died'}")
        return answer

    def _apply(self, values: Settings, host: int = -1, pair: tuple[int, int] = (-1, -1)) -> None:
        for way in (pair, pair[::-1]):
            at = f"{way[0]} {way[1]}"
            self._ask(f"set delay {values.rtt_ms * 1e6 / 2:.0f} {at}")
            self._ask(f"set jitter {values.jitter_ms * 1e6:.0f} {at}")
            self._ask(f"set loss {values.loss!r} {at}")
        if pair != (-1, -1):
            return
        self._ask(f"set up {values.rate_mbit * 1e6} {host} -1")
        self._ask(f"set down {values.rate_mbit * 1e6} {host} -1")
        self._ask(f"set flow {values.flow_mbit * 1e6} -1 -1")
        self._ask(f"set queue {values.queue_ms * 1e6:.0f} -1 -1")

    def set(self, **changes: float) -> None:
        """Changes values of `Settings` by name, everywhere, for packets sent from now on."""
        self.settings = dataclasses.replace(self.settings, **changes)
        self._apply(self.settings)

    def set_host(self, host: int, *, up_mbit: float, down_mbit: float) -> None:
        """One host's own rates, until the next `set`."""
        self._ask(f"set up {up_mbit * 1e6} {self._index(host)} -1")
        self._ask(f"set down {down_mbit * 1e6} {host} -1")

    def set_pair(
        self, a: int, b: int, *, rtt_ms: float | None = None, loss: float | None = None,
        jitter_ms: float | None = None,
    ) -> None:  # fmt: skip
        """The path between two hosts, both ways, until the next `set`; None is the network's."""
        given = {"rtt_ms": rtt_ms, "loss": loss, "jitter_ms": jitter_ms}
        changes = {name: value for name, value in given.items() if value is not None}
        values = dataclasses.replace(self.settings, **changes)
        self._apply(values, pair=(self._index(a), self._index(b)))

    def cut(self, a: int, b: int) -> None:
        """Nothing passes between a and b, either way, as if it fell into a hole."""
        for src, dst in ((a, b), (b, a)):
            self._ask(f"set cut 1 {self._index(src)} {self._index(dst)}")

    def heal(self, a: int, b: int) -> None:
        for src, dst in ((a, b), (b, a)):
            self._ask(f"set cut 0 {self._index(src)} {self._index(dst)}")

    def stats(self) -> Stats:
        raw = json.loads(self._ask("stats"))
        return Stats(
            late_ms_max=raw["late_ns_max"] / 1e6,
            refused_packets=raw["refused_packets"],
            other_packets=raw["other_packets"],
            frames_bytes=raw["frames_bytes"],
            hosts=tuple(HostStats(**host) for host in raw["hosts"]),
        )

    def _index(self, host: int) -> int:
        if not 0 <= host < self.hosts:
            raise ValueError(f"host {host!r}: from 0 to {self.hosts - 1}")
        return host

    def address(self, host: int, *, v6: bool = False) -> str:
        """The address by which the others reach the host."""
        number = self._index(host) + 1
        return f"fd77::{number:x}" if v6 else f"10.77.0.{number}"

    def namespace(self, host: int) -> str:
        """The path by which a program enters the host (nsenter --net=PATH, setns)."""
        self._index(host)
        if not self._namespaces:
            raise RuntimeError("the network is not up: use it inside its with block")
        return self._namespaces[host]

    def run(
        self, host: int, argv: Sequence[str], *, stdin: Stream = None, stdout: Stream = None,
        stderr: Stream = None, env: Mapping[str, str] | None = None, cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        """Starts a program inside the host, its pid the Popen's; killed with the network at last.

        The other arguments are those of `subprocess.Popen`.
        """
        process = subprocess.Popen(
            ["nsenter", f"--net={self.namespace(host)}", "--", *argv],
            stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd,
        )  # fmt: skip
        self._inside.append(process)
        # Until it is inside, the link would not know to kill it.
        inode = os.stat(self.namespace(host)).st_ino
        while process.poll() is None and not _is_in(process.pid, inode):
            time.sleep(ENTRY_POLL_S)
        return process

    def calibrate(self, *, ring: bool = False, seconds: float = 2.0) -> measure.Measured:
        """Measures bare streams without loss; see `measure.calibrate`.

        Raises:
            measure.NotFaithful: they reach less than 97 % of what is configured, so shares of the
                capacity measured here would mean nothing.
        """
        return measure.calibrate(self, ring=ring, seconds=seconds)


def _is_in(pid: int, namespace_inode: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino == namespace_inode
    except OSError:  # it is ending; the caller polls it
        return False


def demand_root() -> None:
    """Raises WanUnavailable unless namespaces and TUN devices can be had."""
    if os.geteuid() != 0:
        raise WanUnavailable(
            "the WAN emulator needs root for its namespaces; ProxyNetwork works without"
        )
    if shutil.which("nsenter") is None:
        raise WanUnavailable("the WAN emulator needs nsenter (package util-linux)")
    if not TUN.exists():
        try:
            TUN.parent.mkdir(exist_ok=True)
            os.mknod(TUN, 0o600 | stat.S_IFCHR, os.makedev(*TUN_NUMBER))
        except OSError as error:
            raise WanUnavailable(f"no {TUN}, and it cannot be made: {error}") from error
