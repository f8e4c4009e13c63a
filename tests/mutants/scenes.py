"""Where each scene of VIEWS §2 is committed: as a text scenario of the coordinator (`Script`), a
scene of the exhaustive search (`Search`), or steps of simulated C cores (`Sim`)."""

from __future__ import annotations

from tests.mutants.catch import Catcher, Script, Search, Sim
from tests.sim import test_lines as lines
from tests.sim import test_views as cores

NUMBERS = tuple(f"V{number}" for number in range(1, 24))

SCENES: dict[str, tuple[Catcher, ...]] = {
    "V1": (Search("a time-out"), Script("timeout_roll_forward"), Script("timeout_abort")),
    "V2": (Search("a strict op"), Script("strict_peer_lost")),
    "V3": (Search("a cut"), Search("a cut between two"), Script("broken_edge_of_three"),
           Script("broken_edge_of_two"), Script("broken_edge")),
    "V4": (Sim(cores.test_v4_one_has_returned_and_its_memory_is_used_anew),
           Sim(cores.test_v4_a_later_op_is_done_and_the_earlier_is_not)),
    "V5": (Sim(cores.test_v5_a_copy_after_the_answer), Search("a death")),
    "V6": (Sim(cores.test_v6_frames_of_a_view_not_installed_here),),
    "V7": (Search("K crashes, a time-out"), Script("restart_between_installs")),
    "V8": (Script("timeout_abort"), Sim(lines.test_who_submits_an_aborted_op_raises_at_once)),
    "V9": (Script("no_past_in_a_new_line"), Sim(lines.test_a_new_line_begins_anew)),
    "V10": (Script("evicted_rejoin"), Script("reborn"), Script("joiners_die_installing")),
    "V11": (Script("answer_of_a_former_life"), Script("round_of_a_former_life")),
    "V12": (Script("restart_in_flush"), Search("K crashes after a false death")),
    "V13": (Script("newcomer_vanishes"), Search("a newcomer that vanishes"),
            Search("a newcomer vanishes, K crashes")),
    "V14": (Script("late_sp"), Script("round_of_a_former_life"),
            Search("a newcomer comes, goes and comes")),
    "V15": (Script("second_newcomer"), Search("the second newcomer")),
    "V16": (Search("an update with an op in flight"), Search("a join with ops in flight")),
    "V17": (Search("a join of two"), Script("join_at_safe_point")),
    "V18": (Sim(cores.test_v18_frames_of_an_op_that_is_not_submitted_here),),
    "V19": (Search("a cut"), Script("broken_edge")),
    "V20": (Script("leaver_only_holder"), Script("subgroup_leaver"),
            Search("a leave and a death")),
    "V21": (Script("death_during_flush"), Script("two_deaths")),
    "V22": (Sim(cores.test_v22_all_hold_it_and_nobody_knows),
            Search("a death of two, two segments")),
    "V23": (Script("death_mid_op"), Search("a death")),
}  # fmt: skip
