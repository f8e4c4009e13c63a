"""What becomes of each op: the rules one by one, and what holds for any answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl_py.coordinator import verdicts
from pccl_py.coordinator.verdicts import Case, decide
from pccl_py.errors import Code
from pccl_py.protocol.messages import Answer, Mismatch, OpReport, OpStatus
from pccl_py.types import (
    HELD_BY_ALL,
    REDO,
    GroupRecord,
    Member,
    OnLoss,
    Outcome,
    PeerId,
    Verdict,
    covered,
    op_id,
    op_text,
)

A, B, C = PeerId(1), PeerId(2), PeerId(3)
MEMBERS = {p: Member(p, f"w{p}", "g", "h", 1) for p in (A, B, C)}
NAMED = op_id(7, named=True)


def running(op: int, bits: str, **fields: object) -> OpReport:
    mask = int(bits[::-1], 2) if bits else 0
    final = mask.to_bytes((len(bits) + 7) // 8, "little")
    report = OpReport(
        op, OpStatus.RUNNING, len(bits), final, OnLoss.REPAIR, PeerId(0), b"", False, 0, ""
    )
    return replace(report, **fields)  # type: ignore[arg-type]


def ended(op: int, status: OpStatus, code: int = 0) -> OpReport:
    return OpReport(
        op, status, 2, b"", OnLoss.REPAIR, PeerId(0), b"", False, code, "why" if code else ""
    )


def answer(*reports: OpReport, stable: int = 0) -> Answer:
    return Answer(1, 9, stable, (), reports, (), False)


def case(answers: dict[PeerId, Answer], **fields: object) -> Case:
    """Who has no answer is gone: dead, unless `lost` says otherwise. The old ring is A B C."""
    ring = tuple(answers)
    old = tuple(MEMBERS) if "lost" in fields else ring
    plain = Case(GroupRecord("g", old), MEMBERS, answers, ring, (), {}, {})
    return replace(plain, **fields)  # type: ignore[arg-type]


def only(given_case: Case) -> Verdict:
    (verdict,) = decide(given_case)[0].verdicts
    return verdict


def test_per_segment_held_served_or_redone() -> None:
    verdict = only(case({A: answer(running(1, "1100")), B: answer(running(1, "1010"))}))
    assert verdict == Verdict(1, Outcome.RUN, holders=(HELD_BY_ALL, 0, 1, REDO))


def test_nothing_final_is_a_plain_redo() -> None:
    assert only(case({A: answer(running(1, "00")), B: answer()})) == Verdict(1, Outcome.RUN)


def test_held_whole_by_all_is_stable() -> None:
    group, _ = decide(case({A: answer(running(1, "11")), B: answer(running(1, "11"))}))
    assert group == GroupRecord("g", (A, B), stable=1)


def test_stable_at_one_is_done_for_all() -> None:
    reports = {A: answer(ended(NAMED, OpStatus.STABLE)), B: answer(running(NAMED, "10"))}
    assert only(case(reports)) == Verdict(NAMED, Outcome.DONE)


def test_stable_grows_only_without_a_gap() -> None:
    one = answer(running(1, "1"), running(2, "0"), running(3, "1"))
    group, _ = decide(case({A: one, B: one}))
    assert group.stable == 1
    assert [v.op for v in group.verdicts] == [2, 3]


def test_stable_of_one_answer_speaks_for_all() -> None:
    group, _ = decide(case({A: answer(stable=2), B: answer(running(2, "10"), stable=1)}))
    assert group == GroupRecord("g", (A, B), stable=2)


def test_raised_by_one_is_raised_by_all() -> None:
    reports = {A: answer(ended(1, OpStatus.RAISED, 1)), B: answer(running(1, "00"))}
    assert only(case(reports)) == Verdict(1, Outcome.ABORT, code=Code.USAGE, text="why")


def test_an_abort_stays_until_all_have_raised_it() -> None:
    abort = Verdict(1, Outcome.ABORT, code=Code.DEADLINE_EXCEEDED, text="late")
    old = GroupRecord("g", (A, B), verdicts=(abort,))
    raised = answer(ended(1, OpStatus.RAISED, 3))
    assert only(case({A: raised, B: answer()}, old=old)) == abort
    group, _ = decide(case({A: raised, B: raised}, old=old))
    assert group == GroupRecord("g", (A, B), stable=1)


def test_time_out_aborts_what_is_final_nowhere_and_blames() -> None:
    reports = {A: answer(running(1, "00", timed_out=True)), B: answer()}
    verdict = only(case(reports))
    assert verdict.code == Code.DEADLINE_EXCEEDED
    assert verdict.text == "op 1 timed out: not submitted by w2 (00000000)"


def test_time_out_rolls_forward_what_is_final_somewhere() -> None:
    reports = {A: answer(running(1, "00")), B: answer(running(1, "01"))}
    group, rolled = decide(case(reports, timeouts={1: "slow"}))
    assert group.verdicts == (Verdict(1, Outcome.RUN, holders=(REDO, 1)),)
    assert rolled == {1: frozenset()}


def test_mismatch_names_both_and_the_field() -> None:
    told = {1: (A, Mismatch(1, 1, B, "dtype", "float32", "float16"))}
    reports = {A: answer(running(1, "0")), B: answer(running(1, "0"))}
    verdict = only(case(reports, mismatches=told))
    assert verdict.code == Code.USAGE
    assert "w1 (00000000) has dtype float32, w2 (00000000) has float16" in verdict.text


def test_unequal_segment_counts_are_a_mismatch() -> None:
    verdict = only(case({A: answer(running(1, "0")), B: answer(running(1, "00"))}))
    assert verdict.code == Code.USAGE


def test_strict_needs_every_segment_once() -> None:
    strict = {
        A: answer(running(1, "10", on_loss=OnLoss.STRICT)),
        B: answer(running(1, "00", on_loss=OnLoss.STRICT)),
    }
    assert only(case(strict, lost=(C,))).code == Code.PEER_LOST
    assert only(case(strict)).outcome is Outcome.RUN
    whole = {**strict, B: answer(running(1, "01", on_loss=OnLoss.STRICT))}
    assert only(case(whole, lost=(C,))).holders == (0, 1)


def test_broadcast_without_its_root() -> None:
    part = {A: answer(running(1, "10", on_loss=OnLoss.SPREAD, root=C)), B: answer()}
    assert only(case(part, lost=(C,))).code == Code.PEER_LOST
    whole = {A: answer(running(1, "11", on_loss=OnLoss.SPREAD, root=C)), B: answer()}
    assert only(case(whole, lost=(C,))).holders == (0, 0)


def test_broadcast_is_served_by_its_root() -> None:
    reports = {
        A: answer(running(1, "11", on_loss=OnLoss.SPREAD, root=B)),
        B: answer(running(1, "11", on_loss=OnLoss.SPREAD, root=B)),
        C: answer(),
    }
    assert only(case(reports)).holders == (1, 1)


def test_a_leaver_is_needed_for_what_others_lack() -> None:
    answers = {A: answer(running(1, "0")), B: answer(running(1, "1"))}
    assert verdicts.is_needed(B, answers, [A], (A, B))
    assert not verdicts.is_needed(A, answers, [B], (A, B))
    assert not verdicts.is_needed(B, {**answers, A: answer(stable=1)}, [A], (A, B))


def lose_c(a: OpReport | None, b: OpReport | None) -> Verdict:
    """What becomes of an op when C is dead and A and B stay."""
    reports = {A: answer(*[a] if a else []), B: answer(*[b] if b else [])}
    return only(case(reports, lost=(C,)))


@pytest.mark.parametrize(
    ("on_loss", "root", "a", "b", "goes_on"),
    [
        (OnLoss.FIXED, 0, "101", "010", True),  # whole at the survivors together
        (OnLoss.FIXED, 0, "100", "010", False),
        (OnLoss.FIXED, 0, "111", None, True),  # B's block is empty, it submits later
        (OnLoss.EXCHANGE, 0, "101", "001", True),  # bit 2: all that C is to send me
        (OnLoss.EXCHANGE, 0, "111", "110", False),
        (OnLoss.EXCHANGE, 0, "111", None, False),
        (OnLoss.TO_ROOT, A, "001", "111", True),
        (OnLoss.TO_ROOT, A, "110", "111", False),
        (OnLoss.TO_ROOT, A, None, "111", False),
        (OnLoss.TO_ROOT, C, "111", "111", False),  # whole, but for nobody
        (OnLoss.FROM_ROOT, A, "111", "011", True),  # C was only to receive
        (OnLoss.FROM_ROOT, C, "111", "110", False),
        (OnLoss.FROM_ROOT, C, "111", None, False),
        (OnLoss.REPAIR, A, "010", "000", True),  # reduce: its root has what there is
        (OnLoss.REPAIR, C, "000", "000", False),
    ],
)
def test_what_a_loss_does(
    on_loss: OnLoss, root: PeerId, a: str | None, b: str | None, goes_on: bool
) -> None:
    verdict = lose_c(
        *(None if bits is None else running(1, bits, on_loss=on_loss, root=root) for bits in (a, b))
    )
    assert verdict.outcome is (Outcome.RUN if goes_on else Outcome.ABORT)
    if not goes_on:
        assert verdict.code == Code.PEER_LOST
        assert (
            verdict.text == "op 1 cannot be completed without w3 (00000000), which is gone; retry"
        )
    elif on_loss.is_exchange:
        assert verdict.holders == ()


def test_a_scatter_outlives_its_source_if_all_have_theirs() -> None:
    report = running(NAMED, "111", on_loss=OnLoss.FROM_ROOT, root=C)
    assert lose_c(report, report) == Verdict(NAMED, Outcome.DONE)


@pytest.mark.parametrize("on_loss", set(OnLoss) - {OnLoss.SPREAD, OnLoss.TO_ROOT, OnLoss.FROM_ROOT})
def test_a_bystander_costs_nothing(on_loss: OnLoss) -> None:
    of_two = running(op_id(1, context=7), "100", on_loss=on_loss, among=b"\x03")
    assert lose_c(of_two, of_two).outcome is Outcome.RUN


@pytest.mark.parametrize("on_loss", [c for c in OnLoss if c not in (OnLoss.REPAIR, OnLoss.STRICT)])
def test_what_nobody_returns_early_is_aborted_late_as_well(on_loss: OnLoss) -> None:
    report = running(1, "10", on_loss=on_loss, root=A, timed_out=True)
    assert only(case({A: answer(report), B: answer()})).code == Code.DEADLINE_EXCEEDED


def test_members_that_changed_meanwhile_are_no_mistake_of_the_program() -> None:
    told = {1: (A, Mismatch(1, 1, B, "members", "3", "2"))}
    reports = {p: answer(running(1, "10", on_loss=OnLoss.FIXED)) for p in (A, B)}
    verdict = only(case(reports, mismatches=told))
    assert verdict.code == Code.PEER_LOST
    assert verdict.text == "op 1: the members changed while it was being submitted; retry"


@pytest.mark.parametrize("field", ["src", "dst"])
def test_a_rank_that_has_become_another_members_is_no_mistake_either(field: str) -> None:
    told = {1: (A, Mismatch(1, 1, B, field, f"{A:016x}", f"{B:016x}"))}
    reports = {p: answer(running(1, "10", on_loss=OnLoss.SPREAD, root=p)) for p in (A, B)}
    assert only(case(reports, mismatches=told, changed=True)).code == Code.PEER_LOST
    assert only(case(reports, mismatches=told)).code == Code.USAGE


def test_a_broadcast_whose_rank_passed_on_from_the_dead_is_aborted() -> None:
    """To one member the rank is still that of C, who is gone; it is B now, and B has it all."""
    old = GroupRecord("g", (A, B, C))
    reports = {
        A: answer(running(1, "00", on_loss=OnLoss.SPREAD, root=C)),
        B: answer(running(1, "11", on_loss=OnLoss.SPREAD, root=B)),
    }
    told = {1: (A, Mismatch(1, 1, B, "src", f"{C:016x}", f"{B:016x}"))}
    verdict = only(case(reports, old=old, ring=(A, B), mismatches=told, changed=True))
    assert verdict.code == Code.PEER_LOST
    reports = {
        A: answer(running(1, "11", on_loss=OnLoss.SPREAD, root=C)),  # A has had it from C
        B: answer(running(1, "00", on_loss=OnLoss.SPREAD, root=A)),
    }
    verdict = only(case(reports, old=old, ring=(A, B), mismatches=told, changed=True))
    assert verdict.code == Code.PEER_LOST


def test_reports_that_differ_because_the_members_did() -> None:
    """A right program gathers other blocks, and names other roots, after a death than before."""
    for on_loss, root in ((OnLoss.FIXED, PeerId(0)), (OnLoss.TO_ROOT, B)):
        before = answer(running(1, "100", on_loss=on_loss, root=A if root else root))
        after = answer(running(1, "11" if root == 0 else "111", on_loss=on_loss, root=root))
        assert only(case({A: before, B: after}, changed=True)).code == Code.PEER_LOST
        assert only(case({A: before, B: after})).code == Code.USAGE


def test_a_context_has_its_own_stable() -> None:
    first, second = op_id(1, context=7), op_id(2, context=7)
    theirs = answer(running(1, "0"), running(first, "0"), running(second, "0"))
    knows = replace(answer(), contexts=((7, 1), (6, 9)))
    group, _ = decide(case({A: theirs, B: knows}))
    assert group.stable == 0
    assert [(v.op, v.outcome) for v in group.verdicts] == [
        (1, Outcome.RUN), (first, Outcome.DONE), (second, Outcome.RUN),
    ]  # fmt: skip


def test_an_abort_that_a_context_has_passed_is_forgotten() -> None:
    op = op_id(1, context=7)
    old = GroupRecord("g", (A, B), verdicts=(Verdict(op, Outcome.ABORT, code=2),))
    passed = replace(answer(), contexts=((7, 1),))
    raised = answer(ended(op, OpStatus.RAISED, 2))
    assert decide(case({A: passed, B: raised}, old=old))[0].verdicts == ()


def test_an_op_whose_participants_have_all_left_needs_no_verdict() -> None:
    theirs = running(op_id(1, context=7), "0", among=b"\x04")
    group, _ = decide(case({A: answer(), B: answer(), C: answer(theirs)}, ring=(A, B)))
    assert group.verdicts == ()


def test_a_leaver_serves_only_who_takes_part() -> None:
    op = op_id(1, context=7)
    answers = {
        A: answer(),
        B: answer(running(op, "1", among=b"\x06")),
        C: answer(running(op, "0", among=b"\x06")),
    }
    assert verdicts.is_needed(B, answers, [A, C], (A, B, C))
    assert not verdicts.is_needed(B, answers, [A], (A, B, C))
    whole = {**answers, C: answer(running(op, "1", among=b"\x06"))}
    assert not verdicts.is_needed(B, whole, [A, C], (A, B, C))


def test_op_ids() -> None:
    assert covered(3, 3)
    assert not covered(4, 3)
    assert not covered(NAMED, 1 << 31)
    assert not covered(op_id(1, context=1), 1 << 31)
    assert op_text(op_id(3, context=2)) == "op 3 of context 2"
    assert op_text(NAMED) == "named op 00000007"


BITS = st.sampled_from(["00", "01", "10", "11", ""])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(BITS, BITS, BITS, st.booleans()), min_size=1, max_size=3))
def test_whatever_they_hold(ops: list[tuple[str, str, str, bool]]) -> None:
    """Nothing final is redone or aborted, and only holders serve. "" means not submitted: then
    nobody has a segment of an all-reduce."""
    answers: dict[PeerId, list[OpReport]] = {A: [], B: [], C: []}
    for number, (*bits, late) in enumerate(ops, 1):
        missing = "" in bits
        for peer, own in zip(answers, bits, strict=True):
            if own:
                own_bits = "00" if missing else own
                answers[peer].append(running(number, own_bits, timed_out=late))
    group, _ = decide(case({p: answer(*reports) for p, reports in answers.items()}))
    masks = {p: {r.op: verdicts.final_mask(r) for r in rs} for p, rs in answers.items()}
    for verdict in group.verdicts:
        held = [masks[p].get(verdict.op, 0) for p in group.ring]
        if verdict.outcome is Outcome.ABORT:
            assert not any(held)
        for segment, holder in enumerate(verdict.holders):
            having = [bool(mask >> segment & 1) for mask in held]
            assert (holder == REDO) == (not any(having))
            assert (holder == HELD_BY_ALL) == all(having)
            assert holder < 0 or having[holder]


def _reports(
    draw: st.DrawFn, op: int, peers: tuple[PeerId, ...], on_loss: OnLoss, root: PeerId
) -> dict[PeerId, OpReport]:
    """Any reports of one op that agree on what it is; each participant may be late or absent."""
    among = sum(1 << tuple(MEMBERS).index(peer) for peer in peers)
    reports = {}
    for peer in peers:
        bits = draw(st.sampled_from(["", "000", "100", "011", "110", "111"]))
        if bits:
            reports[peer] = running(
                op, bits, on_loss=on_loss, root=root, among=bytes([among]),
                timed_out=draw(st.booleans()),
            )  # fmt: skip
    return reports


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_class_among_any_participants(data: st.DataObject) -> None:
    """Of any op: who takes no part is never a holder nor blamed; it goes on only if what it needs
    is there or to come from who stays; it never ends well without what somebody was to get."""
    on_loss = data.draw(st.sampled_from(list(OnLoss)))
    peers = tuple(sorted(data.draw(st.sets(st.sampled_from([A, B, C]), min_size=1))))
    staying = tuple(sorted(data.draw(st.sets(st.sampled_from([A, B, C]), min_size=1))))
    rooted = on_loss in (OnLoss.TO_ROOT, OnLoss.FROM_ROOT, OnLoss.SPREAD)
    root = data.draw(st.sampled_from(peers)) if rooted else PeerId(0)
    op = op_id(1, context=7)
    reports = data.draw(st.composite(_reports)(op, peers, on_loss, root))
    answers = {p: answer(*[reports[p]] if p in reports else []) for p in staying}
    given_case = case(answers, lost=tuple(p for p in MEMBERS if p not in staying))
    group, rolled = decide(given_case)
    own = [p for p in staying if p in peers]
    if not any(p in reports for p in own):
        assert group.verdicts == ()
        return
    (verdict,) = group.verdicts
    gone = set(peers) - set(staying)
    masks = {p: verdicts.final_mask(reports.get(p)) for p in own}
    union = 0
    for mask in masks.values():
        union |= mask
    if verdict.outcome is Outcome.DONE:
        assert all(mask == 7 for mask in masks.values())
        assert on_loss is not OnLoss.TO_ROOT or root in own
    elif verdict.outcome is Outcome.RUN:
        assert all(holder < 0 or staying[holder] in own for holder in verdict.holders)
        assert not rolled or on_loss in (OnLoss.REPAIR, OnLoss.STRICT, OnLoss.SPREAD)
        assert on_loss is not OnLoss.FIXED or not gone or union == 7
        for sender in gone:
            bit = 1 << tuple(MEMBERS).index(sender)
            if on_loss is OnLoss.EXCHANGE or (on_loss is OnLoss.FROM_ROOT and sender == root):
                assert all(mask & bit for mask in masks.values())
            if on_loss is OnLoss.TO_ROOT:
                assert sender != root
                assert masks[root] & bit
    else:
        assert verdict.code in (Code.PEER_LOST, Code.DEADLINE_EXCEEDED)
        assert gone or verdict.code == Code.DEADLINE_EXCEEDED
        assert verdict.code == Code.PEER_LOST or any(r.timed_out for r in reports.values())
        if on_loss is OnLoss.REPAIR:
            assert not union


HOSTILE = st.builds(
    OpReport,
    st.sampled_from([1, op_id(1, context=7)]),
    st.sampled_from(list(OpStatus)),
    st.integers(0, 5),
    st.binary(min_size=1, max_size=1),
    st.sampled_from(list(OnLoss)),
    st.integers(0, 9).map(PeerId),
    st.binary(max_size=2),
    st.booleans(),
    st.integers(0, 7),
    st.just("their text"),
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from([A, B, C]), st.lists(HOSTILE, max_size=2), min_size=1),
    st.sets(st.sampled_from([A, B, C])),
    st.booleans(),
)
def test_lies_get_a_verdict_as_well(
    told: dict[PeerId, list[OpReport]], leaving: set[PeerId], changed: bool
) -> None:
    """Members may say anything: the coordinator lives on, and what it says is well formed."""
    reports = {p: {r.op: r for r in rs}.values() for p, rs in told.items()}
    answers = {p: answer(*reports[p]) for p in sorted(told)}
    ring = tuple(p for p in answers if p not in leaving) or tuple(answers)
    lies = case(answers, lost=tuple(p for p in MEMBERS if p not in told), ring=ring)
    group, _ = decide(replace(lies, changed=changed))
    for leaver in leaving & answers.keys():
        verdicts.is_needed(leaver, answers, ring, tuple(MEMBERS))
    for verdict in group.verdicts:
        assert all(holder < len(ring) for holder in verdict.holders)
        assert (verdict.outcome is Outcome.ABORT) == bool(verdict.code)
