"""`pccl bench faults`: what deaths, stops, joins and restarts cost, against the goals.

`bench` hands over when its op is `faults`. The table goes to stdout as cases end, progress to
stderr; `--json` swaps the table for JSON lines. Goals that are missed are told and change no exit
status; wrong values and failed ops make it 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from pccl_py.bench import machine
from pccl_py.bench.faults import figures
from pccl_py.bench.faults.figures import Figure
from pccl_py.bench.faults.programme import CASES, TRIALS, WORLDS, Programme, cases_text, played
from pccl_py.errors import PcclError, UsageError

DESCRIPTION = f"""\
faults: what a death costs, instead of a collective. Real processes are killed in mid all-reduce, in
place, and every value is checked. Uses -n ({TRIALS}), --world
({",".join(map(str, WORLDS))}), --case, --vs gloo, --json and --plain only. Cases:
{cases_text()}
example: pccl bench faults --json"""


def programme(args: argparse.Namespace, worlds: Sequence[int], trials: int | None) -> Programme:
    """What the options ask for. Raises UsageError."""
    others = {name for name in args.vs.split(",") if name} - {"gloo"}
    if others:
        raise UsageError(f"--vs {','.join(sorted(others))!r}: faults are compared with gloo only")
    if args.vs and importlib.util.find_spec("torch") is None:
        raise UsageError("gloo needs torch: pip install torch")
    chosen = [case for case in (args.case or "").split(",") if case]
    return Programme(
        cases=chosen or CASES,
        worlds=worlds or WORLDS,
        trials=TRIALS if trials is None else trials,
        versus_gloo=bool(args.vs),
    )


def run(
    plan: Programme,
    json_file: TextIO | None,
    table: TextIO,
    begin: Callable[[str], None],
    show: Callable[[str], None],
) -> int:
    """Plays and prints; `show` gets progress. Raises PcclError if anything was wrong or failed."""
    began = machine.moment()
    begin(f"faults: {', '.join(plan.cases)}; {plan.trials} trials each")
    failures: list[str] = []
    measured: list[Figure] = []
    print(figures.heading(), file=table, flush=True)
    for found in played(plan, show, failures.append):
        measured += found
        print(*map(figures.line, found), "", sep="\n", file=table, flush=True)
        if json_file is not None:
            print(*map(figures.as_json, found), sep="\n", file=json_file, flush=True)
    facts = (*machine.facts(), *machine.others(began, machine.moment()))
    print(*figures.verdict(measured), *(f"# {fact}" for fact in facts), sep="\n", file=table)
    wrong = sum(each.wrong for each in {(f.case, f.world, f.impl): f for f in measured}.values())
    if wrong:
        failures.append(f"{wrong} values were wrong")
    if failures:
        raise PcclError("; ".join(failures))
    return 0


def stderr_of(args: argparse.Namespace) -> TextIO:
    """Where the table goes: not where the JSON goes."""
    return sys.stderr if args.json == "-" else sys.stdout
