"""The layer table of DESIGN §4, held: imports point down, and what decides touches no world.

Every module is read as a syntax tree, imports inside functions and under TYPE_CHECKING included.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "pccl_py"

# The longest matching prefix decides. A package's own __init__ has the package's layer.
LAYERS = {
    "pccl_py.errors": 0,
    "pccl_py.types": 0,
    "pccl_py.config": 0,
    "pccl_py.protocol": 1,
    "pccl_py.arguments": 1,
    "pccl_py.coordinator": 2,
    "pccl_py.peer": 2,
    "pccl_py.dataplane": 3,
    "pccl_py.coordinator.journal": 4,
    "pccl_py.coordinator.etcd_client": 4,
    "pccl_py.coordinator.etcd_store": 4,
    "pccl_py.coordinator.server": 4,
    "pccl_py.coordinator.tenure": 4,
    "pccl_py.coordinator.sockets": 4,
    "pccl_py.peer.control": 4,
    "pccl_py.peer.calls": 4,
    "pccl_py.communicator": 5,
    "pccl_py.collectives": 5,
    "pccl_py.exchanges": 5,
    "pccl_py.keywords": 5,
    "pccl_py.subgroup": 5,
    "pccl_py.among": 5,
    "pccl_py.roster": 5,
    "pccl_py.flight": 5,
    "pccl_py.joining": 5,
    "pccl_py.work": 5,
    "pccl_py.state_sync": 5,
    "pccl_py.forks": 4,
    "pccl_py.peer.address": 4,
    "pccl_py.coordinator.embedded": 5,
    "pccl_py.optim": 6,
    "pccl_py.torch": 6,
    "pccl_py.data": 6,
    "pccl_py.bench": 6,
    "pccl_py.report": 6,
    "pccl_py.trace": 6,
    "pccl_py.launch": 6,
    "pccl_py.cli": 7,
    "pccl_py.__main__": 7,
}
TOP = 7  # pccl_py/__init__.py: public names and nothing else

# All that a module of layer 2 may import from outside the package.
PURE_STDLIB = {
    "__future__", "base64", "binascii", "bisect", "collections", "dataclasses", "enum", "functools",
    "hashlib", "heapq", "itertools", "json", "math", "operator", "types", "typing",
}  # fmt: skip
IMPURE_BUILTINS = {"open", "print", "input", "exec", "eval"}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def layer(module: str) -> int:
    if module == PACKAGE:
        return TOP
    matches = [p for p in LAYERS if module == p or module.startswith(p + ".")]
    assert matches, f"{module} is in no layer: give it a row in this table"
    return LAYERS[max(matches, key=len)]


def imports(module: str, tree: ast.AST, known: set[str], is_package: bool) -> Iterator[str]:
    """Full names of what `module` imports; `from p import m` is p.m where that is a module."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    parts = module.split(".")
                    parts = parts[: len(parts) - node.level + is_package]
                    base = ".".join([*parts, base] if base else parts)
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    yield inner if inner in known else base


def upward(module: str, tree: ast.AST, known: set[str], is_package: bool) -> list[str]:
    """The imports of `module` that break the table, in words."""
    found = []
    for target in imports(module, tree, known, is_package):
        if target != PACKAGE and not target.startswith(PACKAGE + "."):
            continue
        if layer(target) > layer(module):
            found.append(f"{module} (L{layer(module)}) imports {target} (L{layer(target)})")
        sides = {name.split(".")[1] for name in (module, target) if layer(name) == 2}
        if sides == {"coordinator", "peer"}:
            found.append(f"{module} and {target}: the two sides share only the protocol")
    return found


def impurities(module: str, tree: ast.AST, known: set[str], is_package: bool) -> list[str]:
    outside = {t.split(".")[0] for t in imports(module, tree, known, is_package)} - {PACKAGE}
    names = {n.func.id for n in ast.walk(tree)
             if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}  # fmt: skip
    return [f"{module} imports {name}" for name in sorted(outside - PURE_STDLIB)] + [
        f"{module} calls {name}" for name in sorted(names & IMPURE_BUILTINS)
    ]


def parsed(module: str) -> tuple[str, ast.AST, set[str], bool]:
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return module, tree, set(MODULES), path.name == "__init__.py"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    assert upward(*parsed(module)) == []


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) == 2])
def test_what_decides_touches_no_world(module: str) -> None:
    assert impurities(*parsed(module)) == []


@pytest.mark.parametrize(
    ("module", "source", "seen"),
    [
        ("pccl_py.protocol.x", "from pccl_py.coordinator import server", 1),
        ("pccl_py.errors", "def f():\n    import pccl_py.cli.main", 1),
        ("pccl_py.peer.x", "from ..coordinator.machine import step", 1),
        ("pccl_py.peer.x", "from ..protocol import messages", 0),
        ("pccl_py.types", "from pccl_py import join", 1),
        ("pccl_py.cli.x", "import pccl_py.launch", 0),
    ],
)
def test_the_check_can_fail(module: str, source: str, seen: int) -> None:
    known = {"pccl_py.coordinator.server", "pccl_py.protocol.messages"}
    assert len(upward(module, ast.parse(source), known, False)) == seen


def test_the_purity_check_can_fail() -> None:
    tree = ast.parse("import time\nfrom os import path\nimport enum\nprint(1)")
    assert impurities("pccl_py.peer.x", tree, set(), False) == [
        "pccl_py.peer.x imports os",
        "pccl_py.peer.x imports time",
        "pccl_py.peer.x calls print",
    ]
