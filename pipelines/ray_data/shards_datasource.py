"""The samples of a version as a source of Ray Data: all of them, or rows of some shards.

A task is sent the part of the manifest that lists its shards, and reads their indexes itself. So the driver reads no
index, and tasks stay small whatever the size of the dataset.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dray.pipelines.ray_data.columns import PartDecoder
from dray.pipelines.ray_data.datasource import KEY, SOURCE, Blocks, SampleDatasource
from dray.pipelines.ray_data.shard_rows import RowReader, Rows
from dray.shards.manifest import Shard
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.suffixes import Missing, Part, WantedParts, open_parts
from dray.shards.snapshot import Snapshot

RowsByShard = Mapping[int, Sequence[int] | NDArray[np.int64]]  # shard number -> ascending rows


class ShardsDatasource(SampleDatasource):
    """Reads samples of a version by the indexes, also parts of a tar.

    Args:
        snapshot: The version.
        wanted: The parts to read.
        decoder: Decodes them; None: the columns are the stored suffixes and hold the stored bytes.
        rows: The rows to read; None: all.
        with_source: Whether there is a column `__source__` with the key of each sample's source.
        sources: The values of that column; None: as the version records them.

    Raises:
        CallError: `with_source` without `sources`, and the version does not record its sources.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        wanted: WantedParts,
        decoder: PartDecoder | None,
        *,
        rows: RowsByShard | None = None,
        with_source: bool = False,
        sources: pa.Array | None = None,
    ) -> None:
        shards = [shard for shard in snapshot.shards if rows is None or len(rows.get(shard.number, ()))]
        counts = [shard.num_samples if rows is None else len(rows[shard.number]) for shard in shards]
        sizes = [shard.num_bytes * count / shard.num_samples for shard, count in zip(shards, counts, strict=True)]
        totals = _totals(snapshot)
        stored = {part.name: _stored(part, totals) for part in wanted.parts}
        self._columns_of = stored if decoder is None else {name: [name] for name in stored}
        keys = [KEY, SOURCE] if with_source else [KEY]
        super().__init__(
            [*dict.fromkeys(chain(keys, *self._columns_of.values()))],
            np.array(counts, np.int64),
            np.array(sizes, float),
        )
        self._snapshot, self._wanted, self._decoder = _of_shards(snapshot, shards), wanted, decoder
        have = {name: sum(totals[suffix] for suffix in suffixes) for name, suffixes in stored.items()}
        may_lack = wanted.missing == Missing.NONE
        self._may_lack = frozenset(name for name in have if may_lack and have[name] < snapshot.num_samples)
        self._rows = None if rows is None else [np.asarray(rows[shard.number], np.int64) for shard in shards]
        self._sources = sources
        if with_source and sources is None:
            self._sources = _source_keys(snapshot, shards, self._rows)

    def get_name(self) -> str:
        """Returns the name in Ray Data's progress."""
        return "Shards"

    def open_task(self, start: int, stop: int, columns: Sequence[str]) -> Callable[[], Blocks]:
        """See the base class."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        snapshot, skipped = _of_shards(self._snapshot, self._snapshot.shards[first:last]), int(self._starts[first])
        numbers: NDArray[np.int64] | range = range(start - skipped, stop - skipped)
        if self._rows is not None:
            numbers = _numbers(snapshot.shards, self._rows[first:last])[start - skipped : stop - skipped]
        sources = None if self._sources is None else self._sources[start:stop]
        wanted = [part for part in self._wanted.parts if set(columns).intersection(self._columns_of[part.name])]
        reader = RowReader(
            columns=tuple(columns),
            wanted=replace(self._wanted, parts=tuple(wanted)),
            decoder=self._decoder,
            may_lack=self._may_lack,
        )
        return partial(reader.blocks, Rows(snapshot=snapshot, numbers=numbers, sources=sources))


def stored_rows(snapshot: Snapshot, rows: RowsByShard, sources: pa.Array | None = None) -> ShardsDatasource:
    """Returns rows of shards as they are stored: columns of bytes by stored suffix, `__key__` and `__source__`.

    A sample that lacks a part has null. See `ShardsDatasource`.
    """
    wanted = open_parts(Catalog(snapshot), None, Missing.NONE)
    return ShardsDatasource(snapshot, wanted, None, rows=rows, with_source=True, sources=sources)


def _totals(snapshot: Snapshot) -> Counter[str]:
    """Returns the number of samples of the version with each stored suffix."""
    return Counter({suffix: count for part in snapshot.manifest.parts for suffix, count in part.forms.items() if count})


def _stored(part: Part, totals: Mapping[str, int]) -> list[str]:
    """Returns the suffixes under which samples store a part."""
    found: list[str] = []
    while matching := part.among([suffix for suffix in totals if suffix not in found]):
        found += matching
    return found


def _of_shards(snapshot: Snapshot, shards: Sequence[Shard]) -> Snapshot:
    """Returns the version with no other shards than these, for a reader."""
    manifest = replace(
        snapshot.manifest,
        shards=tuple(shards),
        num_samples=sum(shard.num_samples for shard in shards),
        recipe={},
        sources=None,
        samples=None,
        left_out=None,
    )
    return Snapshot(snapshot.location, snapshot.commit, manifest)


def _numbers(shards: Sequence[Shard], rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Returns the numbers of rows of shards, counted from the first sample of the first shard."""
    firsts = np.cumsum([0, *(shard.num_samples for shard in shards)])[:-1]
    return np.concatenate([first + chosen for first, chosen in zip(firsts, rows, strict=True)])


def _source_keys(
    snapshot: Snapshot, shards: Sequence[Shard], rows: Sequence[NDArray[np.int64]] | None
) -> pa.Array | None:
    """Returns the key of the source of each sample; None if it is the key of the sample itself."""
    if snapshot.manifest.sources is None:
        snapshot.sources()  # raises the error
    if snapshot.manifest.samples is None:
        return None
    table = snapshot.samples()
    number_of = {shard.number: place for place, shard in enumerate(shards)}
    firsts = np.cumsum([0, *(shard.num_samples for shard in shards)])
    places = np.array([number_of.get(number, -1) for number in table["shard"].to_pylist()], np.int64)
    is_here = np.flatnonzero(places >= 0)
    row_of = np.empty(int(firsts[-1]), np.int64)
    row_of[firsts[places[is_here]] + table["row"].to_numpy()[is_here]] = is_here
    chosen = row_of if rows is None else row_of[_numbers(shards, rows)]
    return table["source"].combine_chunks().take(pa.array(chosen))
