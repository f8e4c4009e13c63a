"""Run by test_bits.py under different CPU capabilities: prints the capability and the digests of
three members of two outer optimizers (float32 and mixed dtypes) after several rounds."""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import torch

from pccl_py.optim import DiLoCo
from tests.optim.local_reducer import Hub, Member, together

ROUNDS = 4


def member(comm: Member, seed: int, dtypes: tuple[torch.dtype, ...]) -> str:
    start = np.random.default_rng(0)
    params = [
        torch.from_numpy(start.standard_normal(40_007 + i).astype(np.float32)).to(dtype)
        for i, dtype in enumerate(dtypes)
    ]
    outer = DiLoCo([p.requires_grad_() for p in params], comm, inner_steps=1, debug=True)
    rng = np.random.default_rng(1000 + seed)
    for _ in range(ROUNDS):
        with torch.no_grad():
            for param in params:
                moved = rng.standard_normal(param.numel()).astype(np.float32) * np.float32(0.01)
                param += torch.from_numpy(moved).to(param.dtype)
        outer.step()
    return outer.digest()


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    print(torch.backends.cpu.get_cpu_capability())
    mixed = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    for dtypes in ((torch.float32,), mixed):
        comms = Hub().start(3)
        print(*together(*(partial(member, c, i, dtypes) for i, c in enumerate(comms))))


if __name__ == "__main__":
    main()
