"""`dray build --transform`: a dataset of the samples that a function makes of the input files."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Annotated

import typer

from dray.cluster.cli.building.request import BuildRequest, option_names
from dray.cluster.cli.building.survey import specs_of
from dray.pipelines import BuildReport
from dray.pipelines.versions.retention import Retention
from dray.pipelines.writing.batches import BatchTransform, Workers
from dray.pipelines.writing.request import checked_version
from dray.pipelines.writing.shard import ShardSize
from dray.pipelines.writing.survey import plan_sourced
from dray.pipelines.writing.transformed import build_transformed
from dray.shards.errors import CallError

_OF_OTHERS = (
    "from_parquet",
    "key_column",
    "shards",
    "shuffle_seed",
    "split",
    "seed",
    "encode",
    "allow_pickle",
    "missing_groups",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformOptions:
    """The options of `--transform`."""

    transform: Annotated[
        str | None,
        typer.Option(
            metavar="PKG.MOD:NAME",
            help="Store what a function makes of the samples. It gets a list of samples, dicts of __key__, __source__ "
            "and the decoded parts by suffix, and returns or yields samples: none, one or many of each. A class is "
            "constructed once in each worker, then called. A parameter [bold]rng[/] gets a random generator for each "
            "sample.",
        ),
    ] = None
    transform_version: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Version of the function: change it when the function changes, and all samples are made again.",
        ),
    ] = None
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples in one call.", show_default="64")] = None
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Maximum number of workers on Ray that call the function.",
            show_default="one for a class, else what the cluster has room for",
        ),
    ] = None
    num_gpus: Annotated[float | None, typer.Option(help="GPUs of each of these workers.", show_default="none")] = None
    samples_per_shard: Annotated[
        int | None, typer.Option(help="Number of samples in a shard.", show_default="256 MiB a shard")
    ] = None
    transform_seed: Annotated[int | None, typer.Option(help="Seed of the random generators.", show_default="0")] = None

    def check(self, request: BuildRequest) -> None:
        """Check that the options go with each other, and with those of a build.

        Raises:
            CallError: They do not; names the option.
        """
        if self.transform is None:
            given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
            if given:
                raise CallError(f"{option_names(given)}: only with --transform")
            return
        if self.transform_version is None:
            raise CallError("--transform: give --transform-version as well; change it when the function changes")
        checked_version(self.transform_version)
        request.check_not_given(_OF_OTHERS, "--transform")

    def function(self, request: BuildRequest) -> BatchTransform:
        """Returns the function; modules in the current folder can be imported, as by `python -m`."""
        if "" not in sys.path:
            sys.path.insert(0, "")
        return BatchTransform(self.transform or "", seed=self.transform_seed or 0, allow=request.allow or ())


def build_by_transform(
    request: BuildRequest, options: TransformOptions, retention: Retention, address: str | None, *, progress: bool
) -> Iterator[BuildReport]:
    """Yields the report of the dataset once it is committed."""
    (spec,) = specs_of(request, address=address, progress=progress)
    workers = Workers(
        batch_size=options.batch_size or Workers().batch_size,
        concurrency=options.concurrency,
        num_gpus=options.num_gpus,
    )
    yield build_transformed(
        spec,
        options.function(request),
        options.transform_version or "",
        ShardSize.of(options.samples_per_shard, None),
        workers,
        retention=retention,
    )


def print_transform_plan(request: BuildRequest, options: TransformOptions, *, as_json: bool) -> None:
    """Print what a build would make, copy and keep."""
    (spec,) = specs_of(request)
    recipe = options.function(request).recipe(spec.recipe.suffixes, options.transform_version or "")
    found = plan_sourced(spec, recipe)
    if not as_json:
        typer.echo(f"{spec.job.location.url}: {found}")
        return
    facts = {
        "url": spec.job.location.url,
        "has_work": found.has_work,
        "sources": asdict(found.changes),
        "to_make": len(found.to_make),
        "done": found.num_done,
        "shards_kept": len(found.kept),
        "samples_copied": len(found.copies),
        "reason": found.reason,
    }
    typer.echo(json.dumps([facts], indent=1))
