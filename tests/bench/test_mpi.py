"""Twin of pccl_py.bench.mpi: prefixes that look like an MPI, and one that does not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pccl_py.bench import mpi
from pccl_py.errors import UsageError

HYDRA = "HYDRA build details:\n    Version:                                 5.0.2\n    CC: gcc\n"
SAID = {"mpich": HYDRA, "openmpi": "mpiexec (Open MPI) 5.0.11\n\nReport bugs to ...\n"}


def prefix(folder: Path, said: str) -> Path:
    packages = folder / f"lib/python3.{sys.version_info[1]}/site-packages/mpi4py"
    for each in (folder / "bin", packages):
        each.mkdir(parents=True)
    program = folder / "bin/mpiexec"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{said}END\n")
    program.chmod(0o755)
    return folder


def test_what_mpiexec_says() -> None:
    assert mpi.described(SAID["mpich"]) == ("mpich", "5.0.2")
    assert mpi.described(SAID["openmpi"]) == ("openmpi", "5.0.11")
    assert mpi.described("slurm 23.1") is None


def test_those_that_are_named_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi, "INSTALLED", tmp_path / "none")
    found = mpi.installed([prefix(tmp_path / name, SAID[name]) for name in ("openmpi", "mpich")])
    assert [each.flavour for each in found[:2]] == ["openmpi", "mpich"]
    names = ("mpi", "mpich", "openmpi-shm", "mpi-shm")
    chosen = [mpi.chosen(name, found) for name in names]
    assert chosen == [found[0], found[1], found[0], found[0]]
    assert mpi.chosen("mpich", found[:1]) is None


def test_its_library_and_packages_are_found(tmp_path: Path) -> None:
    (found, *_) = mpi.installed([prefix(tmp_path / "m", SAID["mpich"])])
    env = found.environment({"PYTHONPATH": "/here"}, over_tcp=True)
    assert env["PYTHONPATH"] == os.pathsep.join(["/here", str(found.packages)])
    assert env["LD_LIBRARY_PATH"] == str(tmp_path / "m/lib")
    assert env["MPIR_CVAR_NOLOCAL"] == "1"
    assert "MPIR_CVAR_NOLOCAL" not in found.environment({}, over_tcp=False)
    assert found.command(3, ["w"]) == (str(found.mpiexec), "-n", "3", "w")


def test_a_prefix_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no bin/mpiexec"):
        mpi.installed([tmp_path])
