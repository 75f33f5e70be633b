"""What `dray diff` prints: the samples, shards, recipe and sources in which two versions differ."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import typer

from dray.cluster.cli.datasets import find_dataset, without_version
from dray.shards import Snapshot
from dray.shards.diff import Diff, diff
from dray.shards.storage.client import StorageOptions
from dray.shards.versions import read_version

MOST_KEYS = 20  # of each kind, unless all are asked for


def print_diff(
    url: str,
    a: str,
    b: str | None,
    *,
    prefix: str | None,
    all_keys: bool,
    as_json: bool,
    storage_options: StorageOptions,
) -> None:
    """What version B of a dataset has that A has not, and the other way round; B is the last where None.

    Raises:
        NotFoundError: There is no such dataset or version, or it was dropped.
        DamagedError: A version's records are damaged.
    """
    words = ("diff", a, *(() if b is None else (b,)))
    found = store, layout = find_dataset(without_version(url), prefix, storage_options, words)
    old, new = (Snapshot.load(store, layout, read_version(store, layout, version)) for version in (a, b))
    difference = diff(old, new)
    if as_json:
        facts = {"url": store.url, "prefix": layout.prefix, "a": old.version, "b": new.version}
        typer.echo(json.dumps(facts | asdict(difference), indent=1))
        return
    typer.echo(f"{found} from version {old.version} to {new.version}")
    for line in _lines(difference, old.version, new.version, None if all_keys else MOST_KEYS):
        typer.echo(line)


def _lines(found: Diff, a: int, b: int, most: int | None) -> Iterator[str]:
    if found.is_empty:
        yield "  the same"
        return
    yield (
        f"  samples  {len(found.added):,} added, {len(found.removed):,} removed, {len(found.changed):,} changed, "
        f"{found.num_same:,} the same"
    )
    yield (
        f"  shards   {len(found.shards_in_both):,} in both, {len(found.shards_in_a):,} only in {a}"
        f"{_numbers(found.shards_in_a, most)}, {len(found.shards_in_b):,} only in {b}"
        f"{_numbers(found.shards_in_b, most)}"
    )
    for name, (before, after) in found.recipe.items():
        yield f"  recipe   {name}: {json.dumps(before)} -> {json.dumps(after)}"
    if found.source_url is not None:
        yield f"  source   {found.source_url[0]} -> {found.source_url[1]}"
    for mark, keys in (("+", found.added), ("-", found.removed), ("~", found.changed)):
        yield from (f"  {mark} {key}" for key in keys[:most])
        if more := len(keys) - len(keys[:most]):
            yield f"  {mark} {more:,} more (--all)"


def _numbers(numbers: Sequence[int], most: int | None) -> str:
    shown = [f"{number:06d}" for number in numbers[:most]] + ["..."] * (len(numbers) > len(numbers[:most]))
    return f" ({', '.join(shown)})" if shown else ""
