"""Columns become the parts that `encode_sample` makes of each row."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from ray.data.extensions import ArrowPythonObjectArray, ArrowTensorArray

from dray.pipelines.inputs.values import encode_sample
from dray.pipelines.ray_data.storing.parts import samples_of
from dray.shards import InputError

KEYS = [f"a.b/s.{number}" for number in range(6)]


def ragged(shapes: list[tuple[int, ...]], dtype: str) -> list[Any]:
    return [np.arange(int(np.prod(shape)), dtype=dtype).reshape(shape) for shape in shapes]


def objects(values: list[Any]) -> pa.Array:
    return ArrowPythonObjectArray.from_objects(values)


TENSORS = np.arange(36).reshape(6, 2, 3)
RAGGED: Any = np.empty(6, object)
RAGGED[:] = ragged([(n, 2) for n in range(1, 7)], "i2")
DICTS = [{"a": np.full(2, n), "b": np.zeros(1, np.float32)} for n in range(6)]
COLUMNS: dict[str, tuple[str, pa.Array, list[Any]]] = {
    "floats": ("x", ArrowTensorArray.from_numpy(TENSORS.astype("f4")), list(TENSORS.astype("f4"))),
    "bools": ("x.npy", ArrowTensorArray.from_numpy(TENSORS % 2 == 0), list(TENSORS % 2 == 0)),
    "pickled": ("x.pyd", ArrowTensorArray.from_numpy(TENSORS), list(TENSORS)),
    "ragged": ("r", ArrowTensorArray.from_numpy(RAGGED), list(RAGGED)),
    "class": ("cls", pa.array(range(6)), list(range(6))),
    "integers": ("n.json", pa.array([0, -1, 2**62, 3, 4, 5]), [0, -1, 2**62, 3, 4, 5]),
    "reals": ("f", pa.array([0.5, 1e300, -0.0, 1.0, 2.0, 3.0]), [0.5, 1e300, -0.0, 1.0, 2.0, 3.0]),
    "flags": ("ok", pa.array([True, False] * 3), [True, False] * 3),
    "text": ("t", pa.array(["é", "", "\n", "a", "b", "c"]), ["é", "", "\n", "a", "b", "c"]),
    "bytes": ("jpg", pa.array([b"", b"1"] * 3, pa.large_binary()), [b"", b"1"] * 3),
    "gaps": ("g.txt", pa.array(["a", None] * 3), ["a", None] * 3),
    "lists": ("l", pa.array([[n, n + 1] for n in range(6)]), [[n, n + 1] for n in range(6)]),
    "structs": ("m", pa.array([{"a": n, "b": "c"} for n in range(6)]), [{"a": n, "b": "c"} for n in range(6)]),
    "dicts": ("d", objects(DICTS), DICTS),
    "mixed": ("o", objects([1, "a", 2.5, [1], {"a": 1}, True]), [1, "a", 2.5, [1], {"a": 1}, True]),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("keep_pickles", [False, True])
def test_a_column_becomes_the_parts_of_its_values(name: str, keep_pickles: bool) -> None:
    """Beside a column that every row has, also of rows from the middle of a block."""
    field, column, values = COLUMNS[name]
    table = pa.table({"__key__": KEYS, field: column, "z.bin": [b"z"] * 6})
    renamed: dict[str, str] = {}
    found = list(samples_of(table, 1, 5, None, steps="the test", keep_pickles=keep_pickles, renamed=renamed))
    expected: dict[str, str] = {}
    assert [sample.key for sample in found] == [f"a.b/s-{number}" for number in range(1, 5)]
    assert [sample.parts for sample in found] == [
        encode_sample({field: value, "z.bin": b"z"}, keep_pickles=keep_pickles, renamed=expected)
        for value in values[1:5]
    ]
    assert set(renamed) == set(expected)


def test_two_columns_of_one_suffix_are_an_error_that_names_them() -> None:
    """They would overwrite each other."""
    table = pa.table({"__key__": ["a"], "x.pyd": ArrowTensorArray.from_numpy(TENSORS[:1]), "x.npy": [b"1"]})
    with pytest.raises(InputError, match=r"two columns would be stored under one suffix: x\.pyd, x\.npy"):
        list(samples_of(table, 0, 1, None, steps="the test", keep_pickles=False, renamed={}))
