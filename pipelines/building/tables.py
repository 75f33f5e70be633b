"""The tables of a snapshot: each sample's fingerprints and place, and the inputs that were left out."""

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
    fate: str  # "skipped", "quarantined", or "empty": the user's function returned None
    stamp: int  # xxh3_64 of the sizes and stamps of its files; 0 if they are unknown


def table_chunks(table: pa.Table) -> Iterator[tuple[int, bytes]]:
    """Yields (number of rows, Parquet file) for each chunk of a table: equal bytes for equal tables."""
    for start in range(0, len(table), CHUNK_ROWS):
        chunk = table.slice(start, CHUNK_ROWS)
        yield len(chunk), parquet_of(chunk)


def source_table(
    sources: Sources, hashes: NDArray[np.uint64], places: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
) -> pa.Table:
    """Returns the table of sources, sorted by key.

    Args:
        sources: n sources of s files.
        hashes: (n, s) xxh3_64 of each file.
        places: (n,) number of the shard and (n,) row of each source's sample; None if samples have a table of their
            own.
    """
    columns = {"key": pa.array(sources.keys(), pa.string()), "name": pa.array(sources.names, pa.string())}
    if places is not None:
        columns |= {"shard": pa.array(places[0]), "row": pa.array(places[1])}
    for column, suffix in enumerate(sources.suffixes):
        columns[f"{suffix}/size"] = pa.array(sources.sizes[:, column])
        columns[f"{suffix}/stamp"] = pa.array(sources.stamps[:, column])
        columns[f"{suffix}/xxh3_64"] = pa.array(hashes[:, column])
    return pa.table(columns, schema=source_schema(sources.suffixes, has_places=places is not None)).sort_by("key")


def left_out_table(bad: Sequence[LeftOut]) -> bytes:
    """Returns the table of the inputs that were left out, as Parquet, sorted by key: equal bytes for equal inputs."""
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
