"""Differences between two versions of a dataset: samples, shards, recipe and input location.

A sample changed if the content of one of its files did. The tables of sources hold a hash of each packed file, so a
sample that was only touched, or moved to another shard, is the same. Without such a table, or where a source gives any
number of samples, the stored parts are compared: the indexes of shards that only one version has hold their checksums.
"""

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dray.shards.index import content_hashes
from dray.shards.snapshot import Snapshot

READS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """Differences between the versions A and B.

    Attributes:
        added: Keys of the samples that only B has, sorted.
        removed: Keys of the samples that only A has, sorted.
        changed: Keys of the samples that differ in content, sorted.
        num_same: Number of samples with the same content in both.
        shards_in_both: Numbers of the shards in both, ascending.
        shards_in_a: Numbers of the shards only in A, ascending.
        shards_in_b: Numbers of the shards only in B, ascending.
        recipe: Differing entry of the recipe -> (value in A, value in B); None for a missing one.
        source_url: Input locations of (A, B); None if they are the same.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    num_same: int
    shards_in_both: tuple[int, ...]
    shards_in_a: tuple[int, ...]
    shards_in_b: tuple[int, ...]
    recipe: Mapping[str, tuple[Any, Any]]
    source_url: tuple[str, str] | None

    @property
    def is_empty(self) -> bool:
        """Whether both versions are the same, shard by shard."""
        differs = self.added or self.removed or self.changed or self.shards_in_a or self.shards_in_b or self.recipe
        return not differs and self.source_url is None


def diff(a: Snapshot, b: Snapshot) -> Diff:
    """Returns the differences between two versions. Reads their tables and some indexes, but no shard.

    Raises:
        NotFoundError: A table or index is missing: the version was dropped meanwhile.
        DamagedError: A table or index differs from the one that its version names.
    """
    added, removed, changed, num_same = _compare(a, b)
    numbers_a, numbers_b = ({shard.number for shard in snapshot.shards} for snapshot in (a, b))
    recipe_a, recipe_b = a.manifest.recipe, b.manifest.recipe
    source_a, source_b = a.manifest.source_url, b.manifest.source_url
    return Diff(
        added=_texts(added),
        removed=_texts(removed),
        changed=_texts(changed),
        num_same=num_same,
        shards_in_both=tuple(sorted(numbers_a & numbers_b)),
        shards_in_a=tuple(sorted(numbers_a - numbers_b)),
        shards_in_b=tuple(sorted(numbers_b - numbers_a)),
        recipe={
            name: (recipe_a.get(name), recipe_b.get(name))
            for name in sorted(recipe_a.keys() | recipe_b.keys())
            if recipe_a.get(name) != recipe_b.get(name)
        },
        source_url=None if source_a == source_b else (source_a, source_b),
    )


def _compare(a: Snapshot, b: Snapshot) -> tuple[pa.ChunkedArray, pa.ChunkedArray, pa.ChunkedArray, int]:
    chunks = a.manifest.sources
    if any(snapshot.manifest.sources is None or snapshot.manifest.samples is not None for snapshot in (a, b)):
        return _compare_contents(a, b)
    if chunks is not None and chunks == b.manifest.sources:  # equal tables have equal suffixes
        nothing = pa.chunked_array([], pa.string())
        return nothing, nothing, nothing, sum(chunk.num_rows for chunk in chunks)
    suffixes_a, suffixes_b = (set(snapshot.manifest.recipe.get("suffixes", ())) for snapshot in (a, b))
    return compare_sources(a.sources(), b.sources(), suffixes_a if suffixes_a == suffixes_b else None)


def _compare_contents(a: Snapshot, b: Snapshot) -> tuple[pa.ChunkedArray, pa.ChunkedArray, pa.ChunkedArray, int]:
    """Returns what `compare_sources` does, for the stored parts of samples; rows of shards in both are not compared."""
    table_a, table_b = a.samples(), b.samples()
    rows_a, rows_b, added, removed = _matched(table_a["key"], table_b["key"])
    indexes = {(shard.number, shard.index_digest) for shard in a.shards}
    shared = [shard.number for shard in b.shards if (shard.number, shard.index_digest) in indexes]
    places_a, places_b = _places(table_a, rows_a), _places(table_b, rows_b)
    differs = (places_a != places_b).any(axis=1) | ~np.isin(places_a[:, 0], shared)
    differs[differs] = _hashes(a, places_a[differs]) != _hashes(b, places_b[differs])
    return added, removed, table_a["key"].take(pa.array(rows_a[differs])), int((~differs).sum())


def _places(table: pa.Table, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns (m, 2) shard and row of some rows of a table of samples."""
    return np.stack([table[name].to_numpy()[rows] for name in ("shard", "row")], axis=1)


def _hashes(snapshot: Snapshot, places: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Returns (m,) checksum of the parts of the sample in each place."""
    hashes = np.zeros(len(places), np.uint64)
    order = np.argsort(places[:, 0], kind="stable")
    numbers, starts = np.unique(places[order, 0], return_index=True)
    shards = {shard.number: shard for shard in snapshot.shards}
    with ThreadPoolExecutor(READS_AT_ONCE) as threads:
        found = threads.map(lambda number: content_hashes(snapshot.index(shards[number])), numbers.tolist())
        for of_shard, chosen in zip(found, np.split(order, starts[1:]), strict=False):
            hashes[chosen] = of_shard[places[chosen, 1]]
    return hashes


def _matched(
    a: pa.ChunkedArray, b: pa.ChunkedArray
) -> tuple[NDArray[np.int64], NDArray[np.int64], pa.ChunkedArray, pa.ChunkedArray]:
    """Returns the rows in A and B of the keys that both have, the keys that only B has, and those that only A has."""
    places = pc.call_function("index_in", [a], pc.SetLookupOptions(value_set=b))
    is_common = pc.call_function("is_valid", [places])
    rows_b = places.filter(is_common).to_numpy()
    is_added = np.ones(len(b), bool)
    is_added[rows_b] = False
    removed = a.filter(pc.call_function("invert", [is_common]))
    return np.flatnonzero(is_common.to_numpy()), rows_b, b.filter(pa.array(is_added)), removed


def compare_sources(
    a: pa.Table, b: pa.Table, suffixes: Collection[str] | None
) -> tuple[pa.ChunkedArray, pa.ChunkedArray, pa.ChunkedArray, int]:
    """Returns the keys added, removed and changed between two tables of sources, and the number of equal samples.

    Args:
        a: Earlier table, as of `Snapshot.sources`.
        b: Later table.
        suffixes: Suffixes of the files to compare. None if the versions' parts differ: every sample differs.
    """
    rows_a, rows_b, added, removed = _matched(a["key"], b["key"])
    is_changed = np.full(len(rows_a), suffixes is None)
    for suffix in suffixes or ():
        column = f"{suffix}/xxh3_64"
        is_changed |= a[column].to_numpy()[rows_a] != b[column].to_numpy()[rows_b]
    return added, removed, a["key"].take(pa.array(rows_a[is_changed])), int((~is_changed).sum())


def _texts(keys: pa.ChunkedArray) -> tuple[str, ...]:
    return tuple(keys.to_pylist())
