"""`write_shards`: a Ray Data dataset as the next version of a dataset."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from dray.pipelines.building.report import BuildReport
from dray.pipelines.planning.deal import order_hashes
from dray.pipelines.ray_data.compat import operator_names, source_bytes
from dray.pipelines.ray_data.datasource import KEY, check_shared, num_cpus
from dray.pipelines.ray_data.sink import store_dataset
from dray.pipelines.ray_data.storing.parts import check_columns
from dray.pipelines.versions.retention import DAY_S, Retention
from dray.pipelines.writing.announce import announce_writing, open_written
from dray.pipelines.writing.shard import ShardSize
from dray.pipelines.writing.version import Contents
from dray.shards.arguments import as_seed
from dray.shards.errors import CallError
from dray.shards.layout import Layout, Location, key_of
from dray.shards.snapshot import DEFAULT_PREFIX
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store

ORDER = "__order__"
PARTITION_BYTES = 32 << 20  # bytes of the source of a pipeline for each partition of a sort
MOST_PARTITIONS = 200
_SIGN = np.uint64(1 << 63)


def write_shards(
    dataset: Dataset,
    url: str | os.PathLike[str],
    *,
    prefix: str = DEFAULT_PREFIX,
    samples_per_shard: int | None = None,
    shard_bytes: int | None = None,
    build_id: str | None = None,
    shuffle_seed: int | None = None,
    encode: str | None = "auto",
    storage_options: StorageOptions | None = None,
    keep: int | None = 2,
    grace_s: float = DAY_S,
    concurrency: int | None = None,
    ray_remote_args: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> BuildReport:
    """Makes the rows of a Ray Data dataset the next version of a dataset.

    Atomic: readers see the old version or the new one.

    Each row is a sample: `__key__` and a column for each part. Bytes are stored as they are, under the name of their
    column; other values as the column's extension says. A column without an extension gets one by its type: tensors
    `.npy`, text `.txt`, numbers, lists and dicts `.json`; the report lists it. A null leaves the part out. Dots of a
    key become dashes.

    The rows keep their order, and the same rows give the same bytes, also after the death of a worker or a node,
    provided that each step of the pipeline is deterministic. If one is not, a task that ran twice ends the write with
    an error that names the steps. A failed write leaves no version, and deletes what it stored.

    Args:
        dataset: The samples.
        url: Directory of the dataset, a path that all nodes share, or an object-storage URL.
        prefix: Prefix of the dataset.
        samples_per_shard: Exact number of samples in each shard but the last.
        shard_bytes: Maximum size of a shard in bytes, up to 4 GiB; then the rows are measured first. Without both,
            256 MiB and 100,000 samples.
        build_id: Name of this write: after the death of this process, a rerun with the same name uses what was stored.
            If it was committed, a rerun does nothing.
        shuffle_seed: Shuffle the samples over all shards, by a hash of the key under this seed; None: as given.
        encode: "auto" stores the values of pickled columns, such as `tensor.pyd`, as `.npy`, `.safetensors` or
            `.json`; None pickles them.
        storage_options: See `dray.shards.Store`.
        keep: Number of versions that stay readable; older ones are deleted unless held. None: all.
        grace_s: Seconds for which a superseded version is kept.
        concurrency: Maximum number of tasks that store shards at a time; None: twice the CPUs.
        ray_remote_args: Resources and other options of these tasks, such as `{"num_cpus": 0.5}`.
        progress: Whether to show progress, and to say what is waited for when nothing comes for 30 s.

    Returns:
        Version, shards, samples, bytes, and what changed.

    Raises:
        CallError: An argument is invalid, the dataset under that prefix is not one that programs write, or the
            dataset's DataContext sets `max_errored_blocks`.
        InputError: A row lacks `__key__` or cannot be stored, two have one key, there is none, or a step is not
            deterministic.
        ClusterError: Workers died too often.
        ConflictError: Another writer committed meanwhile.
        StoreError: The store failed.
    """
    size = ShardSize.of(samples_per_shard, shard_bytes)
    if encode not in ("auto", None):
        raise CallError(f'encode={encode!r}: expected "auto" or None')
    seed = None if shuffle_seed is None else as_seed("shuffle_seed", shuffle_seed)
    location = Location(Store(url, storage_options), Layout(prefix))
    check_shared(location.store)
    retention = None if keep is None else Retention(keep=keep, grace_s=grace_s)
    recipe = {
        "writer": "write_shards",
        "shuffle_seed": seed,
        "shard_samples": size.samples,
        "shard_bytes": size.num_bytes,
        "keep_pickles": encode is None,
    }
    base = open_written(location)
    writing = announce_writing(location, recipe, base, build_id=build_id, retention=retention, progress=progress)
    if writing.is_committed:
        return writing.report()
    stored = store_dataset(
        dataset if seed is None else _shuffled(dataset, seed),
        writing,
        size,
        keep_pickles=encode is None,
        concurrency=concurrency,
        ray_remote_args=ray_remote_args,
    )
    return writing.commit_or_abandon(Contents(recipe=recipe, written=stored.shards, renamed=stored.renamed))


def _shuffled(dataset: Dataset, seed: int) -> Dataset:
    """Returns the rows sorted by a hash of their keys under a seed, as builds do."""
    steps = operator_names(dataset)

    def hashed(table: pa.Table) -> pa.Table:
        check_columns(table.column_names, has_source=False, steps=steps)
        keys = [key_of(str(key)) for key in table[KEY].to_pylist()]
        hashes = order_hashes(keys, seed) ^ _SIGN
        return table.append_column(ORDER, pa.array(hashes.view(np.int64)))  # as Ray Data sorts by integers

    num_partitions = _num_partitions(source_bytes(dataset))
    bounds: list[int | float] = [(number << 64) // num_partitions - int(_SIGN) for number in range(1, num_partitions)]
    ordered = dataset.map_batches(hashed, batch_format="pyarrow").sort([ORDER, KEY], boundaries=bounds)
    return ordered.drop_columns([ORDER])


def _num_partitions(num_bytes: int | None) -> int:
    """Returns the number of blocks to sort by; hashes are even, so that Ray Data need not sample them."""
    if num_bytes is None:
        return MOST_PARTITIONS
    fewest = max(2, 2 * num_cpus())
    return min(MOST_PARTITIONS, max(fewest, num_bytes // PARTITION_BYTES))
