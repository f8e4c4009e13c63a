"""How each element type lies in memory, as numpy says it (bfloat16 as the upper half of a float32).

Without torch: the sanitizers' tests import it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pccl_py.types import DType

Array = npt.NDArray[np.generic]

STORED: dict[DType, type[np.generic]] = {
    DType.UINT8: np.uint8,
    DType.INT8: np.int8,
    DType.INT16: np.int16,
    DType.INT32: np.int32,
    DType.INT64: np.int64,
    DType.FLOAT16: np.float16,
    DType.BFLOAT16: np.uint16,
    DType.FLOAT32: np.float32,
    DType.FLOAT64: np.float64,
}
