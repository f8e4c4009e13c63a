"""Builds our C with cffi, fed by our own headers: the engine that is installed, and the pure core.

Called by setuptools (`engine_builder`, see setup.py) and by the tests and the Makefile
(`python -m pccl_py.dataplane.build --core OUTDIR`, a module `_pccl_core` that is never installed).
It decides which files make up each module and with which flags; it runs before the package is
built, so it imports nothing of it and must not know what the functions do. Warning flags are not
here: they are for our own sources in `make check`, never for a user's compiler.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cffi import FFI

ENGINE_MODULE = "pccl_py.dataplane._pccl"
CORE_MODULE = "_pccl_core"
ROOT = Path(__file__).resolve().parents[2]
HEADER = Path("native/include/pccl.h")
SOURCES = Path("native/src")
INCLUDE_DIRS = ("native/include", "native/src")
# The shell: what touches sockets, threads and clocks. All other sources are the pure core.
SHELL = "beats conn drive io net opcopy paths pccl submit viewcopy"
CORE_HEADERS = ("reduce.h", "mean.h", "crc.h", "grow.h", "pace.h", "core.h")
FLAGS = (
    "-std=c11",
    "-O3",
    "-ffp-contract=off",
    "-fno-trapping-math",  # the loops over halves vectorise; changes no value
    "-fvisibility=hidden",
    "-pthread",
    "-D_GNU_SOURCE",
)
BEGIN = "/* cffi-begin */"
FUNCTIONS = "/* cffi-functions */"
END = "/* cffi-end */"


def declarations(header: Path, *, types_only: bool = False) -> str:
    """The text of `header` between its cffi markers, in order if there are several pairs.

    types_only: up to the marker that separates the types from the functions.
    Raises ValueError if a marker is missing.
    """
    parts = header.read_text(encoding="utf-8").split(BEGIN)[1:]
    if not parts or any(END not in part for part in parts):
        raise ValueError(f"{header}: no text between {BEGIN} and {END}")
    text = "\n".join(part.split(END)[0] for part in parts)
    if not types_only:
        return text
    if FUNCTIONS not in text:
        raise ValueError(f"{header}: no {FUNCTIONS}")
    return text.split(FUNCTIONS)[0]


def c_sources(root: Path, *, pure_only: bool = False) -> list[Path]:
    """Our C files under `root`, sorted, relative to it; pure_only leaves the shell out."""
    found = sorted(path.relative_to(root) for path in (root / SOURCES).glob("*.c"))
    if not pure_only:
        return found
    return [path for path in found if path.stem not in SHELL.split()]


def inputs(root: Path) -> list[Path]:
    """Every file that a build of our C depends on, sorted, relative to `root`."""
    headers = [p.relative_to(root) for d in INCLUDE_DIRS for p in (root / d).glob("*.h")]
    return sorted([*c_sources(root), *headers, Path("pccl_py/dataplane/build.py")])


def engine_builder() -> FFI:
    """The engine, for setuptools, which wants paths relative to setup.py, its working directory."""
    ffi = FFI()
    ffi.cdef(declarations(ROOT / HEADER))
    ffi.set_source(
        ENGINE_MODULE,
        '#include "pccl.h"',
        sources=[str(path) for path in c_sources(ROOT)],
        include_dirs=list(INCLUDE_DIRS),
        depends=[str(path) for path in inputs(ROOT)],
        extra_compile_args=list(FLAGS),
        extra_link_args=["-pthread"],
    )
    return ffi


def core_builder() -> FFI:
    """The pure core and the kernels, for tests: no thread, no socket, no clock."""
    headers = [n for n in CORE_HEADERS if (ROOT / SOURCES / n).with_suffix(".c").exists()]
    ffi = FFI()
    ffi.cdef(declarations(ROOT / HEADER, types_only=True))
    for name in headers:
        ffi.cdef(declarations(ROOT / SOURCES / name))
    ffi.set_source(
        CORE_MODULE,
        "\n".join(f'#include "{name}"' for name in ("pccl.h", *headers)),
        sources=[str(ROOT / path) for path in c_sources(ROOT, pure_only=True)],
        include_dirs=[str(ROOT / path) for path in INCLUDE_DIRS],
        extra_compile_args=list(FLAGS),
        extra_link_args=["-pthread"],
    )
    return ffi


def build_core(outdir: Path) -> Path:
    """Builds the core module into `outdir`; returns the shared object's path."""
    outdir.mkdir(parents=True, exist_ok=True)
    return Path(core_builder().compile(tmpdir=str(outdir)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Build the pure C core for tests.")
    parser.add_argument("--core", metavar="OUTDIR", type=Path, required=True)
    print(build_core(parser.parse_args(argv).core))


if __name__ == "__main__":
    main()
