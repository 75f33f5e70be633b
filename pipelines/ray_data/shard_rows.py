"""Reads rows of shards in a worker, as blocks of the columns in demand."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dray.pipelines.ray_data.columns import PartDecoder, bytes_column, is_tensor_dtype, stacked_parts
from dray.pipelines.ray_data.datasource import BLOCK_BYTES, KEY, SOURCE, Blocks
from dray.pipelines.running.node import node_name
from dray.shards.errors import ClusterError
from dray.shards.parsing.arrays import ArrayLayout
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.readers import open_reader
from dray.shards.reading.samples import Column, Run, Samples, wanted_columns
from dray.shards.reading.suffixes import WantedParts
from dray.shards.snapshot import Snapshot
from dray.shards.storage.store import Store

RUN_BYTES = 1 << 20  # bytes of consecutive samples that are fetched together


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Rows:
    """The samples of one read task.

    Attributes:
        snapshot: The version, with no other shards than those of the samples.
        numbers: n numbers of samples in these shards, ascending.
        sources: The key of each sample's source; None if it is the key of the sample.
    """

    snapshot: Snapshot
    numbers: NDArray[np.int64] | range
    sources: pa.Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader:
    """How samples become blocks.

    Attributes:
        columns: Names of the columns in demand, in order.
        wanted: The parts to read, which are columns if they are decoded.
        decoder: Decodes the parts; None: the columns are stored suffixes, and hold the bytes as they are stored.
        may_lack: Columns without a value for some sample of the version.
    """

    columns: tuple[str, ...]
    wanted: WantedParts
    decoder: PartDecoder | None
    may_lack: frozenset[str]

    def blocks(self, rows: Rows) -> Blocks:
        """Yields the samples in order, in blocks of about `BLOCK_BYTES`.

        Raises:
            ClusterError: This node does not see the folder of the dataset.
            NotFoundError: A shard or an index is missing.
            DamagedError: A sample is damaged; names shard and key.
            RefusedError: A pickle holds something that is not on the safe list; names shard, key and suffix.
            CallError: A sample lacks a part that it must have.
        """
        _check_visible(rows.snapshot.store)
        _check_visible(rows.snapshot.tars.store)
        catalog = Catalog(rows.snapshot)
        numbers = np.arange(rows.numbers.start, rows.numbers.stop) if isinstance(rows.numbers, range) else rows.numbers
        sample_bytes = rows.snapshot.num_bytes / max(1, rows.snapshot.num_samples)
        reader = open_reader(catalog, self.wanted) if self.wanted.parts else None
        runs = _runs(numbers, max(1, int(RUN_BYTES / sample_bytes)))
        if reader is not None:
            reader.expect(dict.fromkeys(runs))
        step = max(1, int(BLOCK_BYTES / sample_bytes))
        for start in range(0, len(numbers), step):
            block = numbers[start : start + step]
            columns = {} if reader is None else self._parts(reader.read(block, runs[start : start + step]))
            columns[KEY] = _keys(catalog, block)
            columns[SOURCE] = columns[KEY] if rows.sources is None else rows.sources[start : start + step]
            yield pa.table({name: columns[name] for name in self.columns})

    def _parts(self, samples: Samples) -> dict[str, pa.Array]:
        """Returns the columns of the parts."""
        found = wanted_columns(samples, self.wanted)
        if self.decoder is None:
            names = [name for name in self.columns if name not in (KEY, SOURCE)]
            return {name: _stored_column(name, found.values(), len(samples)) for name in names}
        return {name: self._decoded(self.decoder, samples, name, column) for name, column in found.items()}

    def _decoded(self, decoder: PartDecoder, samples: Samples, name: str, column: Column) -> pa.Array:
        may_lack = name in self.may_lack
        if not may_lack and (layout := _common_layout(samples, column)) is not None:
            return stacked_parts(column.parts, layout)
        suffixes = [column.suffix] * len(samples) if column.suffix else column.suffixes

        def place_of(row: int) -> dict[str, str]:
            return {"url": samples.url(row), "key": samples.key(row)}

        return decoder.column(list(column.parts), suffixes, place_of, may_lack=may_lack)


def _check_visible(store: Store) -> None:
    """Check that this node sees a local folder."""
    if store.local_root is not None and not os.path.isdir(store.local_root):
        raise ClusterError(
            f"node {node_name()} does not see the folder {store.local_root}: mount it there under the same path, or "
            "use object storage"
        )


def _runs(numbers: NDArray[np.int64], size: int) -> list[Run]:
    """Returns for each sample the run with which it is fetched: up to `size` consecutive numbers."""
    if not len(numbers):
        return []
    is_apart = np.diff(numbers, prepend=numbers[0] - 2) != 1
    starts = np.flatnonzero(is_apart)
    within = np.arange(len(numbers)) - np.repeat(starts, np.diff(starts, append=len(numbers)))
    is_first = within % size == 0
    counts = np.diff(np.flatnonzero(is_first), append=len(numbers)).tolist()
    runs = list(zip(numbers[is_first].tolist(), counts, strict=True))
    return [run for run in runs for _ in range(run[1])]


def _keys(catalog: Catalog, numbers: NDArray[np.int64]) -> pa.Array:
    """Returns the keys of samples, by the indexes alone."""
    places, rows = catalog.locate(numbers)
    bounds = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(numbers)]
    pieces = []
    for start, stop in pairwise(bounds):
        keys, chosen = catalog.columns(int(places[start])).keys, rows[start:stop]
        is_range = int(chosen[-1]) - int(chosen[0]) == len(chosen) - 1
        pieces.append(keys.slice(int(chosen[0]), len(chosen)) if is_range else keys.take(pa.array(chosen)))
    return pa.concat_arrays(pieces)


def _stored_column(suffix: str, columns: Iterable[Column], num_samples: int) -> pa.Array:
    """Returns the bytes of the parts that are stored under a suffix."""
    parts: list[memoryview | None] = [None] * num_samples
    for column in columns:
        if suffix in column.stored:
            stored = zip(column.parts, column.suffixes or [column.suffix] * num_samples, strict=True)
            parts = [data if own == suffix else None for data, own in stored]
    return bytes_column(parts)


def _common_layout(samples: Samples, column: Column) -> ArrayLayout | None:
    """Returns the layout of the arrays of a column, if all have one that a tensor column can hold."""
    if column.suffix is None:
        return None
    layouts = {samples.catalog.columns(place).arrays.get(column.suffix) for place in np.unique(samples.places).tolist()}
    layout = layouts.pop() if len(layouts) == 1 else None
    return layout if layout is not None and is_tensor_dtype(layout.dtype) else None
