"""What `dray plan` does: work out what a build would do, and print it."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from dray.cluster.build import group_folders, read_names
from dray.pipelines.build import work_out
from dray.pipelines.pack import PackJob
from dray.pipelines.plan import Plan, Recipe
from dray.shards import Store
from dray.shards.client import StorageOptions
from dray.shards.layout import Layout, check_suffixes


def plan_datasets(
    source: str,
    destination: str,
    *,
    prefix: str,
    suffixes: list[str],
    num_shards: int | None,
    names_file: str | None,
    fractions: Mapping[str, float] | None,
    seed: int,
    storage_options: StorageOptions,
) -> Iterator[tuple[str, Plan]]:
    """(URL, plan) of the dataset in `destination`, or of each group of a split; nothing is written."""
    inputs, recipe = Store(source, storage_options), Recipe(suffixes=check_suffixes(suffixes), num_shards=num_shards)
    names = read_names(names_file, inputs, recipe.suffixes)
    for folder, group in group_folders(destination, names, fractions, seed).items():
        output = Store(folder, storage_options)
        job = PackJob(inputs=inputs, output=output, layout=Layout(prefix), transform=None)
        yield output.url, work_out(job, recipe, group, progress=True).planned


def print_plans(plans: Iterator[tuple[str, Plan]], *, as_json: bool) -> None:
    """A table a dataset, or all of them as JSON."""
    if as_json:
        print(json.dumps([_as_json(url, planned) for url, planned in plans], indent=1))  # noqa: T201
        return
    for url, planned in plans:
        _print_plan(url, planned)


def _as_json(url: str, planned: Plan) -> dict[str, Any]:
    shards = [
        {
            "fate": shard.fate,
            "number": shard.number,
            "samples": len(shard.rows),
            "bytes": shard.num_bytes,
            "reason": shard.reason,
        }
        for shard in planned.shards
    ]
    return {"url": url, "shards": shards, "dropped": planned.num_dropped, "refreshed": planned.num_refreshed}


def _print_plan(url: str, planned: Plan) -> None:
    """The shards that would be packed; those that stay are only counted."""
    packed = [shard for shard in planned.shards if shard.fate != "reused"]
    table = Table("fate", "samples", "bytes", "why", box=None)
    for shard in packed:
        table.add_row(shard.fate, f"{len(shard.rows):,}", f"{shard.num_bytes:,}", shard.reason)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{url}: {_summary(planned)}")
    if packed:
        console.print(table)


def _summary(planned: Plan) -> str:
    if not planned.has_work:
        return f"nothing to do, {len(planned.shards):,} shards stay"
    fates = Counter(shard.fate for shard in planned.shards)
    to_pack = sum(shard.num_bytes for shard in planned.shards if shard.fate != "reused")
    return (
        f"{fates['reused']:,} shards stay, {fates['rewritten']:,} rewritten, {fates['new']:,} new, "
        f"{planned.num_dropped:,} dropped, {planned.num_refreshed:,} samples touched but the same; "
        f"{to_pack / 1e6:,.1f} MB to pack"
    )
