"""Reading with Ray Data: dray's readers beside Ray's own."""

import pickle
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

import ray
from ray.data import Dataset

from dray.pipelines import read_pickles, read_shards
from in_and_out.data import SUFFIX, Samples, Where
from in_and_out.race import Contents, Race, Way

SMALL, LARGE = 4_000, 100_000  # bytes of a sample for which there are targets


def races(where: Where, samples: Samples) -> Iterator[Race]:
    """Input files and shards; both decoded by dray, Ray's files are not."""
    is_local = not where.slow_options
    pickles = {SMALL: 3.0, LARGE: 2.0}.get(samples.num_bytes) if is_local else 20.0
    shards = 3.0 if is_local and samples.num_bytes in (SMALL, LARGE) else None
    path, filesystem = where.arguments(samples.pickles)
    tars = [where.arguments(url)[0] for url in samples.tars]

    def binary_files() -> Dataset:
        return ray.data.read_binary_files(path, include_paths=True, **filesystem)

    def webdataset() -> Dataset:
        return ray.data.read_webdataset(tars, **filesystem)

    def our_pickles() -> Dataset:
        return read_pickles(samples.pickles, suffixes=SUFFIX, storage_options=where.slow_options)

    def our_shards() -> Dataset:
        return read_shards(samples.shards, storage_options=where.slow_options)

    yield Race(
        title=f"input files, {samples}, {where.name}",
        num_samples=samples.num,
        theirs=_way("read_binary_files", binary_files, lambda row: pickle.loads(row["bytes"]).numpy()),
        ours=_way("read_pickles", our_pickles, lambda row: row[SUFFIX]),
        target=pickles,
    )
    yield Race(
        title=f"shards, {samples}, {where.name}",
        num_samples=samples.num,
        theirs=_way("read_webdataset", webdataset, lambda row: row["x.npy"]),
        ours=_way("read_shards", our_shards, lambda row: row[SUFFIX]),
        target=shards,
    )


def _way(name: str, make: Callable[[], Dataset], array_of: Callable[[dict[str, Any]], Any]) -> Way:
    """Makes the dataset and reads all of it into Ray's object store, block by block."""

    def run() -> int:
        return sum(bundle.num_rows() or 0 for bundle in make().iter_internal_ref_bundles())

    def contents() -> Contents:
        return Contents(blake2b(array_of(row).tobytes()).digest() for row in make().iter_rows())

    return Way(name, run, int, contents)
