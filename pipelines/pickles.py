"""`pickles_to_tars`: the one call that turns a folder of pickles into a dataset."""

import os
from collections.abc import Iterable

from dray.pipelines.build import BuildReport, build
from dray.pipelines.pack import PackJob
from dray.pipelines.plan import Recipe
from dray.pipelines.progress import say
from dray.pipelines.sources import as_names
from dray.pipelines.transform import Function, Transform
from dray.shards.client import StorageOptions
from dray.shards.errors import CallError
from dray.shards.layout import Layout, check_suffixes
from dray.shards.log import new_write_id
from dray.shards.store import Store


def pickles_to_tars(
    dir_input: str | os.PathLike[str],
    input_prefix_subset: Iterable[str],
    input_suffix: str | Iterable[str],
    dir_output: str | os.PathLike[str],
    output_prefix: str,
    func_output_data: Function | None = None,
    min_num_shards: int | None = None,
    *,
    transform_version: str | None = None,
    address: str | None = None,
    storage_options: StorageOptions | None = None,
    input_storage_options: StorageOptions | None = None,
    progress: bool = True,
) -> BuildReport:
    """Pack `{dir_input}/{name}.{suffix}` of every name and suffix into `{dir_output}/{output_prefix}-%06d.tar`.

    The result is a version of a dataset: it appears whole or not at all, and a rerun over the same files writes
    nothing. The key of a sample is its name with dots replaced by dashes. Nothing is unpickled.

    Args:
        dir_input: Where the files lie: a path or an object-storage URL.
        input_prefix_subset: The names of the samples, in the order wanted (a set is sorted).
        input_suffix: One suffix, or several: then each sample has a part of each.
        dir_output: The dataset's directory: a path or an object-storage URL.
        output_prefix: The dataset's prefix.
        func_output_data: `f(key, {suffix: bytes}) -> {suffix: bytes}`, what to store for a sample; the default stores
            the files as they are. Values other than bytes are encoded by their suffix as webdataset's writer does.
        min_num_shards: Exactly so many shards (fewer if there are fewer samples), equal to one sample. None: by size,
            about 256 MiB and at most 100,000 samples each.
        transform_version: The version of `func_output_data`: change it when the function changes. Without one nothing
            of an earlier build is reused.
        address: A Ray cluster's address; "local" starts one; "none" packs in process. None: the cluster that this
            process is connected to, if any, and never from inside a Ray task or actor.
        storage_options: Of `dir_output`: see `dray.shards.Store`.
        input_storage_options: Of `dir_input`; None: the same as `storage_options`.
        progress: Show a bar on a terminal, plain lines elsewhere.

    Returns:
        Version, shards, samples, bytes, shards reused, seconds.

    Raises:
        TypeError: A suffix is not a string.
        ValueError: `min_num_shards` below 1; no names; names twice, colliding, or leaving the directory (CallError).
        MissingInputError: Input files that are missing or cannot be read: nothing was written.
        RuntimeError: A sample failed to read or to transform: the message names it (InputError); or another build
            committed meanwhile (ConflictError). No version was made; whole shards serve the next run.
    """
    if transform_version is not None and func_output_data is None:
        raise CallError("transform_version tells the version of func_output_data: give both")
    recipe = Recipe(
        suffixes=check_suffixes(input_suffix),
        transform=None if func_output_data is None else transform_version or f"undeclared {new_write_id()}",
        num_shards=min_num_shards,
    )
    options = storage_options if input_storage_options is None else input_storage_options
    job = PackJob(
        inputs=Store(dir_input, options),
        output=Store(dir_output, storage_options),
        layout=Layout(output_prefix),
        transform=None if func_output_data is None else Transform(func_output_data),
    )
    if recipe.transform is not None and transform_version is None:
        say("func_output_data has no transform_version: nothing of an earlier build is reused", show=progress)
    return build(job, recipe, as_names(input_prefix_subset), address=address, progress=progress)
