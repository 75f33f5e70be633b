"""`build_dataset`: a dataset of the samples that a function makes of input files."""

import os
from collections.abc import Collection, Iterable

from dray.pipelines.building.report import BuildReport
from dray.pipelines.inputs.tolerance import Tolerance
from dray.pipelines.planning.changes import Guard
from dray.pipelines.versions.retention import DAY_S, Retention
from dray.pipelines.writing.batches import BatchFunction, BatchTransform, Workers
from dray.pipelines.writing.request import checked_version, spec_of
from dray.pipelines.writing.shard import ShardSize
from dray.pipelines.writing.transformed import build_transformed
from dray.shards.arguments import as_int, as_seed
from dray.shards.snapshot import DEFAULT_PREFIX
from dray.shards.storage.client import StorageOptions


def build_dataset(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    suffixes: str | Iterable[str],
    transform: BatchFunction | str,
    transform_version: str,
    prefix: str = DEFAULT_PREFIX,
    names: Iterable[str] | None = None,
    optional_suffixes: Iterable[str] = (),
    batch_size: int = 64,
    seed: int = 0,
    address: str | None = None,
    concurrency: int | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    samples_per_shard: int | None = None,
    shard_bytes: int | None = None,
    allow: Collection[str] = (),
    checksum: bool = False,
    on_error: str = "fail",
    max_bad: int | str = "1%",
    allow_removal: str | None = None,
    allow_changed_source: bool = False,
    storage_options: StorageOptions | None = None,
    input_storage_options: StorageOptions | None = None,
    keep: int | None = 2,
    grace_s: float = DAY_S,
    progress: bool = True,
) -> BuildReport:
    """Make a dataset of the samples that a function makes of input files. A rerun makes only what changed.

    The function gets a list of samples, and returns or yields samples: one for each, several or none. A sample is a
    dict of `__key__`, `__source__` and the values of its files by suffix, decoded. What it returns is encoded as by
    `write_samples`: bytes stay as they are, arrays become `.npy`, and so on. A sample with another `__key__` than its
    input's keeps the `__source__` of its input, so that a rerun knows what it was made of:

        def crops(samples, rng):
            for sample, random in zip(samples, rng):
                for number in range(2):
                    start = random.integers(8)
                    yield {
                        "__key__": f"{sample['__key__']}_{number}",
                        "__source__": sample["__source__"],
                        "crop.npy": sample["image.npy"][start : start + 24],
                    }

    The samples of one batch must not depend on each other: batches differ from run to run. The result is a version of
    a dataset: it appears whole or not at all. Samples of inputs that did not change stay in their shards, or are
    copied; an input that gave no sample is not asked again until its files or `transform_version` change. After a
    failure, the next run uses the shards that were stored.

    Args:
        src: Folder of the input files: a path or an object-storage URL. Input `a/b` has the files `a/b.{suffix}`.
        out: The dataset's folder.
        suffixes: Suffixes of the files that each input has.
        transform: The function; or a class, which is constructed once in each worker, without arguments, and whose
            instances are called; or the name of one, `"pkg.mod:name"`, which each worker imports. A parameter `rng`
            gets a list of numpy generators, one for each sample, which depend on `seed` and `__key__` alone.
        transform_version: The version of the function: change it when the function changes.
        prefix: The dataset's prefix.
        names: Names of the inputs, in order; a set is sorted. None: all in the folder and its sub-folders, sorted.
        optional_suffixes: Suffixes of further files, which inputs may lack.
        batch_size: Number of inputs in a batch.
        seed: Seed of the generators.
        address: A Ray cluster's address; "local" starts one; "none" runs in this process. None: the cluster that this
            process is connected to, if any. The bytes are the same.
        concurrency: On Ray: maximum number of workers that call the function. None: one for a class, else as many as
            the cluster has room for.
        num_cpus: On Ray: CPUs of each worker; None: 1.
        num_gpus: On Ray: GPUs of each worker; None: none.
        samples_per_shard: Number of samples in a shard; None: by size.
        shard_bytes: Maximum size of a shard in bytes; None: 256 MiB, if `samples_per_shard` is not given.
        allow: Full names (`pkg.module.Class`) that pickled inputs may use in addition to the safe list.
        checksum: Detect changed files by their content, not by size and time (ETag): every file is read.
        on_error: How to treat inputs that cannot be read or transformed: "fail" makes no version; "skip" leaves them
            out until their files change; "quarantine" leaves them out and tries them again in every run. On Ray a file
            that exists and cannot be read always makes no version.
        max_bad: Maximum number of inputs to leave out, or a percentage of them (at least one).
        allow_removal: Maximum number, or percentage such as "25%", of the last version's inputs that may be gone;
            not checked with `names`. None: 10 %, or 50 % of fewer than 20.
        allow_changed_source: Accept another `src` or other suffixes than the last version's.
        storage_options: Options of `out`: see `dray.shards.Store`.
        input_storage_options: Options of `src`; None: the same as `storage_options`.
        keep: Number of versions that stay readable; older ones are deleted unless held. None: all.
        grace_s: Seconds for which a superseded version is kept.
        progress: Show progress on standard error.

    Raises:
        CallError: An argument is invalid, the dataset is of another kind, or too much would be removed.
        MissingInputError: Input files are missing: nothing was written.
        InputError: Inputs could not be read or transformed, or samples share a key. No version was made.
        ClusterError: A node cannot import the function or what it needs; names node and module.
        ConflictError: Another writer committed meanwhile; what was stored is used by the next run.
    """
    spec = spec_of(
        src,
        out,
        suffixes=suffixes,
        optional_suffixes=optional_suffixes,
        prefix=prefix,
        names=names,
        checksum=checksum,
        tolerance=Tolerance(on_error=on_error, max_bad=max_bad),
        guard=Guard(allow_removal=allow_removal, allow_changed_source=allow_changed_source),
        storage_options=storage_options,
        input_storage_options=input_storage_options,
        address=address,
        progress=progress,
    )
    return build_transformed(
        spec,
        BatchTransform(transform, seed=as_seed("seed", seed), allow=allow),
        checked_version(transform_version),
        ShardSize.of(samples_per_shard, shard_bytes),
        Workers(
            batch_size=as_int("batch_size", batch_size, 1),
            concurrency=None if concurrency is None else as_int("concurrency", concurrency, 1),
            num_cpus=num_cpus,
            num_gpus=num_gpus,
        ),
        retention=None if keep is None else Retention(keep=keep, grace_s=grace_s),
    )
