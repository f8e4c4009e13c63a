"""Fixtures for all tests: the pure C core, built when one of its files is newer than the module."""

from __future__ import annotations

import fcntl
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pccl_py.dataplane import build

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--core-dir",
        type=Path,
        default=ROOT / "build" / "core",
        help="where the pure C core is built (the sanitizer targets use their own)",
    )


def fresh_core(outdir: Path) -> Path:
    """The core's shared object in `outdir`, built if missing or stale, one builder at a time."""
    outdir.mkdir(parents=True, exist_ok=True)
    with (outdir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        newest = max((ROOT / path).stat().st_mtime for path in build.inputs(ROOT))
        built = sorted(outdir.glob(f"{build.CORE_MODULE}*.so"))
        if built and built[0].stat().st_mtime > newest:
            return built[0]
        return build.build_core(outdir)


@pytest.fixture(scope="session")
def core(request: pytest.FixtureRequest) -> ModuleType:
    """The cffi module of the pure core and the kernels: `core.lib` and `core.ffi`."""
    return load_core(request.config.getoption("--core-dir"))


def load_core(outdir: Path = ROOT / "build" / "core") -> ModuleType:
    """That module, built there if missing or stale."""
    path = fresh_core(outdir)
    spec = importlib.util.spec_from_file_location(build.CORE_MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[build.CORE_MODULE] = module
    spec.loader.exec_module(module)
    return module
