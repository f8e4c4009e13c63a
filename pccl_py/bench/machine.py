"""The machine that a number was measured on, in a few facts. Linux; called by the command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
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
