"""An sdist and a wheel, made from a clean copy of the tree and used in an empty environment.

`python -m build` makes the wheel out of the sdist, so the sdist holds all that a build needs. The
environment has no pip and no torch; the other dependencies come from this one's site-packages by
PYTHONPATH, where the editable install of this tree is not seen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="which files belong to the project is known to git alone"
)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    ran = subprocess.run(
        [str(part) for part in command],
        cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, f"{command}:\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def clean_copy(target: Path) -> Path:
    """The tree as git would have it, without anything that was built."""
    listed = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = clean_copy(tmp_path_factory.mktemp("source"))
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, cwd=out)
    return out


@pytest.fixture(scope="module")
def environment(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and nothing else; returns its bin folder."""
    home = tmp_path_factory.mktemp("empty") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=dist)
    (wheel,) = dist.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install", "-qq",
        "--no-deps", "--no-index", wheel, cwd=dist)  # fmt: skip
    return home / "bin"


@pytest.mark.timeout(400)
def test_sdist_has_the_sources(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    native = {str(p.relative_to(ROOT)) for f in ("include", "src")
              for p in (ROOT / "native" / f).glob("*.[ch]")}  # fmt: skip
    assert native <= names
    assert {"pyproject.toml", "setup.py", "LICENSE", "README.md"} <= names
    assert not [name for name in names if name.endswith((".so", ".o")) or "_pccl.c" in name]


@pytest.mark.timeout(400)
def test_wheel_has_the_package_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"pccl_py"}
    assert "pccl_py/py.typed" in names
    assert [name for name in names if name.startswith("pccl_py/dataplane/_pccl.")]
    assert not [name for name in names if "_pccl_core" in name or name.endswith((".c", ".o"))]


@pytest.mark.timeout(400)
def test_installed_wheel_works_in_an_empty_environment(
    dist: Path, environment: Path, tmp_path: Path
) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import pccl_py; from pccl_py.dataplane import _pccl\n"
        "assert _pccl.lib.pccl_version() == _pccl.lib.PCCL_ABI_VERSION\n"
        "print(pccl_py.__file__)"
    )
    others = sysconfig.get_paths()["platlib"]
    where = run(environment / "python", "-c", program, cwd=tmp_path, PYTHONPATH=others)
    assert Path(where.strip()).is_relative_to(environment.parent)
    version = run(environment / "pccl", "--version", cwd=tmp_path, PYTHONPATH=others)
    (wheel,) = dist.glob("*.whl")
    assert version.split()[-1] == wheel.name.split("-")[1]
