"""The bare C ring that nothing over TCP can beat by much: found, built on demand.

Its source lies in native/ceiling and is not part of an installed package, where the comparison is
then unavailable. Called by `crew`; the binary is kept in build/ of the source tree.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from pccl_py.errors import ResourceError, UsageError

SEGMENTS = (16 << 10, 64 << 10, 256 << 10, 1 << 20)
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O3", "-march=native")
BUILD_S = 60.0
_ROOT = Path(__file__).resolve().parents[2]
_SOURCE = Path("native/ceiling/ceiling.c")


def built(root: Path = _ROOT) -> Path:
    """The program, built when its source is newer. Raises UsageError (no source, no compiler),
    ResourceError (it does not compile)."""
    source, program = root / _SOURCE, root / "build" / "ceiling"
    if not source.is_file():
        raise UsageError("--vs ceiling is built from the source tree: this package is installed")
    if program.is_file() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise UsageError("--vs ceiling needs a C compiler (gcc or cc)")
    program.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as folder:
        fresh = Path(folder) / "ceiling"  # renamed when whole: two may build at once
        command = [compiler, *FLAGS, str(source), "-o", str(fresh)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S, check=False)
        if ran.returncode != 0:
            raise ResourceError(f"the ceiling does not compile: {ran.stderr.strip()[:300]}")
        os.replace(fresh, program)
    return program
