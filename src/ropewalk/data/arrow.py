"""Arrow arrays from what stages hold, and back.

`pa.array` and `to_numpy` import pandas, which takes longer than all the work on a small corpus.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def numbers(values: np.ndarray) -> pa.Array:
    """Return an array of whole numbers, over their own memory where that is contiguous."""
    values = np.ascontiguousarray(values)
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def strings(values: Sequence[str | None]) -> pa.Array:
    """Return an array of texts; None is null."""
    encoded = [b"" if value is None else value.encode() for value in values]
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(value) for value in encoded], out=offsets[1:])
    nulls = None
    if None in values:
        there = np.array([value is not None for value in values])
        nulls = pa.py_buffer(np.packbits(there, bitorder="little"))
    buffers = [nulls, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


def view(array: pa.Array) -> np.ndarray:
    """Return a view of an array of whole numbers of 32 or 64 bits without nulls."""
    dtype = np.dtype(f"i{array.type.bit_width // 8}")
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)
