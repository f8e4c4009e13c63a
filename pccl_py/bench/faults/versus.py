"""The same death in gloo, for comparison: until its error, and until a new group has the op.

Its group is of no use after a death, so each trial makes a new one; there is no detection or repair
to measure, only how long a program takes that does all of that itself, the agreement on who is left
for nothing.
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pccl_py.bench.faults.cases import EARLIEST, FLOAT_BYTES, LATEST
from pccl_py.bench.faults.figures import About, Figure
from pccl_py.bench.faults.stage import LEAD_S, Nursery, Peer
from pccl_py.bench.lines import gather

ANSWER_S = 60.0


def gloo(
    nursery: Nursery, world: int, size: int, trials: int, progress: Callable[[str], None]
) -> list[Figure]:
    """`nursery`: of gloo peers."""
    samples: dict[str, list[float]] = {"without": [], "error": [], "again": [], "with": []}
    count = size // FLOAT_BYTES
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="pccl-faults-") as folder:
        peers = [nursery.fork(slot) for slot in range(world)]
        for peer in peers:
            _order([peer], "be", peer.own)
        done = tries = 0
        while done < trials and tries < 3 * trials:
            tries += 1
            _init(peers, Path(folder) / f"a{tries}")
            for _ in range(2):
                samples["without"].append(_plain_s(peers, count))
            share = EARLIEST + (LATEST - EARLIEST) * done / max(1, trials - 1)
            victim = peers[done % world]
            rest = [peer for peer in peers if peer is not victim]
            after_s = share * statistics.median(samples["without"][-6:])
            started_ns, killed_ns, failed_ns = _killed(peers, victim, count, after_s)
            if failed_ns:
                _init(rest, Path(folder) / f"b{tries}")
                _plain_s(rest, count)
                again_s = (time.monotonic_ns() - failed_ns) / 1e9
                expected = sum(peer.own for peer in rest)
                wrong += sum(int(words[1]) for words in _order(rest, "check", expected))
                samples["error"].append((failed_ns - killed_ns) / 1e9)
                samples["again"].append(again_s)
                samples["with"].append((failed_ns - started_ns) / 1e9 + again_s)
                done += 1
                progress(f"gloo, SIGKILL at world {world}: {done} of {trials}")
            _order(rest, "drop")
            nursery.kill(victim)
            peers = [*rest, nursery.fork(victim.slot)]
            _order(peers[-1:], "be", victim.own)
        for peer in peers:
            nursery.kill(peer)
    about = About("sigkill", world, size, impl="gloo", wrong=wrong)
    if not samples["error"]:
        return [about.of("op without a death", samples["without"])]
    return [
        about.of("op without a death", samples["without"]),
        about.of("op with one: error, new group, op again", samples["with"]),
        about.of("kill to the last member's error", samples["error"]),
        about.of("error to the op's end in a new group", samples["again"]),
    ]


def _order(peers: Sequence[Peer], *words: object) -> list[list[str]]:
    for peer in peers:
        peer.line.send(*words)
    return gather([peer.line for peer in peers], ANSWER_S)


def _init(peers: Sequence[Peer], file: Path) -> None:
    for rank, peer in enumerate(peers):
        peer.line.send("init", file, rank, len(peers))
    gather([peer.line for peer in peers], ANSWER_S)


def _plain_s(peers: Sequence[Peer], count: int) -> float:
    _order(peers, "fill", count)
    start_ns = time.monotonic_ns() + int(2 * LEAD_S * 1e9)
    took = _order(peers, "time", start_ns)
    return (max(int(words[2]) for words in took) - start_ns) / 1e9


def _killed(
    peers: Sequence[Peer], victim: Peer, count: int, after_s: float
) -> tuple[int, int, int]:
    """When the op began, the victim was killed, and the last survivor got an error: 0 if any has
    the op, nanoseconds."""
    _order(peers, "fill", count)
    start_ns = time.monotonic_ns() + int(2 * LEAD_S * 1e9)
    for peer in peers:
        peer.line.send("time", start_ns)
    time.sleep(max(0.0, after_s + (start_ns - time.monotonic_ns()) / 1e9))
    killed_ns = time.monotonic_ns()
    os.kill(victim.pid, signal.SIGKILL)
    took = gather([peer.line for peer in peers if peer is not victim], ANSWER_S)
    failed_ns = max(int(words[2]) for words in took)
    return start_ns, killed_ns, failed_ns if all(words[3] == "1" for words in took) else 0
