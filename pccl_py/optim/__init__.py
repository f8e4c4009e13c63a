"""Outer optimizers: what turns a loop on one machine into wide-area training (needs torch)."""

from __future__ import annotations

from pccl_py.optim.diloco import DiLoCo, RoundInfo

__all__ = ["DiLoCo", "RoundInfo"]
