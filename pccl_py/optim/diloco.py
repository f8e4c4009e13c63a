"""DiLoCo: many inner steps alone, then one averaged outer step together.

Decides when a round runs, what is averaged and when members synchronise; called from the user's
training loop after each inner step. Sees other members only through a `Reducer`; knows nothing of
views, wires or the inner optimizer, whose state is neither read, reset nor sent.

    outer = DiLoCo(model, comm, inner_steps=500, lr=0.7, momentum=0.9)
    for batch in loader:
        loss(model, batch).backward(); inner.step(); inner.zero_grad(); outer.step()

Collective calls, the same on all members and in this order: the constructor calls `sync_state`; a
round calls `all_reduce` (once per outer dtype; with `debug` once more), `update`, and, if members
were added, `sync_state`. That last one meets the newcomers' constructors. Source: Douillard et al.
2023, Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import xxhash
from torch import Tensor, nn

from pccl_py import arguments
from pccl_py.errors import Aborted, UsageError
from pccl_py.optim import checkpoint
from pccl_py.optim.checkpoint import State
from pccl_py.optim.pool import Pool, build
from pccl_py.optim.reducer import Reducer
from pccl_py.optim.shared import Shared, name_tensors
from pccl_py.types import OpInfo, SyncInfo

RETRIES_MAX = 3  # after an Aborted; each retry may already have waited for a whole deadline

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RoundInfo:
    """One finished round. round: number of rounds now done; world_size: members that began it;
    delta_norm: L2 norm of the averaged pseudo-gradient; reduce: cost of its all_reduce (summed over
    outer dtypes); retries: all_reduces repeated after an `Aborted`; grown: whether newcomers were
    admitted at its end; sync: what `sync_state` did then, else None."""

    round: int
    world_size: int
    delta_norm: float
    reduce: OpInfo
    retries: int
    grown: bool
    sync: SyncInfo | None


class DiLoCo:
    """The outer optimizer of DiLoCo: Nesterov on the averaged displacement of the parameters.

    Args:
        model: a module, or an iterable of tensors. Parameters with `requires_grad` (at this moment)
            are trained; frozen ones and persistent buffers are only made equal whenever members
            synchronise, i.e. here and when members were added (a BatchNorm's running statistics
            then become those of the elected member). 16-bit parameters keep phi in float32.
        comm: the communicator (any `Reducer`).
        inner_steps: `step()` calls per round, >= 1; may differ between members.
        lr, momentum: outer learning rate > 0 and momentum in [0, 1); the same on all members. The
            first round moves the parameters lr*(1 + momentum) times the mean displacement.
        debug: verify after every round that all members hold identical bits, and raise
            AssertionError naming the tensor; costs a small all_reduce; the same on all members.
        state: a `state_dict` to start from, or None. Workers of a fresh run may have different
            ones, or none: the highest round wins.

    phi, momentum and the pseudo-gradient live in CPU memory (3 values per parameter), wherever the
    model is. The constructor is a collective call: it always synchronises, since an equal seed is
    no proof of equal bits, and then copies phi into the model. World size 1 is a normal round.

    Raises: UsageError for a wrong argument or one that differs from the group's; errors of `comm`.
    Threads: use from one thread.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor],
        comm: Reducer,
        inner_steps: int = 500,
        lr: float = 0.7,
        momentum: float = 0.9,
        *,
        debug: bool = False,
        state: State | None = None,
    ) -> None:
        if not arguments.is_whole(inner_steps, 1, 1 << 63):
            raise UsageError(f"inner_steps must be an integer >= 1, not {inner_steps!r:.80}")
        if not 0 < arguments.number(lr) < math.inf:
            raise UsageError(f"lr must be a finite number > 0, not {lr!r:.80}")
        if not 0 <= arguments.number(momentum) < 1:
            raise UsageError(f"momentum must be in [0, 1), not {momentum!r:.80}")
        arguments.check_flag("debug", debug)
        for call in ("all_reduce", "sync_state", "update"):
            if not callable(getattr(comm, call, None)):
                kind = type(comm).__name__
                raise UsageError(f"comm must be a communicator, not {kind}: it has no {call}()")
        trained, fixed = name_tensors(model)
        self._comm = comm
        self._inner_steps = inner_steps
        self._lr, self._mu, self._debug = float(lr), float(momentum), debug
        self._pools = build(trained)
        settings = {"lr": self._lr, "momentum": self._mu, "debug": float(debug)}
        self._shared = Shared(self._pools, fixed, settings)
        self._round = 0
        self._inner_step = 0
        self._last_round: RoundInfo | None = None
        if state is not None:
            self._load(state)
        loaded = self._round
        self._last_sync = self._synchronise()
        # Fresh from a running run: a checkpoint loaded now, before any step, would be outdated.
        self._adopted = self._round > loaded
        if self._inner_step == 0:
            self._publish()

    @property
    def round(self) -> int:
        """Rounds done by the group; also the revision of the shared state."""
        return self._round

    @property
    def inner_step(self) -> int:
        """`step()` calls since the last round, below `inner_steps`."""
        return self._inner_step

    @property
    def last_round(self) -> RoundInfo | None:
        """The last round that this worker took part in."""
        return self._last_round

    @property
    def last_info(self) -> OpInfo | None:
        """What the last round's all_reduce cost."""
        return None if self._last_round is None else self._last_round.reduce

    @property
    def last_sync(self) -> SyncInfo:
        """What the last `sync_state` did: of the constructor, or since then."""
        return self._last_sync

    def step(self) -> RoundInfo | None:
        """Count one inner step; the `inner_steps`-th runs a round and returns its RoundInfo.

        Blocks in a round until all members are there. An all_reduce that was aborted happened on no
        member and is repeated up to 3 times among those who are left. If that does not help, or
        another error comes, it is raised with phi, momentum, model, round and inner_step as they
        were: calling `step()` again tries the round again. After `CoordinatorLost` other members
        may have finished the round, and after `Evicted` they go on alone: save `state_dict()`, join
        again, and construct anew with `state=`; the highest round wins. An error raised by the safe
        point after the outer step (`update`, `sync_state`) leaves the round done.
        """
        self._adopted = False
        if self._inner_step + 1 < self._inner_steps:
            self._inner_step += 1
            return None
        if self._comm.line != self._line:  # the program called update() itself, and it admitted
            self._synchronise()
        world_size = self._comm.world_size
        reduce, retries = self._reduce()
        for pool in self._pools:
            pool.step(lr=self._lr, mu=self._mu)
        self._round += 1
        self._inner_step = 0
        self._publish()
        norm = math.hypot(*(torch.linalg.vector_norm(p.delta).item() for p in self._pools))
        done = RoundInfo(self._round, world_size, norm, reduce, retries, False, None)
        self._last_round = done
        if self._debug:
            self._check_identical()
        self._comm.update()
        if self._comm.line != self._line:
            self._last_round = replace(done, grown=True, sync=self._synchronise())
        return self._last_round

    def digest(self) -> str:
        """XXH3-128 over phi, momentum and round, in hex: equal on all members after each round."""
        digest = xxhash.xxh3_128()
        for pool in self._pools:
            digest.update(pool.phi.numpy().data)
            digest.update(pool.momentum.numpy().data)
        digest.update(self._round.to_bytes(8, "little"))
        return digest.hexdigest()

    def state_dict(self) -> State:
        """A copy of everything that a later run needs to go on with the same bits.

        The model's own state (it differs from phi inside a round) and the inner optimizer's are
        saved by their own `state_dict`.
        """
        return checkpoint.save(self._pools, self._hyper(), self._round, self._inner_step)

    def load_state_dict(self, state: State) -> bool:
        """Go on from `state`; returns whether it was taken.

        A collective call: all members make it, and it ends in `sync_state` (the highest round
        wins). The exception is what a restarted worker's script does: if the constructor has just
        adopted a later round from a running group, the members are not here to answer, so an
        older `state` is ignored and False returned. If only some workers may have a checkpoint, use
        the constructor's `state=`.

        theta := phi, except inside a round (inner_step > 0): then the model is left as it is, so
        that loading it from its own checkpoint, before or after this call, resumes exactly.

        Raises: UsageError if names, shapes, dtypes or settings differ; nothing has changed then.
        """
        checkpoint.check(state, self._pools, self._hyper())
        if self._adopted and state["round"] < self._round:
            return False
        self._load(state)
        self._synchronise()
        if self._inner_step == 0:
            self._publish()
        return True

    def _publish(self) -> None:
        for pool in self._pools:
            pool.publish()

    def _reduce(self) -> tuple[OpInfo, int]:
        """Average the pseudo-gradients of all pools: (cost, retries)."""
        infos: list[OpInfo] = []
        retries = 0
        for pool in self._pools:

            def reduce(pool: Pool = pool) -> OpInfo:
                pool.measure()
                return self._comm.all_reduce(pool.delta, op="avg")

            info, again = _until_agreed(reduce)
            infos.append(info)
            retries += again
        return _total(infos), retries

    def _synchronise(self) -> SyncInfo:
        """Make the shared state equal on all members; this one's moves only if it lost the vote."""

        def sync() -> tuple[SyncInfo, dict[str, Tensor]]:
            state = self._shared.state()
            return self._comm.sync_state(state, revision=self._round), state

        (info, state), _ = _until_agreed(sync)
        self._line = self._comm.line
        self._shared.check(state)
        self._shared.write_fixed(state, info.keys)
        if info.revision != self._round or any(key.startswith("phi/") for key in info.keys):
            self._round = info.revision
            self._inner_step = 0
            self._publish()
        self._last_sync = info
        return info

    def _check_identical(self) -> None:
        """Raises AssertionError if phi or momentum of any parameter differs between members."""
        names: list[str] = []
        hashes: list[int] = []
        for pool in self._pools:
            for slot in pool.slots:
                for kind, flat in (("phi", pool.phi), ("momentum", pool.momentum)):
                    names.append(f"{kind} of parameter {slot.name!r}")
                    hashes.append(xxhash.xxh3_64_intdigest(slot.of(flat).numpy().data))
        names.append("round")
        hashes.append(self._round)
        # Two int32 per hash; max(~x) is ~min(x), so one op gives both ends.
        own = torch.tensor([h - (1 << 64) if h >> 63 else h for h in hashes]).view(torch.int32)

        def ends() -> Tensor:
            both = torch.cat([own, ~own])
            self._comm.all_reduce(both, op="max")
            return both

        both, _ = _until_agreed(ends)
        differs = (both[: own.numel()] != ~both[own.numel() :]).view(-1, 2).any(dim=1)
        bad = [name for name, different in zip(names, differs.tolist(), strict=True) if different]
        if bad:  # not an `assert`: debug=True asks for it under python -O too
            raise AssertionError(f"members differ after round {self._round}: {', '.join(bad[:4])}")

    def _load(self, state: State) -> None:
        self._round, self._inner_step = checkpoint.load(state, self._pools, self._hyper())

    def _hyper(self) -> checkpoint.Hyper:
        return checkpoint.Hyper(self._inner_steps, self._lr, self._mu)


def _until_agreed(call: Callable[[], T]) -> tuple[T, int]:
    """(`call()`, retries): repeated while it is Aborted, which all members see alike."""
    for attempt in range(RETRIES_MAX):
        try:
            return call(), attempt
        except Aborted:
            continue
    return call(), RETRIES_MAX


def _total(infos: list[OpInfo]) -> OpInfo:
    """The costs of several ops of one round as one."""
    return replace(
        infos[-1],
        contributors_min=min(i.contributors_min for i in infos),
        contributors_max=max(i.contributors_max for i in infos),
        repaired=sum(i.repaired for i in infos),
        bytes_sent=sum(i.bytes_sent for i in infos),
        bytes_received=sum(i.bytes_received for i in infos),
        seconds=sum(i.seconds for i in infos),
    )
