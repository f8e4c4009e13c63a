"""Builds the link, the C half of the emulator, when it is missing or stale. Called by `Network`."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

from stress.wan.settings import WanUnavailable

ROOT = Path(__file__).resolve().parents[2]
OUTDIR = ROOT / "build" / "wan"
SANITIZERS = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"


def link(outdir: Path = OUTDIR, cflags: str = "-O2") -> Path:
    """The path of the link's program in `outdir`, one builder at a time.

    Raises:
        WanUnavailable: no make or no compiler.
        RuntimeError: it does not compile, with the compiler's words.
    """
    missing = [tool for tool in ("make", "cc") if shutil.which(tool) is None]
    if missing:
        raise WanUnavailable(f"the WAN emulator needs {' and '.join(missing)} to build its link")
    outdir.mkdir(parents=True, exist_ok=True)
    command = ["make", "-s", "-f", "native/wan/Makefile", f"OUT={outdir}", f"CFLAGS={cflags}"]
    with (outdir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
        )
    if made.returncode != 0:
        raise RuntimeError(f"the link does not build:\n{made.stdout}{made.stderr}")
    return outdir / "link"
