"""`dray build`: make the datasets of a request, and report each of them."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer

from dray.cluster.cli.building.parquet import build_from_parquet
from dray.cluster.cli.building.request import BuildRequest, MissingGroups
from dray.cluster.cli.building.survey import survey_datasets
from dray.cluster.cli.building.tasks import ResourceOptions
from dray.cluster.cli.building.transform import TransformOptions, build_by_transform
from dray.cluster.cli.options import Address, Quiet, RetentionOptions, cluster_address
from dray.pipelines import BuildReport
from dray.pipelines.building.build import build as build_dataset
from dray.pipelines.building.drop import drop_samples
from dray.pipelines.progress import WORDS
from dray.pipelines.running.ray_session import ray_session
from dray.pipelines.versions.retention import Retention
from dray.shards.errors import CallError


def build(
    request: BuildRequest,
    function: TransformOptions,
    retention: RetentionOptions,
    tasks: ResourceOptions,
    *,
    address: Address = None,
    quiet: Quiet = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON: a list with one object per dataset.")
    ] = False,
) -> None:
    r"""Pack files into shards; a rerun packs only what is missing.

    A sample is one file for each suffix: [bold]a7.image.pyd[/] and [bold]a7.label.cls[/] are the sample a7.

    [bold]Examples[/]

    All files *.tensor.pyd of a folder, on the cores of this machine:

    [cyan]dray build pickles/ shards/ --suffix tensor.pyd --address local[/]

    Images with labels, and masks for some, in a folder and its sub-folders:

    [cyan]dray build photos/ shards/ --suffix jpg --suffix cls --optional-suffix seg.png[/]

    Samples of two parts, split into three groups, from and to S3:

    [cyan]dray build s3://lab/raw s3://lab/digits --suffix image.pyd --suffix label.cls \
      --split train=0.9,val=0.05,test=0.05 --shards 8[/]

    Tensors as `.npy`, which no reader has to unpickle:

    [cyan]dray build pickles/ shards/ --suffix tensor.pyd --encode tensor.pyd=npy[/]

    The samples that another program lists:

    [cyan]list-samples | dray build pickles/ shards/ --suffix tensor.pyd --names -[/]

    The rows of Parquet files, whose columns become the parts of samples:

    [cyan]dray build tables/ shards/ --from-parquet --key-column id[/]

    What a class of yours makes of the samples, with a GPU for each of four workers of a Ray cluster:

    [cyan]dray build photos/ embedded/ --suffix jpg --transform lab.embed:Embed --transform-version 3 \
      --concurrency 4 --num-gpus 1 --address auto[/]

    As a job on a Ray cluster:

    [cyan]dray submit build s3://lab/raw s3://lab/digits --suffix tensor.pyd --address http://head:8265[/]
    """
    function.check(request)
    rule, ray_address = retention.rule(), cluster_address(address)
    if function.transform is not None:
        if tasks.given:
            raise CallError(f"--transform does not go with {', '.join(tasks.given)}: its workers take --num-gpus")
        reports = build_by_transform(request, function, rule, ray_address, progress=not quiet)
    else:
        build_all = build_from_parquet if request.from_parquet else _build_datasets
        reports = build_all(request, rule, ray_address, progress=not quiet)
    with tasks.on(ray_address):
        _print_reports(reports, as_json=as_json)


def _build_datasets(
    request: BuildRequest, retention: Retention, address: str | None, *, progress: bool
) -> Iterator[BuildReport]:
    """Yields the report of each dataset once it is committed. An error keeps those before it, and a rerun continues.

    Raises:
        CallError: One of the builds is refused; nothing was written.
    """
    with ray_session(address if request.split else None):  # a single build connects only if it has work
        found = survey_datasets(request, address=address, progress=progress)
        if found.refusals:
            raise CallError("; ".join(found.refusals))
        for spec, work in zip(found.specs, found.works, strict=True):
            yield build_dataset(spec, retention=retention, surveyed=work)
        for leak in found.leaks if request.missing_groups == MissingGroups.drop else ():
            yield drop_samples(leak.dataset, retention=retention, progress=progress)


def _print_reports(reports: Iterator[BuildReport], *, as_json: bool) -> None:
    """Print each report as soon as its dataset is made; as JSON, print all at the end, also after an error."""
    made: list[dict[str, Any]] = []
    try:
        for report in reports:
            made.append(asdict(report))
            if not as_json:
                typer.echo(WORDS.get()(str(report)))
    finally:
        if as_json:
            typer.echo(json.dumps(made, indent=1))
