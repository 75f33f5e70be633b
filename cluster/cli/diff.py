"""`dray diff`: print the samples, shards, recipe and source in which two versions differ."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from dray.cluster.cli.options import DatasetOptions
from dray.shards import Snapshot
from dray.shards.diff import Diff
from dray.shards.diff import diff as compare
from dray.shards.manifest import Shard
from dray.shards.versions import read_version

MAX_KEYS = 20  # of each kind, unless --all is given


def diff(
    dataset: DatasetOptions,
    a: Annotated[str, typer.Argument(metavar="A", help="Old version: a number, or the name of a hold.")],
    b: Annotated[
        str | None,
        typer.Argument(metavar="B", help="New version: a number, or the name of a hold.", show_default="the last"),
    ] = None,
    *,
    all_keys: Annotated[
        bool, typer.Option("--all", help="List all keys and shards, not only the first 20 of each kind.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: one object.")] = False,
) -> None:
    """Show what differs between two versions: samples, shards, recipe, source.

    Samples are compared by their content: + was added, - removed, ~ changed. No shard is read.

    [bold]Examples[/]

    What the versions since 3 changed:

    [cyan]dray diff shards/train 3[/]

    [cyan]dray diff s3://lab/digits/train paper 7 --all[/]
    """
    found = dataset.find_one("diff", a, *(() if b is None else (b,)))
    old, new = (Snapshot.load(found, read_version(found, version)) for version in (a, b))
    difference = compare(old, new)
    if as_json:
        facts = {"url": found.url, "prefix": found.prefix, "a": old.version, "b": new.version}
        urls = {f"urls_in_{name}": _urls(*of) for name, of in _only_in(difference, old, new).items()}
        typer.echo(json.dumps(facts | asdict(difference) | urls, indent=1))
        return
    typer.echo(f"{found} from version {old.version} to {new.version}")
    for line in _lines(difference, old, new, None if all_keys else MAX_KEYS):
        typer.echo(line)


def _only_in(found: Diff, a: Snapshot, b: Snapshot) -> dict[str, tuple[Snapshot, Sequence[int]]]:
    return {"a": (a, found.shards_in_a), "b": (b, found.shards_in_b)}


def _urls(snapshot: Snapshot, numbers: Sequence[int]) -> list[str]:
    return [snapshot.shard_url(shard) for shard in _numbered(snapshot, numbers)]


def _numbered(snapshot: Snapshot, numbers: Sequence[int]) -> list[Shard]:
    shards = {shard.number: shard for shard in snapshot.shards}
    return [shards[number] for number in numbers]


def _lines(found: Diff, a: Snapshot, b: Snapshot, most: int | None) -> Iterator[str]:
    if found.is_empty:
        yield "  the same"
        return
    yield (
        f"  samples  {len(found.added):,} added, {len(found.removed):,} removed, {len(found.changed):,} changed, "
        f"{found.num_same:,} the same"
    )
    yield (
        f"  shards   {len(found.shards_in_both):,} in both, {len(found.shards_in_a):,} only in {a.version}"
        f"{_labels(a, found.shards_in_a, most)}, {len(found.shards_in_b):,} only in {b.version}"
        f"{_labels(b, found.shards_in_b, most)}"
    )
    for name, (before, after) in found.recipe.items():
        yield f"  recipe   {name}: {json.dumps(before)} -> {json.dumps(after)}"
    if found.source_url is not None:
        yield f"  source   {found.source_url[0]} -> {found.source_url[1]}"
    for mark, keys in (("+", found.added), ("-", found.removed), ("~", found.changed)):
        yield from (f"  {mark} {key}" for key in keys[:most])
        if more := len(keys) - len(keys[:most]):
            yield f"  {mark} {more:,} more (--all)"


def _labels(snapshot: Snapshot, numbers: Sequence[int], most: int | None) -> str:
    shown = [shard.label for shard in _numbered(snapshot, numbers[:most])] + ["..."] * (
        len(numbers) > len(numbers[:most])
    )
    return f" ({', '.join(shown)})" if shown else ""
