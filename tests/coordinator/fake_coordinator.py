"""The real shell around a machine that only echoes: run as a script by test_server.

Greeted connections are told of all that happens to others, as Waiting texts `<event> <name>`.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from pccl_py import config
from pccl_py.coordinator import server, tenure
from pccl_py.coordinator.events import (
    Action,
    Close,
    Disconnected,
    Event,
    Journal,
    JournalFailed,
    JournalWorks,
    Received,
    Send,
    SetTimer,
    Started,
    Tick,
)
from pccl_py.protocol import endpoint
from pccl_py.protocol.messages import (
    Hello,
    Leave,
    Repaired,
    Status,
    StatusRequest,
    Timeout,
    Waiting,
)
from pccl_py.types import Record

Names = dict[int, str]


def step(state: Names, event: Event, now: float) -> tuple[Names, Sequence[Action]]:
    match event:
        case Started(boot, record, run):
            return {0: f"boot {boot} {record and record.epoch} {run}"}, []
        case Received(connection, Hello(name=name)):
            after = {**state, connection: name}
            return after, [*_tell(after, f"hello {name}"), Send(connection, Waiting(state[0]))]
        case Received(connection, StatusRequest()):
            return state, [Send(connection, Status('{"members": []}'))]
        case Received(connection, Leave()):
            return state, [Send(connection, Waiting("closing")), Close(connection)]
        case Received(connection, Repaired(epoch)):  # the timer, and the journal before the send
            record = Record(1, epoch, True, (), ())
            journaled = [Journal(record, "run"), Send(connection, Waiting(f"journaled {epoch}"))]
            return {**state, -1: str(connection)}, [*journaled, SetTimer(now + 0.1)]
        case Received(_, Timeout(_, milliseconds)):  # a busy loop; libzmq's threads go on
            time.sleep(milliseconds / 1000)
            return state, []
        case Received(connection, message):
            return state, _tell(state, f"{type(message).__name__} {state[connection]}")
        case Disconnected(connection):
            after = {key: name for key, name in state.items() if key != connection}
            name = state.get(connection, "a stranger")
            return after, [*_tell(after, f"lost {name}")]
        case JournalFailed() | JournalWorks():
            return state, _tell(state, type(event).__name__)
        case Tick():
            return state, [Send(int(state[-1]), Waiting("tick"))]


def _tell(state: Names, text: str) -> list[Action]:
    return [Send(connection, Waiting(text)) for connection in state if connection > 0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bind", default="127.0.0.1:0")
    parser.add_argument("--state-dir", type=Path)
    parser.add_argument("--deadline", type=float, default=4.0)
    args = parser.parse_args()
    settings = config.resolve()
    shell = server.ServerConfig(
        bind=endpoint.parse(args.bind),
        timers=config.Timers(args.deadline),
        secret=settings.secret,
        place=tenure.Place(args.state_dir),
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(
            server.serve(
                shell,
                lambda host, port: print(f"listening on {host}:{port}", flush=True),
                {},
                step,
            )
        )
