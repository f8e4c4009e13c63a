"""Who is there, and what they share: safe points, leaving, dying, state, and that nothing grows."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pccl_py as pccl
from pccl_py.communicator import Communicator
from pccl_py.coordinator import embedded
from pccl_py.peer import control
from pccl_py.protocol import encoding
from tests.crew import Crew, crew, join_all, start, until


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with embedded.start() as started:
        yield started.address


@pytest.fixture(scope="module")
def trio(address: str) -> Iterator[Crew]:
    """Three members that stay together for the tests that leave a crew as they found it."""
    with embedded.start() as own, crew(own.address, 3) as members:
        yield members


# ---------------------------------------------------------------- broadcast, state


def test_broadcast_from_each(trio: Crew) -> None:
    for src in range(3):
        for count in (0, 1, 500_000):
            tensors = [np.full(count, 7.5 + i) for i in range(3)]
            trio.each(lambda c, s=src, t=tensors: c.broadcast(t[c.rank], src=s))
            assert all((t == 7.5 + src).all() for t in tensors)


def test_barrier_waits_for_the_last(trio: Crew) -> None:
    entered = time.monotonic()

    def body(comm: Communicator) -> float:
        if comm.rank == 1:
            time.sleep(0.2)
        comm.barrier()
        return time.monotonic() - entered

    assert min(trio.each(body)) >= 0.19


def states(*values: float) -> list[dict[str, np.ndarray]]:
    return [{"w": np.full(1000, v), "b": np.full((), 1.0), "e": np.zeros(0)} for v in values]


def test_state_the_highest_revision_wins(trio: Crew) -> None:
    held = states(1.0, 1.0, 2.0)
    infos = trio.each(lambda c: c.sync_state(held[c.rank], revision=7 if c.rank == 2 else 6))
    assert all((h["w"] == 2.0).all() for h in held)
    assert {i.revision for i in infos} == {7}
    assert [i.keys for i in infos] == [("w",), ("w",), ()]
    assert [i.bytes for i in infos] == [8000, 8000, 0]
    assert infos[0].donor == trio[2].name


def test_state_the_majority_wins_then_who_joined_first(trio: Crew) -> None:
    held = states(1.0, 2.0, 2.0)
    trio.each(lambda c: c.sync_state(held[c.rank], revision=1))
    assert all((h["w"] == 2.0).all() for h in held)
    held = states(3.0, 1.0, 2.0)
    infos = trio.each(lambda c: c.sync_state(held[c.rank], revision=1))
    assert all((h["w"] == 3.0).all() for h in held)
    assert {i.donor for i in infos} == {trio[0].name}
    infos = trio.each(lambda c: c.sync_state(held[c.rank], revision=1))
    assert {(i.donor, i.keys, i.bytes) for i in infos} == {("", (), 0)}


def test_state_with_more_keys_than_ops_fit(trio: Crew) -> None:
    held = [{f"k{i}": np.full(3, float(r)) for i in range(1500)} for r in range(3)]
    trio.each(lambda c: c.sync_state(held[c.rank], revision=1))
    assert all((v == 0.0).all() for h in held for v in h.values())


def test_state_keys_that_differ(trio: Crew) -> None:
    held: list[dict[str, object]] = [{"w": np.zeros(3)} for _ in range(3)]
    held[1] = {"w": np.zeros(3), "extra": np.zeros(1)}
    errors = trio.errors(lambda c: c.sync_state(held[c.rank]))
    assert all(type(e) is pccl.UsageError and "extra" in str(e) for e in errors), errors
    assert all(trio[1].name in str(e) for e in errors)
    trio.each(lambda c: c.sync_state({"w": np.zeros(3)}))


def test_state_shapes_that_differ(trio: Crew) -> None:
    errors = trio.errors(lambda c: c.sync_state({"w": np.zeros(3 + (c.rank == 2))}))
    assert all(type(e) is pccl.UsageError and "count" in str(e) for e in errors), errors
    trio.each(lambda c: c.sync_state({"w": np.zeros(3)}))


# ---------------------------------------------------------------- messages, update


class Counter:
    """Control messages sent and received by all members in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        encode, decode = encoding.encode, encoding.decode

        def count_out(message: object) -> bytes:
            self.names.append(type(message).__name__)
            return encode(message)  # type: ignore[arg-type]

        def count_in(data: bytes) -> object:
            message = decode(data)
            self.names.append(type(message).__name__)
            return message

        monkeypatch.setattr(control.encoding, "encode", count_out)
        monkeypatch.setattr(control.encoding, "decode", count_in)


def test_no_message_per_collective_nor_per_update(
    trio: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    time.sleep(0.3)  # the coordinator's probes after an earlier greeting are over
    counter = Counter(monkeypatch)
    tensors = [np.ones(1000) for _ in range(3)]

    def body(comm: Communicator) -> list[float]:
        seconds = []
        for _ in range(100):
            comm.all_reduce(tensors[comm.rank], "avg")
            comm.broadcast(tensors[comm.rank])
            began = time.perf_counter()
            comm.update()
            seconds.append(time.perf_counter() - began)
        return seconds

    times = sorted(seconds for one in trio.each(body) for seconds in one)
    assert [n for n in counter.names if n != "Waiting"] == []
    alone = []
    for _ in range(500):
        began = time.perf_counter()
        trio[0].update()
        alone.append(time.perf_counter() - began)
    assert sorted(alone)[250] < 100e-6, "update() with nobody pending takes microseconds"
    assert times[150] < 0.01


def test_newcomer_enters_at_the_safe_point_with_ops_in_flight(address: str) -> None:
    with crew(address, 2, group="grow") as pair:
        pair.each(lambda c: c.barrier())
        newcomer = start(
            lambda: pccl.join(address, group="grow", name="late", timeout=20, deadline_s=20)
        )
        tensors = [[np.full(100_000, float(r)) for _ in range(4)] for r in range(2)]

        def body(comm: Communicator) -> int:
            rank, line = comm.rank, comm.line
            for turn in range(2000):
                for t in tensors[rank]:
                    t.fill(float(rank))
                works = [comm.all_reduce(t, async_op=True) for t in tensors[rank]]
                comm.update()
                if comm.line != line:
                    assert all(work.is_completed() for work in works), "drained"
                for work in works:
                    assert work.wait().contributors_max == 2
                assert all((t == 1.0).all() for t in tensors[rank])
                if comm.line != line:
                    return turn
                time.sleep(0.002)
            raise AssertionError("nobody came")

        turns = pair.each(body)
        assert len(set(turns)) == 1, "both were at the same safe point"
        late = newcomer.result(10.0)
        pair.append(late)
        assert [c.world_size for c in pair] == [3, 3, 3]
        assert [c.rank for c in pair] == [0, 1, 2]
        assert [m.name for m in late.members] == [c.name for c in pair]
        assert len({c.epoch for c in pair}) == 1
        held = states(5.0, 5.0, 0.0)
        infos = pair.each(lambda c: c.sync_state(held[c.rank], revision=4 if c.rank < 2 else 0))
        assert (held[2]["w"] == 5.0).all()
        assert infos[2].revision == 4
        ones = [np.ones(5) for _ in range(3)]
        pair.each(lambda c: c.all_reduce(ones[c.rank]))
        assert (ones[2] == 3).all()


# ---------------------------------------------------------------- leaving, closing, dying


def test_leave_and_close_are_idempotent_and_final(address: str) -> None:
    members = join_all(address, 2, group="bye")
    members.each(lambda c: c.leave())
    for comm in members:
        comm.leave()
        comm.close()
        for call in (
            lambda c: c.all_reduce(np.zeros(3)),
            lambda c: c.broadcast(np.zeros(3)),
            lambda c: c.update(),
            lambda c: c.barrier(),
            lambda c: c.sync_state({}),
            lambda c: c.stats(),
        ):
            with pytest.raises(pccl.UsageError, match="closed"):
                call(comm)


def test_one_leaves_the_others_go_on(address: str) -> None:
    with crew(address, 3, group="fewer") as members:
        line = members[0].line
        gone = members.pop(0)
        pending = [c.all_reduce(np.ones(4), async_op=True) for c in [gone, *members]]
        gone.leave()
        assert pending[0].wait().contributors_max == 3
        until(lambda: all(c.world_size == 2 for c in members))
        ones = [np.ones(7) for _ in range(2)]
        infos = members.each(lambda c: c.all_reduce(ones[c.rank]))
        assert {i.contributors_max for i in infos} == {2}
        assert (ones[0] == 2).all()
        assert [c.rank for c in members] == [0, 1]
        assert {c.line for c in members} == {line}, "shrinking is not a new line"


def test_an_exception_in_the_block_closes(address: str) -> None:
    members = join_all(address, 2, group="crash")
    with pytest.raises(RuntimeError, match="boom"), members[1]:
        raise RuntimeError("boom")
    with pytest.raises(pccl.UsageError, match="closed"):
        members[1].barrier()
    x = np.ones(3)
    info = start(lambda: members[0].all_reduce(x)).result(10.0)
    assert info.contributors_min == 1
    assert (x == 1).all()
    members[0].leave()


def test_an_exit_with_0_in_the_block_leaves(address: str) -> None:
    """As a SIGTERM under `pccl run` does; any other exit is a failure, and closes."""
    with crew(address, 3, group="exits") as members:
        failed, done = members.pop(), members.pop()
        with pytest.raises(SystemExit), failed:
            raise SystemExit(1)
        assert not failed._control.mailbox.left
        ended = start(lambda: members[0].all_reduce(np.ones(3)))
        work = done.all_reduce(np.ones(3), async_op=True)
        with pytest.raises(SystemExit), done:
            raise SystemExit(0)
        assert done._control.mailbox.left
        assert work.wait().contributors_min == ended.result(10.0).contributors_min == 2


def test_who_ends_without_leaving_is_dead_to_the_others(address: str) -> None:
    members = join_all(address, 2, group="forgotten")
    epoch = members[0].epoch
    del members[1:]
    gc.collect()  # as at the end of a program
    assert members[0].all_reduce(np.ones(3)).contributors_max == 1
    assert members[0].epoch > epoch
    members[0].leave()


def test_close_ends_those_who_wait(address: str) -> None:
    members = join_all(address, 2, group="closing")
    x = np.ones(3)
    work = members[0].all_reduce(x, async_op=True)
    waiter = start(work.wait)
    time.sleep(0.1)
    members[0].close()
    assert type(waiter.exception(5.0)) is pccl.Evicted
    assert work.is_completed()
    assert isinstance(work.exception(), pccl.Evicted)
    assert (x == 1).all()
    members[1].close()


def test_strict_restores_inputs_and_the_others_finish(address: str) -> None:
    """Each survivor of a death gets PeerLost and its input back, bit for bit, if strict."""
    with crew(address, 3, group="strict") as members:
        victim = members.pop()
        tensors = [np.full(3_000_000, 1.0 + c.rank) for c in members]
        works = [
            c.all_reduce(t, strict=True, async_op=True)
            for c, t in zip(members, tensors, strict=True)
        ]
        time.sleep(0.1)
        victim.close()
        for work in works:
            with pytest.raises(pccl.PeerLost, match=r"m[012]") as caught:
                work.wait(10.0)
            assert isinstance(caught.value, ConnectionError)
        for i, tensor in enumerate(tensors):
            assert (tensor == 1.0 + i).all()
        infos = members.each(lambda c: c.all_reduce(tensors[c.rank]))
        assert all((t == 3.0).all() for t in tensors)
        assert {i.contributors_max for i in infos} == {2}


def test_not_strict_goes_on_without_the_dead(address: str) -> None:
    with crew(address, 3, group="lenient") as members:
        victim = members.pop()
        tensors = [np.full(3_000_000, 1.0 + c.rank) for c in members]
        works = [c.all_reduce(t, async_op=True) for c, t in zip(members, tensors, strict=True)]
        time.sleep(0.1)
        victim.close()
        infos = [work.wait(10.0) for work in works]
        assert all((t == 3.0).all() for t in tensors)
        assert {(i.contributors_min, i.contributors_max) for i in infos} == {(2, 2)}


def test_two_groups_and_two_runs_do_not_meet() -> None:
    with embedded.start() as one, embedded.start() as two:
        futures = {
            (group, i): start(
                lambda where=where, run=run, group=group, i=i, n=n: pccl.join(
                    where, run=run, group=group, name=f"{group}{i}", min_members=n, timeout=20
                )
            )
            for where, run, group, n in (
                (one.address, "one", "red", 4),
                (one.address, "one", "blue", 4),
                (two.address, "two", "far", 2),
            )
            for i in range(2)
        }
        joined = {key: future.result(20.0) for key, future in futures.items()}
        everybody = Crew(joined.values())
        scale = {"red": 1.0, "blue": 10.0, "far": 100.0}
        for (group, _), comm in joined.items():
            assert comm.world_size == 2
            assert {m.name for m in comm.members} == {f"{group}0", f"{group}1"}
        tensors = {id(c): np.full(9, scale[group]) for (group, _), c in joined.items()}
        for _ in range(20):
            everybody.each(lambda c: c.all_reduce(tensors[id(c)], "avg"))
        for (group, _), comm in joined.items():
            assert (tensors[id(comm)] == scale[group]).all()
        everybody.each(lambda c: c.sync_state({"x": tensors[id(c)]}, revision=1))
        joined["red", 1].close()
        blue = Crew([joined["blue", 0], joined["blue", 1]])
        x = [np.ones(2_000) for _ in range(2)]
        infos = blue.each(lambda c: c.all_reduce(x[c.rank]))
        assert {i.contributors_min for i in infos} == {2}, "a death in red costs blue nobody"
        everybody.errors(lambda c: c.leave())


# ---------------------------------------------------------------- nothing grows


def usage() -> tuple[int, int, int]:
    """(resident KiB, open descriptors, threads) of this process."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return (
        int(fields["VmRSS"].split()[0]),
        len(os.listdir("/proc/self/fd")),
        int(fields["Threads"]),
    )


def small_ops(members: Crew, count: int) -> None:
    def body(comm: Communicator) -> None:
        x = np.ones(100)
        for n in range(count):
            comm.all_reduce(x, "avg", name=f"n{n % 7}" if n % 5 == 0 else None)

    members.each(body)


def aborted_ops(members: Crew, count: int) -> None:
    def body(comm: Communicator) -> None:
        for _ in range(count):
            with pytest.raises(pccl.UsageError):
                comm.all_reduce(np.ones(1000 + comm.rank))

    members.each(body)


def test_nothing_grows_with_ops(trio: Crew) -> None:
    small_ops(trio, 200)
    aborted_ops(trio, 20)
    before = usage()
    small_ops(trio, 2000)
    aborted_ops(trio, 200)
    gc.collect()
    after = usage()
    assert after[0] - before[0] < 4096, f"resident memory grew: {before} {after}"
    assert after[1] == before[1], "descriptors"
    assert after[2] <= before[2], "threads"


def test_nothing_grows_with_joins(address: str) -> None:
    def cycle() -> None:
        with crew(address, 2, group="cycle") as pair:
            pair.each(lambda c: c.barrier())

    for _ in range(3):
        cycle()
    gc.collect()
    until(lambda: threading.active_count() < 50)
    before = usage()
    for _ in range(20):
        cycle()
    gc.collect()
    time.sleep(0.1)
    after = usage()
    assert after[0] - before[0] < 8192, f"resident memory grew: {before} {after}"
    assert after[1] <= before[1], "descriptors"
    assert after[2] <= before[2], "threads"


def test_two_members_that_name_themselves_as_the_source() -> None:
    """In a world of two each holds "its" broadcast whole; that is a disagreement, not a success."""

    def mine(comm: pccl.Communicator) -> str:
        tensor = np.full(4, float(comm.rank))
        with pytest.raises(pccl.UsageError) as caught:
            comm.broadcast(tensor, src=comm.rank)
        assert (tensor == comm.rank).all()
        return str(caught.value)

    with embedded.start() as own, crew(own.address, 2) as duo:
        texts = duo.each(mine)
    assert texts[0] == texts[1]
    assert "src" in texts[0] or "source" in texts[0]
