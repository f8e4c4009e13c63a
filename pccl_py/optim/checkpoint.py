"""The checkpoint of an outer optimizer: pools to plain values and tensors, and strictly back.

Called by `state_dict` and `load_state_dict`. All is checked before anything is written. Knows
nothing of the group: whose checkpoint wins is for `sync_state` to decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor

from pccl_py.errors import UsageError
from pccl_py.optim.pool import Pool


class State(TypedDict):
    """What `state_dict` returns: plain values and CPU tensors (`torch.load(weights_only=True)`)."""

    round: int
    inner_step: int
    inner_steps: int
    lr: float
    momentum: float
    phi: dict[str, Tensor]
    momentum_buffer: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Hyper:
    """The hyperparameters that a checkpoint must have been made with."""

    inner_steps: int
    lr: float
    momentum: float


def save(pools: tuple[Pool, ...], hyper: Hyper, round_: int, inner_step: int) -> State:
    """A copy of the pools' phi and momentum by parameter name, with the counters."""
    slots = [(pool, slot) for pool in pools for slot in pool.slots]
    return State(
        round=round_,
        inner_step=inner_step,
        inner_steps=hyper.inner_steps,
        lr=hyper.lr,
        momentum=hyper.momentum,
        phi={slot.name: slot.of(pool.phi).clone() for pool, slot in slots},
        momentum_buffer={slot.name: slot.of(pool.momentum).clone() for pool, slot in slots},
    )


def load(state: State, pools: tuple[Pool, ...], hyper: Hyper) -> tuple[int, int]:
    """Write phi and momentum into the pools: (round, inner_step). Raises as `check` does."""
    check(state, pools, hyper)
    for pool in pools:
        for slot in pool.slots:
            slot.of(pool.phi).copy_(state["phi"][slot.name])
            slot.of(pool.momentum).copy_(state["momentum_buffer"][slot.name])
    return state["round"], state["inner_step"]


def check(state: State, pools: tuple[Pool, ...], hyper: Hyper) -> None:
    """Raises UsageError, in one line, for a state that is not of such an optimizer."""
    if not isinstance(state, Mapping) or (missing := State.__required_keys__ - set(state)):
        detail = f": no {min(missing)!r}" if isinstance(state, Mapping) else ""
        raise UsageError(f"state is not a DiLoCo state_dict{detail}")
    for name, saved, own in (
        ("inner_steps", state["inner_steps"], hyper.inner_steps),
        ("lr", state["lr"], hyper.lr),
        ("momentum", state["momentum"], hyper.momentum),
    ):
        if saved != own:
            raise UsageError(f"state was saved with {name}={saved}, here it is {name}={own}")
    if state["round"] < 0 or not 0 <= state["inner_step"] < hyper.inner_steps:
        raise UsageError(
            f"state is damaged: round {state['round']}, inner_step {state['inner_step']}"
        )
    for pool in pools:
        _check_tensors("phi", state["phi"], pool)
        _check_tensors("momentum_buffer", state["momentum_buffer"], pool)
    own_names = {slot.name for pool in pools for slot in pool.slots}
    unknown = (set(state["phi"]) | set(state["momentum_buffer"])) - own_names
    if unknown:
        raise UsageError(f"state has a parameter {min(unknown)!r} that the model has not")


def _check_tensors(kind: str, saved: Mapping[str, Tensor], pool: Pool) -> None:
    for slot in pool.slots:
        if slot.name not in saved:
            raise UsageError(f"state has no {kind} for parameter {slot.name!r}")
        tensor = saved[slot.name]
        if tensor.shape != slot.param.shape or tensor.dtype != pool.dtype:
            raise UsageError(
                f"{kind} of {slot.name!r} is {tensor.dtype} {tuple(tensor.shape)} in the state, "
                f"{pool.dtype} {tuple(slot.param.shape)} here"
            )
