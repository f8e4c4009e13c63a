"""Bytes <-> control messages: versioned, bounded, strict (layer 1).

The coordinator's shell, the peer's control thread, the journal and `pccl status` call it; it knows
no sockets and no state. One message is one msgpack array

    [PROTOCOL_VERSION, code, field, field, ...]

with the fields of the dataclass in `messages.CODES[code]` in their order, nested dataclasses and
tuples as arrays, enums as integers, None where a field is optional. Decoding accepts exactly what
encoding produces, within the limits of `shapes`, and raises nothing but RemoteProtocolError.

Fixed for all versions, so that unequal ends can tell each other: a message is one msgpack array
that starts with the version and the code, Refused has code 64, and its first two fields are `code`
(integer) and `text` (later versions may append fields). A Refused of another version is therefore
decoded; every other message of another version raises VersionMismatch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from typing import TypeVar

import msgpack

from pccl_py.errors import Code, LocalProtocolError, RemoteProtocolError
from pccl_py.protocol import shapes
from pccl_py.protocol.messages import CODES, Hello, Message, Refused, StatusRequest
from pccl_py.types import Record

PROTOCOL_VERSION = 4
MESSAGE_BYTES_MAX = 8 << 20
GREETING_BYTES_MAX = 2048
"""Most that Hello and StatusRequest take: all that a stranger may make the coordinator decode."""

_REFUSED = 64
_BY_CLASS = {kind: code for code, kind in CODES.items()}
_SHAPES = {kind: shapes.struct(kind) for kind in CODES.values()}
_RECORD = shapes.struct(Record)

_HELLO_DOMAIN = b"pccl-py hello v1\0"
_STATUS_DOMAIN = b"pccl-py status v1\0"

T = TypeVar("T")


class VersionMismatch(RemoteProtocolError):
    """The other end speaks `version` of this protocol, we speak PROTOCOL_VERSION."""

    def __init__(self, version: int) -> None:
        super().__init__(
            f"the other end speaks version {version} of pccl's control protocol, this end version "
            f"{PROTOCOL_VERSION}: install the same pccl-py on both"
        )
        self.version = version


def encode(message: Message) -> bytes:
    """One message as bytes. Free texts that are too long are cut.

    Raises LocalProtocolError if a field, or the whole, is more than the protocol allows.
    """
    shape = _SHAPES[type(message)]
    fields = shapes.pack(shape, message)
    assert isinstance(fields, list)
    return _dump([PROTOCOL_VERSION, _BY_CLASS[type(message)], *fields])


def decode(data: bytes | memoryview, bytes_max: int = MESSAGE_BYTES_MAX) -> Message:
    """The message that `data` holds. Raises RemoteProtocolError (VersionMismatch), nothing else."""
    raw = _load(data, bytes_max)
    if type(raw) is not list or len(raw) < 2:
        raise RemoteProtocolError("not a pccl control message")
    version, code, fields = raw[0], raw[1], raw[2:]
    if type(version) is not int or type(code) is not int or version < 0:
        raise RemoteProtocolError("not a pccl control message")
    if version != PROTOCOL_VERSION:
        if code == _REFUSED and len(fields) >= 2:
            return _foreign_refused(fields)
        raise VersionMismatch(version)
    kind = CODES.get(code)
    if kind is None:
        raise RemoteProtocolError(f"unknown message code {code}")
    return shapes.unpack_struct(_SHAPES[kind], kind, fields)


def _foreign_refused(fields: list[object]) -> Refused:
    code, text = fields[0], fields[1]
    if type(code) is not int or type(text) is not str:
        raise RemoteProtocolError("Refused of another version without code and text")
    known = Code.OK < code <= max(Code)
    return Refused(code if known else int(Code.PROTOCOL), shapes.clip(text, shapes.TEXT_BYTES_MAX))


# ---------------------------------------------------------------- proofs


def hello_proof(secret: bytes, hello: Hello) -> bytes:
    """HMAC-SHA256 under the run secret over the encoding of `hello` with an empty proof.

    The nonce makes proofs differ; it does not stop a listener from replaying one (CURVE will).
    """
    bare = encode(dataclasses.replace(hello, proof=b""))
    return hmac.digest(secret, _HELLO_DOMAIN + bare, hashlib.sha256)


def status_proof(secret: bytes, request: StatusRequest) -> bytes:
    """As hello_proof, for a StatusRequest."""
    bare = encode(dataclasses.replace(request, proof=b""))
    return hmac.digest(secret, _STATUS_DOMAIN + bare, hashlib.sha256)


def signed_hello(secret: bytes | None, hello: Hello) -> Hello:
    """`hello` with its proof; unchanged but for an empty proof when there is no secret."""
    return dataclasses.replace(hello, proof=b"" if secret is None else hello_proof(secret, hello))


def signed_status(secret: bytes | None, request: StatusRequest) -> StatusRequest:
    """As signed_hello, for a StatusRequest."""
    proof = b"" if secret is None else status_proof(secret, request)
    return dataclasses.replace(request, proof=proof)


def proof_is_good(secret: bytes, message: Hello | StatusRequest) -> bool:
    """Whether the proof was made with `secret`, compared in constant time."""
    if isinstance(message, Hello):
        wanted = hello_proof(secret, message)
    else:
        wanted = status_proof(secret, message)
    return hmac.compare_digest(wanted, message.proof)


# ---------------------------------------------------------------- records, for the journal


def encode_view(record: Record, run: str) -> bytes:
    """A view record and its run id, as the journal keeps them. Raises LocalProtocolError."""
    return _dump([PROTOCOL_VERSION, run, shapes.pack(_RECORD, record)])


def decode_view(data: bytes) -> tuple[Record, str]:
    """Inverse of encode_view. Raises RemoteProtocolError (VersionMismatch)."""
    raw = _load(data, MESSAGE_BYTES_MAX)
    if type(raw) is not list or len(raw) != 3 or type(raw[0]) is not int:
        raise RemoteProtocolError("not a journaled view")
    version, run, record = raw
    if version != PROTOCOL_VERSION:
        raise VersionMismatch(version)
    if type(run) is not str or len(run.encode()) > shapes.RUN_BYTES_MAX:
        raise RemoteProtocolError("journaled view: the run id is not a text within its limit")
    return shapes.unpack_struct(_RECORD, Record, record), run


# ---------------------------------------------------------------- msgpack


def _dump(raw: list[object]) -> bytes:
    data = msgpack.packb(raw, use_bin_type=True)
    assert isinstance(data, bytes)
    if len(data) > MESSAGE_BYTES_MAX:
        raise LocalProtocolError(f"a message of {len(data)} bytes; {MESSAGE_BYTES_MAX} is most")
    return data


def _load(data: bytes | memoryview, bytes_max: int) -> object:
    if len(data) > bytes_max:
        raise RemoteProtocolError(f"a message of {len(data)} bytes; {bytes_max} is most here")
    try:
        # Array sizes are bounded by the input, because msgpack allocates what a header claims.
        raw: object = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_array_len=min(len(data), shapes.LIST_MAX),
            max_map_len=0,
            max_ext_len=0,
        )
    except ValueError as error:  # msgpack's own errors and UnicodeDecodeError are all ValueErrors
        kind = type(error).__name__
        raise RemoteProtocolError(f"not a pccl control message ({kind})") from None
    return raw


# ---------------------------------------------------------------- texts from outside


def printable(text: str, chars_max: int = 1000) -> str:
    """`text` fit for a terminal or a log: one line, no control or direction characters, bounded."""
    line = "".join(char if char.isprintable() else _stand_in(char) for char in text[:chars_max])
    return line if len(text) <= chars_max else line + "…"


def _stand_in(char: str) -> str:
    return " " if char.isspace() else "?"
