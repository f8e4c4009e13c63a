"""Leave to use a congestion control inside a namespace: the kernel refuses there what the machine's
list of allowed ones lacks. Called by `Network` while the link makes its hosts.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from stress.wan import build
from stress.wan.settings import WanUnavailable

ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


@contextlib.contextmanager
def congestion_allowed(name: str | None) -> Iterator[None]:
    """Within it `name` may be set inside namespaces; afterwards the list is as before.

    Raises:
        WanUnavailable: this kernel does not have it.
    """
    if name is None:
        yield
        return
    if name not in AVAILABLE.read_text().split():
        raise WanUnavailable(f"no congestion control {name!r}: {AVAILABLE.read_text().strip()}")
    build.OUTDIR.mkdir(parents=True, exist_ok=True)
    with (build.OUTDIR / "congestion.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one changer of the machine's list at a time
        before = ALLOWED.read_text()
        if name not in before.split():
            ALLOWED.write_text(f"{before.strip()} {name}")
        try:
            yield
        finally:
            if name not in before.split():
                ALLOWED.write_text(before)
