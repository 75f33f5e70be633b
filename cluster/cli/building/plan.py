"""`dray plan`: print what a build would do."""

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from dray.cluster.cli.building.request import BuildRequest
from dray.cluster.cli.building.survey import Survey, survey_datasets
from dray.cluster.cli.building.transform import TransformOptions, print_transform_plan
from dray.cluster.cli.options import AsJson
from dray.pipelines.building.survey import BuildSpec, Work
from dray.shards.errors import CallError
from dray.shards.messages import counted


def plan(request: BuildRequest, function: TransformOptions, *, as_json: AsJson = False) -> None:
    """Show what `dray build` with the same arguments would do, and why; nothing is written.

    [bold]Examples[/]

    [cyan]dray plan pickles/ shards/ --suffix tensor.pyd[/]

    [cyan]dray plan s3://lab/raw s3://lab/digits --suffix image.pyd --split train=0.9,val=0.1 --json[/]
    """
    if request.from_parquet:
        raise CallError("--from-parquet: only dray build takes it; a rerun reads only new and changed files")
    function.check(request)
    if function.transform is not None:
        print_transform_plan(request, function, as_json=as_json)
        return
    found = survey_datasets(request)
    if as_json:
        typer.echo(json.dumps(_facts(found), indent=1))
        return
    for spec, work in zip(found.specs, found.works, strict=True):
        _print_plan(spec.job.location.url, work)
    for refusal in found.refusals:
        typer.echo(f"dray build would be refused: {refusal}")


def _facts(found: Survey) -> list[dict[str, Any]]:
    plans = zip(found.specs, found.works, strict=True)
    return [_plan_facts(spec, work) | {"refused": list(found.refusals)} for spec, work in plans]


def _plan_facts(spec: BuildSpec, work: Work) -> dict[str, Any]:
    planned = work.planned
    return {
        "url": spec.job.location.url,
        "has_work": work.has_work,
        "samples": asdict(planned.changes),
        "unscanned": asdict(spec.scan.unscanned) if spec.scan else {},
        "shards": [
            {
                "fate": shard.fate,
                "number": shard.number,
                "samples": len(shard.rows),
                "bytes": shard.num_bytes,
                "reason": shard.reason,
            }
            for shard in planned.shards
        ],
        "dropped": [
            {"number": shard.number, "samples": shard.num_samples, "bytes": shard.num_bytes, "reason": reason}
            for shard, reason in planned.dropped
        ],
        "refreshed": planned.num_refreshed,
        "left_out": [asdict(left.bad) for left in work.left_out],
    }


def _print_plan(url: str, work: Work) -> None:
    """Print a table of the shards to pack or drop; those that are reused are only counted."""
    table = Table("fate", "samples", "bytes", "why", box=None)
    for shard in work.planned.shards:
        if shard.fate != "reused":
            table.add_row(shard.fate, f"{len(shard.rows):,}", f"{shard.num_bytes:,}", shard.reason)
    for dropped, reason in work.planned.dropped:
        table.add_row("dropped", f"{dropped.num_samples:,}", f"{dropped.num_bytes:,}", reason)
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    console.print(f"{url}: {_summary(work)}")
    if table.rows:
        console.print(table)


def _summary(work: Work) -> str:
    planned = work.planned
    if not work.has_work:
        return f"nothing to do, {counted(len(planned.shards), 'shard stays', 'shards stay')}"
    fates = Counter(shard.fate for shard in planned.shards)
    to_pack = sum(shard.num_bytes for shard in planned.shards if shard.fate != "reused")
    return (
        f"{planned.changes}; {counted(fates['reused'], 'shard stays', 'shards stay')}, "
        f"{fates['rewritten']:,} rewritten, {fates['new']:,} new, {len(planned.dropped):,} dropped, "
        f"{counted(planned.num_refreshed, 'sample')} touched but the same, "
        f"{len(work.left_out):,} left out; {to_pack / 1e6:,.1f} MB to pack"
    )
