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
_SOURCES = Path("native/ceiling")


def built(root: Path = _ROOT) -> Path:
    """The program, built when one of its sources is newer. Raises UsageError (no sources, no
    compiler), ResourceError (it does not compile)."""
    sources, program = sorted((root / _SOURCES).glob("*.[ch]")), root / "build" / "ceiling"
    if not sources:
        raise UsageError("--vs ceiling is built from the source tree: this package is installed")
    newest = max(source.stat().st_mtime for source in sources)
    if program.is_file() and program.stat().st_mtime > newest:
        return program
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise UsageError("--vs ceiling needs a C compiler (gcc or cc)")
    program.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as folder:
        fresh = Path(folder) / "ceiling"  # renamed when whole: two may build at once
        units = [str(source) for source in sources if source.suffix == ".c"]
        command = [compiler, *FLAGS, *units, "-o", str(fresh)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S, check=False)
        if ran.returncode != 0:
            raise ResourceError(f"the ceiling does not compile: {ran.stderr.strip()[:300]}")
        os.replace(fresh, program)
    return program
