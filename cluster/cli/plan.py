"""What `dray plan` does: work out what a build would do, and print it."""

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from dray.cluster.cli.build import Survey
from dray.pipelines.building.survey import BuildSpec, Work
from dray.shards.messages import counted


def print_plans(found: Survey, *, as_json: bool) -> None:
    """A table a dataset, or all of them as JSON."""
    urls = [spec.job.output.url for spec in found.specs]
    if as_json:
        plans = [
            _as_json(spec, work) | {"refused": list(found.refusals)}
            for spec, work in zip(found.specs, found.works, strict=True)
        ]
        print(json.dumps(plans, indent=1))  # noqa: T201
        return
    for url, work in zip(urls, found.works, strict=True):
        _print_plan(url, work)
    for refusal in found.refusals:
        Console(highlight=False, soft_wrap=True).print(f"dray build would be refused: {refusal}", markup=False)


def _as_json(spec: BuildSpec, work: Work) -> dict[str, Any]:
    shards = [
        {
            "fate": shard.fate,
            "number": shard.number,
            "samples": len(shard.rows),
            "bytes": shard.num_bytes,
            "reason": shard.reason,
        }
        for shard in work.planned.shards
    ]
    planned = work.planned
    return {
        "url": spec.job.output.url,
        "has_work": work.has_work,
        "samples": asdict(planned.changes),
        "unscanned": asdict(spec.scan.unscanned) if spec.scan else {},
        "shards": shards,
        "dropped": [
            {"number": shard.number, "samples": shard.num_samples, "bytes": shard.num_bytes, "reason": reason}
            for shard, reason in planned.dropped
        ],
        "refreshed": planned.num_refreshed,
        "left_out": [asdict(left.bad) for left in work.left_out],
    }


def _print_plan(url: str, work: Work) -> None:
    """The shards that would be packed or dropped; those that stay are only counted."""
    packed = [shard for shard in work.planned.shards if shard.fate != "reused"]
    table = Table("fate", "samples", "bytes", "why", box=None)
    for shard in packed:
        table.add_row(shard.fate, f"{len(shard.rows):,}", f"{shard.num_bytes:,}", shard.reason)
    for gone, reason in work.planned.dropped:
        table.add_row("dropped", f"{gone.num_samples:,}", f"{gone.num_bytes:,}", reason)
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
