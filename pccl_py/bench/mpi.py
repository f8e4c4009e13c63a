"""Which MPI is here, and how processes are started with it over TCP or over shared memory.

An MPI is a prefix (a virtual environment) with an `mpiexec` and, for wheels, an mpi4py beside its
library: this interpreter's own, those under build/mpi (`make mpi`), those named by `--mpi`; at last
the system's, with the mpi4py of this interpreter. Called by the command and by `crew`; `plan` knows
the names: `mpi` is the first MPI found, `mpich` and `openmpi` are that one, `-shm` is over shared
memory.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pccl_py.errors import UsageError

INSTALLED = Path(__file__).resolve().parents[2] / "build" / "mpi"
VERSION_S = 20.0
SHARED_MEMORY = "-shm"
_COMMON = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
# MPICH: its wheel prefers UCX, which takes shared memory whatever NOLOCAL says of the netmod.
_OVER_TCP = {
    "MPIR_CVAR_NOLOCAL": "1",
    "MPIR_CVAR_CH4_NETMOD": "ofi",
    "FI_PROVIDER": "tcp",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "tcp,self",
}


@dataclass(frozen=True, slots=True)
class Mpi:
    """flavour: "mpich" or "openmpi". packages: the folder of its mpi4py; None: this
    interpreter's. library: the folder of its shared library; None: where the system has it."""

    flavour: str
    version: str
    mpiexec: Path
    packages: Path | None
    library: Path | None

    def command(self, world: int, worker: Sequence[str]) -> Sequence[str]:
        return (str(self.mpiexec), "-n", str(world), *worker)

    def environment(self, base: Mapping[str, str], *, over_tcp: bool) -> dict[str, str]:
        """`base`, and what this MPI needs."""
        env = {**base, **_COMMON, **(_OVER_TCP if over_tcp else {})}
        for name, folder in (("PYTHONPATH", self.packages), ("LD_LIBRARY_PATH", self.library)):
            if folder is not None:
                env[name] = os.pathsep.join(filter(None, (base.get(name), str(folder))))
        return env


def installed(prefixes: Sequence[Path]) -> Sequence[Mpi]:
    """All that can be used, in the order in which they are looked for; the first of a flavour
    counts. Raises UsageError: one of `prefixes` holds none."""
    found = [_required(prefix) for prefix in prefixes]
    found += [mpi for mpi in map(_at, _usual()) if mpi is not None]
    system = shutil.which("mpiexec")
    if system is not None and importlib.util.find_spec("mpi4py") is not None:
        found += [mpi for mpi in [_known(Path(system), None, None)] if mpi is not None]
    return list({mpi.flavour: mpi for mpi in reversed(found)}.values())[::-1]


def chosen(impl: str, among: Sequence[Mpi]) -> Mpi | None:
    """The one that `impl` stands for."""
    name = impl.removesuffix(SHARED_MEMORY)
    return next((mpi for mpi in among if name in ("mpi", mpi.flavour)), None)


def _usual() -> Iterator[Path]:
    yield Path(sys.prefix)
    if INSTALLED.is_dir():
        yield from sorted(INSTALLED.iterdir())


def _required(prefix: Path) -> Mpi:
    mpi = _at(prefix)
    if mpi is None:
        raise UsageError(f"--mpi {prefix} has no bin/mpiexec with an mpi4py beside it")
    return mpi


def _at(prefix: Path) -> Mpi | None:
    mpiexec = prefix / "bin" / "mpiexec"
    packages = prefix / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    if not mpiexec.is_file() or not (packages / "mpi4py").is_dir():
        return None
    return _known(mpiexec.absolute(), packages.absolute(), (prefix / "lib").absolute())


def _known(mpiexec: Path, packages: Path | None, library: Path | None) -> Mpi | None:
    try:
        ran = subprocess.run(
            [str(mpiexec), "--version"],
            capture_output=True,
            text=True,
            timeout=VERSION_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    told = described(ran.stdout)
    return None if told is None else Mpi(*told, mpiexec, packages, library)


def described(text: str) -> tuple[str, str] | None:
    """(flavour, version) of what `mpiexec --version` said; None: neither of the two."""
    for flavour, pattern in (
        ("mpich", r"HYDRA[^$]*?Version:\s*(\S+)"),
        ("openmpi", r"(?:Open MPI|OpenRTE|Open PMIx)[^\d]*(\S+)"),
    ):
        version = re.search(pattern, text)
        if version is not None:
            return flavour, version[1]
    return None
