"""A wide-area network of hosts on one machine, as a context manager: starts the link (native/wan),
speaks to its control socket, starts programs inside the hosts, and ends all of it. What the packets
meet is decided in the link; what a bare stream reaches is measured in measure.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeAlias

from stress.wan import build, measure, sysctl
from stress.wan.settings import Settings, WanUnavailable, check_hosts

ANSWER_BYTES_MAX = 64 * 1024
ANSWER_S = 20.0
TUN = Path("/dev/net/tun")
TUN_NUMBER = (10, 200)

# Buffers for long fat pipes, as an operator of such machines would set them; no memory of earlier
# connections, so that runs do not depend on each other.
SYSCTLS = {
    "net.ipv4.tcp_rmem": "4096 131072 67108864",
    "net.ipv4.tcp_wmem": "4096 131072 67108864",
    "net.ipv4.tcp_no_metrics_save": "1",
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
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

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
            raise WanUnavailable(f"the kernel refuses the WAN emulator: {rest or 'link died'}")
        self._namespaces = [f"/proc/{self._link.pid}/fd/{fd}" for fd in rest.split()]

    def close(self) -> None:
        """Kills what runs inside, and ends the link and with it the hosts. Idempotent."""
        if self._control is not None:
            # Not only close: a forked child of ours may hold the socket too.
            self._control.shutdown(socket.SHUT_RDWR)
            self._control.close()
            self._control = None
        if self._link is not None:
            try:
                self._link.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._link.kill()
                self._link.wait()
            self._link = None
        for process in self._inside:
            process.kill()
            process.wait()
        self._inside.clear()
        self._namespaces.clear()

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

    def command(self, host: int, argv: Sequence[str]) -> list[str]:
        """argv as it must be run from outside to run inside the host; its pid stays its own."""
        self._index(host)
        if not self._namespaces:
            raise RuntimeError("the network is not up: use it inside its with block")
        return ["nsenter", f"--net={self._namespaces[host]}", "--", *argv]

    def run(
        self, host: int, argv: Sequence[str], *, stdin: Stream = None, stdout: Stream = None,
        stderr: Stream = None, env: Mapping[str, str] | None = None, cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        """Starts a program inside the host; it is killed at the end of the network if still there.

        The other arguments are those of `subprocess.Popen`.
        """
        process = subprocess.Popen(
            self.command(host, argv),
            stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd,
        )  # fmt: skip
        self._inside.append(process)
        return process

    def calibrate(self, *, ring: bool = False, seconds: float = 2.0) -> measure.Measured:
        """Measures bare streams without loss; see `measure.calibrate`.

        Raises:
            measure.NotFaithful: they reach less than 97 % of what is configured, so shares of the
                capacity measured here would mean nothing.
        """
        return measure.calibrate(self, ring=ring, seconds=seconds)


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
