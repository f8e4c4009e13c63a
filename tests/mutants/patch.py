"""A rule switched off in the real code, by replacing a short text of its source.

Python: the function around the text runs the code of the changed source (`in_python`), whoever has
imported it. C: the changed file is compiled and linked with the objects of all the others (`Cores`,
without optimisation: a second once, then two tenths each), beside the sources, never into them.
Where the text is not there exactly once `PatchError` says so: the rule has moved, and the table of
mutants must follow.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import pytest
from cffi import FFI

from pccl_py.dataplane import build

ROOT = build.ROOT
Edits = Sequence[tuple[str, str]]


class PatchError(Exception):
    """A text that is to be replaced is not there exactly once."""


def changed(path: str, edits: Edits) -> str:
    """The source with each text replaced by another, (old, new)."""
    text = (ROOT / path).read_text(encoding="utf-8")
    for old, new in edits:
        count = text.count(old)
        if count != 1:
            what = f"{count} times, not once: {old!r}"
            raise PatchError(f"the patch of {path} no longer applies: {what}")
        text = text.replace(old, new)
    return text


# ---------------------------------------------------------------- Python


def in_python(monkeypatch: pytest.MonkeyPatch, path: str, edits: Edits) -> None:
    """Switch it off until the test is over."""
    name = path.removesuffix(".py").replace("/", ".")
    mutant = ModuleType(name)
    exec(compile(changed(path, edits), path, "exec"), mutant.__dict__)
    original = (ROOT / path).read_text(encoding="utf-8")
    tree = ast.parse(original)
    for old, _ in edits:
        around = _function_at(tree, original.count("\n", 0, original.index(old)) + 1)
        if not around:
            raise PatchError(f"{path}: no function around {old!r}")
        target = _find(importlib.import_module(name), around)
        monkeypatch.setattr(target, "__code__", _find(mutant, around).__code__)


def _function_at(tree: ast.Module, line: int) -> list[str]:
    """The names of the function, and of the class that it is in, around a line."""
    for outer in tree.body:
        if not isinstance(outer, (ast.FunctionDef, ast.ClassDef)):
            continue
        if not outer.lineno <= line <= (outer.end_lineno or 0):
            continue
        if isinstance(outer, ast.FunctionDef):
            return [outer.name]
        for inner in outer.body:
            if isinstance(inner, ast.FunctionDef) and (
                inner.lineno <= line <= (inner.end_lineno or 0)
            ):
                return [outer.name, inner.name]
    return []


def _find(module: ModuleType, names: Iterable[str]) -> FunctionType:
    found: Any = module
    for name in names:
        found = found.__dict__[name]
    if isinstance(found, property):
        found = found.fget
    elif isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    assert isinstance(found, FunctionType)
    return found


# ---------------------------------------------------------------- C


class Cores:
    """Mutated pure cores, built in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ffi = FFI()
        self.ffi.cdef(build.declarations(ROOT / build.HEADER, types_only=True))
        for header in build.CORE_HEADERS:
            self.ffi.cdef(build.declarations(ROOT / build.SOURCES / header))
        self.objects: dict[str, Path] = {}
        sources = build.c_sources(ROOT, pure_only=True)
        for path in sources:
            self.objects[str(path)] = folder / f"{path.stem}.o"
        _run("gcc", *self._flags(), "-c", *(str(ROOT / path) for path in sources), cwd=folder)

    def mutant(self, number: int, path: str, edits: Edits) -> SimpleNamespace:
        """`lib` and `ffi` of a core with this change, as those of the module that tests use."""
        source = self.folder / f"mutant{number}.c"
        source.write_text(changed(path, edits), encoding="utf-8")
        obj, library = source.with_suffix(".o"), source.with_suffix(".so")
        _run("gcc", *self._flags(), "-c", str(source), "-o", str(obj), cwd=self.folder)
        others = [str(other) for name, other in self.objects.items() if name != path]
        _run("gcc", "-shared", "-o", str(library), str(obj), *others, "-lm", cwd=self.folder)
        return SimpleNamespace(ffi=self.ffi, lib=self.ffi.dlopen(str(library)))

    def _flags(self) -> list[str]:
        left_out = ("-O3", "-fvisibility=hidden")
        includes = [f"-I{ROOT / path}" for path in build.INCLUDE_DIRS]
        kept = [flag for flag in build.FLAGS if flag not in left_out]
        return [*kept, "-O0", "-w", "-fPIC", *includes]


def _run(*command: str, cwd: Path) -> None:
    subprocess.run(command, check=True, cwd=cwd, timeout=100)
