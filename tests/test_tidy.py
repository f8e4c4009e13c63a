"""The rules that a reader relies on: pure C takes nothing from the system, files and lines have a
size, each C enum is the Python one, and the environment is read in one place."""

from __future__ import annotations

import ast
import enum
import re
import subprocess
from pathlib import Path

import pytest

from native.tests import pure
from pccl_py import errors, types
from pccl_py.dataplane import build
from pccl_py.protocol import messages

ROOT = Path(__file__).resolve().parents[1]
HEADER = (ROOT / build.HEADER).read_text(encoding="utf-8")
COLUMNS_MAX = 100
PRAGMA = re.compile(r"  # (type: ignore|noqa).*$")  # for tools, not for readers
LINES_MAX = 450
TEST_LINES_MAX = 700
ENVIRONMENT_READERS = ("pccl_py/config.py",)


def own_files(*patterns: str) -> list[Path]:
    """Files of ours below the source folders, generated ones left out."""
    folders = ("pccl_py", "native", "tests", "examples", "stress")
    found = [p for f in folders for pattern in patterns for p in (ROOT / f).rglob(pattern)]
    return sorted(p for p in found if p.name != "_pccl.c" and "__pycache__" not in p.parts)


def compiled(source: Path, folder: Path) -> Path:
    obj = folder / f"{source.stem}.o"
    includes = [f"-I{ROOT / d}" for d in build.INCLUDE_DIRS]
    command = ["gcc", *build.FLAGS, "-O1", "-fno-pie", *includes, "-c", str(source), "-o", str(obj)]
    subprocess.run(command, check=True, timeout=100)
    return obj


def test_pure_c_references_no_system_call(tmp_path: Path) -> None:
    sources = build.c_sources(ROOT, pure_only=True)
    assert len(sources) >= 3
    assert pure.offences([compiled(ROOT / source, tmp_path) for source in sources]) == []


def test_the_purity_check_can_fail(tmp_path: Path) -> None:
    source = tmp_path / "bad.c"
    source.write_text(
        "#include <unistd.h>\nint count;\nint bad(void) { return count += getpid(); }"
    )
    assert pure.offences([compiled(source, tmp_path)]) == [
        "bad.o: global count",
        "bad.o: needs getpid",
    ]


def test_lines_fit() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in own_files("*.py", "*.c", "*.h", "*.sh")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(PRAGMA.sub("", line)) > COLUMNS_MAX or line != line.rstrip() or "\t" in line
    ]
    assert long == []


def test_files_are_short() -> None:
    long = []
    for path in own_files("*.py", "*.c", "*.h", "*.sh"):
        name = str(path.relative_to(ROOT))
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > (TEST_LINES_MAX if name.startswith("tests/") else LINES_MAX):
            long.append(f"{name}: {count} lines")
    assert long == []


def test_nothing_is_left_for_later() -> None:
    mark = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK")) + r")\b")
    assert [p.name for p in own_files("*.py", "*.c", "*.h") if mark.search(p.read_text())] == []


def test_every_module_says_what_it_is_for() -> None:
    silent = []
    for path in own_files("*.py"):
        source = path.read_text(encoding="utf-8")
        if source.strip() and not ast.get_docstring(ast.parse(source)):
            silent.append(str(path.relative_to(ROOT)))
    assert silent == []


def test_only_config_reads_the_environment() -> None:
    readers = [
        str(path.relative_to(ROOT))
        for path in own_files("*.py")
        if path.is_relative_to(ROOT / "pccl_py")
        and re.search(r"\bos\.(environ|getenv)|import environ\b", path.read_text(encoding="utf-8"))
    ]
    assert [r for r in readers if not r.startswith(ENVIRONMENT_READERS)] == []


def c_enum(name: str) -> dict[str, int]:
    """Enumerators of `enum name` in pccl.h, without their PCCL_ prefix."""
    found = re.search(rf"enum {name} \{{(.*?)\}};", HEADER, re.DOTALL)
    assert found, f"no enum {name}"
    return {k: int(v) for k, v in re.findall(r"PCCL_(\w+) = (-?\d+)", found[1])}


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("pccl_status", errors.Code),
        ("pccl_dtype", types.DType),
        ("pccl_reduce", types.ReduceOp),
        ("pccl_outcome", types.Outcome),
        ("pccl_kind", types.Kind),
        ("pccl_on_loss", types.OnLoss),
    ],
)
def test_c_and_python_number_alike(name: str, ours: type[enum.IntEnum]) -> None:
    theirs = c_enum(name)
    theirs.pop("PENDING", None)  # no error, never leaves the engine's Python handle
    assert theirs == {member.name: member.value for member in ours}


def test_phases_agree() -> None:
    theirs = {k.removeprefix("PHASE_"): v for k, v in c_enum("pccl_phase").items()}
    assert theirs == {member.name: member.value for member in types.Phase}
    limits = dict(re.findall(r"#define PCCL_(FLIGHTS|AWAITED)_MAX\s+(\d+)", HEADER))
    ours = {"FLIGHTS": messages.OPS_IN_FLIGHT_MAX, "AWAITED": messages.AWAITED_MAX}
    assert {k: int(v) for k, v in limits.items()} == ours


def test_holder_marks_agree() -> None:
    marks = dict(re.findall(r"#define PCCL_HOLDER_(\w+)\s+(-?\d+)", HEADER))
    assert {k: int(v) for k, v in marks.items()} == {"REDO": types.REDO, "ALL": types.HELD_BY_ALL}
