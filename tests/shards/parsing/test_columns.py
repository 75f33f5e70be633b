"""A forged index is refused by name before a reader uses it."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dray.shards.errors import DamagedError
from dray.shards.parsing.columns import Columns

N, SHARD_BYTES = 4, 10 * 1024
ABOUT = {"format": 2, "features": [], "suffixes": ["x"], "shard_bytes": SHARD_BYTES}
OFFSETS, SIZES = np.array([512, 1536, 2560, 3584], np.uint64), np.full(N, 100, np.uint64)
GOOD: Mapping[str, pa.Array] = {
    "x/offset": pa.array(OFFSETS),
    "x/size": pa.array(SIZES),
    "x/xxh3_64": pa.array(np.arange(N, dtype=np.uint64)),
    "key": pa.array(["a", "b", "c", "d"]),
}
SOURCE = pa.array(np.arange(N, dtype=np.uint64))
SOURCES: Mapping[str, pa.Array] = {"source": SOURCE, "fingerprint": SOURCE}
NULL_SOURCE = pa.array([1, None, 1, 1], pa.uint64())
ARRAY: Mapping[str, Any] = {"dtype": "|u1", "shape": [9, 10], "data_offset": 10}


def file_of(batch: pa.RecordBatch, about: object, compression: str | None = None) -> bytes:
    """Returns an Arrow file with one batch."""
    text = about if isinstance(about, str) else json.dumps(about)
    batch = batch.replace_schema_metadata({"dray": text, "dray.digest": ""})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def index_with(columns: Mapping[str, Any] | None = None, **about: Any) -> bytes:
    """Returns a valid index with some columns and metadata replaced."""
    arrays = {**GOOD, **(columns or {})}
    return file_of(pa.record_batch(list(arrays.values()), list(arrays)), {**ABOUT, **about})


def twice(name: str) -> bytes:
    """Returns an index with a duplicate column."""
    arrays = {**GOOD, **SOURCES}
    return file_of(pa.record_batch([*arrays.values(), arrays[name]], [*arrays, name]), ABOUT)


def offsets(*values: int) -> Mapping[str, pa.Array]:
    return {"x/offset": pa.array(np.array(values, np.uint64))}


def with_key_places(*places: int) -> bytes:
    """Returns keys with arbitrary offsets."""
    return index_with().replace(np.arange(N + 1, dtype=np.int32).tobytes(), np.array(places, np.int32).tobytes())


def test_what_a_later_dray_adds_is_ignored() -> None:
    """Unknown columns and metadata are ignored; whatever must not be ignored is a feature."""
    later = {"later": pa.array(["", None, "x", "y"]), "x/later": pa.array([[1], [], None, [2]])}
    columns = Columns.read(index_with({**SOURCES, **later}, later=1, arrays={"x": {**ARRAY, "later": 1}}), "x.arrow")
    assert (columns.sources is not None, columns.arrays["x"].shape) == (True, (9, 10))
    assert columns.sizes["x"].tolist() == SIZES.tolist()


def test_a_good_index_is_read_without_copying() -> None:
    """The columns are views of the given bytes."""
    body = index_with()
    columns = Columns.read(body, "x.arrow", (N, SHARD_BYTES))
    assert (columns.keys.to_pylist(), columns.offsets["x"].tolist()) == (["a", "b", "c", "d"], OFFSETS.tolist())
    start = np.frombuffer(body, np.uint8).ctypes.data
    assert 0 <= columns.offsets["x"].ctypes.data - start < len(body)


HOSTILE: Mapping[str, Callable[[], bytes]] = {
    "an offset near 2^64": lambda: index_with(offsets(512, 2**64 - 512, 2560, 3584)),
    "an end that passes 2^64": lambda: index_with(offsets(512, 1536, 2560, 2**64 - 64)),
    "an offset beyond the tar": lambda: index_with(offsets(512, 1536, 2560, SHARD_BYTES + 512)),
    "an end beyond the tar": lambda: index_with({"x/size": pa.array(np.array([1, 1, 1, 9000], np.uint64))}),
    "offsets that are signed": lambda: index_with({"x/offset": pa.array(OFFSETS.astype(np.int64) - 1024)}),
    "offsets as floats": lambda: index_with({"x/offset": pa.array(OFFSETS.astype(np.float64))}),
    "sizes of 32 bits": lambda: index_with({"x/size": pa.array(SIZES.astype(np.uint32))}),
    "a size that passes 2^64": lambda: index_with({"x/size": pa.array(np.array([1, 1, 1, 2**64 - 512], np.uint64))}),
    "offsets out of order": lambda: index_with(offsets(512, 2560, 1536, 3584)),
    "parts that overlap": lambda: index_with({"x/size": pa.array(np.array([9000, 1, 1, 1], np.uint64))}),
    "an offset inside a block": lambda: index_with(offsets(512, 1537, 2560, 3584)),
    "a missing part with a size": lambda: index_with(offsets(512, 0, 2560, 3584)),
    "a null": lambda: index_with({"x/size": pa.array([1, None, 1, 1], pa.uint64())}),
    "a key that is null": lambda: index_with({"key": pa.array(["a", None, "c", "d"])}),
    "keys in a dictionary": lambda: index_with({"key": GOOD["key"].dictionary_encode()}),
    "sizes in a dictionary": lambda: index_with({"x/size": GOOD["x/size"].dictionary_encode()}),
    "keys that are bytes": lambda: index_with({"key": GOOD["key"].cast(pa.binary())}),
    "keys that are no UTF-8": lambda: index_with({"key": pa.array([b"\xff"] * N).view(pa.string())}),
    "keys beyond their text": lambda: with_key_places(0, 1, 2, 3, 1 << 30),
    "keys before their text": lambda: with_key_places(-(1 << 30), 1, 2, 3, 4),
    "keys that go backwards": lambda: with_key_places(0, 4, 1, 2, 4),
    "a source without a fingerprint": lambda: index_with({"source": SOURCE}),
    "a fingerprint without a source": lambda: index_with({"fingerprint": SOURCE}),
    "sources that are signed": lambda: index_with({**SOURCES, "source": SOURCE.cast(pa.int64())}),
    "a fingerprint that is null": lambda: index_with(
        {**SOURCES, "fingerprint": pa.array([1, None, 1, 1], pa.uint64())}
    ),
    "sources twice": lambda: file_of(
        pa.record_batch([*GOOD.values(), *[SOURCE] * 3], [*GOOD, *SOURCES, "source"]), ABOUT
    ),
    "an array of another suffix": lambda: index_with(arrays={"y": ARRAY}),
    "an array that is no object": lambda: index_with(arrays={"x": 1}),
    "arrays that are a list": lambda: index_with(arrays=[]),
    "an array without a shape": lambda: index_with(arrays={"x": {"dtype": "|u1", "data_offset": 100}}),
    "an array of another size": lambda: index_with(arrays={"x": {**ARRAY, "shape": [9, 11]}}),
    "an array of negative length": lambda: index_with(arrays={"x": {**ARRAY, "shape": [-1, -90]}}),
    "an array of many axes": lambda: index_with(arrays={"x": {**ARRAY, "shape": [90, *[1] * 100]}}),
    "an array that begins before its part": lambda: index_with(arrays={"x": {**ARRAY, "data_offset": -80}}),
    "an array of fractions": lambda: index_with(arrays={"x": {**ARRAY, "shape": [90.0]}}),
    "an array of objects": lambda: index_with(arrays={"x": {**ARRAY, "dtype": "|O8"}}),
    "an array of structures": lambda: index_with(arrays={"x": {**ARRAY, "dtype": [["a", "|u1"]]}}),
    "an array of no dtype": lambda: index_with(arrays={"x": {**ARRAY, "dtype": "|u10"}}),
    "a format that is text": lambda: index_with(format="2"),
    "features that are text": lambda: index_with(features=""),
    "a column twice": lambda: twice("key"),
    "another order of columns": lambda: file_of(pa.record_batch(dict(reversed([*GOOD.items()]))), ABOUT),
    "no rows": lambda: file_of(pa.record_batch(dict(GOOD)).slice(0, 0), ABOUT),
    "fewer rows": lambda: file_of(pa.record_batch(dict(GOOD)).slice(0, 2), ABOUT),
    "no end": lambda: index_with()[:-6],
    "another kind of message": lambda: index_with()[:8] * 2 + index_with()[8:],
    "compressed columns": lambda: file_of(pa.record_batch(dict(GOOD)), ABOUT, "zstd"),
    "another tar's size": lambda: index_with(shard_bytes=SHARD_BYTES + 512),
    "a negative size of the tar": lambda: index_with(shard_bytes=-1),
    "a size of the tar that is not a number": lambda: index_with(shard_bytes=True),
    "a size of the tar beyond 64 bits": lambda: index_with(shard_bytes=10**30),
    "a suffix twice": lambda: index_with(suffixes=["x", "x"]),
    "a suffix with a slash": lambda: index_with(suffixes=["x", "../y"]),
    "a suffix that is a number": lambda: index_with(suffixes=[1]),
    "suffixes that are text": lambda: index_with(suffixes="x"),
    "no suffixes": lambda: index_with(suffixes=None),
    "lists in lists": lambda: file_of(pa.record_batch(dict(GOOD)), "[" * 200_000),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_index_is_damage(what: str) -> None:
    """The error names the index and the next command."""
    with pytest.raises(DamagedError, match=r"at/x.arrow: not a whole index of a shard \(.*\): dray verify"):
        Columns.read(HOSTILE[what](), "at/x.arrow", (N, SHARD_BYTES))
