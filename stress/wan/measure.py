"""What a bare TCP stream reaches on a network, and whether the network can be believed: before a
share of its capacity is reported, bare streams without loss must reach 97 % of it. Called by
`Network.calibrate` and by the probe command.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from stress.wan import sysctl

if TYPE_CHECKING:
    from stress.wan.net import Network

SHARE_MIN = 0.97
STREAM = str(Path(__file__).with_name("stream.py"))
# Slow start and what it breaks take some round trips to settle.
WARM_S_MIN = 1.0
WARM_ROUND_TRIPS = 40


class NotFaithful(RuntimeError):
    """The emulator, on this machine now, does not give what it was told to give."""


@dataclass(frozen=True, slots=True)
class Measured:
    streams: int  # between each pair of hosts
    mbit: float  # payload, of the slowest pair
    capacity_mbit: float  # payload that the settings allow; inf when unlimited
    late_ms_max: float  # of the link meanwhile

    @property
    def share(self) -> float:
        return self.mbit / self.capacity_mbit


def _line(stream: IO[bytes] | None) -> str:
    assert stream is not None, "run with a pipe"
    return stream.readline().decode()


def bare_streams(
    net: Network, pairs: list[tuple[int, int]], streams: int, *, seconds: float, warm_s: float,
    congestion: str = "",
) -> Measured:  # fmt: skip
    """`streams` TCP streams from a to b for each (a, b) of `pairs`, all at once.

    Counts `seconds` of payload, from warm_s on; congestion "" is the hosts' default.

    Raises:
        RuntimeError: a stream ended early.
    """
    python = [sys.executable, "-S", "-E", STREAM]
    sinks: list[subprocess.Popen[bytes]] = []
    net.stats()  # from here on lateness counts
    sources: list[subprocess.Popen[bytes]] = []
    try:
        for _, dst in pairs:
            argv = [*python, "sink", net.address(dst), str(streams)]
            sinks.append(net.run(dst, argv, stdout=subprocess.PIPE))
        for (src, dst), process in zip(pairs, sinks, strict=True):
            port = _line(process.stdout).strip()
            numbers = [port, str(streams), str(warm_s), str(seconds)]
            argv = [*python, "source", net.address(dst), *numbers, congestion]
            sources.append(net.run(src, argv, stdout=subprocess.PIPE))
        lines = [_line(process.stdout) for process in sources]
    finally:
        for process in sources + sinks:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
    if not all(lines):
        raise RuntimeError("a bare stream ended early")
    results = [json.loads(line) for line in lines]
    return Measured(
        streams=streams,
        mbit=min(result["bytes"] * 8e-6 / result["seconds"] for result in results),
        capacity_mbit=net.settings.capacity_mbit(net.mtu, streams),
        late_ms_max=net.stats().late_ms_max,
    )


def warm_s(net: Network) -> float:
    return max(WARM_S_MIN, WARM_ROUND_TRIPS * net.settings.rtt_ms / 1e3)


def pairs_of(net: Network, *, ring: bool) -> list[tuple[int, int]]:
    """From host 0 to host 1, or from each to the next, as a ring all-reduce sends."""
    if not ring:
        return [(0, 1)]
    return [(host, (host + 1) % net.hosts) for host in range(net.hosts)]


def filling(rate_mbit: float, flow_mbit: float) -> int:
    """How many streams fill the link, or nearly, without having to fight for it."""
    if flow_mbit <= 0 or flow_mbit >= rate_mbit:
        return 2
    return int(rate_mbit / flow_mbit)


def calibrate(net: Network, *, ring: bool, seconds: float) -> Measured:
    """Bare streams without loss and jitter, as many as fill the link, with a queue of at least one
    round trip and cubic, which keeps such a queue filled (bbr yields some percent when its streams
    contend). So what is missing is missing in the emulator.

    Raises:
        NotFaithful: less than 97 % of the payload capacity.
        ValueError: the rate is unlimited, so no share exists.
    """
    before = net.settings
    if before.rate_mbit <= 0:
        raise ValueError("a network of unlimited rate has no capacity to calibrate against")
    streams = filling(before.rate_mbit, before.flow_mbit)
    net.set(loss=0.0, jitter_ms=0.0, queue_ms=max(before.queue_ms, before.rtt_ms, 20.0))
    try:
        measured = bare_streams(
            net, pairs_of(net, ring=ring), streams,
            seconds=seconds, warm_s=warm_s(net), congestion=calibration_congestion(),
        )  # fmt: skip
    finally:
        net.set(loss=before.loss, jitter_ms=before.jitter_ms, queue_ms=before.queue_ms)
    if measured.share < SHARE_MIN:
        raise NotFaithful(
            f"{streams} bare streams{' around the ring' if ring else ''} reach "
            f"{measured.mbit:.0f} of {measured.capacity_mbit:.0f} Mbit/s "
            f"({measured.share:.1%}, at least {SHARE_MIN:.0%} is needed; packets up to "
            f"{measured.late_ms_max:.1f} ms late): this machine is too slow or too busy for these "
            "settings, so no share of the capacity is reported"
        )
    return measured


def calibration_congestion() -> str:
    """cubic where the kernel has it, else its default."""
    return "cubic" if "cubic" in sysctl.AVAILABLE.read_text().split() else ""
