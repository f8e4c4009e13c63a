"""What a user passes as a tensor, or as one per rank -> where it lies and what it holds (layer 3).

Called by the collectives for every op. It looks, checks and refuses; it copies nothing and must
not know what an op does. torch is never imported here: whoever passes a torch tensor has done so.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pccl_py.errors import UsageError
from pccl_py.types import DType

_NUMPY = {
    "uint8": DType.UINT8,
    "int8": DType.INT8,
    "int16": DType.INT16,
    "int32": DType.INT32,
    "int64": DType.INT64,
    "float16": DType.FLOAT16,
    "bfloat16": DType.BFLOAT16,
    "float32": DType.FLOAT32,
    "float64": DType.FLOAT64,
}
_FORMATS = {
    ("B", 1): DType.UINT8, ("c", 1): DType.UINT8, ("b", 1): DType.INT8, ("h", 2): DType.INT16,
    ("i", 4): DType.INT32, ("l", 4): DType.INT32, ("l", 8): DType.INT64, ("q", 8): DType.INT64,
    ("e", 2): DType.FLOAT16, ("f", 4): DType.FLOAT32, ("d", 8): DType.FLOAT64,
}  # fmt: skip
_BYTES = {
    DType.UINT8: 1, DType.INT8: 1, DType.INT16: 2, DType.INT32: 4, DType.INT64: 8,
    DType.FLOAT16: 2, DType.BFLOAT16: 2, DType.FLOAT32: 4, DType.FLOAT64: 8,
}  # fmt: skip
SUPPORTED = ", ".join(_NUMPY)


@dataclass(frozen=True, slots=True)
class Buffer:
    """A contiguous piece of memory. address: 0 only if empty; count: elements; shape: as the user
    sees it; owner: keeps the memory alive."""

    address: int
    count: int
    dtype: DType
    shape: tuple[int, ...]
    owner: object

    @property
    def nbytes(self) -> int:
        return self.count * _BYTES[self.dtype]

    def in_words(self) -> str:
        """As error texts compare it: "12 of float32"."""
        return f"{self.count} of {self.dtype.name.lower()}"

    def overlaps(self, other: Buffer) -> bool:
        """Whether they share a byte."""
        return (
            self.address < other.address + other.nbytes
            and other.address < self.address + self.nbytes
        )

    def is_at(self, other: Buffer) -> bool:
        """Whether they are the same elements of the same memory."""
        return (self.address, self.count) == (other.address, other.count)

    def part(self, start: int, count: int) -> Buffer:
        """Elements start to start + count, flat."""
        address = self.address + start * _BYTES[self.dtype] if count else 0
        return Buffer(address, count, self.dtype, (count,), self.owner)


def of(value: object, *, writable: bool = True) -> Buffer:
    """The buffer of a torch tensor (CPU), a numpy array, or anything with the buffer protocol
    (untyped: uint8). writable: False for what is only read; read-only memory will do.

    Raises UsageError naming what is wrong: not contiguous, read-only, an unsupported dtype, another
    device, not a tensor at all.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _of_torch(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _of_numpy(value, writable)
    return _of_view(value, writable)


def named(what: str, value: object, *, writable: bool) -> Buffer:
    """As `of`; what is wrong is said of `what`."""
    try:
        return of(value, writable=writable)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None


def of_each(what: str, values: Sequence[object], *, writable: bool) -> tuple[Buffer, ...]:
    """The buffers of a list of tensors, all of one dtype. Raises UsageError naming the place."""
    found: list[Buffer] = []
    for i, value in enumerate(values):
        buffer = named(f"{what}[{i}]", value, writable=writable)
        if found and buffer.dtype != found[0].dtype:
            raise UsageError(
                f"{what}[{i}] is {buffer.dtype.name.lower()} and {what}[0] "
                f"{found[0].dtype.name.lower()}: one op has one dtype"
            )
        found.append(buffer)
    return tuple(found)


def _dtype(name: str) -> DType:
    dtype = _NUMPY.get(name)
    if dtype is None:
        raise UsageError(f"dtype {name} is not supported: use one of {SUPPORTED}")
    return dtype


def _of_torch(tensor: object) -> Buffer:
    import torch

    assert isinstance(tensor, torch.Tensor)
    if tensor.device.type != "cpu":
        raise UsageError(f"the tensor is on {tensor.device}: copy it to the CPU first")
    if tensor.layout is not torch.strided:
        raise UsageError(f"the tensor is {tensor.layout}: only dense (strided) tensors are reduced")
    if tensor.is_nested:
        raise UsageError("the tensor is nested: pass its values() or its parts, one by one")
    dtype = _dtype(str(tensor.dtype).removeprefix("torch."))
    if not tensor.is_contiguous():
        raise UsageError("the tensor is not contiguous: pass tensor.contiguous() and copy it back")
    if tensor.is_conj() or tensor.is_neg():
        raise UsageError("the tensor is a lazy view: pass tensor.resolve_neg().contiguous()")
    try:
        address = tensor.data_ptr() if tensor.numel() else 0
    except RuntimeError:  # inside torch.func, or a fake
        raise UsageError(f"{type(tensor).__name__} has no memory of its own: copy it") from None
    if address % tensor.element_size():
        raise UsageError("the tensor is not aligned to its dtype: pass tensor.clone()")
    return Buffer(address, tensor.numel(), dtype, tuple(tensor.shape), tensor)


def _of_numpy(array: object, writable: bool) -> Buffer:
    import numpy as np

    assert isinstance(array, np.ndarray)
    if not array.dtype.isnative:
        raise UsageError(f"the array's byte order ({array.dtype.str}) is not this machine's")
    dtype = _dtype(array.dtype.name)
    if not array.flags.c_contiguous:
        raise UsageError("the array is not contiguous: pass numpy.ascontiguousarray(a) instead")
    if writable and not array.flags.writeable:
        raise UsageError("the array is read-only: results are written in place, pass a copy")
    if not array.flags.aligned:
        raise UsageError("the array is not aligned to its dtype: pass a copy")
    return Buffer(array.ctypes.data if array.size else 0, array.size, dtype, array.shape, array)


def _of_view(value: object, writable: bool) -> Buffer:
    try:
        view = memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        kind = type(value).__name__
        raise UsageError(
            f"{kind} is not a tensor: pass a torch tensor, a numpy array or a writable buffer"
        ) from None
    if writable and view.readonly:
        raise UsageError("the buffer is read-only: results are written in place, pass a copy")
    if not view.c_contiguous:
        raise UsageError("the buffer is not contiguous: pass a contiguous copy")
    own = "@=<" if sys.byteorder == "little" else "@=>"  # ctypes says its byte order
    dtype = _FORMATS.get((view.format.lstrip(own), view.itemsize))
    if dtype is None:
        raise UsageError(f"buffer format {view.format!r} is not supported: use one of {SUPPORTED}")
    count = view.nbytes // view.itemsize
    shape = tuple(view.shape) if view.shape is not None else (count,)
    if not count:
        return Buffer(0, 0, dtype, shape, value)
    address = _address(view)
    if address % view.itemsize:
        raise UsageError("the buffer is not aligned to its element size: pass a copy")
    return Buffer(address, count, dtype, shape, view)


def _address(view: memoryview) -> int:
    if not view.readonly:
        return ctypes.addressof(ctypes.c_char.from_buffer(view))
    import numpy as np  # ctypes does not look at read-only memory

    return int(np.frombuffer(view, np.uint8).ctypes.data)
