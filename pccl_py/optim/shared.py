"""What members of an outer optimizer share through `sync_state`, besides its pools.

Turns a model into names: parameters to train, and tensors that are only kept equal (frozen
parameters, persistent buffers). Composes the state that `sync_state` elects, writes what was
received back to the model, and finds peers that were configured differently. Used by the outer
optimizers; knows nothing of rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor, nn

from pccl_py.errors import UsageError
from pccl_py.optim.pool import Pool


def name_tensors(
    model: nn.Module | Iterable[Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(trained, fixed) tensors by name; a tied tensor appears once, under its first name.

    A module gives its parameters and persistent buffers; an iterable of tensors names them
    "0", "1", ... and may not hold one twice. Whether a parameter is frozen (`requires_grad` False)
    is read here, once.
    """
    if isinstance(model, nn.Module):
        params: dict[str, Tensor] = dict(model.named_parameters())
        persistent = model.state_dict(keep_vars=True).keys()
        buffers: dict[str, Tensor] = {n: b for n, b in model.named_buffers() if n in persistent}
    else:
        wrong = "model must be a torch.nn.Module or an iterable of tensors"
        if not isinstance(model, Iterable):
            raise UsageError(f"{wrong}, not {type(model).__name__}")
        items: list[object] = list(model)
        params, buffers = {}, {}
        seen: dict[int, int] = {}
        for i, item in enumerate(items):
            if not isinstance(item, Tensor):
                raise UsageError(f"{wrong}, not of {type(item).__name__}")
            first = seen.setdefault(id(item), i)
            if first != i:
                raise UsageError(f"model: tensors {first} and {i} are the same one; pass it once")
            params[str(i)] = item
    trained = {n: p for n, p in params.items() if p.requires_grad}
    if not trained:
        raise UsageError("the model has no parameter with requires_grad=True")
    frozen = {n: p for n, p in params.items() if not p.requires_grad}
    return trained, frozen | buffers


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """The shared state: pools, fixed tensors, and settings on which all members must agree."""

    pools: tuple[Pool, ...]
    fixed: Mapping[str, Tensor]
    settings: Mapping[str, float]

    def state(self) -> dict[str, Tensor]:
        """What to hand to `sync_state`: pools by reference, the rest staged as bytes on the CPU."""
        state = {"settings": torch.tensor(list(self.settings.values()), dtype=torch.float64)}
        state["layout"] = torch.frombuffer(bytearray(self._layout()), dtype=torch.uint8)
        for pool in self.pools:
            state[f"phi/{pool.dtype}"] = pool.phi
            state[f"momentum/{pool.dtype}"] = pool.momentum
        for name, tensor in self.fixed.items():
            if tensor.numel() and tensor.layout == torch.strided:
                flat = tensor.detach().to("cpu", copy=True).contiguous().view(-1)
                state[f"fixed/{name}"] = flat.view(torch.uint8)
        return state

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Raises UsageError where the elected `state` was made with other settings."""
        elected = dict(zip(self.settings, state["settings"].tolist(), strict=True))
        for name, own in self.settings.items():
            if elected[name] != own:
                raise UsageError(f"{name}={own:g} here, but the group has {name}={elected[name]:g}")
        if bytes(state["layout"].tolist()) != self._layout():
            raise UsageError("the group trains parameters of other names, order or shapes")

    def write_fixed(self, state: Mapping[str, Tensor], keys: Iterable[str]) -> None:
        """Copy the fixed tensors among the received `keys` from `state` into the model."""
        with torch.no_grad():
            for key in keys:
                if key.startswith("fixed/"):
                    target = self.fixed[key.removeprefix("fixed/")]
                    target.copy_(state[key].view(target.dtype).view(target.shape))

    def _layout(self) -> bytes:
        digest = xxhash.xxh3_128()
        for pool in self.pools:
            for slot in pool.slots:
                digest.update(f"{slot.name} {tuple(slot.param.shape)} {pool.dtype}\n".encode())
        return digest.digest()
