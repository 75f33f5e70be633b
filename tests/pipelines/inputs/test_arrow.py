"""Rows of Arrow tables as samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from dray.pipelines import arrow_samples, write_samples
from dray.shards import CallError, InputError, Snapshot

ARRAYS = np.arange(12, dtype=np.float32).reshape(3, 2, 2)


def table() -> pa.Table:
    tensors = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), (2, 2)), pa.array(list(ARRAYS.reshape(3, 4)), pa.list_(pa.float32(), 4))
    )
    files = [{"bytes": b"\xff\xd8", "path": "a/b.JPG"}, {"bytes": b"raw", "path": None}, None]
    return pa.table(
        {
            "id": [10, 11, 12],
            "bin": pa.array([b"1", None, b"3"]),
            "text": ["one", "two", None],
            "cls": pa.array([1, 2, 3], pa.int32()),
            "score": [0.5, 1.5, None],
            "box": pa.array([[1, 2], None, [5, 6]], pa.list_(pa.int64(), 2)),
            "grid": pa.array([[[1, 2], [3, 4]]] * 3, pa.list_(pa.list_(pa.int8(), 2), 2)),
            "tensor": tensors,
            "tags": [["a", "b"], [], None],
            "about": [{"n": 1, "deep": [None]}, {"n": 2, "deep": []}, {"n": 3, "deep": [4]}],
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
            "image": files,
            "__index_level_0__": [0, 1, 2],
        }
    )


def test_columns_become_values_of_parts() -> None:
    """Nulls are left out, and so is the index of pandas."""
    first, second, third = arrow_samples(table(), key_column="id")
    assert first.keys() == {
        *("__key__", "bin", "text", "cls", "score", "box", "grid", "tensor", "tags", "about", "kind", "image.jpg")
    }
    assert (first["__key__"], first["cls"], first["text"], first["kind"]) == ("10", 1, "one", "x")
    assert first["about"] == {"n": 1, "deep": [None]}
    assert np.array_equal(first["box"], [1, 2])
    assert (first["grid"].dtype, first["grid"].tolist()) == (np.int8, [[1, 2], [3, 4]])
    assert np.array_equal(second["tensor"], ARRAYS[1])
    assert second["image"] == b"raw"
    assert {"bin", "box"}.isdisjoint(second)
    assert {"text", "score", "tags", "image"}.isdisjoint(third)
    assert np.array_equal(third["box"], [5, 6])


def test_every_kind_of_table_gives_the_same_samples(tmp_path: Path) -> None:
    """Also batch by batch, as a reader or from Parquet."""
    given = table().select(["id", "text", "box"])
    pq.write_table(given, tmp_path / "t.parquet")
    kinds = [
        given.to_reader(1),
        given.to_batches(),
        given.to_batches()[0],
        pq.ParquetFile(tmp_path / "t.parquet").iter_batches(2),
        pyarrow.dataset.dataset(tmp_path),
    ]
    expected = [str(sample) for sample in arrow_samples(given)]
    for kind in kinds:
        assert [str(sample) for sample in arrow_samples(kind)] == expected


def test_a_table_is_written(tmp_path: Path) -> None:
    """Under its keys, in the formats of the values."""
    write_samples(arrow_samples(table(), key_column="id"), tmp_path, progress=False)
    assert Snapshot.open(tmp_path).read("10").keys() == {
        *("bin", "text", "cls", "score.json", "box.npy", "grid.npy", "tensor.npy", "tags.json", "about.json"),
        *("kind.txt", "image.jpg"),
    }


@pytest.mark.parametrize(
    ("given", "options", "problem"),
    [
        ({"when": pa.array([0], pa.timestamp("s"))}, {}, r"column 'when' is timestamp\[s\].*cast it"),
        ({"deep": pa.array([[b"x"]])}, {}, "column 'deep' is list<"),
        ({"a": [1]}, {"key_column": "b"}, "key_column='b': the table has the columns a"),
        ({"a": [1.5]}, {"key_column": "a"}, "key_column='a' is double: expected text or integers"),
    ],
)
def test_columns_that_no_part_can_hold_are_named(given: Any, options: Any, problem: str) -> None:
    """Before a row is read."""
    with pytest.raises(CallError, match=problem):
        list(arrow_samples(pa.table(given), **options))


def test_nulls_where_a_value_is_needed_are_errors() -> None:
    """In a key, and inside an array."""
    with pytest.raises(InputError, match="row 1 of batch 0 has no key: 'id' is null"):
        list(arrow_samples(pa.table({"id": ["a", None], "x": [1, 2]}), key_column="id"))
    with pytest.raises(InputError, match="holds a null"):
        list(arrow_samples(pa.table({"x": pa.array([[1, None]], pa.list_(pa.int64(), 2))})))
    with pytest.raises(CallError, match="expected an Arrow table or record batches, found int"):
        list(arrow_samples(3))
