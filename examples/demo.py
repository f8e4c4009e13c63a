"""Four workers train a language model together; one is killed and comes back, a fifth joins.

    make demo        or        python examples/demo.py [--plain] [--quick]

Starts `examples/train_gpt.py` under the launcher, shows it, and judges it: exit status 0 only if
every check holds. Everything real: processes, sockets, `kill -9`. The page `demo-report.html` tells
the same with charts. How it works is in `pccl_py/report`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from pccl_py import config
from pccl_py.errors import PcclError
from pccl_py.report import conduct, html, oracle
from pccl_py.report.director import Script
from pccl_py.report.live import LiveTable, PlainLines, Show

TRAIN = Path(__file__).resolve().with_name("train_gpt.py")
FIRST, VICTIM, LATE = ("w0", "w1", "w2", "w3"), "w2", "w4"
LOSS_LIMIT = 2.35  # nats per byte, at the end

ROUNDS = 30
# A model that learns next to nothing in no time: for the test of the demo itself.
QUICK_ROUNDS = 30
QUICK = ("--layers", "1", "--width", "32", "--heads", "2", "--context", "64", "--inner-steps", "50")


def plan(args: argparse.Namespace, folder: Path) -> conduct.Plan:
    rounds = QUICK_ROUNDS if args.quick else ROUNDS
    expected = oracle.Expected(FIRST, VICTIM, LATE, rounds, None if args.quick else LOSS_LIMIT)
    script = Script(
        expected=expected,
        kill_round=rounds // 5 if args.quick else rounds * 35 // 100,
        late_round=rounds // 4 if args.quick else rounds * 60 // 100,
        limit_s=args.limit,
    )
    train = [str(args.script), "--rounds", str(rounds), *(QUICK if args.quick else ())]
    if args.data is not None:
        train += ["--data", str(args.data.resolve())]
    return conduct.Plan(script, (sys.executable, *train), folder, config.environment())


def summary(result: conduct.Result, expected: oracle.Expected, console: Console) -> bool:
    """Prints what came out; returns whether every check holds."""
    verdicts = oracle.judge(result.events, expected)
    console.print()
    for verdict in verdicts:
        sign = "[green]ok  [/]" if verdict.ok else "[bold red]FAIL[/]"
        console.print(sign, end=" ")
        console.print(f"{verdict.name}: {verdict.text}", markup=False, highlight=False,
                      soft_wrap=True)  # fmt: skip
    cost = oracle.kill_cost(result.events, expected)
    if cost is not None:
        console.print(
            f"\nThe kill cost the survivors {cost.lost:.1f} s: their longest round around it took "
            f"{cost.longest:.1f} s, a usual one {cost.usual:.1f} s "
            f"(at least {cost.contributors} members' work in the mean, {cost.repaired} segments "
            f"repaired).\n{expected.victim} was a member again {cost.away:.1f} s after it.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    good = all(verdict.ok for verdict in verdicts)
    for worker, lines in () if good else result.errors.items():
        console.print(f"\nlast lines of {worker}'s stderr:", highlight=False)
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    return good


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--plain", action="store_true", help="lines instead of a live table")
    add("--quick", action="store_true", help="a tiny model, for a look or a test")
    add("--data", type=Path, help="your own text, a file or a folder (the standard library)")
    add("--report", type=Path, default=Path("demo-report.html"), help="(%(default)s)")
    add("--limit", type=float, default=300.0, help="seconds until it has failed (%(default)s)")
    add("--script", type=Path, default=TRAIN, help="the workers' program (train_gpt.py)")
    return parser.parse_args()


def main() -> int:
    args, console = arguments(), Console()
    folder = Path(tempfile.mkdtemp(prefix="pccl-demo-"))
    chosen = plan(args, folder)
    expected = chosen.script.expected
    if console.is_terminal and not args.plain:
        show: Show = LiveTable(console, expected.everybody, expected.rounds)
    else:
        show = PlainLines(console, expected.rounds)
    try:
        with show:
            result = conduct.run(chosen, show)
    except (PcclError, ValueError, OSError) as error:
        print(f"demo: {error} (logs in {folder})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if result.code:
        print(f"demo: stopped; logs in {folder}", file=sys.stderr)
        return result.code
    good = summary(result, expected, console)
    verdicts = oracle.judge(result.events, expected)
    args.report.write_text(html.page(result.events, expected, verdicts, "make demo"))
    console.print(f"\nReport: {args.report.resolve()}", highlight=False, soft_wrap=True)
    if good:
        shutil.rmtree(folder)
    else:
        console.print(f"Logs: {folder}", highlight=False, soft_wrap=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
