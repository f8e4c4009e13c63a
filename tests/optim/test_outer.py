"""Twin of pccl_py/optim/outer.py: the step against torch, against numpy, and bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pccl_py.optim import outer

Floats = NDArray[np.float32] | NDArray[np.float64]


def test_equals_torch_nesterov_in_float64() -> None:
    generator = torch.Generator().manual_seed(1)
    phi = torch.randn(1000, dtype=torch.float64, generator=generator)
    reference = torch.nn.Parameter(phi.clone())
    sgd = torch.optim.SGD([reference], lr=0.7, momentum=0.9, nesterov=True)
    momentum, scratch = torch.zeros_like(phi), outer.new_scratch(1000, phi.dtype)
    for _ in range(20):
        delta = torch.randn(1000, dtype=torch.float64, generator=generator)
        reference.grad = delta.clone()
        sgd.step()
        outer.nesterov_(phi, momentum, delta, scratch, lr=0.7, mu=0.9)
    assert (phi - reference.detach()).abs().max() < 1e-12


def test_first_step_moves_lr_times_one_plus_mu() -> None:
    phi, delta = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    outer.nesterov_(phi, torch.zeros_like(phi), delta, torch.empty_like(phi), lr=0.7, mu=0.9)
    assert phi.item() == pytest.approx(-0.7 * 1.9, abs=1e-12)
    assert delta.item() == 1.0  # only read


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_operation_is_rounded_once(dtype: type, threads: int) -> None:
    """numpy's elementwise operations are single IEEE operations: the same bits, not close ones."""
    rng = np.random.default_rng(7)
    count = outer.CHUNK + 12_345  # more than one chunk, odd tail
    phi: Floats = rng.standard_normal(count).astype(dtype)
    b: Floats = rng.standard_normal(count).astype(dtype)
    t_phi, t_b = torch.from_numpy(phi.copy()), torch.from_numpy(b.copy())
    scratch = outer.new_scratch(count, t_phi.dtype)
    lr, mu = dtype(0.7), dtype(0.9)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(3):
            d: Floats = rng.standard_normal(count).astype(dtype)
            b = b * mu + d
            phi = phi - (b * mu + d) * lr
            outer.nesterov_(t_phi, t_b, torch.from_numpy(d), scratch, lr=0.7, mu=0.9)
    finally:
        torch.set_num_threads(before)
    assert t_phi.numpy().tobytes() == phi.tobytes()
    assert t_b.numpy().tobytes() == b.tobytes()


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 1e6))
def test_scalars_are_rounded_once(scalar: float) -> None:
    assert outer.rounded(scalar, torch.float32) == float(np.float32(scalar))
    assert outer.rounded(scalar, torch.float64) == scalar


def test_the_bit_test_can_fail() -> None:
    """A fused step differs somewhere from single-rounding ones: the comparison above is sharp."""
    rng = np.random.default_rng(7)
    phi, d = (rng.standard_normal(100_000).astype(np.float32) for _ in range(2))
    exact_once = (phi.astype(np.float64) - np.float64(np.float32(0.7)) * d).astype(np.float32)
    assert (phi - np.float32(0.7) * d).tobytes() != exact_once.tobytes()
