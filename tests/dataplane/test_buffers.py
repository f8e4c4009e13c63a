"""What is taken for a tensor, and the one line that says why not."""

from __future__ import annotations

import array
import ctypes
import mmap

import numpy as np
import pytest
import torch

from pccl_py.dataplane import buffers
from pccl_py.errors import UsageError
from pccl_py.types import DType


@pytest.mark.parametrize("name", buffers.SUPPORTED.split(", "))
def test_torch_tensors(name: str) -> None:
    tensor = torch.zeros((3, 4), dtype=getattr(torch, name))
    found = buffers.of(tensor)
    assert (found.address, found.count, found.shape) == (tensor.data_ptr(), 12, (3, 4))
    assert found.dtype.name.lower() == name
    assert found.nbytes == 12 * tensor.element_size()
    assert found.owner is tensor


@pytest.mark.parametrize("name", [n for n in buffers.SUPPORTED.split(", ") if n != "bfloat16"])
def test_numpy_arrays(name: str) -> None:
    whole = np.zeros((5, 4), name)
    part = whole[1:3]
    found = buffers.of(part)
    assert (found.address, found.count, found.shape) == (part.ctypes.data, 8, (2, 4))
    assert found.dtype.name.lower() == name


@pytest.mark.parametrize(
    ("value", "dtype", "count"),
    [
        (bytearray(5), DType.UINT8, 5),
        (memoryview(bytearray(6))[1:4], DType.UINT8, 3),
        (array.array("b", [1]), DType.INT8, 1),
        (array.array("h", [1]), DType.INT16, 1),
        (array.array("i", [1]), DType.INT32, 1),
        (array.array("l", [1, 2]), DType.INT64, 2),
        (array.array("q", [1, 2]), DType.INT64, 2),
        (array.array("f", [1, 2]), DType.FLOAT32, 2),
        (array.array("d", [1, 2]), DType.FLOAT64, 2),
        ((ctypes.c_float * 4)(), DType.FLOAT32, 4),
        ((ctypes.c_int64 * 4)(), DType.INT64, 4),
        (memoryview(bytearray(8)).cast("i", (2, 1)), DType.INT32, 2),
        (mmap.mmap(-1, 10), DType.UINT8, 10),
    ],
)
def test_plain_buffers(value: object, dtype: DType, count: int) -> None:
    found = buffers.of(value)
    assert (found.dtype, found.count) == (dtype, count)
    assert found.address


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (bytearray(), (0,)),
        (np.zeros((3, 0), np.int32), (3, 0)),
        (torch.zeros(0, 2), (0, 2)),
        (array.array("d"), (0,)),
    ],
)
def test_empty(value: object, shape: tuple[int, ...]) -> None:
    found = buffers.of(value)
    assert (found.address, found.count, found.nbytes, found.shape) == (0, 0, 0, shape)


def test_zero_dimensional() -> None:
    assert buffers.of(np.array(3.0)).shape == ()
    assert buffers.of(torch.tensor(3)).count == 1


def read_only() -> np.ndarray:
    found = np.zeros(3)
    found.flags.writeable = False
    return found


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.zeros(3, 4).t(), "not contiguous"),
        (torch.zeros(3, 4)[:, 0], "not contiguous"),
        (torch.zeros(3, dtype=torch.complex64), "complex64 is not supported: use one of uint8"),
        (torch.zeros(3, dtype=torch.bool), "bool is not supported"),
        (torch.zeros(3, device="meta"), "on meta: copy it to the CPU"),
        (torch.eye(3).to_sparse(), "only dense"),
        (torch.frombuffer(bytearray(9), dtype=torch.float32, offset=1, count=2), "not aligned"),
        (np.zeros((3, 4)).T, "not contiguous"),
        (np.zeros(6)[::2], "not contiguous"),
        (read_only(), "read-only"),
        (np.zeros(3, np.complex128), "complex128 is not supported"),
        (np.zeros(3, bool), "bool is not supported"),
        (np.zeros(3, ">f4"), "byte order"),
        (np.array(["a"]), "is not supported"),
        (np.array([None]), "object is not supported"),
        (np.zeros(9, np.uint8)[1:].view(np.uint8)[:8].view(np.float32), "not aligned"),
        (np.float32(3), "read-only"),
        (b"bytes", "read-only"),
        (memoryview(bytearray(8))[::2], "not contiguous"),
        (array.array("I", [1]), "'I' is not supported"),
        (memoryview(bytearray(9))[1:].cast("d"), "not aligned"),
        ([1.0, 2.0], "list is not a tensor"),
        (3.0, "float is not a tensor"),
        (None, "NoneType is not a tensor"),
        ("text", "str is not a tensor"),
    ],
)
def test_what_is_refused(value: object, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        buffers.of(value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "value",
    [
        read_only(),
        b"bytes",
        memoryview(b"abcdef")[1:5],
        np.float32(3),
        memoryview(bytes(8)).cast("d"),
    ],
)
def test_what_is_only_read_may_be_read_only(value: object) -> None:
    found = buffers.of(value, writable=False)
    assert ctypes.string_at(found.address, found.nbytes) == memoryview(value).tobytes()
    assert buffers.of(b"", writable=False).address == 0


def test_a_list_has_one_dtype_and_says_which_is_wrong() -> None:
    found = buffers.of_each("outs", [np.zeros(2), np.zeros(0)], writable=True)
    assert [b.count for b in found] == [2, 0]
    with pytest.raises(UsageError, match=r"outs\[1\] is float32 and outs\[0\] float64"):
        buffers.of_each("outs", [np.zeros(2), np.zeros(2, np.float32)], writable=True)
    with pytest.raises(UsageError, match=r"ins\[1\]: float is not a tensor"):
        buffers.of_each("ins", [np.zeros(2), 1.0], writable=False)


def test_parts_and_overlaps() -> None:
    array = np.zeros(10, np.float32)
    whole = buffers.of(array)
    part = whole.part(4, 3)
    assert (part.address, part.count, part.owner) == (array[4:].ctypes.data, 3, array)
    assert part.is_at(buffers.of(array[4:7]))
    assert part.overlaps(whole)
    assert not part.overlaps(whole.part(7, 3))
    assert not part.overlaps(whole.part(0, 4))
    assert whole.part(4, 0).address == 0
