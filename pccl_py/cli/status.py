"""`pccl status`: ask a coordinator how its run stands, and print it.

One request, one answer, within 5 seconds. The answer comes from the network: what is missing in it
is shown as `-`, and nothing of it reaches the terminal unchecked.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence

import zmq

from pccl_py import arguments, config
from pccl_py.errors import CoordinatorLost, RemoteProtocolError, from_code
from pccl_py.launch import reach
from pccl_py.protocol import encoding, endpoint
from pccl_py.protocol.endpoint import Endpoint
from pccl_py.protocol.messages import Refused, Status, StatusRequest

ANSWER_S = 4.5
NONCE_BYTES = 16

Json = Mapping[str, object]


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


def run(args: argparse.Namespace) -> int:
    """Prints the status. Raises CoordinatorLost (no answer), UsageError (wrong run or secret)."""
    settings = config.resolve(coordinator=args.coordinator, run=args.run_id)
    run_id = settings.run if "run" in settings.given else ""
    if run_id or args.run_id is not None:
        source = "PCCL_RUN" if args.run_id is None else "--run"
        arguments.check_text(source, run_id, arguments.RUN_BYTES_MAX)
    request = encoding.signed_status(
        settings.secret, StatusRequest(run_id, os.urandom(NONCE_BYTES), b"")
    )
    address, text = ask(endpoint.parse_list(settings.coordinator), request, ANSWER_S)
    try:
        status = json.loads(text)
    except ValueError:
        raise RemoteProtocolError(f"{address} answered with what is no JSON") from None
    if not isinstance(status, dict):
        raise RemoteProtocolError(f"{address} answered with what is no status")
    print(json.dumps(status, indent=2) if args.json else table(address, status))
    return 0


def ask(
    endpoints: Sequence[Endpoint], request: StatusRequest, timeout_s: float
) -> tuple[Endpoint, str]:
    """The first coordinator that answers, and its status as JSON text.

    Blocks for at most timeout_s in all. Raises CoordinatorLost with what each of them did.
    """
    until = time.monotonic() + timeout_s
    said = []
    for at, address in enumerate(endpoints):
        share_s = max(0.1, (until - time.monotonic()) / (len(endpoints) - at))
        try:
            return address, _ask_one(address, request, share_s)
        except CoordinatorLost as error:
            said.append(str(error))
    raise CoordinatorLost("; ".join(said))


def _ask_one(address: Endpoint, request: StatusRequest, timeout_s: float) -> str:
    until = time.monotonic() + timeout_s
    reach.check((address,), timeout_s)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.IPV6, int(address.is_v6)),
            (zmq.MAXMSGSIZE, encoding.MESSAGE_BYTES_MAX),
        ):
            dealer.setsockopt(option, value)
        dealer.connect(address.zmq_address)
        dealer.send(encoding.encode(request))
        while dealer.poll(max(0, int(1000 * (until - time.monotonic())))):
            match encoding.decode(dealer.recv()):
                case Status(text):
                    return text
                case Refused(code, text):
                    raise from_code(code, text)
                case _:  # the probes of a coordinator that wonders whether we are there
                    continue
    raise CoordinatorLost(
        f"{address} accepts connections but did not answer in {timeout_s:.1f} s: "
        "is that a pccl coordinator?"
    )


# ---------------------------------------------------------------- printing


def table(address: Endpoint, status: Json) -> str:
    """The status as a few lines of plain text."""
    run_id = _word(status, "run") if status.get("run") is not None else "none yet"
    timers = " s · ".join(
        f"{name} {_word(status, f'{name}_s')}" for name in ("deadline", "detection", "heartbeat")
    )
    lines = [
        f"run {run_id} · epoch {_word(status, 'epoch')} · coordinator {address}",
        f"{timers} s",
        "",
    ]
    members = _entries(status, "members")
    lines += _grid(members) if members else ["no members"]
    pending = _entries(status, "pending")
    if pending:
        names = ", ".join(f"{_word(who, 'name')} ({_word(who, 'group')})" for who in pending)
        lines += ["", f"waiting to join: {names}"]
    waiting = status.get("waiting")
    if isinstance(waiting, str) and waiting:
        lines += [f"now: {encoding.printable(waiting)}"]
    flush = status.get("flush")
    if isinstance(flush, dict):
        lines += [
            f"view change under way for {_word(flush, 'seconds')} s: {_word(flush, 'reason')}"
        ]
    return "\n".join(lines)


def _grid(members: Sequence[Json]) -> list[str]:
    titles = ("rank", "name", "group", "id", "address")
    rows = [titles] + [
        (
            _word(member, "rank"),
            _word(member, "name"),
            _word(member, "group"),
            _word(member, "id")[:8],
            f"{_word(member, 'host')}:{_word(member, 'port')}",
        )
        for member in members
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _entries(status: Json, name: str) -> list[Json]:
    found = status.get(name)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _word(entry: Json, name: str) -> str:
    found = entry.get(name)
    if isinstance(found, float):
        return f"{found:g}"
    return encoding.printable(str(found)) if isinstance(found, str | int) else "-"
