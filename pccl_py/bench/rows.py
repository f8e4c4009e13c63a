"""One measured row and what is computed from it; pure.

A row is what `--json` prints, with exactly the fields of `Row` in their order. Called by the
conductor, which fills rows, and by the table and the plot, which only read them.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pccl_py.errors import UsageError


@dataclass(frozen=True, slots=True)
class Row:
    """One implementation at one size. bytes: of the op as nccl-tests counts it; *_s: seconds of one
    op; algbw, busbw: bytes per second; wrong: elements, over all ranks, that were not what they
    must be; rss_peak_bytes: the largest process of this implementation, the benchmark's own two
    buffers included (and torch, where gloo shares ours); coordinator_messages: control messages
    during the timed repeats; transport: "tcp", "shm", or "none" for a single rank. None where it is
    not known or means nothing."""

    op: str
    impl: str
    world: int
    bytes: int
    dtype: str
    codec: str
    route: str | None
    links: int | None
    median_s: float
    min_s: float
    max_s: float
    algbw: float
    busbw: float
    wrong: int
    rss_peak_bytes: int
    coordinator_messages: int | None
    in_place: bool
    transport: str | None


@dataclass(frozen=True, slots=True)
class Times:
    """Median, least and greatest of the repeats, seconds."""

    median_s: float
    min_s: float
    max_s: float


def times(repeats_s: Sequence[float]) -> Times:
    """Of at least one repeat."""
    return Times(statistics.median(repeats_s), min(repeats_s), max(repeats_s))


def slowest(ranks: Sequence[Sequence[float]]) -> list[float]:
    """ranks: for each rank its repeats, seconds. An op has ended when the last rank has it."""
    return [max(repeat) for repeat in zip(*ranks, strict=True)]


def bandwidths(size: int, seconds: float, factor: float) -> tuple[float, float]:
    """(algbw, busbw) in bytes per second; factor: the op's, 2(n-1)/n for all_reduce."""
    algbw = size / seconds if seconds > 0.0 else 0.0
    return algbw, algbw * factor


def count_wrong(counts: Sequence[int], hashes: Sequence[str], *, same_everywhere: bool) -> int:
    """Wrong elements over all ranks; ranks that are right but differ from rank 0 in a bit (a zero's
    sign) count as one each, where all must hold the same bits."""
    differing = sum(found != hashes[0] for found in hashes) if same_everywhere else 0
    return max(sum(counts), differing)


def ratio(ours: Row, theirs: Row) -> float:
    """How many times faster ours is: above 1 it is faster."""
    return theirs.median_s / ours.median_s if ours.median_s > 0.0 else 0.0


def as_json(row: Row) -> str:
    """The row as one line of JSON."""
    return json.dumps(dataclasses.asdict(row))


def from_json(text: str) -> Row:
    """The row of a line. Raises UsageError."""
    try:
        return Row(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise UsageError(f"this is no row of `pccl bench --json`: {text[:80]!r}") from error
