"""Hypothesis strategies for control messages, derived from the shapes of the wire."""

from __future__ import annotations

from typing import assert_never

from hypothesis import strategies as st

from pccl_py.protocol import shapes
from pccl_py.protocol.messages import CODES, Message


def of_shape(shape: shapes.Shape) -> st.SearchStrategy[object]:
    """Values within the shape's limits, small ones, the limits themselves included."""
    match shape:
        case shapes._Int(low, high):
            return st.integers(low, high) | st.sampled_from([low, high])
        case shapes._Bool():
            return st.booleans()
        case shapes._Text(bytes_max, _):
            texts = st.text(st.characters(codec="utf-8"), max_size=min(bytes_max // 4, 20))
            return texts | st.just("x" * min(bytes_max, 128))
        case shapes._Bytes(low, high):
            return st.binary(min_size=low, max_size=min(high, 64))
        case shapes._Enum(kind):
            return st.sampled_from(list(kind))
        case shapes._Optional(item):
            return st.none() | of_shape(item)
        case shapes._List(item, _):
            return st.lists(of_shape(item), max_size=3).map(tuple)
        case shapes._Fixed(items):
            return st.tuples(*(of_shape(item) for item in items))
        case shapes.Struct(kind, _, fields):
            return st.tuples(*(of_shape(field) for field in fields)).map(
                lambda values: kind(*values)
            )
        case _:
            assert_never(shape)


def messages() -> st.SearchStrategy[Message]:
    """Any control message."""
    return st.one_of(*(of_shape(shapes.struct(kind)) for kind in CODES.values()))  # type: ignore[arg-type]
