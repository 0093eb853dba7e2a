"""Arrays made by hand are what the library makes."""

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from ropewalk.data import arrow


@given(st.lists(st.none() | st.text(max_size=5), max_size=20))
def test_strings_are_those_of_the_library(values: list[str | None]) -> None:
    """Guards against names shifted by a null or by a character of several bytes."""
    made = arrow.strings(values)
    made.validate(full=True)
    assert made == pa.array(values, pa.string())


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint16", "uint32"])
def test_numbers_are_those_of_the_library(dtype: str) -> None:
    """Guards against numbers read with another width."""
    values = np.array([0, 1, 7, np.iinfo(dtype).max], dtype=dtype)
    made = arrow.numbers(values)
    made.validate(full=True)
    assert made == pa.array(values)
    assert arrow.numbers(values[:0]) == pa.array(values[:0])


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9), st.integers(0, 9))
def test_a_view_begins_where_its_slice_begins(values: list[int], start: int) -> None:
    """Guards against a slice that is read from the beginning of its buffer."""
    for kind in (pa.int32(), pa.int64()):
        assert arrow.view(pa.array(values, kind)[start:]).tolist() == values[start:]
