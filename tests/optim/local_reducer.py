"""A group of `Reducer`s in one process, one thread per member: the test double of a communicator.

All calls meet at a barrier; the last member to arrive computes for all. `avg` is the mean in
float64 in rank order. Newcomers enter at `update`, as in the real thing.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from pccl_py.errors import PcclError, UsageError
from pccl_py.types import OpInfo, SyncInfo

TIMEOUT_S = 20.0
T = TypeVar("T")


class Hub:
    """The meeting point. `fail`, `fail_sync`: errors that the next all_reduces, and the next
    sync_states, raise at every member."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.members: list[Member] = []
        self.pending: list[Member] = []
        self.line = 0
        self.fail: list[PcclError] = []
        self.fail_sync: list[PcclError] = []
        self.calls: list[str] = []
        self._arrived: dict[Member, tuple[str, object]] = {}
        self._results: dict[Member, object] = {}

    def start(self, count: int) -> list[Member]:
        """The first view."""
        self.members = [Member(self) for _ in range(count)]
        self.line = 1
        return list(self.members)

    def join(self) -> Member:
        """Blocks until the members admit this newcomer in their `update`."""
        member = Member(self)
        with self.lock:
            self.pending.append(member)
            self.lock.notify_all()
            assert self.lock.wait_for(lambda: member in self.members, TIMEOUT_S), "never admitted"
        return member

    def await_newcomer(self) -> None:
        """Blocks until somebody waits in `join`, so that the next `update` admits them."""
        with self.lock:
            assert self.lock.wait_for(lambda: bool(self.pending), TIMEOUT_S), "nobody joins"

    def leave(self, member: Member) -> None:
        with self.lock:
            self.members.remove(member)
            self._close()

    def meet(self, member: Member, kind: str, payload: object) -> object:
        with self.lock:
            self._arrived[member] = (kind, payload)
            self._close()
            assert self.lock.wait_for(lambda: member in self._results, TIMEOUT_S), f"{kind} hangs"
            result = self._results.pop(member)
        if isinstance(result, PcclError):
            raise result
        return result

    def _close(self) -> None:
        """If all members have arrived: compute, and release them."""
        if not self.members or any(m not in self._arrived for m in self.members):
            return
        kinds = {self._arrived[m][0] for m in self.members}
        payloads = [self._arrived[m][1] for m in self.members]
        self.calls.append("+".join(sorted(kinds)))
        if len(kinds) > 1:
            results: list[object] = [UsageError(f"members disagree: {sorted(kinds)}")] * len(
                payloads
            )
        else:
            results = self._compute(kinds.pop(), payloads)
        self._results.update(zip(self.members, results, strict=True))
        self._arrived.clear()
        if self.calls[-1] == "update" and self.pending:
            self.members += self.pending
            self.pending = []
            self.line += 1
        self.lock.notify_all()

    def _compute(self, kind: str, payloads: list[object]) -> list[object]:
        if kind == "update":
            return [None] * len(payloads)
        if kind == "sync_state":
            if self.fail_sync:
                return [self.fail_sync.pop(0)] * len(payloads)
            return list(_elect(payloads))
        if self.fail:
            return [self.fail.pop(0)] * len(payloads)
        tensors = [p for p in payloads if isinstance(p, Tensor)]
        if kind == "max":
            total = torch.stack(tensors).amax(dim=0)
        else:
            mean = tensors[0].double()
            for tensor in tensors[1:]:
                mean = mean + tensor.double()
            total = (mean / len(tensors)).to(tensors[0].dtype)
        for tensor in tensors:
            tensor.copy_(total)
        return [OpInfo(len(tensors), len(tensors), 0, 0, 0, 0.0, "local", "none")] * len(payloads)


def _elect(payloads: list[object]) -> list[SyncInfo]:
    """Highest revision, then commonest bits, then who joined first."""
    offers: list[tuple[int, Mapping[str, Tensor]]] = payloads  # type: ignore[assignment]
    if len({tuple(sorted(state)) for _, state in offers}) > 1:
        raise UsageError("members disagree about the keys")
    top = max(revision for revision, _ in offers)
    bits = [{k: t.numpy().tobytes() for k, t in state.items()} for _, state in offers]
    candidates = [i for i, (revision, _) in enumerate(offers) if revision == top]
    votes = Counter(tuple(bits[i].items()) for i in candidates)
    winner = max(candidates, key=lambda i: (votes[tuple(bits[i].items())], -i))
    elected = {key: tensor.clone() for key, tensor in offers[winner][1].items()}
    infos = []
    for own, (_, state) in zip(bits, offers, strict=True):
        keys = tuple(k for k in state if own[k] != bits[winner][k])
        for key in keys:
            state[key].copy_(elected[key])
        infos.append(SyncInfo(top, "donor" if keys else "", keys, 0, 0.0))
    return infos


class Member:
    """One member's `Reducer`."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    @property
    def line(self) -> int:
        return self.hub.line

    @property
    def world_size(self) -> int:
        return len(self.hub.members)

    def all_reduce(self, tensor: Tensor, /, op: str = "avg") -> OpInfo:
        assert tensor.is_contiguous()
        info = self.hub.meet(self, op, tensor)
        assert isinstance(info, OpInfo)
        return info

    def update(self) -> None:
        self.hub.meet(self, "update", None)

    def sync_state(self, state: Mapping[str, Tensor], /, revision: int) -> SyncInfo:
        assert all(t.is_contiguous() for t in state.values())
        info = self.hub.meet(self, "sync_state", (revision, state))
        assert isinstance(info, SyncInfo)
        return info


def together(*programs: Callable[[], T]) -> list[T]:
    """Run one program per member, each in its thread; their results, or the first error."""
    with ThreadPoolExecutor(len(programs)) as pool:
        return [future.result() for future in [pool.submit(program) for program in programs]]
