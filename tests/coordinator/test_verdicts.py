"""What becomes of each op: the rules one by one, and what holds for any answers."""

from __future__ import annotations

from dataclasses import replace

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
    ring = tuple(answers)
    plain = Case(GroupRecord("g", ring), MEMBERS, answers, ring, (), {}, {})
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
    assert verdicts.is_needed(B, answers, [A])
    assert not verdicts.is_needed(A, answers, [B])
    assert not verdicts.is_needed(B, {**answers, A: answer(stable=1)}, [A])


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
