"""Differences between two versions of a dataset: samples, shards, recipe and input location.

A sample changed if the content of one of its files did. The tables of sources hold a hash of each packed file, so a
sample that was only touched, or moved to another shard, is the same.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dray.shards.snapshot import Snapshot


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
    """Returns the differences between two versions. Reads their tables of sources, but no shard.

    Raises:
        CallError: A version does not record its sources.
        NotFoundError: A table is missing: the version was dropped meanwhile.
        DamagedError: A table differs from the one that its version names.
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
    if chunks is not None and chunks == b.manifest.sources:  # equal tables have equal suffixes
        nothing = pa.chunked_array([], pa.string())
        return nothing, nothing, nothing, sum(chunk.num_rows for chunk in chunks)
    suffixes_a, suffixes_b = (set(snapshot.manifest.recipe.get("suffixes", ())) for snapshot in (a, b))
    return compare_sources(a.sources(), b.sources(), suffixes_a if suffixes_a == suffixes_b else None)


def compare_sources(
    a: pa.Table, b: pa.Table, suffixes: Collection[str] | None
) -> tuple[pa.ChunkedArray, pa.ChunkedArray, pa.ChunkedArray, int]:
    """Returns the keys added, removed and changed between two tables of sources, and the number of equal samples.

    Args:
        a: Earlier table, as of `Snapshot.sources`.
        b: Later table.
        suffixes: Suffixes of the files to compare. None if the versions' parts differ: every sample differs.
    """
    places = pc.call_function("index_in", [a["key"]], pc.SetLookupOptions(value_set=b["key"]))  # rows of b
    is_common = pc.call_function("is_valid", [places])
    rows_a = np.flatnonzero(is_common.to_numpy())
    rows_b = places.filter(is_common).to_numpy()
    is_added = np.ones(len(b), bool)
    is_added[rows_b] = False
    is_changed = np.full(len(rows_a), suffixes is None)
    for suffix in suffixes or ():
        column = f"{suffix}/xxh3_64"
        is_changed |= a[column].to_numpy()[rows_a] != b[column].to_numpy()[rows_b]
    return (
        b["key"].filter(pa.array(is_added)),
        a["key"].filter(pc.call_function("invert", [is_common])),
        a["key"].take(pa.array(rows_a[is_changed])),
        int((~is_changed).sum()),
    )


def _texts(keys: pa.ChunkedArray) -> tuple[str, ...]:
    return tuple(keys.to_pylist())
