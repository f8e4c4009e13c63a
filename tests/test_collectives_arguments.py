"""What each collective makes of its arguments: the op that an engine is handed, or one line that
says what is wrong. No engine here; the peers are numbers, and die by being left out of a record."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch

import pccl_py as pccl
from pccl_py import arguments
from pccl_py.among import Among, Told
from pccl_py.collectives import Collectives
from pccl_py.dataplane.op import Op
from pccl_py.flight import Flight
from pccl_py.peer.control import Mailbox
from pccl_py.roster import Roster
from pccl_py.subgroup import Subgroup, subgroup_of
from pccl_py.types import GroupRecord, Kind, Member, OpInfo, PeerId, Record, ReduceOp
from pccl_py.work import Work

PEERS = [PeerId(100 + i) for i in range(4)]
DONE = OpInfo(1, 1, 0, 0, 0, 0.0, "direct", "tcp")


class Ended:
    """A Work whose op has ended."""

    def wait(self, timeout: float | None = None) -> OpInfo:
        return DONE


class Recorder:
    """A Flight that keeps the ops it is given."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.closed = ""

    def check_usable(self, *, allow_failed: bool = False) -> None:
        if self.closed:
            raise pccl.UsageError(f"the communicator is {self.closed}")

    def start(self, op: Op, timeout: float | None, wait_ms: int = 0) -> Work:
        self.ops.append(op)
        return cast(Work, Ended())


class Whole(Collectives):
    """A member of a group of four, rank 1 unless told otherwise."""

    def __init__(self, rank: int = 1) -> None:
        self.recorder = Recorder()
        self._flight = cast(Flight, self.recorder)
        self.mailbox = Mailbox()
        self.roster = Roster(PEERS[rank], "default", self.mailbox)
        self.told = Told()
        self.install(PEERS)

    def install(self, peers: list[PeerId], line: int = 1) -> None:
        members = tuple(Member(p, f"w{p - 100}", "default", "127.0.0.1", 1) for p in peers)
        group = GroupRecord("default", tuple(peers))
        self.mailbox.put(record=Record(line, 5 - len(peers), False, members, (group,)))

    def _among(self) -> Among:
        self._flight.check_usable()
        return self.roster.among(self.roster.view().members, "group", self.told)

    def subgroup(self, ranks: object) -> Subgroup:
        return subgroup_of(self, self._flight, self.roster, self._among(), ranks)

    @property
    def op(self) -> Op:
        """The last op."""
        return self.recorder.ops[-1]


@pytest.fixture
def comm() -> Whole:
    return Whole()


def f32(*counts: int) -> list[np.ndarray]:
    return [np.zeros(count, np.float32) for count in counts]


def read_only(count: int) -> np.ndarray:
    found = np.zeros(count, np.float32)
    found.flags.writeable = False
    return found


def refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(pccl.UsageError) as caught:
        call()
    text = str(caught.value)
    assert says in text, text
    assert "\n" not in text
    assert len(text) < 300


# ---------------------------------------------------------------- what is handed on


def test_all_reduce(comm: Whole) -> None:
    (x,) = f32(3)
    assert comm.all_reduce(x, "max", route="ring", strict=True) is DONE
    op = comm.op
    assert (op.kind, op.reduce, op.strict, op.route) == (Kind.ALL_REDUCE, ReduceOp.MAX, True, 1)
    assert (op.peers, op.context, op.name, op.weight) == ((), 0, 0, 1.0)
    assert op.input is None
    assert op.out is not None
    assert op.out.address == x.ctypes.data
    source, out = read_only(3), np.ones(3, np.float32)
    comm.all_reduce(source, "avg", out=out, weight=0.5, name="a")
    assert comm.op.input is not None
    assert comm.op.input.address == source.ctypes.data
    assert (comm.op.out.address, comm.op.weight) == (out.ctypes.data, 0.5)
    assert comm.op.name != 0
    assert comm.op.what == "all_reduce 'a'"
    comm.all_reduce(x, out=x)
    assert comm.op.input is None, "the same memory is in place"
    comm.all_reduce(x, "avg", weight=np.float32(2))
    assert comm.op.weight == 2.0
    comm.barrier()
    assert (comm.op.kind, comm.op.out.count, comm.op.what) == (Kind.ALL_REDUCE, 0, "barrier")


def test_reduce_has_an_output_at_its_root_alone(comm: Whole) -> None:
    (x, y) = f32(3, 3)
    comm.reduce(x, dst=1)
    assert comm.op.root == PEERS[1]
    assert comm.op.out == comm.op.input
    comm.reduce(read_only(3), 1, out=y)
    assert comm.op.out.address == y.ctypes.data
    comm.reduce(read_only(3), 2, "avg", out=np.zeros(99))
    assert (comm.op.root, comm.op.out, comm.op.reduce) == (PEERS[2], None, ReduceOp.AVG)
    assert comm.op.peers == ()


def test_broadcast_reads_at_its_root(comm: Whole) -> None:
    comm.broadcast(read_only(3), src=1)
    assert (comm.op.root, comm.op.peers) == (PEERS[1], ())
    refused(lambda: comm.broadcast(read_only(3), src=0), "read-only")


def test_all_gather(comm: Whole) -> None:
    outs = f32(1, 2, 0, 4)
    comm.all_gather(outs, read_only(2))
    op = comm.op
    assert [b.count for b in op.receives] == [1, 2, 0, 4]
    assert (op.input.count, op.peers) == (2, tuple(PEERS))
    comm.all_gather(outs, outs[1])
    assert comm.op.receives[1].is_at(comm.op.input)
    whole = torch.zeros(4, 3)
    comm.all_gather(whole, whole[1])
    addresses = [b.address for b in comm.op.receives]
    assert addresses == [whole[i].data_ptr() for i in range(4)]
    comm.all_gather(bytearray(8), b"ab")
    assert [b.count for b in comm.op.receives] == [2] * 4


def test_reduce_scatter(comm: Whole) -> None:
    (out,) = f32(2)
    comm.reduce_scatter(out, [read_only(n) for n in (1, 2, 3, 0)], "avg")
    assert [b.count for b in comm.op.sends] == [1, 2, 3, 0]
    assert (comm.op.out.address, comm.op.reduce) == (out.ctypes.data, ReduceOp.AVG)
    comm.reduce_scatter(out, np.zeros((4, 2), np.float32))
    assert [b.count for b in comm.op.sends] == [2] * 4


def test_gather_and_scatter_have_blocks_at_the_root_alone(comm: Whole) -> None:
    comm.gather(read_only(2), dst=3)
    assert [b and b.count for b in comm.op.sends] == [None, None, None, 2]
    assert comm.op.receives == ()
    comm.gather(read_only(2), f32(1, 2, 3, 4), dst=1)
    assert [b and b.count for b in comm.op.sends] == [None, 2, None, None]
    assert [b.count for b in comm.op.receives] == [1, 2, 3, 4]
    (mine,) = f32(2)
    comm.scatter(mine, src=0)
    assert [b and b.count for b in comm.op.receives] == [2, None, None, None]
    assert comm.op.sends == ()
    ins = f32(1, 2, 3, 4)
    comm.scatter(ins[1], ins, src=1)
    assert comm.op.sends[1].is_at(comm.op.receives[1])


def test_all_to_all(comm: Whole) -> None:
    comm.all_to_all(f32(1, 2, 3, 4), [read_only(n) for n in (5, 2, 7, 0)])
    assert [b.count for b in comm.op.receives] == [1, 2, 3, 4]
    assert [b.count for b in comm.op.sends] == [5, 2, 7, 0]


def test_two_ends_of_a_transfer_meet(comm: Whole) -> None:
    other = Whole(rank=3)
    seen = set()
    for tag in (0, 1, 2**31 - 1):
        comm.send(read_only(5), dst=3, tag=tag)
        other.recv(np.zeros(5, np.float32), src=1, tag=tag)
        out, into = comm.op, other.op
        assert out.context == into.context
        assert 0 < out.context < 1 << 31
        assert out.peers == into.peers == (PEERS[1], PEERS[3])
        assert out.root == into.root == PEERS[3]
        assert out.words == into.words
        assert [b and b.count for b in out.sends] == [None, 5]
        assert [b and b.count for b in into.receives] == [5, None]
        comm.recv(np.zeros(5, np.float32), src=3, tag=tag)
        seen |= {out.context, comm.op.context}
    assert len(seen) == 6, "each direction and each tag is its own"
    comm.subgroup([1, 3]).send(read_only(5), dst=1)
    assert comm.op.context not in seen


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda c: c.all_reduce(read_only(3)), "read-only"),
        (lambda c: c.all_reduce(f32(3)), "list is not a tensor"),
        (lambda c: c.all_reduce(f32(3)[0], out=f32(4)[0]), "4 of float32 and tensor 3 of float32"),
        (
            lambda c: c.all_reduce(np.zeros(3), out=f32(3)[0]),
            "3 of float32 and tensor 3 of float64",
        ),
        (lambda c: c.all_reduce(f32(3)[0], out=read_only(3)), "out: the array is read-only"),
        (lambda c: c.all_reduce(f32(3)[0], weight=1.0), "weight is of op='avg', not of 'sum'"),
        (lambda c: c.all_reduce(f32(3)[0], "avg", weight=-1), "weight=-1 must be"),
        (lambda c: c.all_reduce(f32(3)[0], "avg", weight=float("nan")), "weight=nan must be"),
        (lambda c: c.all_reduce(f32(3)[0], "avg", weight=float("inf")), "weight=inf must be"),
        (lambda c: c.all_reduce(f32(3)[0], "avg", weight=1e301), "weight=1e+301 must be a number"),
        (lambda c: c.all_reduce(f32(3)[0], "avg", weight="1"), "weight='1' must be"),
        (lambda c: c.all_reduce(f32(3)[0], "avg", weight=True), "weight=True must be"),
        (lambda c: c.all_reduce(np.zeros(3, np.int32), "avg", weight=2), "not of int32"),
        (lambda c: c.reduce(f32(3)[0], dst=4), "dst=4 must be a rank from 0 to 3"),
        (lambda c: c.reduce(read_only(3), dst=1), "read-only"),
        (lambda c: c.reduce(f32(3)[0], 1, out=f32(2)[0]), "out is 2 of float32 and tensor 3"),
        (
            lambda c: c.all_gather(f32(1, 1), f32(1)[0]),
            "outs has 2 tensors and the group 4 members",
        ),
        (lambda c: c.all_gather([], f32(1)[0]), "outs has 0 tensors"),
        (
            lambda c: c.all_gather(f32(1, 1, 1, 1), f32(2)[0]),
            "outs[1] is 1 of float32 and tensor 2",
        ),
        (lambda c: c.all_gather(np.zeros(6), np.zeros(1)), "outs has 6 elements, which 4 members"),
        (lambda c: c.all_gather(np.zeros(8), np.zeros(1)), "outs[1] is 2 of float64 and tensor 1"),
        (lambda c: c.all_gather(np.zeros(8), f32(2)[0]), "outs is float64 and tensor float32"),
        (lambda c: c.all_gather([*f32(1, 1, 1), np.zeros(1)], f32(1)[0]), "outs[3] is float64 and"),
        (lambda c: c.all_gather([*f32(1, 1, 1), read_only(1)], f32(1)[0]), "outs[3]: the array is"),
        (lambda c: c.all_gather([1.0] * 4, f32(1)[0]), "outs[0]: float is not a tensor"),
        (lambda c: c.all_gather(None, f32(1)[0]), "outs: NoneType is not a tensor"),
        (lambda c: c.all_gather([f32(1)[0]] * 4, f32(1)[0]), "of outs overlap each other"),
        (lambda c: in_part(c.all_gather), "outs overlaps tensor"),
        (lambda c: in_part(c.reduce_scatter, back=True), "out overlaps ins"),
        (
            lambda c: c.reduce_scatter(f32(2)[0], f32(1, 1, 1, 1)),
            "out is 2 of float32 and ins[1] 1",
        ),
        (lambda c: c.reduce_scatter(f32(1)[0], np.zeros(4)), "ins is float64 and out float32"),
        (lambda c: c.reduce_scatter(f32(1)[0], f32(1)), "ins has 1 tensors and the group 4"),
        (lambda c: c.reduce_scatter(f32(1)[0], f32(4)[0], op="mean"), "op='mean' must be one of"),
        (lambda c: c.gather(f32(1)[0], dst=1), "outs must be given at rank 1"),
        (lambda c: c.gather(f32(1)[0], f32(1, 2, 1, 1), dst=1), "outs[1] is 2 of float32"),
        (lambda c: in_part(c.gather, back=True, dst=1), "outs overlaps tensor"),
        (lambda c: c.scatter(f32(1)[0], src=1), "ins must be given at rank 1"),
        (lambda c: c.scatter(read_only(1), src=0), "read-only"),
        (lambda c: c.scatter(f32(1)[0], f32(1, 2, 1, 1), src=1), "ins[1] is 2 of float32"),
        (lambda c: in_part(c.scatter, back=True, src=1), "tensor overlaps ins"),
        (lambda c: c.all_to_all(f32(1, 1, 1, 1), f32(1, 2, 1, 1)), "outs[1] is 1 of float32"),
        (lambda c: c.all_to_all(*[f32(1, 1, 1, 1)] * 2), "outs overlaps ins"),
        (lambda c: c.all_to_all(np.zeros(4), f32(4)[0]), "outs is float64 and ins float32"),
        (lambda c: c.send(f32(1)[0], 1), "dst=1 is this member itself"),
        (lambda c: c.recv(f32(1)[0], 1), "src=1 is this member itself"),
        (lambda c: c.recv(read_only(1), 0), "read-only"),
        (lambda c: c.recv(f32(1)[0], True), "src=True must be a rank"),
        (lambda c: c.send(f32(1)[0], -1), "dst=-1 must be a rank"),
        (lambda c: c.send(f32(1)[0], 0, tag=-1), "tag=-1 must be"),
        (lambda c: c.send(f32(1)[0], 0, tag=2**31), "tag=2147483648 must be"),
        (lambda c: c.recv(f32(1)[0], 0, tag="a"), "tag='a' must be"),
        (lambda c: c.recv(f32(1)[0], 0, async_op=1), "async_op=1"),
        (lambda c: c.barrier(async_op="yes"), "async_op='yes'"),
        (lambda c: c.all_gather(f32(1, 1, 1, 1), f32(1)[0], name=""), "a text, and not empty"),
        (lambda c: c.subgroup([]), "a list of ranks, and not empty"),
        (lambda c: c.subgroup(None), "ranks=None must be a list"),
        (lambda c: c.subgroup("01"), "ranks='01' must be a list"),
        (lambda c: c.subgroup([1, 1]), "must be different"),
        (lambda c: c.subgroup([1, 4]), "ranks[1]=4 must be a rank from 0 to 3"),
        (lambda c: c.subgroup([0, 2]), "must have this member's own rank, 1"),
    ],
)
def test_refused(comm: Whole, call: Callable, says: str) -> None:
    refused(lambda: call(comm), says)
    assert comm.recorder.ops == []


def overlapping() -> tuple[np.ndarray, np.ndarray]:
    base = np.zeros(5, np.float32)
    return base[:4], base[1:]


def in_part(call: Callable, *, back: bool = False, **how: int) -> object:
    """`call` with blocks of one tensor, and a tensor that lies across two of them."""
    base = np.zeros(8, np.float32)
    return call(base[3:5], base, **how) if back else call(base, base[3:5], **how)


def test_out_may_not_overlap_in_part(comm: Whole) -> None:
    one, other = overlapping()
    refused(lambda: comm.all_reduce(one, out=other), "out overlaps tensor")
    refused(lambda: comm.reduce(one, 1, out=other), "out overlaps tensor")


# ---------------------------------------------------------------- sub-groups


def test_a_subgroup_has_ranks_of_its_own(comm: Whole) -> None:
    sub = comm.subgroup([3, 1, 0])
    assert (sub.world_size, sub.rank) == (3, 1)
    assert [m.peer for m in sub.members] == [PEERS[3], PEERS[1], PEERS[0]]
    sub.broadcast(np.zeros(3), src=0)
    assert comm.op.root == PEERS[3]
    assert comm.op.peers == (PEERS[3], PEERS[1], PEERS[0])
    assert comm.op.what == "broadcast of sub-group w3, w1, w0"
    sub.all_reduce(np.zeros(3), name="x")
    assert comm.op.peers == (PEERS[3], PEERS[1], PEERS[0])
    assert (comm.op.what, comm.op.words) == (
        "all_reduce 'x' of sub-group w3, w1, w0",
        "op 'x' of sub-group w3, w1, w0",
    )
    refused(lambda: sub.all_gather(f32(1, 1), f32(1)[0]), "outs has 2 tensors and the sub-group 3")
    inner = sub.subgroup([1, 2])
    assert [m.peer for m in inner.members] == [PEERS[1], PEERS[0]]


def test_the_context_is_who_they_are(comm: Whole) -> None:
    def context(sub: Subgroup) -> int:
        sub.barrier()
        return comm.op.context

    first = context(comm.subgroup([0, 1]))
    assert 0 < first < 1 << 31
    assert context(comm.subgroup((0, 1))) == first
    assert context(comm.subgroup(range(3)).subgroup([0, 1])) == first
    assert context(comm.subgroup([1, 0])) != first
    assert context(comm.subgroup([1, 2])) != first
    other = Whole(rank=0)
    other.subgroup([0, 1]).barrier()
    assert other.op.context == first, "without a word between them"


def test_a_subgroup_loses_its_dead_and_outlives_a_line(comm: Whole) -> None:
    sub = comm.subgroup([0, 1, 3])
    sub.barrier()
    context = comm.op.context
    comm.install([PEERS[1], PEERS[2], PEERS[3]])
    assert (sub.world_size, sub.rank) == (2, 0)
    sub.broadcast(np.zeros(3), src=1)
    assert (comm.op.root, comm.op.peers) == (PEERS[3], (PEERS[1], PEERS[3]))
    comm.install([PEERS[1], PEERS[3], PeerId(9)], line=2)
    sub.barrier()
    assert (comm.op.context, comm.op.peers) == (context, (PEERS[1], PEERS[3]))


def test_a_closed_communicator_closes_its_subgroups(comm: Whole) -> None:
    sub = comm.subgroup([0, 1])
    comm.recorder.closed = "closed"
    refused(lambda: sub.send(f32(1)[0], 0), "the communicator is closed")
    refused(lambda: sub.subgroup([1]), "the communicator is closed")


# ---------------------------------------------------------------- what no longer fits


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.all_gather(f32(1, 1, 1, 1), f32(1)[0]),
        lambda c: c.all_gather(np.zeros(8), np.zeros(2)),
        lambda c: c.reduce_scatter(f32(3)[0], f32(12)[0]),
        lambda c: c.broadcast(np.zeros(3), src=3),
        lambda c: c.subgroup([1, 3]),
    ],
)
def test_what_fitted_until_a_member_was_lost_is_retried_not_fixed(
    comm: Whole, call: Callable
) -> None:
    comm.barrier()
    assert comm.roster.among(comm.roster.view().members, "group", comm.told).size == 4
    comm.install(PEERS[:3])
    with pytest.raises(pccl.PeerLost, match="1 member has gone since there were 4: look again"):
        call(comm)
    refused(lambda: call(comm), "")
    assert all(op.what == "barrier" for op in comm.recorder.ops)


def test_a_new_line_forgives_nothing(comm: Whole) -> None:
    comm.told.note(1, 4)
    comm.install(PEERS[:3], line=2)
    refused(lambda: comm.all_gather(f32(1, 1, 1, 1), f32(1)[0]), "outs has 4 tensors")


def test_whole_numbers_of_numpy_are_numbers() -> None:
    assert arguments.whole(np.int64(3), 0, 3) == 3
    assert type(arguments.whole(np.uint8(3), 0, 3)) is int
    assert arguments.whole(np.int64(4), 0, 3) is None
    assert arguments.whole(True, 0, 3) is None
    assert arguments.whole(np.float64(1), 0, 3) is None
