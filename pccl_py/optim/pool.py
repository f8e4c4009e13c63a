"""Outer parameters, momentum and pseudo-gradient of a model's tensors, pooled in flat CPU buffers.

A `Pool` holds all trainable parameters of one outer dtype: one contiguous buffer each for phi, the
momentum and the pseudo-gradient, allocated once. Used by the outer optimizers, which decide when to
measure, step and publish; knows nothing of rounds or peers. The outer dtype is the parameter's own
for float32 and float64, and float32 for the 16-bit floats. Parameters may live on any device and
have any strides: they are copied in and out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pccl_py.errors import UsageError
from pccl_py.optim.outer import nesterov_, new_scratch


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One parameter's place: elements [start, stop) of its pool's buffers."""

    name: str
    param: Tensor
    start: int
    stop: int

    def of(self, flat: Tensor) -> Tensor:
        """This parameter's part of a flat buffer, in the parameter's shape."""
        return flat[self.start : self.stop].view(self.param.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Buffers of shape (n,) for n elements of `slots`; phi starts as the parameters' values."""

    slots: tuple[Slot, ...]
    phi: Tensor
    momentum: Tensor
    delta: Tensor
    scratch: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.phi.dtype

    def measure(self) -> None:
        """delta := phi - theta, what the inner optimizer did since `publish`.

        For a 16-bit parameter phi is first rounded as `publish` rounds it: what rounding takes from
        phi is not the inner optimizer's work, and counting it would pull phi onto the 16-bit grid.
        """
        for slot in self.slots:
            base, delta = slot.of(self.phi), slot.of(self.delta)
            if slot.param.dtype != self.dtype:
                base = base.to(slot.param.dtype).to(self.dtype)
            delta.copy_(slot.param.detach())
            torch.sub(base, delta, out=delta)

    def step(self, *, lr: float, mu: float) -> None:
        """The outer step with the averaged delta."""
        nesterov_(self.phi, self.momentum, self.delta, self.scratch, lr=lr, mu=mu)

    def publish(self) -> None:
        """theta := phi."""
        with torch.no_grad():
            for slot in self.slots:
                slot.param.copy_(slot.of(self.phi))


def outer_dtype(name: str, param: Tensor) -> torch.dtype:
    """The dtype in which phi of `param` is kept. Raises UsageError for what cannot be averaged."""
    if param.layout != torch.strided or param.device.type == "meta":
        raise UsageError(f"parameter {name!r}: {param.layout} on {param.device} cannot be trained")
    if not param.is_floating_point():
        raise UsageError(f"parameter {name!r}: {param.dtype} cannot be averaged, freeze it")
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def build(params: Mapping[str, Tensor]) -> tuple[Pool, ...]:
    """Pools for `params`, one per outer dtype, float32 first; parameters keep their order."""
    by_dtype: dict[torch.dtype, list[tuple[str, Tensor]]] = {}
    for name, param in params.items():
        by_dtype.setdefault(outer_dtype(name, param), []).append((name, param))
    return tuple(_pool(by_dtype[d], d) for d in (torch.float32, torch.float64) if d in by_dtype)


def _pool(params: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> Pool:
    slots: list[Slot] = []
    count = 0
    for name, param in params:
        slots.append(Slot(name, param, count, count + param.numel()))
        count += param.numel()
    phi, momentum, delta = (torch.zeros(count, dtype=dtype) for _ in range(3))
    pool = Pool(tuple(slots), phi, momentum, delta, new_scratch(count, dtype))
    for slot in pool.slots:
        slot.of(pool.phi).copy_(slot.param.detach())
    return pool
