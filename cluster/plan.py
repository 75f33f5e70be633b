"""What `dray plan` does: work out what a build would do, and print it."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from dray.cluster.build import Wanted
from dray.pipelines.work import Work, work_out
from dray.shards.log import read_head
from dray.shards.text import counted


def plan_datasets(wanted: Wanted) -> Iterator[tuple[str, Work]]:
    """(URL, work) of the dataset in the destination, or of each group of a split; nothing is written."""
    for spec in wanted.specs():
        yield spec.job.output.url, work_out(spec, read_head(spec.job.output, spec.job.layout))


def print_plans(plans: Iterator[tuple[str, Work]], *, as_json: bool) -> None:
    """A table a dataset, or all of them as JSON."""
    if as_json:
        print(json.dumps([_as_json(url, work) for url, work in plans], indent=1))  # noqa: T201
        return
    for url, work in plans:
        _print_plan(url, work)


def _as_json(url: str, work: Work) -> dict[str, Any]:
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
        "url": url,
        "has_work": work.has_work,
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
        f"{counted(fates['reused'], 'shard stays', 'shards stay')}, {fates['rewritten']:,} rewritten, "
        f"{fates['new']:,} new, {len(planned.dropped):,} dropped, "
        f"{counted(planned.num_refreshed, 'sample')} touched but the same, "
        f"{len(work.left_out):,} left out; {to_pack / 1e6:,.1f} MB to pack"
    )
