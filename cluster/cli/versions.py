"""`dray hold`, `release`, `rollback`, `gc` and `compact`: the versions that a dataset keeps."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from dray.cluster.cli.building.tasks import ResourceOptions
from dray.cluster.cli.options import (
    Address,
    AsJson,
    DataOptions,
    DatasetOptions,
    RetentionOptions,
    cluster_address,
)
from dray.pipelines.building.compact import compact as merge_shards
from dray.pipelines.running.ray_session import ray_session
from dray.pipelines.versions import holds
from dray.pipelines.versions.gc import GcReport
from dray.pipelines.versions.gc import gc as collect_garbage
from dray.shards.log import read_head
from dray.shards.messages import counted
from dray.shards.versions import keeps, read_version

MAX_NAMES = 20  # of the objects that a gc would delete


def hold(
    dataset: DatasetOptions,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the hold: a letter, then letters, digits, '_', '.' and '-'.")
    ],
    *,
    version: Annotated[
        str | None,
        typer.Option(help="Version to keep: a number, or the name of another hold.", show_default="the last"),
    ] = None,
) -> None:
    """Keep a version under a name until it is released.

    The name can be used instead of the number wherever a command or a reader takes a version.

    [bold]Examples[/]

    [cyan]dray hold shards/train paper[/]

    [cyan]dray hold s3://lab/digits/train baseline --version 3[/]
    """
    found = dataset.find_one("hold", name, *(("--version", version) if version else ()))
    number = holds.hold(found, name, version)
    typer.echo(f"{found}: version {number} is held as {name} until it is released")


def release(
    dataset: DatasetOptions,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the hold; `dray log` lists them.")],
) -> None:
    """Remove a hold; a version that nothing else keeps is deleted by the next gc.

    [bold]Examples[/]

    [cyan]dray release shards/train paper[/]
    """
    found = dataset.find_one("release", name)
    number = holds.release(found, name)
    head = read_head(found)
    is_kept = head is not None and keeps(found, head, number)
    then = "is still kept" if is_kept else "is dropped: the next gc deletes the files that only it uses"
    typer.echo(f"{found}: {name} is released; version {number} {then}")


def rollback(
    dataset: DatasetOptions,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A number, or the name of a hold.")],
    data: DataOptions,
) -> None:
    """Make a new version equal to an old one; nothing is copied or deleted.

    The versions in between stay. The next build from the same sources repeats what the rollback undid.

    [bold]Examples[/]

    [cyan]dray rollback shards/train 3[/]

    [cyan]dray rollback s3://lab/digits/train paper[/]
    """
    found = data.at(dataset.find_one("rollback", version))
    old, last = (read_version(found, wanted).version for wanted in (version, None))
    made = holds.rollback(found, version)
    if made.version == last:
        typer.echo(f"{found}: nothing to do, version {last} is the same as version {old}")
        return
    typer.echo(
        f"{found} version {made.version}: the same as version {old}, {counted(made.num_samples, 'sample')} in "
        f"{counted(len(made.shards), 'shard')}, {made.num_bytes / 1e6:,.1f} MB; no shard was copied"
    )
    typer.echo(
        f"The next build from the same sources will repeat what this undid (dray diff shows that of {made.version} and "
        f"{last}): correct the sources first."
    )


def gc(
    dataset: DatasetOptions,
    retention: RetentionOptions,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Drop old versions and delete the files that only they use; every build ends with this.

    Never deleted: the last version, versions under a hold, and files that dray did not write.

    [bold]Examples[/]

    [cyan]dray gc shards/train --dry-run[/]

    Keep only the last version, if no trainer reads an older one and no build is running:

    [cyan]dray gc s3://lab/digits/train --keep 1 --older-than 0[/]
    """
    rule = retention.rule()
    reports: list[GcReport] = []
    try:
        for found in dataset.find_all():
            reports.append(collect_garbage(found, rule, dry_run=dry_run))
            if not as_json:
                _print_gc(reports[-1])
    finally:
        if as_json:
            typer.echo(json.dumps([asdict(report) for report in reports], indent=1))


def _print_gc(report: GcReport) -> None:
    typer.echo(str(report))
    if not report.is_dry_run:
        return
    for name in report.deleted[:MAX_NAMES]:
        typer.echo(f"  {name}")
    if (more := len(report.deleted) - MAX_NAMES) > 0:
        typer.echo(f"  and {more:,} more (--json lists all)")


def compact(
    dataset: DatasetOptions, retention: RetentionOptions, tasks: ResourceOptions, *, address: Address = None
) -> None:
    """Merge the small shards of many builds: a new version of the same samples in fewer tars.

    No source is read. The samples of merged shards take the place of the first of these shards.

    [bold]Examples[/]

    [cyan]dray compact shards/train[/]

    [cyan]dray compact s3://lab/digits/train --address local[/]
    """
    rule, ray_address = retention.rule(), cluster_address(address)
    found = dataset.find_all()
    with (
        tasks.on(ray_address),
        ray_session(ray_address if len(found) > 1 else None),
    ):  # a single dataset connects only if it has work
        for location in found:
            typer.echo(str(merge_shards(location, retention=rule, address=ray_address)))
