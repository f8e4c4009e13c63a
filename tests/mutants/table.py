"""Each rule of VIEWS §2, how it is switched off in the real code, and what catches that.

A mutant replaces short texts of one file: of the coordinator, of the peer's machine, or of the C
core. A rule may live in several places; each place that the others do not stand in for is here.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.coordinator import test_journal, test_routes
from tests.mutants.catch import Catcher, Script, Search, Sim, Unit
from tests.mutants.patch import Edits
from tests.peer import test_machine as peer_tests
from tests.sim import test_cluster, test_lines, test_views
from tests.sim.test_collectives import deaths, hasty

RULES = tuple(f"R{number}" for number in range(1, 28))
NOT_SWITCHED_OFF = {
    "R13": "a connection has no peer before its Hello, so there is nothing that could count; the "
    "model of VIEWS did not need the rule either",
}
# Parts of a rule that nothing misses, since others stand in for them.
SUPERFLUOUS = {
    "R6 send nothing after the answer": "what a stopped core would send is what it has answered; "
    "1,020 seeds of the cores do not tell the difference",
    "R15 At after Hello": "the coordinator tells a member its round and target at each Hello",
}


@dataclass(frozen=True)
class Mutant:
    rule: str
    what: str
    path: str
    edits: Edits
    caught_by: Catcher


def _k(rule: str, what: str, file: str, old: str, new: str, caught_by: Catcher) -> Mutant:
    return Mutant(rule, what, f"pccl_py/coordinator/{file}.py", ((old, new),), caught_by)


def _peer(rule: str, what: str, file: str, old: str, new: str, caught_by: Catcher) -> Mutant:
    return Mutant(rule, what, f"pccl_py/peer/{file}.py", ((old, new),), caught_by)


def _core(rule: str, what: str, file: str, old: str, new: str, caught_by: Catcher) -> Mutant:
    return Mutant(rule, what, f"native/src/{file}.c", ((old, new),), caught_by)


def _requests_are_said_again() -> None:
    peer_tests.test_requests_are_said_again(peer_tests.a_member())


def _entering_is_passing() -> None:
    peer_tests.test_hold_from_ask_and_stand_at_the_target(peer_tests.a_member())


def _journaled_is_on_disk() -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        test_journal.test_append_is_on_disk_before_it_returns(Path(folder), patched)


DEATHS, HASTY = Sim(deaths, 40), Sim(hasty, 40)
IN_FLIGHT = Sim(test_cluster.test_deaths_in_flight, 60)
AGAIN = Unit(_requests_are_said_again)
JOURNALED = "turn.actions.append(Journal(record, state.run))"
WITHOUT_VERDICTS = """bare = tuple(replace(g, verdicts=()) for g in record.groups)
    turn.actions.append(Journal(replace(record, groups=bare), state.run))"""

TABLE: tuple[Mutant, ...] = (
    _k("R1", "a time-out aborts what is final somewhere", "verdicts",
       "if retriable and timed_out(", "if timed_out(", Search("a time-out")),
    _k("R2", "a strict op goes on without the lost", "losses",
       "return None if everywhere else next(lost, None)", "return None", Search("a strict op")),
    _core("R2", "no undo copy", "segment",
          "memcpy(op->undo + (from - op->blocks[0].out), from, pc_op_bytes(op, segment));",
          "(void)from;", IN_FLIGHT),
    _core("R2", "nothing is undone", "op", "            undo(op);", "            (void)op;",
          IN_FLIGHT),
    _k("R3", "nobody is dropped for want of a relay", "topology",
       "dropped = graph.whom_to_drop()", "dropped = frozenset()",
       Search("a cut, then another")),
    _k("R3", "a relay is not enough", "topology",
       "                continue\n            first, second",
       "                continue\n            found.append((one, other))\n"
       "            first, second", Search("a cut")),
    _k("R3", "a ring over a broken edge", "topology",
       "if edge(ring[-1], candidate) in broken:", "if False:", Script("broken_edge")),
    _k("R3", "a hub with a broken edge", "routes", "if broken or not 2 < len(ring)",
       "if not 2 < len(ring)", Unit(test_routes.test_a_broken_edge_leaves_no_hub)),
    _core("R3", "a relay by guess", "pair", "->via = pc_relay_between(core, core->self, i);",
          "->via = (i + 1) % core->world;", DEATHS),
    _core("R4", "no copy of what has been returned", "op",
          "    block->out = op->kept;\n    block->in = op->kept;", "    (void)block;",
          Sim(test_views.test_v4_one_has_returned_and_its_memory_is_used_anew)),
    _core("R5", "what is final here is held by all", "segment", "        pc_op_return(core, op);",
          '        pc_op_end(core, op, PCCL_OK, "");',
          Sim(test_views.test_v4_a_later_op_is_done_and_the_earlier_is_not)),
    _core("R5", "marks wait for ever for a frame to ride along with", "core",
          "pc_pairs_hurry(core);", "(void)core;", HASTY),
    _core("R5", "one acknowledgement less will do", "star",
          "if (++segment->acks + 1u + given < pc_size(op))",
          "if (++segment->acks + 2u + given < pc_size(op))", IN_FLIGHT),
    _core("R5", "stable, though it runs", "context",
          "(op->state == PC_RUNNING || op->state == PC_RAISED) &&",
          "op->state == PC_RAISED &&", IN_FLIGHT),
    _core("R6", "frames are taken after the answer", "demux",
          "header->epoch < core->epoch || core->stopped || !link->pair)\n        return;",
          "header->epoch < core->epoch || !link->pair)\n        return;",
          Sim(test_views.test_v5_a_copy_after_the_answer)),
    _core("R7", "frames of a lower epoch are taken", "demux",
          "header->epoch < core->epoch || core->stopped || !link->pair)\n        return;",
          "core->stopped || !link->pair)\n        return;", DEATHS),
    _core("R8", "frames of a higher epoch are dropped", "demux",
          "link->held = true; /* R8 */\n        return false;", "link->header.epoch = 0;",
          Sim(partial(test_views.test_v6_frames_of_a_view_not_installed_here, first=0))),
    _k("R9", "the journal has no verdicts", "views", JOURNALED, WITHOUT_VERDICTS,
       Search("K crashes, a time-out")),
    _k("R9", "sent before it is journaled", "views", JOURNALED,
       f"for early in members:\n        turn.send(early, Install(record))\n    {JOURNALED}",
       Search("a death")),
    _k("R9", "sent before it is on the disk", "journal",
       "        try:\n            self._sync(self._fd)\n        except OSError:",
       "        try:\n            pass\n        except OSError:", Unit(_journaled_is_on_disk)),
    _k("R10", "an abort is in one view only", "verdicts",
       "{v.op: v for v in case.old.verdicts if v.outcome is Outcome.ABORT}", "{}",
       Script("timeout_abort")),
    _core("R10", "who submits late does not hear of it", "view",
          "if (verdict && verdict->outcome == PCCL_ABORT) {",
          "if (verdict && verdict->outcome == PCCL_ABORT && op->timed_out) {",
          Sim(test_lines.test_who_submits_an_aborted_op_raises_at_once)),
    _k("R11", "an enlarged view speaks of ops before it", "admission",
       "return choice.of(GroupRecord(name, choice.ring))",
       "return choice.of(GroupRecord(name, choice.ring, 0, old.verdicts if old else ()))",
       Script("no_past_in_a_new_line")),
    _core("R11", "kept results outlive it", "view",
          "if (view->fresh && op->state == PC_RUNNING)", "if (false)",
          Sim(test_lines.test_a_new_line_begins_anew)),
    _k("R12", "a former member may come back", "membership",
       "peer not in state.former and peer not in state.members:", "peer not in state.members:",
       Script("evicted_rejoin")),
    _k("R12", "a dead member may come back during the flush", "membership",
       "peer not in state.former and peer not in state.members:", "peer not in state.former:",
       Script("reborn")),
    _k("R12", "a member may begin anew", "membership",
       "(message.epoch == 0 and peer in state.newcomers)", "message.epoch == 0",
       Script("joiners_die_installing")),
    _peer("R14", "Hello does not tell that it has stopped", "machine",
          "stopped=state.stopped,", "stopped=False,", Search("K crashes, a time-out")),
    _k("R14", "nobody listens to that", "membership",
       "if message.stopped:", "if False:", Search("K crashes, a time-out")),
    _k("R14", "an answer that was not asked for tells nothing", "membership",
       "        _stands(turn)\n        return\n", "        return\n", Script("late_flush")),
    _peer("R15", "wishes are told once: Hello", "machine", "_say_wishes(turn)\n    safe_points",
          "safe_points", Search("K crashes, a leave")),
    _peer("R15", "wishes are told once: install", "machine",
          '(("epoch", str(record.epoch)),)))\n    _say_wishes(turn)',
          '(("epoch", str(record.epoch)),)))', AGAIN),
    _peer("R15", "lost links are told once", "machine",
          "turn.send(Lost(state.epoch, other, reason))", "pass", AGAIN),
    _peer("R15", "Repaired is told once", "machine", "if state.repaired:", "if False:", AGAIN),
    _k("R16", "a cancelled round releases nobody", "admission",
       "message = Release(turn.state.epoch, admission.round)",
       "message = Release(turn.state.epoch, (0, 0))", Search("a join")),
    _k("R16", "who holds without a round is not released", "membership",
       "turn.send(peer, Release(state.epoch, message.holding))", "pass",
       Search("a newcomer vanishes, K crashes")),
    _peer("R16", "a view clears no holds", "machine", "        round=None,\n        target=None,",
          "        round=state.round,\n        target=state.target,", Search("a join")),
    _k("R17", "all rounds of a life have one number", "admission",
       "number = (state.boot, state.rounds + 1)", "number = (state.boot, 1)", Script("late_sp")),
    _k("R17", "the rounds of each life have the same numbers", "admission",
       "number = (state.boot, state.rounds + 1)", "number = (1, state.rounds + 1)",
       Script("round_of_a_former_life")),
    _peer("R18", "positions go on in a new line", "machine",
          "passed=0 if record.fresh else state.passed", "passed=state.passed",
          Unit(_entering_is_passing)),
    _core("R18", "numbers of sub-groups go on in a new line", "view",
          "    if (view->fresh)\n        forget_contexts(core);", "",
          Sim(test_lines.test_a_new_line_begins_anew)),
    _peer("R19", "at the safe point with ops in flight", "safe_points",
          "if standing is not None and standing.drained:", "if standing is not None:",
          Search("an update with an op in flight")),
    _k("R19", "at unequal safe points", "admission", "if here != there:", "if False:",
       Script("positions_disagree")),
    _peer("R20", "no hold before the target is known", "safe_points",
          "return state.target is None or standing.repeated or",
          "return state.target is not None and", Search("a join of two")),
    _core("R21", "early frames are dropped", "announce",
          "    if (buffer)\n        park(op, buffer);",
          "    if (buffer)\n        pc_pool_put(&core->pool, buffer);",
          Sim(test_views.test_v18_frames_of_an_op_that_is_not_submitted_here)),
    _peer("R22", "an excluded edge is news", "machine",
          "return not any({me, other} == set(pair) for pair in state.record.excluded)",
          "return True", Search("a cut")),
    _k("R22", "the next view has forgotten excluded edges", "views",
       "edges = dict.fromkeys(state.record.excluded)",
       "edges: dict[Edge, None] = {}", Script("broken_edge")),
    _k("R22", "evidence of another epoch counts", "machine",
       "if message.epoch != turn.state.epoch:", "if False:", Script("refused")),
    _k("R23", "a leaver is never needed", "verdicts",
       "if any(held & ~final_mask(reports.get(peer)) for peer in others):", "if False:",
       Script("leaver_only_holder")),
    _k("R23", "Bye to a leaver that the route drops", "views",
       'evicted.update((peer, "no route to it avoids the broken links") for peer in dropped)',
       "left += dropped", Script("broken_edge_of_two")),
    _k("R24", "wishes do not wait for a plan", "views",
       "return len(state.soft.repaired) >= state.living_count", "return True",
       Script("leaver_only_holder")),
    Mutant("R25", "the answer of one who died counts", "pccl_py/coordinator/membership.py",
           (("asked=flush.asked.difference(dead)",
             "asked=flush.asked.difference(dead.keys() - flush.answers.keys())"),
            ("answers={p: a for p, a in flush.answers.items() if p not in dead}",
             "answers=flush.answers")), Script("death_during_flush")),
    Mutant("R25", "a majority is enough", "pccl_py/coordinator/views.py",
           (("if not flush.is_answered or any(",
             "if 2 * len(flush.answers) < len(flush.asked) or any("),
            ("for p in state.living() if p not in expelled}",
             "for p in flush.answers if p not in expelled}")), Search("a death")),
    _k("R26", "what all hold is reduced again", "verdicts", "holders.append(HELD_BY_ALL)",
       "holders.append(REDO)", Search("a death of two, two segments")),
    _core("R26", "held by all is no end", "view",
          "            segment->state = PC_MARKED;\n            op->marked_count++;\n"
          "            continue;", "            continue;", IN_FLIGHT),
    _core("R26", "done is no end", "view",
          "if (is_covered(core, op) || (verdict && verdict->outcome == PCCL_DONE))",
          "if (is_covered(core, op))",
          Sim(partial(test_views.test_v22_all_hold_it_and_nobody_knows, by=0))),
    _k("R27", "what a holder has is reduced again", "verdicts",
       "holders.append(place[having[segment % len(having)]])", "holders.append(REDO)",
       Search("a death")),
    _core("R27", "a holder does not own", "segment",
          "    if (segment->holder >= 0)\n        return",
          "    if (false)\n        return", IN_FLIGHT),
)  # fmt: skip
