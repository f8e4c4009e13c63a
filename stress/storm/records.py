"""What a storm's log holds: one frozen record a line of JSON, strictly read back.

Written by the conductor, in the order in which it heard; `at` is seconds since the storm began, on
the clock of whom the record is about (one machine, one monotonic clock). The oracle, the figures
and the page know nothing but these. Pure.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Began:
    """How the storm was to be. deadline_s: of every member; seconds: of faults; proxied: links go
    through the relay, with checksums over payloads."""

    at: float
    profile: str
    seed: int
    seconds: float
    deadline_s: float
    detection_s: float
    proxied: bool


@dataclass(frozen=True, slots=True)
class Spawned:
    """A process. who: "p7"; slot: its place among those that live at once, its digit in sums."""

    at: float
    who: str
    slot: int


@dataclass(frozen=True, slots=True)
class Joined:
    """`join` returned after `seconds`. peer: its id of this membership."""

    at: float
    who: str
    peer: int
    epoch: int
    line: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Calling:
    """It is about to make calls that have a deadline. what: "join", "sync", "leave", "step 12"."""

    at: float
    who: str
    what: str


@dataclass(frozen=True, slots=True)
class OpEnd:
    """How one op of a step ended for one member. end: "ok" or an error's class; digest: of the
    result's bytes; low, high: contributors; text: the error's; wrong: what is wrong with the
    values, or nothing."""

    kind: str
    strict: bool
    end: str
    digest: str
    low: int
    high: int
    repaired: int
    seconds: float
    text: str
    wrong: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """A member ended a step. began: when its ops were submitted; epoch, world: of its view now, by
    names in rank order; state: hash of the shared state after it; update_s: in the safe point."""

    at: float
    who: str
    line: int
    step: int
    epoch: int
    world: tuple[str, ...]
    began: float
    update_s: float
    state: str
    ops: tuple[OpEnd, ...]


@dataclass(frozen=True, slots=True)
class Synced:
    """`sync_state` returned after `seconds`. state: hash of what it holds now."""

    at: float
    who: str
    line: int
    step: int
    seconds: float
    donor: str
    state: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A membership ended by an error; the process joins again. line, step: where it was."""

    at: float
    who: str
    error: str
    text: str
    line: int
    step: int


@dataclass(frozen=True, slots=True)
class Left:
    """`leave` returned after `seconds`."""

    at: float
    who: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds, memory that the allocator keeps apart. when: "before" it first joined,
    "member" (some steps after), "last" before it leaves, "after" it left; rss in bytes. who: a
    member, or "coordinator"."""

    at: float
    who: str
    when: str
    rss: int
    fds: int
    threads: int


@dataclass(frozen=True, slots=True)
class Exited:
    """A process ended. status: its exit code, or minus the signal; planned: it was killed by us or
    told to leave."""

    at: float
    who: str
    status: int


@dataclass(frozen=True, slots=True)
class Fault:
    """What the nemesis did. kind: one of `nemesis.KINDS`; whom: names, two for a link; seconds: how
    long it lasts, 0 for what happens once, of a coordinator: how long after its return it is killed
    again, 0: it is not; number: of the fault."""

    at: float
    number: int
    kind: str
    whom: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Healed:
    """A fault that lasts is over; for the coordinator: it listens again."""

    at: float
    number: int


@dataclass(frozen=True, slots=True)
class Flipped:
    """The relay turned a bit of what went over a link between two."""

    at: float
    link: int
    whom: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Closed:
    """A link that had a bit turned was closed by an end of it."""

    at: float
    link: int


@dataclass(frozen=True, slots=True)
class Calm:
    """No more faults: all were healed. remain: processes that live and were not told to leave."""

    at: float
    remain: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Over:
    """All were told to leave and had time to."""

    at: float


Record = (
    Began | Spawned | Joined | Calling | Stepped | Synced | Lost | Left | Footprint | Exited
    | Fault | Healed | Flipped | Closed | Calm | Over
)  # fmt: skip
_KINDS = {kind.__name__: kind for kind in Record.__args__}


def line(record: Record) -> str:
    """One line of JSON."""
    return json.dumps({"record": type(record).__name__} | dataclasses.asdict(record))


def parse(text: str) -> Record:
    """Raises ValueError for a line that is no record."""
    found = json.loads(text)
    if not isinstance(found, dict) or found.get("record") not in _KINDS:
        raise ValueError(f"no record: {text[:80]!r}")
    return _made(_KINDS[found.pop("record")], found)


def parse_all(lines: Iterable[str]) -> list[Record]:
    """A log. A last line that a crash tore is left out; any other is a ValueError."""
    texts = [text for text in lines if text.strip()]
    if texts and not texts[-1].endswith("}\n"):
        texts.pop()
    return [parse(text) for text in texts]


def _made(kind: type, fields: Mapping[str, object]) -> Record:
    names = {field.name for field in dataclasses.fields(kind)}
    if set(fields) != names:
        raise ValueError(f"{kind.__name__} with {sorted(fields)}, not {sorted(names)}")
    made = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    if kind is Stepped:
        made["ops"] = tuple(OpEnd(**op) for op in made["ops"])
    return kind(**made)
