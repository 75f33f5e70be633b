"""`pickles_to_tars`: the one call that turns a folder of pickles into a dataset."""

import os
from collections.abc import Collection, Iterable

from dray.pipelines.building.build import build
from dray.pipelines.building.job import PackJob
from dray.pipelines.building.report import BuildReport
from dray.pipelines.building.survey import BuildSpec
from dray.pipelines.inputs.encoder import Encode, Encoder
from dray.pipelines.inputs.sources import as_names
from dray.pipelines.inputs.tolerance import Tolerance
from dray.pipelines.inputs.transform import Function, Transform
from dray.pipelines.planning.recipe import Recipe
from dray.pipelines.progress import say
from dray.pipelines.versions.retention import DAY_S, Retention
from dray.shards.errors import CallError
from dray.shards.layout import Layout, Location, check_suffixes
from dray.shards.log import new_write_id
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store
from dray.shards.storage.urls import check_apart


def pickles_to_tars(
    dir_input: str | os.PathLike[str],
    input_prefix_subset: Iterable[str],
    input_suffix: str | Iterable[str],
    dir_output: str | os.PathLike[str],
    output_prefix: str,
    func_output_data: Function | None = None,
    min_num_shards: int | None = None,
    *,
    optional_suffixes: Iterable[str] = (),
    transform_version: str | None = None,
    address: str | None = None,
    storage_options: StorageOptions | None = None,
    input_storage_options: StorageOptions | None = None,
    shuffle_seed: int | None = None,
    encode: Encode | None = None,
    allow: Collection[str] = (),
    allow_pickle: bool = False,
    checksum: bool = False,
    on_error: str = "fail",
    max_bad: int | str = "1%",
    keep: int | None = 2,
    grace_s: float = DAY_S,
    progress: bool = True,
) -> BuildReport:
    """Pack `{dir_input}/{name}.{suffix}` of every name and suffix into `{dir_output}/{output_prefix}-%06d.tar`.

    The result is a version of a dataset: it appears whole or not at all, and a rerun over the same files writes
    nothing. The key of a sample is its name with the dots after the last slash replaced by dashes. Nothing is unpickled
    unless `encode` asks for it, and then no code of the pickles is executed.

    Args:
        dir_input: The directory of the files: a path or an object-storage URL.
        input_prefix_subset: The names of the samples, in order (a set is sorted).
        input_suffix: One suffix, or several: then each sample has a part of each.
        dir_output: The dataset's directory: a path or an object-storage URL.
        output_prefix: The dataset's prefix.
        func_output_data: `f(key, {suffix: bytes}) -> {suffix: value}`, what to store for a sample; the default stores
            the files as they are. Bytes are stored as they are, other values as their suffix does: arrays and tensors
            for `.npy`, dicts of them for `.safetensors`, plain values for `.json`, integers for `.cls`, text for
            `.txt`, anything for `.pyd`. None leaves the sample out: the report counts it as empty, and it is not
            asked for again until its files or `transform_version` change.
        min_num_shards: Exact number of shards (fewer if there are fewer samples), equal to one sample. None: by size,
            about 256 MiB and at most 100,000 samples each.
        optional_suffixes: Suffixes of further files, which samples may lack; their parts come last.
        transform_version: The version of `func_output_data`: change it when the function changes. Without one nothing
            of an earlier build is reused.
        address: A Ray cluster's address; "local" starts one; "none" packs in process. None: the cluster that this
            process is connected to, if any, and never from inside a Ray task or actor.
        storage_options: Options of `dir_output`: see `dray.shards.Store`.
        input_storage_options: Options of `dir_input`; None: the same as `storage_options`.
        shuffle_seed: Shuffle the samples over all shards, by a hash of the key under this seed; None: as given.
        encode: Encoding of pickled parts, so that no reader has to unpickle: suffix -> "npy", "safetensors" or
            "json", which changes the last extension (`tensor.pyd` -> `tensor.npy`); a value that the format cannot
            hold makes a bad sample. "auto" uses the format that fits, and keeps a pickle if none does; alone it is for
            all parts whose suffix ends in `pyd`, `pkl` or `pickle`, those of `func_output_data` included. None: they
            stay as they are. The page docs/encodings.md lists what readers get.
        allow: Full names (`pkg.module.Class`) that pickles may use besides the safe list while they are encoded.
        allow_pickle: Let pickles run any code while they are encoded: only for data that you made yourself.
        checksum: Detect changed files by their content, not by size and time (ETag): every file is read.
        on_error: How to treat samples that cannot be read, transformed or encoded. "fail" makes no version and
            names them, after all other shards are stored; "skip" leaves them out until their files change;
            "quarantine" leaves them out and tries them again in every build. A table beside the manifest lists the
            samples that are left out.
        max_bad: Maximum number of samples to leave out, or a percentage of them (at least one).
        keep: Number of versions that stay readable; older ones are deleted unless held. None: all.
        grace_s: Seconds for which a superseded version is kept.
        progress: Show a bar on a terminal, plain lines elsewhere.

    Returns:
        Version, shards, samples, bytes, shards reused, seconds.

    Raises:
        TypeError: A suffix is not a string.
        ValueError: `min_num_shards` is below 1; `on_error` or `encode` is unknown; names are none, repeated, colliding,
            or outside the directory; `dir_output` is `dir_input` or inside it (CallError).
        MissingInputError: Input files are missing or cannot be read: nothing was written.
        RuntimeError: Samples failed to read or to transform: the message names up to 20 (InputError); or another build
            changed the dataset meanwhile (ConflictError). No version was made; the next run reuses whole shards.
    """
    if transform_version is not None and func_output_data is None:
        raise CallError("transform_version is the version of func_output_data: give both")
    required = check_suffixes(input_suffix)
    optional = check_suffixes(optional_suffixes) if optional_suffixes else ()
    suffixes = check_suffixes((*required, *optional))
    encoder = Encoder.of(encode, suffixes if func_output_data is None else None, allow=allow, allow_pickle=allow_pickle)
    tolerance = Tolerance(on_error=on_error, max_bad=max_bad)
    retention = None if keep is None else Retention(keep=keep, grace_s=grace_s)
    recipe = Recipe(
        suffixes=suffixes,
        transform=None if func_output_data is None else transform_version or f"undeclared {new_write_id()}",
        num_shards=min_num_shards,
        shuffle_seed=shuffle_seed,
        encoder=encoder,
        leaves_out_bad=tolerance.leaves_out,
    )
    options = storage_options if input_storage_options is None else input_storage_options
    inputs, output = Store(dir_input, options), Store(dir_output, storage_options)
    if inputs.endpoint == output.endpoint:
        check_apart(inputs.url, output.url)
    job = PackJob(
        inputs=inputs,
        location=Location(output, Layout(output_prefix)),
        transform=None if func_output_data is None else Transform(func_output_data),
        encoder=encoder,
        leaves_out_bad=tolerance.leaves_out,
    )
    if recipe.transform is not None and transform_version is None:
        say("func_output_data has no transform_version: nothing of an earlier build is reused", show=progress)
    spec = BuildSpec(
        job=job,
        recipe=recipe,
        names=as_names(input_prefix_subset),
        optional=optional,
        tolerance=tolerance,
        checksum=checksum,
        address=address,
        progress=progress,
    )
    return build(spec, retention=retention)
