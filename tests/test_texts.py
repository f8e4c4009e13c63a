"""Error texts say what a user would call things: the op's name, who is awaited, what overlaps."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pccl_py as pccl
from pccl_py import state_sync
from pccl_py.cli import status
from pccl_py.coordinator import embedded
from pccl_py.dataplane import engine, results
from pccl_py.dataplane.buffers import Buffer
from pccl_py.dataplane.op import Op
from pccl_py.errors import Code
from pccl_py.launch import inquiry
from pccl_py.types import DType, Kind, Phase
from tests.crew import Crew, crew, join_all, start

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pair() -> Iterator[Crew]:
    with embedded.start() as own, crew(own.address, 2) as members:
        yield members


def test_a_named_op_that_times_out_is_called_by_its_name(pair: Crew) -> None:
    with pytest.raises(pccl.DeadlineExceeded) as caught:
        pair[0].all_reduce(np.zeros(3), name="grads/3", timeout=0.3)
    text = str(caught.value)
    assert "op 'grads/3'" in text, text
    assert "named op" not in text, text
    late = pair.on(1, lambda c: c.all_reduce(np.zeros(3), name="grads/3")).exception(10.0)
    assert type(late) is pccl.DeadlineExceeded
    assert "op 'grads/3'" in str(late)
    pair.each(lambda c: c.barrier())


def test_named_ops_that_differ_are_called_by_their_name(pair: Crew) -> None:
    for error in pair.errors(lambda c: c.all_reduce(np.zeros(3 + c.rank), name="b")):
        assert type(error) is pccl.UsageError
        assert str(error).startswith("op 'b': "), error


def test_an_overlap_names_the_op_that_holds_the_buffer(pair: Crew) -> None:
    base = np.zeros(100, np.float32)
    work = pair[0].all_reduce(base[:60], name="first", async_op=True)
    with pytest.raises(pccl.UsageError, match="overlaps that of all_reduce 'first', which is in"):
        pair[0].all_reduce(base[59:])
    pair[1].all_reduce(np.zeros(60, np.float32), name="first")
    work.wait(10.0)
    pair.each(lambda c: c.barrier())


def test_an_op_too_large_is_told_from_an_overlap() -> None:
    half = Buffer(1 << 20, engine.BUFFER_BYTES_MAX // 2 + 1, DType.UINT8, (), None)
    engine.check_size(Op(Kind.ALL_REDUCE, half.dtype, "all_reduce", out=half, input=half))
    two = Op(Kind.ALL_GATHER, half.dtype, "all_gather", input=half, receives=(half, half))
    with pytest.raises(pccl.UsageError, match="is most for one op: pass it in parts"):
        engine.check_size(two)


def test_the_limit_is_that_of_the_core() -> None:
    source = (ROOT / "native/src/core.c").read_text()
    size = re.search(r"#define SEGMENT_BYTES_MAX \((\d+)u << 10\)", source)
    assert size is not None
    assert int(size[1]) << 10 == engine.SEGMENT_BYTES_MAX
    header = (ROOT / "native/include/pccl.h").read_text()
    assert f"#define PCCL_SEGMENTS_MAX {engine.SEGMENTS_MAX} " in header


def test_a_sync_that_times_out_names_who_did_not_call_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(state_sync, "STALL_S", 0.5)
    with embedded.start() as own, crew(own.address, 3, deadline_s=2.5) as three:
        late = three[2].name
        calls = [three.on(i, lambda c: c.sync_state({"x": np.zeros(2)})) for i in range(2)]
        told = [sorted([three[0].name, three[1].name]), [late]]
        where, found = inquiry.status(own.address, "", None)
        until = time.monotonic() + 2
        while not found["syncs"] or len(found["syncs"][0]["members"]) < 2:
            assert time.monotonic() < until
            where, found = inquiry.status(own.address, "", None)
        (sync,) = found["syncs"]
        assert [sorted(sync["members"]), sync["awaited"]] == told
        assert f"; awaited: {late}" in status.table(where, found)
        for call in calls:
            error = call.exception(10.0)
            assert type(error) is pccl.DeadlineExceeded
            named = re.fullmatch(
                r"sync_state: waiting for (m\d) \(\w+\) to call sync_state", str(error)
            )
            assert named is not None, error
            assert named[1] == late
        assert f"sync_state has not ended for 1.0 s: waiting for {late}" in caplog.text


def test_a_sync_without_a_coordinator_says_so() -> None:
    with embedded.start() as own:
        two = join_all(own.address, 2, deadline_s=2.0)
        own.stop()
        try:
            for error in two.errors(lambda c: c.sync_state({"x": np.zeros(2)})):
                assert type(error) is pccl.CoordinatorLost, error
                assert "the coordinator cannot be reached" in str(error)
        finally:
            for comm in two:
                comm.close()


# ---------------------------------------------------------------- who, op, phase, how long, bytes

ENDED = (
    r"(?P<op>it|op [^ ]+) ended here \d+\.\d s after its submission, waiting for "
    r"(?P<phase>[a-z ]+), (?P<bytes>\d+) bytes missing"
)


def blame(error: BaseException) -> tuple[str, str, int]:
    """What the end of an error's text says: the op, the phase, the bytes that are missing."""
    found = re.search(rf"\({ENDED}\)$", str(error))
    assert found is not None, error
    return found["op"], found["phase"], int(found["bytes"])


def test_who_times_out_is_told_how_the_op_stood(pair: Crew) -> None:
    work = pair[0].all_reduce(np.zeros(30), timeout=0.3, async_op=True)
    with pytest.raises(pccl.DeadlineExceeded, match=r"^op \d+ timed out: not submitted by") as told:
        work.wait(10.0)
    assert str(pair[1].members[pair[1].rank]) in str(told.value)
    assert blame(told.value) == ("it", "members to submit it", 240)
    late = pair.on(1, lambda c: c.all_reduce(np.zeros(30))).exception(10.0)
    assert type(late) is pccl.DeadlineExceeded
    assert "ended here" not in str(late)  # it never ran there
    pair.each(lambda c: c.barrier())


def test_a_lost_peer_an_eviction_and_a_lost_coordinator_tell_how_the_op_stood() -> None:
    with embedded.start() as own:
        three = join_all(own.address, 3, deadline_s=3.0)
        try:
            works = [c.broadcast(np.zeros(30), src=2, async_op=True) for c in three[:2]]
            name = str(three[2].members[2])
            three[2].close()
            for work in works:
                with pytest.raises(pccl.PeerLost, match="without ") as told:
                    work.wait(20.0)
                assert name in str(told.value)
                assert blame(told.value) == ("it", "members to submit it", 240)
            left = three[0].all_reduce(np.zeros(30), name="x", async_op=True)
            own.stop()
            with pytest.raises(pccl.CoordinatorLost, match="outcome of op 'x' unknown") as lost:
                left.wait(20.0)
            assert blame(lost.value) == ("it", "members to submit it", 240)
            mine = three[1].all_reduce(np.zeros(30), name="y", async_op=True)
            waits = start(lambda: mine.wait(20.0))
            time.sleep(0.1)
            three[1].close()
            error = waits.exception(10.0)
            assert type(error) is pccl.Evicted
            assert "closed before the op ended" in str(error)
            assert "op 'y'" in str(error)
        finally:
            for comm in three:
                comm.close()


@pytest.mark.parametrize("code", list(Code))
def test_the_end_of_a_text_is_for_what_may_last(code: Code) -> None:
    told = results.with_blame(code, "op 12 is late", "op 1", Phase.COPY, 3.04, 7)
    end = " (op 1 ended here 3.0 s after its submission, waiting for copies, 7 bytes missing)"
    at_once = (Code.OK, Code.USAGE, Code.RESOURCE, Code.PROTOCOL)
    assert told == "op 12 is late" + ("" if code in at_once else end)
    never_ran = results.with_blame(code, "op 12 is late", "op 1", Phase.NONE, 3.04, 7)
    assert never_ran == "op 12 is late"


@pytest.mark.parametrize("call", ["gather", "scatter"])
def test_what_is_submitted_differently_again_is_a_mistake_again(pair: Crew, call: str) -> None:
    """A view that came for the first mistake has the same members: nothing to be tried again."""
    word, field = ("dst", "outs") if call == "gather" else ("src", "ins")

    def wrong(comm: pccl.Communicator) -> object:
        args = {word: comm.rank, field: [np.zeros(3), np.zeros(3)]}
        return getattr(comm, call)(np.zeros(3), **args)

    for _ in range(2):
        for error in pair.errors(wrong):
            assert type(error) is pccl.UsageError, error
            assert f" has {word} m" in str(error), error


def test_names_and_times_that_cannot_be_are_said_to_be_so(pair: Crew) -> None:
    with pytest.raises(pccl.UsageError, match=r"name='.ud800' must be a text that UTF-8 can write"):
        pair[0].barrier(name="\ud800")
    where = pair[0]._control._config.coordinators[0]
    for timeout in (1e-9, 1e-3):
        with pytest.raises(
            pccl.DeadlineExceeded, match=r"not admitted in time: (.* had no time to answer|waiting)"
        ):
            pccl.join(str(where), timeout=timeout)
