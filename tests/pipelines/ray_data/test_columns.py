"""A column gives back the values that it was made of."""

import io
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from ray.data.block import BlockAccessor
from ray.data.extensions import ArrowPythonObjectType, ArrowVariableShapedTensorType

from dray.pipelines.ray_data.columns import PartDecoder, to_column
from tests.support.datasets import npy

DTYPES = st.sampled_from(["?", "i1", "<i4", "<u8", "<f2", "<f4", ">f4", "<f8", "<c8", "<U3", "S2", "<M8[D]"])
ARRAYS = arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
PLAIN = st.one_of(
    st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), st.booleans(), st.none(),
    st.dictionaries(st.text(), st.integers()), st.lists(st.integers() | st.text()),
)  # fmt: skip


def values_of(column: pa.Array) -> list[Any]:
    """The values as a user gets them, row by row."""
    return [row["x"] for row in BlockAccessor.for_block(pa.table({"x": column})).iter_rows(public_row_format=True)]


def decoded(suffix: str, parts: list[bytes], **options: Any) -> pa.Array:
    suffixes, place = [suffix] * len(parts), {"url": "file:///x", "key": "k"}
    return PartDecoder().column(parts, suffixes, lambda _: place, **{"may_lack": False, **options})


def is_same(found: Any, given_value: Any) -> bool:
    if isinstance(given_value, np.ndarray):
        native = given_value.astype(given_value.dtype.newbyteorder("="))
        found = np.asarray(found)  # an array without axes comes back as a number
        same_kind = found.dtype == native.dtype or native.ndim == 0
        return same_kind and found.shape == native.shape and bool(np.all((found == native) | (found != found)))
    return type(found) is type(given_value) and found == given_value


@given(st.lists(PLAIN | ARRAYS, min_size=1, max_size=5), st.booleans())
def test_any_values_come_back(values: list[Any], may_lack: bool) -> None:
    """Whatever their types: nothing is cast, filled in or dropped."""
    found = values_of(to_column(values, may_lack=may_lack))
    assert all(map(is_same, found, values))


@given(st.lists(ARRAYS, min_size=1, max_size=5))
def test_arrays_in_npy_parts_come_back(values: list[Any]) -> None:
    """Also those whose headers only numpy can parse."""
    assert all(map(is_same, values_of(decoded("x.npy", [npy(value) for value in values])), values))


@given(st.lists(ARRAYS, min_size=1, max_size=5), st.integers(2, 5))
def test_pickled_arrays_come_back(values: list[Any], protocol: int) -> None:
    """Read without the unpickler where that is possible."""
    parts = [pickle.dumps(value, protocol) for value in values]
    assert all(map(is_same, values_of(decoded("x.pyd", parts)), values))


def test_tensors_of_one_shape_become_one_buffer() -> None:
    """As arrays; those of several shapes keep theirs."""
    same = decoded("x.pyd", [pickle.dumps(torch.full((2, 3), float(number))) for number in range(3)])
    assert same.to_numpy().shape == (3, 2, 3)
    several = decoded("x.pyd", [pickle.dumps(torch.zeros(number)) for number in range(3)])
    assert isinstance(several.type, ArrowVariableShapedTensorType)
    assert [value.shape for value in values_of(several)] == [(0,), (1,), (2,)]


def test_tensors_that_numpy_lacks_stay_tensors() -> None:
    """They become Python objects."""
    column = decoded("x.pyd", [pickle.dumps(torch.ones(2, dtype=torch.bfloat16))])
    assert isinstance(column.type, ArrowPythonObjectType)
    assert values_of(column)[0].dtype == torch.bfloat16


def test_a_column_with_gaps_has_one_type_in_every_block() -> None:
    """Blocks with and without a gap can be joined: arrays are objects in both."""
    parts = [npy(np.zeros(2))]
    types = {decoded("x.npy", parts, may_lack=True).type, to_column([np.zeros(2), None]).type}
    assert types == {ArrowPythonObjectType()}
    assert values_of(to_column([1, None])) == [1, None]


def test_a_decoder_is_sent_without_loading_torch() -> None:
    """It holds the names that pickles may use, and nothing that was opened."""
    stream = io.BytesIO()
    pickle.dump(PartDecoder.of(allow=["pkg.Class"], allow_pickle=False), stream)
    assert b"torch" not in stream.getvalue()
    with pytest.raises(ValueError, match="allow takes full names"):
        PartDecoder.of(allow="pkg.Class", allow_pickle=False)
