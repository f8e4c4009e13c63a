"""What is asked of etcd and how its answers are read (layer 2): keys, transactions, a lease's time.

`etcd_store` sends these bodies to etcd's JSON gateway (v3) and acts on what comes back; nothing
here waits or sends. Keys of a run, under /pccl/RUN/ (RUN quoted, so that no run's keys begin with
another's):

    leader      who acts, attached to its lease: gone when that is
    boot        lives so far, a decimal number
    view        the head of the last view: JSON {token, parts, crc}
    part/TOKEN/N   the view's bytes, encoding.encode_view, in parts of PART_BYTES

Each change is a transaction that holds only if `leader` was created by the very revision that made
us leader: who has lost its lease changes nothing, whatever it believes. A view's also holds only if
`view` is as we last saw it, so that a change that we gave up waiting for cannot come late and undo
a later one.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pccl_py.errors import RemoteProtocolError

PART_BYTES = 512 << 10  # etcd takes requests of 1.5 MiB by default
SURE_SHARE = 0.9  # of a lease's time: how long we trust it, by our clock
RENEWALS = 4  # in a lease's time
_QUOTED = {ord("/"): "%2F", ord("%"): "%25", 0: "%00"}

Body = dict[str, object]
Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one run, as text."""

    run: str

    @property
    def prefix(self) -> str:
        return f"/pccl/{self.run.translate(_QUOTED)}/"

    @property
    def leader(self) -> str:
        return f"{self.prefix}leader"

    @property
    def boot(self) -> str:
        return f"{self.prefix}boot"

    @property
    def view(self) -> str:
        return f"{self.prefix}view"

    @property
    def probe(self) -> str:
        return f"{self.prefix}probe"

    def part(self, token: str, number: int) -> str:
        return f"{self.prefix}part/{token}/{number:04}"


@dataclass(frozen=True, slots=True)
class Lease:
    """id: etcd's. ttl_s: what it granted. sure_until: until then, by the clock that asked, etcd
    cannot have given it up: it counts from when it heard us, we from before we asked."""

    id: int
    ttl_s: float
    sure_until: float

    @staticmethod
    def since(asked_at: float, id: int, ttl_s: float) -> Lease:
        return Lease(id, ttl_s, asked_at + SURE_SHARE * ttl_s)


@dataclass(frozen=True, slots=True)
class Found:
    """A key's value and the revisions that created it and last changed it."""

    value: bytes
    created: int
    changed: int


@dataclass(frozen=True, slots=True)
class Head:
    """Where the last view's bytes are. crc: CRC-32 of them all."""

    token: str
    parts: int
    crc: int

    def encoded(self) -> bytes:
        return json.dumps({"token": self.token, "parts": self.parts, "crc": self.crc}).encode()


def split(data: bytes) -> list[bytes]:
    """A view's bytes in parts, at least one."""
    return [data[at : at + PART_BYTES] for at in range(0, max(1, len(data)), PART_BYTES)]


# ---------------------------------------------------------------- asking


def get(key: str) -> Body:
    return {"key": _base64(key)}


def put(key: str, value: bytes, lease: int = 0) -> Body:
    body: Body = {"key": _base64(key), "value": _base64(value)}
    return {"request_put": body | ({"lease": str(lease)} if lease else {})}


def delete(first: str, end: str) -> Body:
    """All keys from `first` on and before `end`."""
    return {"request_delete_range": {"key": _base64(first), "range_end": _base64(end)}}


def campaign(keys: Keys, lease: int, who: str) -> Body:
    """Become the leader if there is none."""
    return {
        "compare": [_created(keys.leader, 0)],
        "success": [put(keys.leader, who.encode(), lease)],
    }


def fenced(keys: Keys, created: int, changes: Sequence[Body], view_changed: int = -1) -> Body:
    """The changes, if we are the leader still and, if told, the view's head is as we saw it; else
    both are shown."""
    compare = [_created(keys.leader, created)]
    if view_changed >= 0:
        compare.append(
            {
                "key": _base64(keys.view),
                "target": "MOD",
                "result": "EQUAL",
                "mod_revision": str(view_changed),
            }
        )
    shown = [{"request_range": get(keys.leader)}, {"request_range": get(keys.view)}]
    return {"compare": compare, "success": list(changes), "failure": shown}


def without_other_parts(keys: Keys, token: str) -> list[Body]:
    """Deletes the parts of all views but one, those of changes that were given up among them."""
    kept = keys.part(token, 0)[: -len("0000")]
    return [
        delete(f"{keys.prefix}part/", kept),
        delete(f"{kept[:-1]}0", f"{keys.prefix}part0"),  # "0" comes right after "/"
    ]


def _created(key: str, revision: int) -> Body:
    return {
        "key": _base64(key),
        "target": "CREATE",
        "result": "EQUAL",
        "create_revision": str(revision),
    }


def _base64(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


# ---------------------------------------------------------------- reading


def revision(answer: Json) -> int:
    """Of the store, after what was asked."""
    return _number(_mapping(answer, "header"), "revision")


def granted(answer: Json) -> tuple[int, float]:
    """A new lease's id and its time in seconds."""
    return _number(answer, "ID"), float(_number(answer, "TTL"))


def renewed_s(answer: Json) -> float:
    """What a renewed lease has from now on; 0: it is lost."""
    return float(_number(_mapping(answer, "result"), "TTL"))


def succeeded(answer: Json) -> bool:
    return answer.get("succeeded") is True


def found(answer: Json) -> Found | None:
    """What a `get` found."""
    entries = answer.get("kvs", [])
    if not isinstance(entries, list) or len(entries) > 1:
        raise RemoteProtocolError("etcd answered with other keys than were asked for")
    if not entries:
        return None
    entry = entries[0]
    if not isinstance(entry, dict):
        raise RemoteProtocolError("etcd answered with a key that is none")
    value = entry.get("value", "")
    try:
        data = base64.b64decode(value if isinstance(value, str) else "?", validate=True)
    except binascii.Error:
        raise RemoteProtocolError("etcd answered with a value that is not base64") from None
    return Found(data, _number(entry, "create_revision"), _number(entry, "mod_revision"))


def shown(answer: Json) -> tuple[Found | None, Found | None]:
    """Of a `fenced` that did not hold: the leader, the view's head."""
    responses = answer.get("responses")
    if isinstance(responses, list) and len(responses) == 2:
        ranges = [one.get("response_range") for one in responses if isinstance(one, dict)]
        both = [one for one in ranges if isinstance(one, dict)]
        if len(both) == 2:
            return found(both[0]), found(both[1])
    raise RemoteProtocolError("etcd answered a transaction with what was not asked")


def head(value: bytes) -> Head:
    """Raises RemoteProtocolError if it is none."""
    try:
        body = json.loads(value)
    except ValueError:
        body = None
    if isinstance(body, dict):
        token, parts, crc = body.get("token"), body.get("parts"), body.get("crc")
        if isinstance(token, str) and type(parts) is int and type(crc) is int and 0 < parts < 10000:
            return Head(token, parts, crc)
    raise RemoteProtocolError("the view's head in etcd cannot be read")


def _mapping(answer: Json, name: str) -> Json:
    value = answer.get(name)
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"etcd answered without a {name}")
    return value


def _number(entry: Json, name: str) -> int:
    """etcd's gateway writes 64-bit numbers as text, and leaves out those that are 0."""
    value = entry.get(name, "0")
    text = value if isinstance(value, str) else str(value)
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise RemoteProtocolError(f"etcd answered with a {name} that is no number")
    return int(text)
