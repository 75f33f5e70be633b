"""The arguments that entry points share which make datasets of a folder of input files."""

import os
from collections.abc import Iterable

from dray.pipelines.building.job import PackJob
from dray.pipelines.building.survey import BuildSpec
from dray.pipelines.inputs.scan import scan
from dray.pipelines.inputs.sources import as_names
from dray.pipelines.inputs.tolerance import Tolerance
from dray.pipelines.planning.changes import Guard
from dray.pipelines.planning.recipe import Recipe
from dray.pipelines.progress import say
from dray.shards.errors import CallError
from dray.shards.layout import Layout, Location, check_suffixes
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store
from dray.shards.storage.urls import check_apart


def spec_of(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    suffixes: str | Iterable[str],
    optional_suffixes: Iterable[str],
    prefix: str,
    names: Iterable[str] | None,
    checksum: bool,
    tolerance: Tolerance,
    guard: Guard,
    storage_options: StorageOptions | None,
    input_storage_options: StorageOptions | None,
    address: str | None,
    progress: bool,
) -> BuildSpec:
    """Returns where inputs and dataset are, and which inputs there are. The guard is for inputs that a scan finds.

    Raises:
        CallError: An argument is invalid, or `out` is in `src`.
        MissingInputError: The scan found no file.
    """
    optional = check_suffixes(optional_suffixes) if optional_suffixes else ()
    every = check_suffixes((*check_suffixes(suffixes), *optional))
    options = storage_options if input_storage_options is None else input_storage_options
    inputs, output = Store(src, options), Store(out, storage_options)
    if inputs.endpoint == output.endpoint:
        check_apart(inputs.url, output.url)
    found = scan(inputs, every) if names is None else None
    if found and found.unscanned:
        say(f"left out of the scan of {inputs.url}: {found.unscanned}", show=progress)
    return BuildSpec(
        job=PackJob(inputs=inputs, location=Location(output, Layout(prefix)), transform=None),
        recipe=Recipe(suffixes=every, recursive=names is None),
        names=found.names if found else as_names(names or ()),
        unusable=found.unusable if found else (),
        optional=optional,
        scan=found,
        guard=guard if found else None,
        tolerance=tolerance,
        checksum=checksum,
        address=address,
        progress=progress,
    )


def checked_version(transform_version: str) -> str:
    """Returns the declared version of a function.

    Raises:
        CallError: It is not text, or empty.
    """
    if not isinstance(transform_version, str) or not transform_version:
        raise CallError(
            f"transform_version={transform_version!r:.80}: expected text such as '1'; change it when the function "
            "changes, and everything is made again"
        )
    return transform_version
