"""The outer step: Nesterov momentum on flat tensors, with the same bits on every machine.

Called by the outer optimizers with the averaged pseudo-gradient; knows nothing of models, rounds
or peers. Members apply the step each for itself and must end with identical bits although their
CPUs differ, so it is made only of in-place `mul`, `add` and `sub`: one IEEE operation, rounded
once, per element. Fused forms (`torch.optim.SGD`, `add(alpha=...)`, `lerp`, `addcmul`) contract to
FMA under AVX2 and not in plain code, which differs in the last bit. (Denormals: a process that
calls `torch.set_flush_denormal(True)` leaves this promise unless all members do.)
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

CHUNK = 1 << 18  # elements per pass: phi, momentum, delta and scratch of a chunk stay in cache


def rounded(scalar: float, dtype: torch.dtype) -> float:
    """`scalar` rounded once to `dtype` (float32 or float64), so that no kernel has to round it."""
    if dtype == torch.float32:
        return float(struct.unpack("<f", struct.pack("<f", scalar))[0])
    return scalar


def new_scratch(count: int, dtype: torch.dtype) -> Tensor:
    """Working memory for `nesterov_` on tensors of `count` elements."""
    return torch.empty(min(count, CHUNK), dtype=dtype)


def nesterov_(
    phi: Tensor, momentum: Tensor, delta: Tensor, scratch: Tensor, *, lr: float, mu: float
) -> None:
    """One outer step in place: `momentum := mu*momentum + delta; phi -= lr*(delta + mu*momentum)`.

    PyTorch's form of Nesterov (dampening 0); momentum starts at zero, so the first step moves
    `lr*(1 + mu)` times delta. The sign is that of a descent gradient: delta = phi - theta.

    Args: phi, momentum, delta: (n,), one dtype (float32 or float64), CPU, contiguous; delta is
    only read. scratch: from `new_scratch(n, dtype)`, overwritten.
    Source: DiLoCo (Douillard et al. 2023), Algorithm 1.
    """
    lr, mu = rounded(lr, phi.dtype), rounded(mu, phi.dtype)
    for start in range(0, phi.numel(), CHUNK):
        part = slice(start, min(start + CHUNK, phi.numel()))
        p, b, d = phi[part], momentum[part], delta[part]
        step = scratch[: d.numel()]
        b.mul_(mu).add_(d)
        step.copy_(b).mul_(mu).add_(d).mul_(lr)
        p.sub_(step)
