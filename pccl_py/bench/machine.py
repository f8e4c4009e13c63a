"""The machine that a number was measured on, in a few facts. Linux; called by the command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PACKAGES = ("pccl-py", "torch", "numpy")


def facts(also: Sequence[tuple[str, str]] = ()) -> Sequence[str]:
    """CPU, memory, kernel and versions, a line each. also: more names and versions."""
    return (
        f"CPU: {_named('/proc/cpuinfo', 'model name') or platform.machine()}, {_cores()}",
        f"memory: {(_kib('MemTotal') or 0) / 2**20:.0f} GiB",
        f"kernel: {platform.system()} {platform.release()}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in (*_versions(), *also)),
    )


@dataclass(frozen=True, slots=True)
class Moment:
    """busy_s: CPU time of the whole machine since it started; own_s: that of this process and its
    ended children. Seconds."""

    at_s: float
    busy_s: float
    own_s: float


def moment(stat: Path = Path("/proc/stat")) -> Moment | None:
    """Now; None where the kernel does not say."""
    try:
        words = stat.read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:
        return None
    ticks = [int(word) for word in words[1:9]]  # user nice system idle iowait irq softirq steal
    busy = sum(ticks) - sum(ticks[3:5])
    return Moment(time.monotonic(), busy / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4]))


def others(since: Moment | None, until: Moment | None) -> Sequence[str]:
    """A line that says how much of the CPU other programs had meanwhile: how far to trust it."""
    if since is None or until is None or until.at_s <= since.at_s:
        return ()
    theirs_s = (until.busy_s - since.busy_s) - (until.own_s - since.own_s)
    share = theirs_s / (until.at_s - since.at_s) / (os.cpu_count() or 1)
    return (f"other programs had {min(1.0, max(0.0, share)):.0%} of the CPU meanwhile",)


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the kernel does not say."""
    kib = _kib("MemAvailable")
    return None if kib is None else kib << 10


def _cores() -> str:
    return f"{len(os.sched_getaffinity(0))} cores usable of {os.cpu_count()}"


def _versions() -> Sequence[tuple[str, str]]:
    found = [("Python", platform.python_version())]
    for name in _PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _kib(name: str) -> int | None:
    words = _named("/proc/meminfo", name).split()
    return int(words[0]) if words else None


def _named(path: str, name: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
    values = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in values if key.strip() == name), "")
