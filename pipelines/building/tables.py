"""The tables of a snapshot: of each sample its files' fingerprints and its place; what was left out, and why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dray.pipelines.inputs.sources import BadInput, Sources
from dray.shards.layout import key_of
from dray.shards.manifest import CHUNK_ROWS
from dray.shards.parsing.parquet import LEFT_OUT, source_schema


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """An input that a version does not hold."""

    bad: BadInput
    fate: str  # "skipped", "quarantined", or "empty": the user's function gave no sample
    stamp: int  # xxh3_64 of the sizes and stamps of its files


def source_chunks(
    sources: Sources, shards: NDArray[np.int64], rows: NDArray[np.int64], hashes: NDArray[np.uint64]
) -> Iterator[tuple[int, bytes]]:
    """The table in chunks, as Parquet: the same bytes for the same sources.

    Args:
        sources: n samples of s files.
        shards: (n,) the number of each sample's shard.
        rows: (n,) which sample of its shard it is, from 0.
        hashes: (n, s) xxh3_64 of each file.

    Yields:
        (rows, bytes of a Parquet file), at most 1 M rows each.
    """
    table = source_table(sources, shards, rows, hashes)
    for start in range(0, len(table), CHUNK_ROWS):
        chunk = table.slice(start, CHUNK_ROWS)
        yield len(chunk), parquet_of(chunk)


def source_table(
    sources: Sources, shards: NDArray[np.int64], rows: NDArray[np.int64], hashes: NDArray[np.uint64]
) -> pa.Table:
    """The whole table, sorted by key; the arguments are those of `source_chunks`."""
    columns = {
        "key": pa.array(sources.keys(), pa.string()),
        "name": pa.array(sources.names, pa.string()),
        "shard": pa.array(shards),
        "row": pa.array(rows),
    }
    for column, suffix in enumerate(sources.suffixes):
        columns[f"{suffix}/size"] = pa.array(sources.sizes[:, column])
        columns[f"{suffix}/stamp"] = pa.array(sources.stamps[:, column])
        columns[f"{suffix}/xxh3_64"] = pa.array(hashes[:, column])
    return pa.table(columns, schema=source_schema(sources.suffixes)).sort_by("key")


def empty_like(sources: pa.Table) -> bytes:
    """The table of no samples, as Parquet, with the columns of another."""
    return parquet_of(sources.slice(0, 0))


def left_out_table(bad: Sequence[LeftOut]) -> bytes:
    """What was left out and why, as Parquet, sorted by key: the same bytes for the same inputs.

    Columns: key, name, file, stage, error, and fate, which is "skipped", "quarantined" or "empty"; stamp tells a
    changed one.
    """
    rows = sorted(bad, key=lambda left: left.bad.name)
    columns = {
        "key": [key_of(left.bad.name) for left in rows],
        "name": [left.bad.name for left in rows],
        "file": [left.bad.file for left in rows],
        "stage": [left.bad.stage for left in rows],
        "error": [left.bad.error for left in rows],
        "fate": [left.fate for left in rows],
        "stamp": [left.stamp for left in rows],
    }
    return parquet_of(pa.table(columns, schema=LEFT_OUT))


def parquet_of(table: pa.Table) -> bytes:
    """Returns a table as a Parquet file whose pages are stored plainly, as `parsing.parquet` demands."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    return bytes(sink.getvalue())
