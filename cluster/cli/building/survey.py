"""What the builds of one request would do: one dataset, or one for each group of a split.

All of them are planned and checked before the first one writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dray.cluster.cli.building.request import BuildRequest, read_names
from dray.cluster.cli.building.split_groups import (
    Leak,
    group_folders,
    layout_refusal,
    leak_refusal,
    leaks,
    moved_between,
)
from dray.pipelines.building.build import survey
from dray.pipelines.building.job import PackJob
from dray.pipelines.building.survey import BuildSpec, Work
from dray.pipelines.inputs.scan import Scan, scan
from dray.pipelines.planning.changes import Guard
from dray.pipelines.progress import say
from dray.shards.errors import CallError
from dray.shards.layout import Layout, Location
from dray.shards.storage.store import Store
from dray.shards.storage.urls import check_apart, check_distinct, normal_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What builds of one or several datasets would do.

    Attributes:
        specs: The inputs and settings of each build.
        works: What each build would do, in the same order.
        leaks: Datasets beside the groups of a split that share samples with them.
        refusals: All reasons why the builds are refused; empty if they are not.
    """

    specs: Sequence[BuildSpec]
    works: Sequence[Work]
    leaks: Sequence[Leak]
    refusals: Sequence[str]


def survey_datasets(request: BuildRequest, *, address: str | None = None, progress: bool = True) -> Survey:
    """Returns what the builds of all datasets would do; writes nothing.

    Raises:
        CallError: See `specs_of`; or --missing-groups was given without --split.
    """
    if request.missing_groups is not None and request.fractions is None:
        raise CallError("--missing-groups is about the groups of a split: give --split as well")
    specs = specs_of(request, address=address, progress=progress)
    works = [survey(spec) for spec in specs]
    found: list[Leak] = []
    if request.fractions is not None:
        groups = [spec.job.location.url.rpartition("/")[2] for spec in specs]
        if moves := moved_between(dict(zip(groups, works, strict=True))):
            say(f"samples move between the groups of the split: {moves}; did --split or --seed change?", show=progress)
        options = request.storage_options
        found += leaks(Store(request.destination, options), options, specs, works)
    refusals = [work.refusal for work in works if work.refusal]
    if request.missing_groups is None:
        refusals += map(leak_refusal, found)
    return Survey(specs=specs, works=works, leaks=found, refusals=refusals)


def specs_of(request: BuildRequest, *, address: str | None = None, progress: bool = True) -> list[BuildSpec]:
    """Returns what to build: one dataset in the destination, or one in a sub-folder for each group of a split.

    Raises:
        CallError: An argument is invalid; an output folder is the source or lies inside it; or a split and a dataset
            without one would share a folder.
    """
    options, layout = request.storage_options, Layout(request.prefix)
    guard = Guard(allow_removal=request.allow_removal, allow_changed_source=request.allow_changed_source)
    recipe, inputs = request.recipe(), Store(request.source, options)
    check_apart(inputs.url, normal_url(request.destination))
    target = Store(request.destination, options)
    if refusal := layout_refusal(target, layout, options, is_split=request.fractions is not None):
        raise CallError(refusal)
    found = scan(inputs, recipe.suffixes) if request.names is None else None
    if found and found.unscanned:
        say(f"left out of the scan of {inputs.url}: {found.unscanned}", show=progress)
    folders = _names_by_folder(request, inputs, found)
    job = PackJob(
        inputs=inputs,
        location=Location(target, layout),
        transform=None,
        encoder=recipe.encoder,
        leaves_out_bad=recipe.leaves_out_bad,
    )
    spec = BuildSpec(
        job=job,
        recipe=recipe,
        names=(),
        optional=tuple(request.optional_suffix or ()),
        scan=found,
        guard=guard if found else None,
        tolerance=request.tolerance,
        checksum=request.checksum,
        address=address,
        progress=progress,
    )
    return [_spec_for(spec, Store(folder, options), names) for folder, names in folders.items()]


def _names_by_folder(request: BuildRequest, inputs: Store, found: Scan | None) -> dict[str, list[str]]:
    """Returns output folder -> names of its samples, those that cannot be packed included.

    Raises:
        CallError: A folder is the source or lies inside it, or two folders are the same directory.
    """
    names = [*found.names, *(bad.name for bad in found.unusable)] if found else read_names(request.names or "")
    folders = group_folders(request.destination, names, request.fractions, request.seed)
    for folder in folders:
        check_apart(inputs.url, normal_url(folder))
    check_distinct(map(normal_url, folders))
    return folders


def _spec_for(spec: BuildSpec, output: Store, names: Sequence[str]) -> BuildSpec:
    """Returns the spec of one dataset; `names` may include unusable ones of the scan."""
    bad = {entry.name: entry for entry in (spec.scan.unusable if spec.scan else ())}
    return replace(
        spec,
        job=replace(spec.job, location=spec.job.location._replace(store=output)),
        names=[name for name in names if name not in bad],
        unusable=tuple(bad[name] for name in names if name in bad),
    )
