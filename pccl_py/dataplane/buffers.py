"""What a user passes as a tensor, or as one per rank -> where it lies and what it holds (layer 3).

Called by the collectives for every op. It looks, checks and refuses; it copies nothing and must
not know what an op does. torch is never imported here: whoever passes a torch tensor has done so.
"""

from __future__ import annotations

import ctypes
import functools
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
_NUMBERS = {  # numpy's own, of its C types; looking at dtype.name takes longer than all the rest
    1: DType.INT8, 2: DType.UINT8, 3: DType.INT16, 5: DType.INT32,
    7: _FORMATS["l", ctypes.sizeof(ctypes.c_long)], 9: DType.INT64,
    11: DType.FLOAT32, 12: DType.FLOAT64, 23: DType.FLOAT16,
}  # fmt: skip
_BYTES = (1, 1, 2, 4, 8, 2, 2, 4, 8)  # by DType
SUPPORTED = ", ".join(_NUMPY)


@dataclass(slots=True)  # not frozen: one is made for each op, and that takes 4 times as long
class Buffer:
    """A contiguous piece of memory; nobody changes one. address: 0 only if empty; count: elements;
    shape: as the user sees it; owner: keeps the memory alive."""

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
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _of_numpy(value, writable)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _of_torch(value)
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


def _unsupported(name: str) -> UsageError:
    return UsageError(f"dtype {name} is not supported: use one of {SUPPORTED}")


@functools.cache
def _torch_dtypes() -> dict[object, DType]:
    import torch

    return {getattr(torch, name): dtype for name, dtype in _NUMPY.items()}


def _of_torch(tensor: object) -> Buffer:
    import torch

    assert isinstance(tensor, torch.Tensor)
    if not tensor.is_cpu:
        raise UsageError(f"the tensor is on {tensor.device}: copy it to the CPU first")
    if tensor.layout is not torch.strided:
        raise UsageError(f"the tensor is {tensor.layout}: only dense (strided) tensors are reduced")
    if tensor.is_nested:
        raise UsageError("the tensor is nested: pass its values() or its parts, one by one")
    dtype = _torch_dtypes().get(tensor.dtype)
    if dtype is None:
        raise _unsupported(str(tensor.dtype).removeprefix("torch."))
    if not tensor.is_contiguous():
        raise UsageError("the tensor is not contiguous: pass tensor.contiguous() and copy it back")
    if tensor.is_conj() or tensor.is_neg():
        raise UsageError("the tensor is a lazy view: pass tensor.resolve_neg().contiguous()")
    count = tensor.numel()
    try:
        address = tensor.data_ptr() if count else 0
    except RuntimeError:  # inside torch.func, or a fake
        raise UsageError(f"{type(tensor).__name__} has no memory of its own: copy it") from None
    if address % tensor.element_size():
        raise UsageError("the tensor is not aligned to its dtype: pass tensor.clone()")
    return Buffer(address, count, dtype, tensor.shape, tensor)


def _of_numpy(array: object, writable: bool) -> Buffer:
    import numpy as np

    assert isinstance(array, np.ndarray)
    kind, flags, count = array.dtype, array.flags, array.size
    if not kind.isnative:
        raise UsageError(f"the array's byte order ({kind.str}) is not this machine's")
    dtype = _NUMBERS.get(kind.num)
    if count and flags.carray and dtype is not None:  # contiguous, writeable, aligned
        return Buffer(_address(array), count, dtype, array.shape, array)
    dtype = _NUMPY.get(kind.name) if dtype is None else dtype
    if dtype is None:
        raise _unsupported(kind.name)
    if not flags.c_contiguous:
        raise UsageError("the array is not contiguous: pass numpy.ascontiguousarray(a) instead")
    if writable and not flags.writeable:
        raise UsageError("the array is read-only: results are written in place, pass a copy")
    if not flags.aligned:
        raise UsageError("the array is not aligned to its dtype: pass a copy")
    return Buffer(array.ctypes.data if count else 0, count, dtype, array.shape, array)


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
    address = _read_only_address(view) if view.readonly else _address(view)
    if address % view.itemsize:
        raise UsageError("the buffer is not aligned to its element size: pass a copy")
    return Buffer(address, count, dtype, shape, view)


def _address(writable: object) -> int:
    # numpy's array is a Buffer to its stubs from 3.12 on
    return ctypes.addressof(ctypes.c_char.from_buffer(writable))  # type: ignore[arg-type]


def _read_only_address(view: memoryview) -> int:
    import numpy as np  # ctypes does not look at read-only memory

    return int(np.frombuffer(view, np.uint8).ctypes.data)
