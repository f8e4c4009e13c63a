"""Twin of pccl_py/optim/diloco.py: worked numbers, a numpy reference, joins, errors, resuming."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from pccl_py.errors import CoordinatorLost, DeadlineExceeded, PeerLost, UsageError
from pccl_py.optim import DiLoCo
from pccl_py.types import OpInfo, SyncInfo
from tests.optim.local_reducer import Hub, Member, together

# ALGORITHMS 8.1: displacements theta - phi of two workers in three rounds.
D0 = [(-0.10, 0.20, 0.0), (-0.05, 0.10, 0.10), (0.02, 0.05, 0.0)]
D1 = [(-0.30, 0.10, 0.20), (-0.15, 0.30, -0.10), (-0.06, 0.05, 0.04)]


def param(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype).requires_grad_()


def move(theta: Tensor, displacement: Sequence[float] | Tensor) -> None:
    """The inner optimizer of these tests: a given displacement."""
    with torch.no_grad():
        theta += torch.as_tensor(displacement, dtype=theta.dtype)


def run_given(comm: Member, displacements: Sequence[Sequence[float]]) -> list[list[float]]:
    theta = param(1, -2, 0.5)
    outer = DiLoCo([theta], comm, inner_steps=1, debug=True)
    trajectory = []
    for displacement in displacements:
        move(theta, displacement)
        outer.step()
        trajectory.append(theta.tolist())
    return trajectory


def test_worked_numbers_of_two_workers() -> None:
    a, b = Hub().start(2)
    got = together(partial(run_given, a, D0), partial(run_given, b, D1))
    expected = [(0.734, -1.8005, 0.633), (0.4876, -1.44945, 0.6897), (0.30224, -1.193005, 0.76733)]
    assert got[0] == got[1]
    np.testing.assert_allclose(got[0], expected, rtol=0, atol=1e-12)


def test_worked_numbers_of_one_worker() -> None:
    """A world of one is a normal round (Lookahead with momentum), not the identity."""
    (got,) = together(partial(run_given, Hub().start(1)[0], D0))
    expected = [(0.867, -1.734, 0.5), (0.7438, -1.4876, 0.633), (0.69102, -1.26234, 0.6897)]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


class Scripted:
    """A Reducer whose other members' pseudo-gradients are given, another number each round."""

    def __init__(self, others: Sequence[Sequence[NDArray[np.float64]]]) -> None:
        self.others = iter(others)
        self.world_size = 1
        self.line = 1

    def all_reduce(self, tensor: Tensor, /, op: str = "avg") -> OpInfo:
        assert op == "avg"
        all_ = [tensor.numpy().copy(), *next(self.others)]
        tensor.copy_(torch.from_numpy(np.mean(all_, axis=0)))
        return OpInfo(len(all_), len(all_), 0, 0, 0, 0.0, "local", "none")

    def update(self) -> None:
        """Members only leave here."""

    def sync_state(self, state: Mapping[str, Tensor], /, revision: int) -> SyncInfo:
        return SyncInfo(revision, "", (), 0, 0.0)


@settings(max_examples=60, deadline=None)
@given(
    worlds=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    inner_steps=st.integers(1, 3),
    lr=st.floats(0.01, 2.0),
    mu=st.floats(0.0, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_follows_a_numpy_reference(
    worlds: list[int], inner_steps: int, lr: float, mu: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (3, 2)
    phi, b = rng.standard_normal(shape), np.zeros(shape)
    others = [[rng.standard_normal(6) for _ in range(k - 1)] for k in worlds]
    theta = torch.from_numpy(phi.copy()).requires_grad_()
    outer = DiLoCo([theta], Scripted(others), inner_steps=inner_steps, lr=lr, momentum=mu)
    for number, deltas in enumerate(others, start=1):
        own = np.zeros(shape)
        info = None
        for _ in range(inner_steps):
            assert info is None
            displacement = rng.standard_normal(shape)
            own -= displacement
            move(theta, torch.from_numpy(displacement))
            info = outer.step()
        mean = sum((d.reshape(shape) for d in deltas), own) / (len(deltas) + 1)
        b = mu * b + mean
        phi = phi - lr * (mean + mu * b)
        np.testing.assert_allclose(theta.detach().numpy(), phi, rtol=1e-10, atol=1e-10)
        assert info is not None
        assert (info.round, info.reduce.contributors_min) == (number, len(deltas) + 1)
        assert info.delta_norm == pytest.approx(float(np.linalg.norm(mean)), rel=1e-9)


def test_descends_a_quadratic() -> None:
    """The sign: two workers whose optima are 2 and 4 meet at 3."""

    def worker(comm: Member, optimum: float) -> float:
        x = param(10.0)
        inner = torch.optim.SGD([x], lr=0.1)
        outer = DiLoCo([x], comm, inner_steps=4)
        for _ in range(80):
            inner.zero_grad()
            ((x - optimum) ** 2).sum().backward()  # type: ignore[no-untyped-call]
            inner.step()
            outer.step()
        return float(x.item())

    a, b = Hub().start(2)
    one, two = together(partial(worker, a, 2.0), partial(worker, b, 4.0))
    assert one == two == pytest.approx(3, abs=0.05)


def test_different_seeds_start_equal() -> None:
    def worker(comm: Member, seed: int) -> list[float]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            theta = torch.randn(5).requires_grad_()
        outer = DiLoCo([theta], comm)
        assert (outer.round, outer.inner_step) == (0, 0)
        return theta.tolist()

    a, b, c = Hub().start(3)
    got = together(partial(worker, a, 1), partial(worker, b, 2), partial(worker, c, 2))
    assert got[0] == got[1] == got[2]


# -- members come and go -------------------------------------------------------------------------


def test_a_newcomer_receives_phi_momentum_and_round() -> None:
    hub = Hub()
    third = threading.Event()  # three rounds are done
    log: dict[str, list[str]] = {"a": [], "b": [], "new": []}

    def train(name: str, comm: Member, outer: DiLoCo, theta: Tensor, until: int) -> None:
        log[name].append(outer.digest())
        while outer.round < until:
            if name == "a" and outer.round == 3 and outer.inner_step == 0:
                third.set()
                hub.await_newcomer()
            move(theta, [0.1 * (outer.round + len(name)), -0.2, 0.3])
            info = outer.step()
            if info is not None:
                log[name].append(outer.digest())
                assert info.grown == (info.sync is not None)
        hub.leave(comm)

    def founder(name: str, comm: Member, until: int) -> None:
        theta = param(1, 2, 3)
        outer = DiLoCo([theta], comm, inner_steps=2, debug=True)
        train(name, comm, outer, theta, until)

    def newcomer() -> None:
        assert third.wait(20)
        comm = hub.join()
        theta = param(7, 7, 7)
        outer = DiLoCo([theta], comm, inner_steps=2, debug=True)
        assert (outer.round, outer.inner_step) == (4, 0)
        assert outer.last_sync.keys
        train("new", comm, outer, theta, 9)

    a, b = hub.start(2)
    together(partial(founder, "a", a, 9), partial(founder, "b", b, 6), newcomer)
    assert log["b"] == log["a"][:7]  # b left after round 6, the others went on
    assert log["new"] == log["a"][-len(log["new"]) :]
    assert len(set(log["a"])) == 10


def test_growth_at_the_users_own_update_is_noticed_before_the_reduce() -> None:
    hub = Hub()

    def founder(comm: Member) -> str:
        theta = param(1, 2, 3)
        outer = DiLoCo([theta], comm, inner_steps=2)
        hub.await_newcomer()
        move(theta, [1, 1, 1])
        outer.step()
        comm.update()
        move(theta, [1, 1, 1])
        info = outer.step()
        assert info is not None
        assert info.world_size == 2
        assert info.delta_norm == pytest.approx(np.sqrt(3) * 1.5)  # (2 + 1) / 2: own work is kept
        return outer.digest()

    def newcomer() -> str:
        comm = hub.join()
        theta = param(0, 0, 0)
        outer = DiLoCo([theta], comm, inner_steps=1)
        assert theta.tolist() == [1, 2, 3]
        move(theta, [1, 1, 1])
        outer.step()
        return outer.digest()

    (a,) = hub.start(1)
    first, second = together(partial(founder, a), newcomer)
    assert first == second


def test_aborted_calls_are_repeated_and_the_result_is_exact() -> None:
    def run(fail: int, fail_sync: int) -> list[list[list[float]]]:
        hub = Hub()
        a, b = hub.start(2)
        hub.fail = [PeerLost("w2 is gone")] * fail
        hub.fail_sync = [PeerLost("w2 is gone")] * fail_sync
        return together(partial(run_given, a, D0), partial(run_given, b, D1))

    assert run(0, 0) == run(1, 0) == run(3, 3)


@pytest.mark.parametrize("error", [DeadlineExceeded("late"), CoordinatorLost("gone")])
def test_a_failed_round_changes_nothing_and_can_be_tried_again(error: PeerLost) -> None:
    hub = Hub()
    (comm,) = hub.start(1)
    theta = param(1, 2, 3)
    outer = DiLoCo([theta], comm, inner_steps=2)
    move(theta, [1, 1, 1])
    outer.step()
    before, values = outer.digest(), theta.tolist()
    hub.fail = [error] * (4 if isinstance(error, DeadlineExceeded) else 1)
    with pytest.raises(type(error)):
        outer.step()
    assert not hub.fail
    assert (outer.digest(), theta.tolist(), outer.inner_step, outer.round) == (before, values, 1, 0)
    info = outer.step()
    assert info is not None
    assert (info.round, info.retries) == (1, 0)
    np.testing.assert_allclose(theta.tolist(), [1 + 1.33, 2 + 1.33, 3 + 1.33], atol=1e-12)


def test_debug_names_what_differs() -> None:
    def worker(comm: Member, spoil: bool) -> str:
        model = nn.Linear(3, 2)
        outer = DiLoCo(model, comm, inner_steps=1, debug=True)
        outer.step()
        if spoil:  # a cosmic ray in the momentum of the bias: one bit
            outer._pools[0].momentum[-1:].view(torch.int32).add_(1)
        with pytest.raises(AssertionError) as caught:
            outer.step()
        return str(caught.value)

    a, b = Hub().start(2)
    one, two = together(partial(worker, a, False), partial(worker, b, True))
    assert one == two
    assert one.startswith("members differ after round 2: ")
    assert "momentum of parameter 'bias'" in one
    assert "weight" not in one


# -- what a model may contain ---------------------------------------------------------------------


class Zoo(nn.Module):
    """Tied, frozen, 0-d, empty, strided, 16-bit and float64 parameters; buffers of odd dtypes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Linear(4, 3, bias=False)
        self.head = nn.Linear(4, 3, bias=False)
        with torch.no_grad():
            self.embed.weight.copy_(torch.randn(3, 4, generator=generator))
        self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.randn(2, generator=generator), False)
        self.scalar = nn.Parameter(torch.randn((), generator=generator))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.strided = nn.Parameter(torch.randn(4, 6, generator=generator)[:, ::2].t())
        self.half16 = nn.Parameter(torch.randn(5, generator=generator).bfloat16())
        self.wide = nn.Parameter(torch.randn(2, generator=generator).double())
        self.register_buffer("count", torch.tensor(seed))
        self.register_buffer("mask", torch.tensor([True, seed % 2 == 0]))
        self.register_buffer("cache", torch.tensor(float(seed)), persistent=False)


def test_a_zoo_of_tensors() -> None:
    def worker(comm: Member, seed: int) -> tuple[str, dict[str, Tensor], float]:
        model = Zoo(seed)
        outer = DiLoCo(model, comm, inner_steps=1, debug=True)
        generator = torch.Generator().manual_seed(50 + seed)
        for _ in range(3):
            with torch.no_grad():
                for p in model.parameters():
                    if p.requires_grad:
                        p.add_(torch.randn(p.shape, generator=generator).to(p.dtype))
            outer.step()
        assert sorted(outer.state_dict()["phi"]) == [
            "embed.weight", "empty", "half16", "scalar", "strided", "wide",
        ]  # fmt: skip
        assert outer.state_dict()["phi"]["half16"].dtype == torch.float32
        return outer.digest(), model.state_dict(), float(model.get_buffer("cache"))

    a, b = Hub().start(2)
    (d1, s1, c1), (d2, s2, c2) = together(partial(worker, a, 1), partial(worker, b, 2))
    assert d1 == d2
    assert all(torch.equal(s1[name], s2[name]) for name in s1)
    assert (c1, c2) == (1.0, 2.0)  # not persistent: each one's own business


def test_rounding_to_16_bits_is_no_displacement() -> None:
    theta = param(1.0, dtype=torch.bfloat16)
    outer = DiLoCo([theta], Hub().start(1)[0], inner_steps=1, lr=0.7, momentum=0.0)
    move(theta, [0.0078125])  # one step of bfloat16: phi moves 0.7 of it, theta again a whole one
    outer.step()
    phi = outer.state_dict()["phi"]["0"].clone()
    assert phi.item() != float(theta.item())
    outer.step()
    assert torch.equal(outer.state_dict()["phi"]["0"], phi)


# -- resuming -------------------------------------------------------------------------------------


def trainer(comm: Member) -> tuple[nn.Module, torch.optim.Optimizer, DiLoCo]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01), DiLoCo(model, comm, inner_steps=3)


def train(
    model: nn.Module, inner: torch.optim.Optimizer, outer: DiLoCo, rank: int, steps: range
) -> None:
    for number in steps:
        generator = torch.Generator().manual_seed(1000 * rank + number)
        x = torch.randn(8, 4, generator=generator)
        inner.zero_grad()
        (model(x) - x.sum(dim=1, keepdim=True)).square().mean().backward()
        inner.step()
        outer.step()


@pytest.mark.parametrize("stop", [3, 4, 8])  # after a round, and in the middle of one
@pytest.mark.parametrize("by_constructor", [False, True])
def test_resumes_exactly(stop: int, by_constructor: bool, tmp_path: Path) -> None:
    def whole(rank: int, comm: Member) -> tuple[str, list[Tensor]]:
        parts = trainer(comm)
        train(*parts, rank, range(stop))
        path = tmp_path / f"{rank}.pt"
        torch.save([part.state_dict() for part in parts], path)
        train(*parts, rank, range(stop, 14))
        return parts[2].digest(), [p.detach() for p in parts[0].parameters()]

    def resumed(rank: int, comm: Member) -> tuple[str, list[Tensor]]:
        saved = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        model, inner, outer = trainer(comm)
        if by_constructor:
            model.load_state_dict(saved[0])
            outer = DiLoCo(model, comm, inner_steps=3, state=saved[2])
        else:
            assert outer.load_state_dict(saved[2])
            model.load_state_dict(saved[0])
        inner.load_state_dict(saved[1])
        assert (outer.round, outer.inner_step) == divmod(stop, 3)
        train(model, inner, outer, rank, range(stop, 14))
        return outer.digest(), [p.detach() for p in model.parameters()]

    first = together(*(partial(whole, r, c) for r, c in enumerate(Hub().start(2))))
    second = together(*(partial(resumed, r, c) for r, c in enumerate(Hub().start(2))))
    for (digest, params), (again, params_again) in zip(first, second, strict=True):
        assert digest == again
        assert all(map(torch.equal, params, params_again))


def test_the_highest_round_wins_and_its_loser_starts_a_round() -> None:
    (solo,) = Hub().start(1)
    theta = param(1, 2, 3)
    outer = DiLoCo([theta], solo, inner_steps=2)
    old = outer.state_dict()
    move(theta, [1, 1, 1])
    outer.step()
    old_inside = outer.state_dict()
    outer.step()
    new, digest = outer.state_dict(), outer.digest()
    assert outer.load_state_dict(old)  # back on purpose, same object
    assert outer.round == 0

    def worker(comm: Member, state: dict[str, object] | None) -> tuple[str, int, list[float]]:
        mine = param(0, 0, 0)
        again = DiLoCo([mine], comm, inner_steps=2, state=copy.deepcopy(state))  # type: ignore[arg-type]
        return again.digest(), again.inner_step, mine.tolist()

    states = [old_inside, new, None]
    got = together(*(partial(worker, c, s) for c, s in zip(Hub().start(3), states, strict=True)))  # type: ignore[arg-type]
    assert got == [(digest, 0, new["phi"]["0"].tolist())] * 3


def test_a_restarted_worker_with_an_old_checkpoint_disturbs_nobody() -> None:
    hub = Hub()

    def founder(comm: Member) -> None:
        theta = param(1, 2, 3)
        outer = DiLoCo([theta], comm, inner_steps=1)
        hub.await_newcomer()
        outer.step()
        outer.step()

    def restarted() -> None:
        theta = param(0, 0, 0)
        old = DiLoCo([theta], Hub().start(1)[0], inner_steps=1).state_dict()
        outer = DiLoCo([theta], hub.join(), inner_steps=1)
        assert not outer.load_state_dict(old)
        assert (outer.round, theta.tolist()) == (1, [1, 2, 3])
        outer.step()

    (a,) = hub.start(1)
    together(partial(founder, a), restarted)
    assert not [call for call in hub.calls if "+" in call]


# -- wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"inner_steps": 0}, "inner_steps"),
        ({"inner_steps": 2.5}, "inner_steps"),
        ({"inner_steps": True}, "inner_steps"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"model": []}, "requires_grad"),
        ({"model": [torch.ones(2)]}, "requires_grad"),
        ({"model": [{"params": []}]}, "nn.Module"),
        ({"model": [torch.ones(2, dtype=torch.complex64).requires_grad_()]}, "complex64"),
        ({"model": [torch.ones(2, device="meta").requires_grad_()]}, "meta"),
        ({"state": {"round": 1}}, "not a DiLoCo state_dict"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], text: str) -> None:
    given_ = {"model": [param(1.0)], "comm": Hub().start(1)[0]} | arguments
    with pytest.raises(UsageError, match=text) as caught:
        DiLoCo(**given_)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("lr", 0.5, "saved with lr=0.5, here it is lr=0.7"),
        ("inner_steps", 7, "inner_steps=7"),
        ("inner_step", 500, "damaged"),
        ("round", -1, "damaged"),
        ("phi", {}, "no phi for parameter '0'"),
        ("phi", {"0": torch.ones(2)}, r"float32 \(2,\) in the state, torch.float64 \(1,\) here"),
        ("momentum_buffer", {"0": param(1.0), "x": param(1.0)}, "'x' that the model has not"),
    ],
)
def test_a_wrong_state_changes_nothing(key: str, value: object, text: str) -> None:
    outer = DiLoCo([param(1.0)], Hub().start(1)[0])
    before = outer.digest()
    state = outer.state_dict() | {key: value}
    with pytest.raises(UsageError, match=text) as caught:
        outer.load_state_dict(state)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert outer.digest() == before


def test_a_worker_set_up_differently_is_told() -> None:
    def worker(comm: Member, lr: float, names: str) -> str:
        model = nn.ParameterDict({name: param(1.0) for name in names})
        try:
            DiLoCo(model, comm, lr=lr)
        except UsageError as error:
            return str(error)
        return ""

    def errors(*setups: tuple[float, str]) -> list[str]:
        comms = Hub().start(len(setups))
        return together(*(partial(worker, c, *s) for c, s in zip(comms, setups, strict=True)))

    assert errors((0.5, "ab"), (0.7, "ab"), (0.7, "ab")) == [
        "lr=0.5 here, but the group has lr=0.7", "", "",
    ]  # fmt: skip
    first, second, third = errors((0.7, "ab"), (0.7, "ab"), (0.7, "ac"))
    assert (first, second) == ("", "")
    assert "other names" in third
