"""`write_samples`: a dataset from any iterable of samples."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from dray.pipelines.building.report import BuildReport
from dray.pipelines.versions.retention import DAY_S, Retention
from dray.pipelines.writing.shard import ShardSize
from dray.pipelines.writing.stream import write_stream
from dray.shards.errors import CallError
from dray.shards.layout import Layout, Location
from dray.shards.parts import AUTO
from dray.shards.snapshot import DEFAULT_PREFIX
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store


def write_samples(
    samples: Iterable[Mapping[str, Any]],
    url: str | os.PathLike[str],
    *,
    prefix: str = DEFAULT_PREFIX,
    samples_per_shard: int | None = None,
    shard_bytes: int | None = None,
    encode: str | None = AUTO,
    storage_options: StorageOptions | None = None,
    build_id: str | None = None,
    keep: int | None = 2,
    grace_s: float = DAY_S,
    progress: bool = True,
) -> BuildReport:
    """Write samples as the next version of a dataset, which appears whole or not at all.

    Bytes are stored as they are. Other values are stored as the suffix says: arrays and tensors for `.npy`, dicts of
    them for `.safetensors`, plain values for `.json`, integers for `.cls`, text for `.txt`. A name without such an
    extension gets one by the type of its value: `embedding` becomes `embedding.npy`. Nothing is pickled.

    At most two shards are in memory. If the iterable raises, or Ctrl-C stops it, no version is made, and what was
    stored is deleted.

    Args:
        samples: Dicts of values by suffix, such as a generator. `__key__` is the key of a sample; if no sample has one,
            they are numbered.
        url: The dataset's directory: a path or an object-storage URL.
        prefix: The dataset's prefix.
        samples_per_shard: Number of samples in a shard; the last one may have fewer.
        shard_bytes: Maximum size of a shard in bytes. Without both: 256 MiB, and at most 100,000 samples.
        encode: "auto" stores no pickle: values of pickled names, such as `x.pyd`, get another extension by their type.
            None pickles them.
        storage_options: See `dray.shards.Store`.
        build_id: Name of this run. A rerun with the same name, after its process was killed, stores only what is
            missing; after it has succeeded, it does nothing.
        keep: Number of versions that stay readable; older ones are deleted unless held. None: all.
        grace_s: Seconds for which a superseded version is kept.
        progress: Show progress on standard error.

    Returns:
        Version, shards, samples, bytes, seconds, and which names got another suffix.

    Raises:
        CallError: An argument is invalid, or the dataset was not made by a program.
        InputError: A sample cannot be stored, two have the same key, or there is none; names it.
        ConflictError: Another writer committed a version meanwhile.
        StoreError: The store failed.
    """
    if callable(samples) or not isinstance(samples, Iterable) or isinstance(samples, Mapping | str | bytes):
        raise CallError(
            f"samples is {samples!r:.80}: expected an iterable of dicts, such as a generator; call a generator function"
        )
    if encode not in (AUTO, None):
        raise CallError(f"encode={encode!r:.80}: expected 'auto' or None")
    return write_stream(
        samples,
        Location(Store(url, storage_options), Layout(prefix)),
        ShardSize.of(samples_per_shard, shard_bytes),
        keep_pickles=encode is None,
        build_id=build_id,
        retention=None if keep is None else Retention(keep=keep, grace_s=grace_s),
        progress=progress,
    )
