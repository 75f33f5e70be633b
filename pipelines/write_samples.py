"""`write_samples`: a dataset from any iterable of samples, or from a function and its inputs."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast, overload

from dray.pipelines.building.report import BuildReport
from dray.pipelines.inputs.items import Items
from dray.pipelines.inputs.maker import Maker, MakeSample
from dray.pipelines.inputs.tolerance import Tolerance
from dray.pipelines.making.work import MakeSpec
from dray.pipelines.making.write import write_inputs
from dray.pipelines.planning.changes import Guard
from dray.pipelines.running.ray_session import IN_PROCESS
from dray.pipelines.versions.retention import DAY_S, Retention
from dray.pipelines.writing.shard import ShardSize
from dray.pipelines.writing.stream import write_stream
from dray.shards.arguments import as_int, as_seed
from dray.shards.errors import CallError
from dray.shards.layout import Layout, Location
from dray.shards.parts import AUTO
from dray.shards.snapshot import DEFAULT_PREFIX
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store


@overload
def write_samples(
    samples: Iterable[Mapping[str, Any]],
    url: str | os.PathLike[str],
    *,
    prefix: str = ...,
    samples_per_shard: int | None = ...,
    shard_bytes: int | None = ...,
    encode: str | None = ...,
    storage_options: StorageOptions | None = ...,
    build_id: str | None = ...,
    keep: int | None = ...,
    grace_s: float = ...,
    progress: bool = ...,
) -> BuildReport: ...


@overload
def write_samples(
    samples: MakeSample,
    url: str | os.PathLike[str],
    *,
    inputs: Iterable[Any],
    num_workers: int = ...,
    address: str | None = ...,
    key: Callable[[Any], str] | None = ...,
    fingerprint: Callable[[Any], Any] | None = ...,
    transform_version: str | None = ...,
    seed: int = ...,
    on_error: str = ...,
    max_bad: int | str = ...,
    allow_removal: int | str | None = ...,
    prefix: str = ...,
    samples_per_shard: int | None = ...,
    shard_bytes: int | None = ...,
    encode: str | None = ...,
    storage_options: StorageOptions | None = ...,
    keep: int | None = ...,
    grace_s: float = ...,
    progress: bool = ...,
) -> BuildReport: ...


def write_samples(
    samples: Iterable[Mapping[str, Any]] | MakeSample,
    url: str | os.PathLike[str],
    *,
    inputs: Iterable[Any] | None = None,
    num_workers: int = 0,
    address: str | None = None,
    key: Callable[[Any], str] | None = None,
    fingerprint: Callable[[Any], Any] | None = None,
    transform_version: str | None = None,
    seed: int = 0,
    on_error: str = "fail",
    max_bad: int | str = "1%",
    allow_removal: int | str | None = None,
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

    A sample is a dict of values by suffix. Bytes are stored as they are. Other values are stored as the suffix says:
    arrays and tensors for `.npy`, dicts of them for `.safetensors`, plain values for `.json`, integers for `.cls`, text
    for `.txt`. A name without such an extension gets one by the type of its value: `embedding` becomes
    `embedding.npy`. Nothing is pickled.

    `write_samples(samples, url)` writes what an iterable gives, in its order, with at most two shards in memory. If it
    raises, or Ctrl-C stops it, what was stored is deleted.

    `write_samples(make_sample, url, inputs=...)` writes what a function makes of each input: a sample, None, or several
    that it returns or yields. It runs here, in worker processes, or on Ray; the shards are the same. A rerun continues
    where one that died or failed has stopped, and does nothing if nothing changed. Only new and changed inputs are
    given to the function. Samples of inputs that are no longer listed are removed.

    Args:
        samples: An iterable of samples, or `make_sample(input)`: a function, or a class of which each process makes one
            instance. An argument `rng` gets a `numpy.random.Generator` that depends only on `seed` and the input's key.
        url: The dataset's directory: a path or an object-storage URL.
        inputs: The inputs of `make_sample`, in order: paths, numbers, dicts, any values.
        num_workers: Number of worker processes. 0: none, unless `address` says so.
        address: A Ray cluster's address; "local" starts one; "none" works in this process. None: the cluster that this
            process is connected to, if any.
        key: `key(input)` names an input. Default: a path or text without its extension, the digits of a number, the
            position of any other input. An input that is one sample without `__key__` gives it its key; one that yields
            several without gives them `{key}-0`, `{key}-1` and so on.
        fingerprint: `fingerprint(input)` returns a plain value that changes if the input does. Default: the input
            itself, with size and modification time of the files on disk that it names.
        transform_version: The version of `make_sample`: change it when the function changes. Without one nothing of an
            earlier run is reused.
        seed: Seed of `rng`.
        on_error: How to treat inputs for which `make_sample` raises, or returns what cannot be stored. "fail" makes no
            version and names them; "skip" leaves them out until they change; "quarantine" leaves them out and tries
            them again in every run. With "skip" and "quarantine" all samples of an input are in memory at once.
        max_bad: Maximum number of inputs to leave out, or a percentage of them (at least one).
        allow_removal: Maximum number, or percentage, of the last version's samples that may go because their input is
            no longer listed. None: 10 %, or 50 % of fewer than 20.
        prefix: The dataset's prefix.
        samples_per_shard: Maximum number of samples in a shard. With inputs, a task gets that number of them.
        shard_bytes: Maximum size of a shard in bytes. Without both: 256 MiB, and at most 100,000 samples.
        encode: "auto" stores no pickle: values of pickled names, such as `x.pyd`, get another extension by their type.
            None pickles them.
        storage_options: See `dray.shards.Store`.
        build_id: Name of a run of an iterable. A rerun with the same name, after its process was killed, stores only
            what is missing; after it has succeeded, it does nothing. Runs with inputs are found without a name.
        keep: Number of versions that stay readable; older ones are deleted unless held. None: all.
        grace_s: Seconds for which a superseded version is kept.
        progress: Show progress on standard error.

    Returns:
        Version, shards, samples, bytes, seconds, and which names got another suffix.

    Raises:
        CallError: An argument is invalid, too many samples would be removed, or the dataset was not made by a program.
        InputError: A sample cannot be stored, two have the same key, or there is none; names it.
        ConflictError: Another writer committed a version meanwhile.
        ClusterError: A worker died too often, or a Ray node is unfit.
        StoreError: The store failed.
    """
    location = Location(Store(url, storage_options), Layout(prefix))
    size = ShardSize.of(samples_per_shard, shard_bytes)
    retention = None if keep is None else Retention(keep=keep, grace_s=grace_s)
    keep_pickles = _keeps_pickles(encode)
    if inputs is None:
        of_inputs = {"num_workers": num_workers, "address": address, "key": key, "fingerprint": fingerprint}
        return write_stream(
            _checked_iterable(samples, {**of_inputs, "transform_version": transform_version}),
            location,
            size,
            keep_pickles=keep_pickles,
            build_id=build_id,
            retention=retention,
            progress=progress,
        )
    spec = MakeSpec(
        location=location,
        items=Items.of(list(inputs), key, fingerprint, are_compared=transform_version is not None),
        maker=Maker(_checked_function(samples, build_id), as_seed("seed", seed)),
        transform_version=transform_version,
        size=size,
        samples_per_shard=samples_per_shard,
        is_default_size=samples_per_shard is None and shard_bytes is None,
        keep_pickles=keep_pickles,
        tolerance=Tolerance(on_error=on_error, max_bad=max_bad),
        guard=Guard(allow_removal=None if allow_removal is None else str(allow_removal)),
        num_workers=_checked_workers(num_workers, address),
        address=address,
        retention=retention,
        progress=progress,
    )
    return write_inputs(spec)


def _keeps_pickles(encode: str | None) -> bool:
    if encode not in (AUTO, None):
        raise CallError(f"encode={encode!r:.80}: expected 'auto' or None")
    return encode is None


def _checked_iterable(samples: Any, of_inputs: Mapping[str, Any]) -> Iterable[Any]:
    if callable(samples):
        raise CallError(
            f"samples is {samples!r:.80}: a function needs inputs=; call a generator function to give what it yields"
        )
    if not isinstance(samples, Iterable) or isinstance(samples, Mapping | str | bytes):
        raise CallError(f"samples is {samples!r:.80}: expected an iterable of dicts, such as a generator")
    if given := [name for name, value in of_inputs.items() if value]:
        raise CallError(f"{', '.join(given)}: only with inputs=, which a function makes samples of")
    return samples


def _checked_function(samples: Any, build_id: str | None) -> MakeSample:
    if not callable(samples):
        raise CallError(f"inputs= with samples={samples!r:.80}: expected a function that makes samples of an input")
    if build_id is not None:
        raise CallError(f"build_id={build_id!r:.80}: only without inputs=; a run with inputs is found by itself")
    function: Any = samples
    return cast("MakeSample", function)


def _checked_workers(num_workers: int, address: str | None) -> int:
    found = as_int("num_workers", num_workers)
    if found and address not in (None, IN_PROCESS):
        raise CallError(f"num_workers={found} and address={address!r}: give one, processes of this machine or Ray")
    return found
