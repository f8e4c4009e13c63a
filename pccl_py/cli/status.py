"""`pccl status`: ask a coordinator how its run stands, and print it.

One request, one answer, within 5 seconds. The answer comes from the network: what is missing in it
is shown as `-`, and nothing of it reaches the terminal unchecked.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Sequence

from pccl_py import arguments, config
from pccl_py.errors import CoordinatorLost, UsageError
from pccl_py.launch import inquiry
from pccl_py.launch.inquiry import Json
from pccl_py.protocol import encoding
from pccl_py.protocol.endpoint import Endpoint

RING_SHOWN_MAX = 16
OPS_SHOWN_MAX = 32
WATCH_S = 2.0
WATCH_MIN_S = 0.1
NAMES_SHOWN_MAX = 4


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the `status` command and its arguments."""
    parser = subparsers.add_parser(
        "status",
        help="show who takes part in a run",
        description="Ask a coordinator who takes part in its run and who is waited for.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--coordinator",
        metavar="HOST:PORT",
        help=f"whom to ask (PCCL_COORDINATOR; default {config.DEFAULT_COORDINATOR})",
    )
    add("--run", dest="run_id", metavar="ID", help="refuse to speak of another run (PCCL_RUN)")
    add("--json", action="store_true", help="print the answer as JSON")
    add(
        "--watch",
        metavar="SECONDS",
        type=float,
        nargs="?",
        const=WATCH_S,
        help="again and again, until Ctrl-C (every %(const)g s; with --json a line each time)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the status. Raises CoordinatorLost (no answer), UsageError (wrong run or secret)."""
    settings = config.resolve(coordinator=args.coordinator, run=args.run_id)
    run_id = settings.run if "run" in settings.given else ""
    if run_id or args.run_id is not None:
        source = "PCCL_RUN" if args.run_id is None else "--run"
        arguments.check_text(source, run_id, arguments.RUN_BYTES_MAX)
    ask = functools.partial(inquiry.status, settings.coordinator, run_id, settings.secret)
    if args.watch is not None:
        return _watch(ask, args.watch, as_json=args.json)
    address, status = ask()
    print(json.dumps(status, indent=2) if args.json else table(address, status))
    return 0


def _watch(ask: Callable[[], tuple[Endpoint, Json]], every_s: float, *, as_json: bool) -> int:
    """Until Ctrl-C. A coordinator that is away is waited for: it may be restarted."""
    if not WATCH_MIN_S <= every_s <= arguments.LONGEST_S:
        raise UsageError(f"--watch {every_s:g} must be {WATCH_MIN_S:g} seconds or more")
    while True:
        try:
            address, status = ask()
            text = json.dumps(status) if as_json else f"{table(address, status)}\n"
        except CoordinatorLost as error:
            text = json.dumps({"error": str(error)}) if as_json else f"{error}\n"
        print(text, flush=True)
        time.sleep(every_s)


# ---------------------------------------------------------------- printing


def table(address: Endpoint, status: Json) -> str:
    """The status as a few lines of plain text."""
    run_id = _word(status, "run") if status.get("run") is not None else "none yet"
    timers = " s · ".join(
        f"{name} {_word(status, f'{name}_s')}" for name in ("deadline", "detection", "heartbeat")
    )
    members = _entries(status, "members")
    lines = [
        f"run {run_id} · epoch {_word(status, 'epoch')} · coordinator {address}",
        f"{timers} s",
        *_deadlines(status, members),
        "",
    ]
    lines += _grid(members) if members else ["no members"]
    lines += _routes(status)
    pending = _entries(status, "pending")
    if pending:
        names = ", ".join(f"{_word(who, 'name')} ({_word(who, 'group')})" for who in pending)
        lines += ["", f"waiting to join: {names}"]
    waiting = status.get("waiting")
    if isinstance(waiting, str) and waiting:
        lines += [f"now: {encoding.printable(waiting)}"]
    lines += [
        f"in sync_state: {_names(sync.get('members'), 0)}; "
        f"awaited: {_names(sync.get('awaited'), 0)}"
        for sync in _entries(status, "syncs")
    ]
    lines += _broken(members, status.get("excluded"))
    journal = status.get("journal")
    if isinstance(journal, dict):
        since = f"no new view for {_word(journal, 'seconds')} s"
        lines += [f"{since}: {_word(journal, 'reason')}; it is tried again until that works"]
    lines += _ops(status)
    flush = status.get("flush")
    if isinstance(flush, dict):
        lines += [
            f"view change under way for {_word(flush, 'seconds')} s: {_word(flush, 'reason')}"
        ]
    return "\n".join(lines)


def _deadlines(status: Json, members: Sequence[Json]) -> list[str]:
    """What members give their ops, where that is not the coordinator's; and whose is too short."""
    given = {
        _word(who, "name"): seconds
        for who in members
        if isinstance(seconds := who.get("deadline_s"), float)
    }
    if not given or set(given.values()) == {status.get("deadline_s")}:
        return []
    low, high = min(given.values()), max(given.values())
    lines = [f"members' own deadline {low:g}{f' to {high:g}' if high > low else ''} s"]
    detection = status.get("detection_s")
    short = [who for who, seconds in given.items() if seconds < _seconds(detection)]
    if short:
        lines.append(
            f"warning: that of {_names(short, 0)} is shorter than the detection time: such ops end "
            "before a silent member is found (start the coordinator with a shorter --deadline)"
        )
    return lines


def _seconds(found: object) -> float:
    return found if isinstance(found, float) else 0.0


def _routes(status: Json) -> list[str]:
    """Of each group: the ring in its order, the hub, and how far apart members are."""
    lines = []
    for group in _entries(status, "groups"):
        ring = group.get("ring")
        names = [encoding.printable(str(name)) for name in ring] if isinstance(ring, list) else []
        if len(names) < 2:
            continue
        shown = " ".join(names[:RING_SHOWN_MAX]) + (" …" if len(names) > RING_SHOWN_MAX else "")
        hub = f" · small ops over {_word(group, 'hub')}" if group.get("hub") else ""
        large = group.get("large")
        over = f" · large ops by {_word(group, 'large')}" if large not in (None, "auto") else ""
        lines.append(f"group {_word(group, 'group')}: ring {shown}{hub}{over}")
    found = [path.get("rtt_ms") for path in _entries(status, "paths")]
    times = [ms for ms in found if isinstance(ms, float) and ms > 0]
    if times:
        lines.append(f"round trips {min(times):.1f} to {max(times):.1f} ms (--json has them all)")
    return ["", *lines] if lines else []


def _ops(status: Json) -> list[str]:
    """The ops in flight, the oldest first, and who did not say whether it has any."""
    ops = _entries(status, "ops")
    more = status.get("ops_more")
    more = (more if isinstance(more, int) else 0) + max(0, len(ops) - OPS_SHOWN_MAX)
    rows = [
        (
            _word(op, "member"),
            _word(op, "op") + (", timed out" if op.get("timed_out") is True else ""),
            f"{_word(op, 'age_s')} s",
            f"{_word(op, 'bytes_missing')} of {_word(op, 'bytes')}",
            _word(op, "phase"),
            _names(op.get("awaited"), op.get("awaited_count")),
        )
        for op in ops[:OPS_SHOWN_MAX]
    ]
    titles = ("member", "op in flight", "age", "bytes missing", "waits for", "of")
    lines = ["", *_table((titles, *rows))] if rows else []
    if more > 0:
        lines.append(f"and {more} more")
    silent = [_word(who, "name") for who in _entries(status, "unanswered")]
    if silent:
        lines += ["", f"no word of their ops, within a second, from: {', '.join(silent)}"]
    return lines


def _names(found: object, count: object) -> str:
    names = [encoding.printable(str(name)) for name in found] if isinstance(found, list) else []
    more = max(count if isinstance(count, int) else 0, len(names)) - len(names[:NAMES_SHOWN_MAX])
    shown = ", ".join(names[:NAMES_SHOWN_MAX]) or "-"
    return f"{shown} and {more} more" if more > 0 else shown


def _grid(members: Sequence[Json]) -> list[str]:
    titles = ("rank", "name", "group", "id", "address")
    rows = [
        (
            _word(member, "rank"),
            _word(member, "name"),
            _word(member, "group"),
            _word(member, "id")[:8],
            f"{_word(member, 'host')}:{_word(member, 'port')}",
        )
        for member in members
    ]
    return _table((titles, *rows))


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equally many texts, in columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _broken(members: Sequence[Json], excluded: object) -> list[str]:
    """The links that the view does without."""
    names = {_word(member, "id")[:8]: _word(member, "name") for member in members}
    pairs = [
        [encoding.printable(names.get(end, end)) for end in pair if isinstance(end, str)]
        for pair in (excluded if isinstance(excluded, list) else [])
        if isinstance(pair, list)
    ]
    return [f"broken link: {' - '.join(pair)}" for pair in pairs if len(pair) == 2]


def _entries(status: Json, name: str) -> list[Json]:
    found = status.get(name)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _word(entry: Json, name: str) -> str:
    found = entry.get(name)
    if isinstance(found, float):
        return f"{found:g}"
    return encoding.printable(str(found)) if isinstance(found, str | int) else "-"
