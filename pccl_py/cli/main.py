"""The `pccl` command: finds the sub-command, runs it, turns errors into one line and a status.

Each command is a file of this folder with `add_parser(subparsers)` and `run(args) -> exit status`;
only the one that is asked for is imported, so that `pccl coordinator` does not load torch. Exit
statuses: UsageError 2, other errors 1, Ctrl-C 130. A bug is an assertion and shows its traceback.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol, cast

from pccl_py import __version__
from pccl_py.errors import PcclError, UsageError
from pccl_py.protocol.encoding import printable

COMMANDS = ("coordinator", "run", "status", "doctor", "bench")
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_OUTPUT_CLOSED = 141


class Command(Protocol):
    """A command module."""

    add_parser: Callable[[argparse._SubParsersAction[argparse.ArgumentParser]], None]
    run: Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is one line in our words."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"pccl: {printable(message)} (see `{self.prog} --help`)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's) and return its exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        known = [name for name in COMMANDS if _exists(name)]
        wanted = words[:1] if words[:1] and words[0] in known else known
        commands = {name: _load(name) for name in wanted}
        args = _parser(commands).parse_args(words)
        return commands[args.command].run(args)
    except PcclError as error:
        print(f"pccl: {printable(_text(error))}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `pccl status | head`: nobody is there to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OUTPUT_CLOSED
    except OSError as error:  # a full disk, a file that may not be written
        print(f"pccl: {printable(str(error))}", file=sys.stderr)
        return EXIT_ERROR


def _exists(name: str) -> bool:
    return importlib.util.find_spec(f"pccl_py.cli.{name}") is not None


def _load(name: str) -> Command:
    return cast(Command, importlib.import_module(f"pccl_py.cli.{name}"))


def _parser(commands: dict[str, Command]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="pccl",
        description="Collectives for a changing set of machines joined by the public internet.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pccl {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    for command in commands.values():
        command.add_parser(subparsers)
    return parser


def _text(error: PcclError) -> str:
    """What an error says; those that keep an errno would print it in front."""
    strerror = getattr(error, "strerror", None)
    return strerror if isinstance(strerror, str) else str(error)
