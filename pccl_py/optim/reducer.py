"""What the outer optimizers see of a communicator: five members and nothing else (layer 6).

`pccl_py.Communicator` satisfies this Protocol; the tests satisfy it with threads in one process.
Optimizers decide *when* to reduce, to pass a safe point and to synchronise; how members find each
other, what a view is and how bytes travel must not be known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from pccl_py.types import OpInfo, SyncInfo


class Reducer(Protocol):
    """The collectives of one group, in the order in which every member calls them.

    Errors: `Aborted` means that the call happened on no member (all of them get it, buffers are
    intact): repeat it. Everything else passes through the optimizers unchanged.
    """

    @property
    def line(self) -> int:
        """Grows when members were added, never when they only left; changes inside `update`."""
        ...

    @property
    def world_size(self) -> int:
        """Members of the group now."""
        ...

    def all_reduce(self, tensor: Tensor, /, op: str = "avg") -> OpInfo:
        """Reduce `tensor` (CPU, contiguous) in place over the members; "avg" divides by those who
        contributed. Blocks until this member holds the result."""
        ...

    def update(self) -> object:
        """A safe point: newcomers may be admitted here; afterwards `line` tells."""
        ...

    def sync_state(self, state: Mapping[str, Tensor], /, revision: int) -> SyncInfo:
        """Write the elected bits into the tensors of `state` (CPU, contiguous) in place: the
        highest revision wins, within it the commonest bits."""
        ...
