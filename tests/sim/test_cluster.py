"""The C core under a seed: values, identity of bits, repair after deaths, and no leaks."""

from __future__ import annotations

import random
from types import ModuleType

import numpy as np
import pytest

from tests.sim.cluster import AUTO, DIRECT, RING, STAR, Cluster, Submission

NUMPY = {0: np.uint8, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.int64, 5: np.float16,
         7: np.float32, 8: np.float64}  # fmt: skip
NAMED = 1 << 32
ROUTES = (AUTO, RING, STAR, DIRECT)


def make_ops(rng: random.Random, count: int, world: int) -> list[Submission]:
    ops = []
    for number in range(1, count + 1):
        if rng.random() < 0.2:
            root = rng.randrange(world)
            dtype = rng.choice([0, 4, 7])
            ops.append(Submission(number, dtype, 0, kind=1, root=root, route=rng.choice(ROUTES)))
        else:
            strict = rng.random() < 0.15
            dtype = rng.choice([4, 7])
            ops.append(Submission(number, dtype, 0, strict=strict, route=rng.choice(ROUTES)))
    return ops


def load(cluster: Cluster, ops: list[Submission], rng: random.Random, sizes: list[int]) -> None:
    for op in ops:
        size = rng.choice(sizes)
        for node in cluster.nodes:
            dtype = NUMPY[op.dtype]
            values = np.random.default_rng(op.op_id * 100 + node.index).integers(1, 100, size)
            node.inputs[op.op_id] = values.astype(dtype)
            node.todo.append(op)


def check_values(cluster: Cluster, ops: list[Submission], segment: int) -> None:
    """Each survivor: the same outcome and bits; each segment: the sum of one decided member set."""
    survivors = cluster.alive()
    for op in ops:
        results = [n.results.get(op.op_id) for n in survivors]
        assert None not in results, f"op {op.op_id} never ended: {results} {cluster.bad}"
        assert len({r[0] for r in results}) == 1, f"op {op.op_id}: mixed outcomes {results}"
        bits = {n.buffers[op.op_id].tobytes() for n in survivors}
        if results[0][0] != 0:
            for node in survivors:
                if op.kind == 0:
                    assert (node.buffers[op.op_id] == node.inputs[op.op_id]).all()
            continue
        assert len(bits) == 1, f"op {op.op_id}: different bits"
        got = survivors[0].buffers[op.op_id]
        if op.kind == 1:
            assert (got == cluster.nodes[op.root].inputs[op.op_id]).all()
            continue
        sets = list(dict.fromkeys(cluster.history.values()))
        segments = max(1, -(-got.nbytes // segment))
        width = max(1, -(-got.size // segments))
        counts = []
        for start in range(0, max(1, got.size), width):
            part = slice(start, start + width)
            sums = {
                members: sum(cluster.nodes[i].inputs[op.op_id][part] for i in members)
                for members in sets
            }
            fits = [m for m, total in sums.items() if (np.asarray(total) == got[part]).all()]
            assert fits, f"op {op.op_id} segment at {start}: a sum of no member set"
            counts += [len(m) for m in fits]
        low, high = results[0][1], results[0][2]
        assert {low, high} <= set(counts)


@pytest.mark.parametrize("seed", range(60))
def test_all_members_live(core: ModuleType, seed: int) -> None:
    rng = random.Random(seed)
    world = rng.randrange(1, 7)
    cluster = Cluster(
        core,
        world,
        seed,
        checksum=seed % 2 == 0,
        links=1 + seed % 3,
        scratch=rng.choice([64, 64 * 40, 1 << 14]),
    )
    ops = make_ops(rng, rng.randrange(1, 8), world)
    load(cluster, ops, rng, [0, 1, 7, 8, 9, 40, 333])
    cluster.install_first()
    cluster.run()
    assert not cluster.bad
    check_values(cluster, ops, 64)
    for node in cluster.nodes:
        for op in ops:
            assert node.results[op.op_id][3] == 0, "nothing was repaired"


@pytest.mark.parametrize("seed", range(300))
def test_deaths_in_flight(core: ModuleType, seed: int) -> None:
    rng = random.Random(1000 + seed)
    world = rng.randrange(2, 7)
    cluster = Cluster(
        core,
        world,
        seed,
        checksum=seed % 3 == 0,
        links=1 + seed // 3 % 3,
        scratch=rng.choice([64, 64 * 40, 1 << 14]),
    )
    ops = make_ops(rng, rng.randrange(1, 6), world)
    load(cluster, ops, rng, [1, 9, 40, 333])
    cluster.install_first()
    for _ in range(rng.randrange(1, min(3, world))):
        for _ in range(rng.randrange(2500)):
            cluster.step()
        living = [n.index for n in cluster.alive()]
        if len(living) < 2:
            break
        victim = rng.choice(living)
        cluster.kill(victim)
        rest = [i for i in living if i != victim]
        second = rng.choice(rest) if rng.random() < 0.3 and len(rest) > 1 else None
        cluster.repair(also_dies=second)
    cluster.run()
    assert not cluster.bad
    check_values(cluster, ops, 64)
    for node in cluster.alive():
        assert cluster.epoch in node.repaired


def test_mismatch_is_told_with_both_values(core: ModuleType) -> None:
    cluster = Cluster(core, 3, 5)
    cluster.install_first()
    for node in cluster.nodes:
        size = 10 if node.index != 1 else 11
        cluster.submit(node, Submission(1, 7, 0), np.ones(size, np.float32))
    cluster.run()
    told = {(n.index, *m) for n in cluster.nodes for m in n.mismatches}
    assert (0, 1001, "count", "10", "11") in told
    assert (1, 1000, "count", "11", "10") in told or (1, 1002, "count", "11", "10") in told
    for node in cluster.nodes:
        assert not node.results
        assert (node.buffers[1] == 1).all(), "inputs stay intact"


def test_named_ops_in_any_order(core: ModuleType) -> None:
    """Two members submit the same named ops in opposite orders, with more ops than the window."""
    cluster = Cluster(core, 3, 11, scratch=64 * 3 * 4)
    names = list(range(1, 40))
    for node in cluster.nodes:
        order = names if node.index % 2 == 0 else names[::-1]
        for i in order:
            node.inputs[NAMED | i] = np.full(50, float(i * (node.index + 1)), np.float32)
            node.todo.append(Submission(NAMED | i, 7, 0, name=i))
    cluster.install_first()
    cluster.run(2_000_000)
    assert not cluster.bad
    for node in cluster.nodes:
        for i in names:
            assert node.results[NAMED | i][0] == 0
            assert (node.buffers[NAMED | i] == i * 6).all()


def test_a_wrong_reduction_is_caught(core: ModuleType) -> None:
    """The checks can fail: one flipped bit in one member's result, one sum of no member set."""
    cluster = Cluster(core, 3, 3)
    ops = [Submission(1, 4, 0)]
    load(cluster, ops, random.Random(0), [40])
    cluster.install_first()
    cluster.run()
    check_values(cluster, ops, 64)
    cluster.nodes[1].buffers[1][5] ^= 1
    with pytest.raises(AssertionError, match="different bits"):
        check_values(cluster, ops, 64)
    for node in cluster.nodes:
        node.buffers[1][5] = cluster.nodes[1].buffers[1][5]
    with pytest.raises(AssertionError, match="sum of no member set"):
        check_values(cluster, ops, 64)


def test_garbage_spoils_the_link_and_nothing_else(core: ModuleType) -> None:
    for seed in range(50):
        rng = random.Random(seed)
        cluster = Cluster(core, 3, seed)
        load(cluster, [Submission(1, 7, 0)], rng, [333])
        cluster.install_first()
        for _ in range(rng.randrange(200)):
            cluster.step()
        victim = rng.choice(cluster.nodes)
        pipe = rng.choice(list(victim.links.values())).incoming
        pipe.data[:] = rng.randbytes(400)
        cluster.run()
        assert all(b.startswith(f"{victim.index}:") for b in cluster.bad)
        assert cluster.bad


def test_a_late_and_different_submit_meets_a_plan(core: ModuleType) -> None:
    """Root and one member hold a broadcast; the third submits it with another count only after the
    repair has made a plan: it is told of the mismatch, and nothing breaks."""
    cluster = Cluster(core, 4, 17)
    cluster.install_first()
    op = Submission(1, 7, 0, kind=1, root=0)
    for index in (0, 1):
        cluster.submit(cluster.nodes[index], op, np.full(50, index, np.float32))
    cluster.run()
    cluster.kill(3)
    cluster.repair()
    cluster.run()
    cluster.submit(cluster.nodes[2], op, np.zeros(7, np.float32))
    cluster.run()
    assert [m[1] for m in cluster.nodes[2].mismatches] == ["count"]
    assert not cluster.bad
    assert (cluster.nodes[2].buffers[1] == 0).all()


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("route", [RING, STAR, DIRECT])
def test_many_more_segments_than_the_window(core: ModuleType, world: int, route: int) -> None:
    """Also when one member, here a far quicker one, is done with all that it had to start."""
    for seed in range(100):
        cluster = Cluster(core, world, seed, scratch=1, links=1 + seed % 2)
        op = Submission(1, 7, 0, route=route)
        load(cluster, [op], random.Random(seed), [400])
        cluster.install_first()
        for node in cluster.nodes:
            cluster.submit(node, node.todo.pop(0), node.inputs[1])
        quiet = 0
        while quiet < 60:
            node = cluster.nodes[0 if cluster.random.random() < 0.95 else -1]
            step = cluster.random.choice((cluster.transmit, cluster.offer))
            quiet = 0 if step(node, cluster.random.choice(list(node.links)), 400) else quiet + 1
        while cluster.sweep():
            pass
        check_values(cluster, [op], 64)


def small_op(cluster: Cluster, op: Submission, values: int = 40) -> None:
    for node in cluster.nodes:
        cluster.submit(node, op, np.full(values, node.index + 1, np.float32))


def test_small_ops_go_over_the_views_hub(core: ModuleType) -> None:
    """Only the hub exchanges frames: links between others do not matter."""
    cluster = Cluster(core, 5, 21, hub=3)
    cluster.install_first()
    for node in cluster.nodes:
        for link in [k for k, end in node.links.items() if 3 not in (node.index, end.far)]:
            if link in node.links:
                cluster.close(node, link)
    small_op(cluster, Submission(1, 7, 0))
    cluster.run()
    check_values(cluster, [Submission(1, 7, 0)], 64)
    assert {node.taken[1] for node in cluster.nodes} == {STAR}


def test_large_ops_go_as_the_view_says(core: ModuleType) -> None:
    for large in (AUTO, RING, STAR, DIRECT):
        cluster = Cluster(core, 4, 22, hub=2, large=large)
        op = Submission(1, 7, 0)
        load(cluster, [op], random.Random(1), [20_000])
        cluster.install_first()
        cluster.run(2_000_000)
        check_values(cluster, [op], 64)
        assert {node.taken[1] for node in cluster.nodes} == {large or DIRECT}


def test_the_hubs_death_moves_the_op_to_the_next_hub(core: ModuleType) -> None:
    for seed in range(30):
        cluster = Cluster(core, 4, seed, hub=1)
        op = Submission(1, 7, 0)
        load(cluster, [op], random.Random(seed), [40])
        cluster.install_first()
        for _ in range(seed * 20):
            cluster.step()
        cluster.kill(1)
        cluster.hub = 2
        cluster.repair()
        cluster.run()
        check_values(cluster, [op], 64)
        assert not cluster.bad


def test_equal_inputs_give_equal_bits_over_a_hub(core: ModuleType) -> None:
    bits = set()
    for seed in range(20):
        cluster = Cluster(core, 5, seed, hub=4)
        cluster.install_first()
        for node in cluster.nodes:
            values = np.random.default_rng(node.index).standard_normal(40).astype(np.float32)
            cluster.submit(node, Submission(1, 7, 0), values)
        cluster.run()
        bits |= {node.buffers[1].tobytes() for node in cluster.nodes}
    assert len(bits) == 1


def test_of_two_that_differ_the_hub_tells(core: ModuleType) -> None:
    cluster = Cluster(core, 4, 23, hub=2)
    cluster.install_first()
    for node in cluster.nodes:
        size = 10 if node.index != 1 else 11
        cluster.submit(node, Submission(1, 7, 0), np.ones(size, np.float32))
    cluster.run()
    told = {(n.index, *m) for n in cluster.nodes for m in n.mismatches}
    assert (2, 1001, "count", "10", "11") in told
    assert (1, 1002, "count", "11", "10") in told
    assert not cluster.bad
