"""The fuzz targets of native/fuzz under ASan and UBSan: their corpus, then seconds of mutations.

`make fuzz` runs the same targets for as long as wanted, under libFuzzer. A finding is left in
build/fuzz, and the assertion says how to run it again.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FUZZ = ROOT / "native" / "fuzz"
OUT = ROOT / "build" / "fuzz"
SECONDS = 2.0
SEED = 1
PRELOADS = ("LD_PRELOAD", "ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS")  # of make asan, tsan


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in PRELOADS}


@pytest.fixture(scope="module")
def built() -> Path:
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["make", "-s", "-j2", "-C", str(FUZZ), f"OUT={OUT}", "gcc"]
        subprocess.run(command, check=True, timeout=110, env=environment())
    return OUT


def fuzz(program: Path, corpus: str, seconds: float) -> subprocess.CompletedProcess[str]:
    inputs = FUZZ / "corpus" / corpus
    command = [str(program), "-t", str(seconds), "-s", str(SEED), "-o", str(OUT), str(inputs)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env=environment(),
        errors="replace",
    )  # fmt: skip


def summary(output: str) -> dict[str, int]:
    """The numbers of the corpus' summary line, by the word after each."""
    line = output.splitlines()[1].replace(",", "").replace(";", "").replace(":", "")
    words = line.split()
    return {words[i + 1]: int(w) for i, w in enumerate(words[:-1]) if w.isdigit()}


@pytest.mark.parametrize("target", ["frame", "demux", "core", "handshake"])
def test_no_input_breaks_a_target(built: Path, target: str) -> None:
    done = fuzz(built / f"fuzz-{target}", target, SECONDS)
    again = f"{built}/fuzz-{target} {OUT}/finding-{SEED}"
    assert done.returncode == 0, f"again: {again}\n{done.stdout}{done.stderr[-6000:]}"


def test_the_corpus_is_of_this_wire(built: Path) -> None:
    """Recorded traffic ends every op it is of; after a change: make -C native/fuzz corpus."""
    found = summary(fuzz(built / "fuzz-demux", "demux", 0).stdout)
    files = len(list((FUZZ / "corpus" / "demux").glob("traffic-*")))
    assert found["well"] == 2 * 8 * files, found


def test_a_planted_fault_is_found(built: Path) -> None:
    done = fuzz(built / "planted", "core", 5)
    assert done.returncode != 0
    assert "times <= 1" in done.stderr
