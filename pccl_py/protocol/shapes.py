"""What each field of a wire value may hold (layer 1).

Built once per class from its type hints, plus the tables of limits below, which go by field name.
`encoding` calls `pack` and `unpack`; this file knows nothing of bytes. Whatever comes from outside
either becomes a value within these limits or raises RemoteProtocolError; what our own side may not
say raises LocalProtocolError, except free texts, which are shortened: an error text that quotes
another must not become an error itself.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from dataclasses import dataclass
from typing import TypeVar, assert_never

from pccl_py.errors import Code, LocalProtocolError, RemoteProtocolError

U64_MAX = 2**64 - 1
U32_MAX = 2**32 - 1
TEXT_BYTES_MAX = 4096
LIST_MAX = 65536

NAME_BYTES_MAX = 64
GROUP_BYTES_MAX = 64
RUN_BYTES_MAX = 128
HOST_BYTES_MAX = 63
KEY_BYTES_MAX = 1024
CALLED_BYTES_MAX = 160
SEGMENTS_MAX = 65536
RING_MAX = 1024

_TEXT_MAX = {
    "name": NAME_BYTES_MAX,
    "group": GROUP_BYTES_MAX,
    "run": RUN_BYTES_MAX,
    "host": HOST_BYTES_MAX,
    "key": KEY_BYTES_MAX,
    "dirty": KEY_BYTES_MAX,
    "called": CALLED_BYTES_MAX,
    "json": 4 << 20,
}
"""Bytes of UTF-8 of texts that mean something; all others are free texts for people."""

_BYTES_SIZES: dict[str, tuple[int, int]] = {
    "nonce": (16, 16),
    "proof": (0, 32),
    "digest": (16, 16),
    "final": (0, SEGMENTS_MAX // 8),
    "among": (0, RING_MAX // 8),
}

_INT_RANGES: dict[str, tuple[int, int]] = {
    "port": (0, 65535),
    "code": (0, int(max(Code))),
    "Refused.code": (1, int(max(Code))),
    "holders": (-2, 65535),
    "passed": (-1, U64_MAX),
    "segments": (0, SEGMENTS_MAX),
    "submitted": (0, U32_MAX),
    "stable": (0, U32_MAX),
    "contexts": (0, U32_MAX),
    "rtt_us": (0, U32_MAX),
}
"""Other integers are u64. The engine counts ops in 32 bits."""


@dataclass(frozen=True, slots=True)
class _Int:
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class _Bool:
    pass


@dataclass(frozen=True, slots=True)
class _Text:
    bytes_max: int
    free: bool


@dataclass(frozen=True, slots=True)
class _Bytes:
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class _Enum:
    kind: type[enum.IntEnum]


@dataclass(frozen=True, slots=True)
class _Optional:
    item: Shape


@dataclass(frozen=True, slots=True)
class _List:
    item: Shape
    count_max: int


@dataclass(frozen=True, slots=True)
class _Fixed:
    items: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Struct:
    """A dataclass: its fields in order."""

    kind: type[object]
    names: tuple[str, ...]
    fields: tuple[Shape, ...]


Shape = _Int | _Bool | _Text | _Bytes | _Enum | _Optional | _List | _Fixed | Struct

T = TypeVar("T")


def struct(kind: type[object]) -> Struct:
    """The shape of a dataclass; a field type that the wire does not know is an assertion."""
    assert dataclasses.is_dataclass(kind), kind
    hints: dict[str, object] = typing.get_type_hints(kind)
    names = tuple(field.name for field in dataclasses.fields(kind))
    fields = (_shape(hints[name], _limit_of(kind, name)) for name in names)
    return Struct(kind, names, tuple(fields))


def _limit_of(kind: type[object], name: str) -> str:
    """Under which name a field's limits stand."""
    qualified = f"{kind.__name__}.{name}"
    return qualified if qualified in _INT_RANGES else name


def _shape(hint: object, name: str) -> Shape:
    if isinstance(hint, typing.NewType):
        return _shape(hint.__supertype__, name)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        inner = [argument for argument in arguments if argument is not type(None)]
        assert len(inner) == 1, (name, hint)
        return _Optional(_shape(inner[0], name))
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return _List(_shape(arguments[0], name), LIST_MAX)
        return _Fixed(tuple(_shape(argument, name) for argument in arguments))
    assert isinstance(hint, type), (name, hint)
    if hint is bool:
        return _Bool()
    if hint is int:
        return _Int(*_INT_RANGES.get(name, (0, U64_MAX)))
    if hint is str:
        return _Text(_TEXT_MAX.get(name, TEXT_BYTES_MAX), name not in _TEXT_MAX)
    if hint is bytes:
        return _Bytes(*_BYTES_SIZES[name])
    if issubclass(hint, enum.IntEnum):
        return _Enum(hint)
    return struct(hint)


# ---------------------------------------------------------------- values -> plain lists


def pack(shape: Shape, value: object) -> object:
    """`value` as ints, bools, strs, bytes, None and lists. Raises LocalProtocolError."""
    match shape:
        case _Bool():
            if type(value) is bool:
                return value
        case _Int(low, high):
            # Our own side may say errors.Code.USAGE where the wire says 1.
            if isinstance(value, int) and type(value) is not bool and low <= value <= high:
                return int(value)
        case _Text(bytes_max, free):
            if type(value) is str:
                return clip(value, bytes_max) if free else _checked_text(value, bytes_max)
        case _Bytes(low, high):
            if type(value) is bytes and low <= len(value) <= high:
                return value
        case _Enum(kind):
            if type(value) is kind:
                return int(value)
        case _Optional(item):
            return None if value is None else pack(item, value)
        case _List(item, count_max):
            if type(value) is tuple and len(value) <= count_max:
                return [pack(item, part) for part in value]
        case _Fixed(items):
            if type(value) is tuple and len(value) == len(items):
                return [pack(item, part) for item, part in zip(items, value, strict=True)]
        case Struct(kind, names, fields):
            if type(value) is kind:
                return [
                    pack(field, getattr(value, name))
                    for name, field in zip(names, fields, strict=True)
                ]
        case _:
            assert_never(shape)
    raise LocalProtocolError(f"{value!r:.80} is not what the wire allows here ({_name(shape)})")


def _checked_text(text: str, bytes_max: int) -> str:
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise LocalProtocolError(f"{text!r:.80} cannot be written as UTF-8") from None
    if size_bytes > bytes_max:
        raise LocalProtocolError(f"{text!r:.80} is {size_bytes} bytes long, {bytes_max} is most")
    return text


def clip(text: str, bytes_max: int) -> str:
    """`text` as valid UTF-8 of at most `bytes_max` bytes, cut between characters."""
    coded = text.encode(errors="replace")
    if len(coded) <= bytes_max:
        return coded.decode()
    return coded[:bytes_max].decode(errors="ignore")


# ---------------------------------------------------------------- plain lists -> values


def unpack_struct(shape: Struct, kind: type[T], raw: object) -> T:
    """The dataclass whose fields stand in the list `raw`. Raises RemoteProtocolError."""
    value = unpack(shape, raw, kind.__name__)
    assert isinstance(value, kind)
    return value


def unpack(shape: Shape, raw: object, where: str) -> object:
    """The value that `raw` stands for; `where` names it in errors. Raises RemoteProtocolError."""
    match shape:
        case _Bool():
            if type(raw) is bool:
                return raw
        case _Int(low, high):
            if type(raw) is int and low <= raw <= high:
                return raw
        case _Text(bytes_max, _):
            if type(raw) is str and len(raw.encode()) <= bytes_max:
                return raw
        case _Bytes(low, high):
            if type(raw) is bytes and low <= len(raw) <= high:
                return raw
        case _Enum(kind):
            if type(raw) is int and raw in kind.__members__.values():
                return kind(raw)
        case _Optional(item):
            return None if raw is None else unpack(item, raw, where)
        case _List(item, count_max):
            if type(raw) is list and len(raw) <= count_max:
                return tuple(unpack(item, part, where) for part in raw)
        case _Fixed(items):
            if type(raw) is list and len(raw) == len(items):
                return tuple(
                    unpack(item, part, where) for item, part in zip(items, raw, strict=True)
                )
        case Struct(kind, names, fields):
            if type(raw) is list and len(raw) == len(fields):
                parts = (
                    unpack(field, part, f"{where}.{name}")
                    for name, field, part in zip(names, fields, raw, strict=True)
                )
                return kind(*parts)
        case _:
            assert_never(shape)
    raise RemoteProtocolError(f"{where}: {raw!r:.80} is not {_name(shape)}")


def _name(shape: Shape) -> str:
    match shape:
        case _Int(low, high):
            return f"an integer in {low}..{high}"
        case _Bool():
            return "a boolean"
        case _Text(bytes_max, _):
            return f"a text of at most {bytes_max} bytes"
        case _Bytes(low, high):
            return f"{low} bytes" if low == high else f"{low} to {high} bytes"
        case _Enum(kind):
            return f"one of {kind.__name__}"
        case _Optional(item):
            return f"{_name(item)} or nothing"
        case _List(item, count_max):
            return f"a list of at most {count_max}"
        case _Fixed(items):
            return f"a list of {len(items)}"
        case Struct(kind, _, fields):
            return f"a {kind.__name__} of {len(fields)} fields"
        case _:
            assert_never(shape)
