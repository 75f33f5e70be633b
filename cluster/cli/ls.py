"""What `dray ls` shows: the datasets under a URL, their last or a given version, and the tars of it.

The cost is a listing and three small reads a dataset, whatever the number of shards.
"""

import json
import re
from collections import Counter
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from dray.cluster.cli.datasets import find_datasets
from dray.pipelines.inputs.encoder import Encoder
from dray.shards import Snapshot
from dray.shards.messages import counted
from dray.shards.parts import is_pickled, stored_counts
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.urls import split_version
from dray.shards.versions import read_version

Form = Literal["table", "all", "urls", "json"]

MOST_SHARDS = 20  # rows of a table unless all are asked for


def list_datasets(
    url: str, *, prefix: str | None, version: str | None, form: Form, storage_options: StorageOptions
) -> None:
    """Print the datasets in a folder, one version of each, in the form asked for.

    Raises:
        NotFoundError: There is none, or not that version.
    """
    directory, pinned = split_version(url, version)
    found = find_datasets(directory, prefix, storage_options)
    snapshots = [Snapshot.load(store, layout, read_version(store, layout, pinned)) for store, layout in found]
    console = Console()
    if form == "json":
        _print(console, json.dumps([_facts(snapshot) for snapshot in snapshots], indent=1))
        return
    for snapshot in snapshots:
        if form == "urls":
            _print_urls(console, snapshot)
        else:
            _print_dataset(console, snapshot, most_shards=None if form == "all" else MOST_SHARDS)


def _print_urls(console: Console, snapshot: Snapshot) -> None:
    """The tars on standard output, for a pipe; their pattern on standard error, so that no reader takes both."""
    _print(console, "\n".join(snapshot.urls()))
    if pattern := brace_pattern(snapshot):
        _print(Console(stderr=True), f"as one pattern: {pattern}")


def _print(console: Console, text: str) -> None:
    """Plain text as it is: no markup, no colours, no line breaks of the console's own."""
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def brace_pattern(snapshot: Snapshot) -> str | None:
    """The URLs of all tars as one pattern, `.../wdshards-{000000..000009}.tar`; None where none exists."""
    if re.search("[{}]", snapshot.store.url):  # a reader would expand the folder's own braces
        return None
    pattern = snapshot.layout.brace_pattern([shard.number for shard in snapshot.shards])
    return None if pattern is None else snapshot.store.url_of(pattern)


def _facts(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "url": snapshot.store.url,
        "prefix": snapshot.layout.prefix,
        "version": snapshot.version,
        "created": snapshot.commit.created,
        "num_samples": snapshot.num_samples,
        "num_bytes": snapshot.num_bytes,
        "num_shards": len(snapshot.shards),
        "num_skipped": snapshot.manifest.accounting.skipped,
        "num_quarantined": snapshot.manifest.accounting.quarantined,
        "num_omitted": snapshot.manifest.accounting.omitted,
        "left_out": snapshot.left_out_url(),
        "source_url": snapshot.manifest.source_url,
        "recipe": dict(snapshot.manifest.recipe),
        "parts": parts_of(snapshot),
        "pickles": pickles_of(snapshot),
        "brace_pattern": brace_pattern(snapshot),
        "shards": [
            {"url": url, "num_samples": shard.num_samples, "num_bytes": shard.num_bytes}
            for url, shard in zip(snapshot.urls(), snapshot.shards, strict=True)
        ],
    }


def _print_dataset(console: Console, snapshot: Snapshot, *, most_shards: int | None) -> None:
    """What it is, then a table of its shards."""
    size = f"{counted(snapshot.num_samples, 'sample')} in {counted(len(snapshot.shards), 'shard')}"
    lines = [
        f"{snapshot.store.url} {snapshot.layout.prefix} version {snapshot.version}, made {snapshot.commit.created}",
        f"  holds   {size}, {snapshot.num_bytes / 1e6:,.1f} MB",
        f"  parts   {_parts_line(snapshot)}",
        *_pickles_line(snapshot),
        f"  source  {snapshot.manifest.source_url}",
    ]
    if snapshot.manifest.left_out is not None:
        counts = snapshot.manifest.accounting
        omitted = f", {counts.omitted:,} omitted" if counts.omitted else ""
        lines.append(
            f"  without {counts.skipped:,} skipped, {counts.quarantined:,} quarantined{omitted}: see --left-out"
        )
    if pattern := brace_pattern(snapshot):
        lines.append(f"  tars    {pattern}")
    _print(console, "\n".join(lines))
    console.print(_shard_table(snapshot, most_shards))


def parts_of(snapshot: Snapshot) -> dict[str, int] | None:
    """Suffix -> how many samples have that part; None where a function made the parts and nobody counted them."""
    total: Counter[str] = Counter()
    for shard in snapshot.shards:
        counts = stored_counts(snapshot.manifest, shard)
        if counts is None:
            return None
        total.update(counts)
    return dict(total)


def pickles_of(snapshot: Snapshot) -> dict[str, int] | None:
    """The same of the parts that are pickles."""
    parts = parts_of(snapshot)
    return None if parts is None else {suffix: count for suffix, count in parts.items() if is_pickled(suffix)}


def _parts_line(snapshot: Snapshot) -> str:
    """The parts; an encoded one with what it was: `tensor.npy (encoded from tensor.pyd)`."""
    recipe, parts = snapshot.manifest.recipe, parts_of(snapshot) or {}
    encoder = Encoder.from_json(recipe)
    transform = f", transform {recipe['transform']}" if recipe["transform"] else ""
    if encoder is None:
        lacking = {} if transform else {suffix: parts.get(suffix, 0) for suffix in recipe["suffixes"]}
        return (
            ", ".join(
                suffix
                if lacking.get(suffix, snapshot.num_samples) == snapshot.num_samples
                else f"{suffix} ({lacking[suffix]:,} of {snapshot.num_samples:,} samples)"
                for suffix in recipe["suffixes"]
            )
            + transform
        )
    if transform:
        return f"{', '.join(sorted(parts))} (encoded, of {', '.join(recipe['suffixes'])}){transform}"
    shown = []
    for suffix in recipe["suffixes"]:
        outputs = [name for name in encoder.outputs(suffix) if name in parts]
        shown.append(", ".join(outputs) + (f" (encoded from {suffix})" if outputs != [suffix] else ""))
    return ", ".join(shown)


def _pickles_line(snapshot: Snapshot) -> list[str]:
    """Which parts a reader has to unpickle, if that is known."""
    pickles = pickles_of(snapshot)
    if pickles is None:
        return []
    of = f"of {counted(snapshot.num_samples, 'sample')}"
    counts = ", ".join(f"{suffix} ({count:,} {of})" for suffix, count in pickles.items())
    return [f"  pickles: {counts or 'none'}"]


def _shard_table(snapshot: Snapshot, most_shards: int | None) -> Table:
    shown = snapshot.shards[:most_shards]
    table = Table(box=None, pad_edge=True)
    for heading in ("shard", "samples", "bytes"):
        table.add_column(heading, justify="right")
    for shard in shown:
        table.add_row(f"{shard.number:06d}", f"{shard.num_samples:,}", f"{shard.num_bytes:,}")
    if more := len(snapshot.shards) - len(shown):
        table.add_row("...", f"{more:,} more", "--all")
    return table
