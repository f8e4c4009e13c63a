"""The same bits whatever instructions the CPU has and however many threads torch uses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def digests(capability: str, threads: int) -> tuple[str, list[list[str]]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.optim.bits_program", str(threads)],
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    used, *lines = done.stdout.splitlines()
    return used, [line.split() for line in lines]


def test_bits_do_not_depend_on_the_cpu() -> None:
    plain, expected = digests("default", 1)
    assert plain == "DEFAULT"
    assert len(expected) == 2
    assert all(len(set(line)) == 1 for line in expected), "members differ"
    best = torch.backends.cpu.get_cpu_capability()
    vectors = {"AVX2": ["avx2"], "AVX512": ["avx2", "avx512"]}.get(best, [])
    for capability in vectors:
        used, got = digests(capability, 2)
        assert used == capability.upper()
        assert got == expected
