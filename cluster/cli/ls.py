"""`dray ls`: print one version of each dataset in a folder, its tars, or the inputs that it leaves out.

It costs a listing and three small reads per dataset, whatever the number of shards.
"""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dray.cluster.cli.options import AsJson, VersionOptions
from dray.cluster.cli.wording import in_words
from dray.pipelines.inputs.encoder import Encoder
from dray.shards import Snapshot
from dray.shards.manifest import Kind
from dray.shards.messages import counted
from dray.shards.parts import is_pickled

MAX_ROWS = 20  # of a table, unless --all is given
_LEFT_OUT_FIELDS = ("name", "fate", "stage", "file", "error")
_BUILD_OPTIONS = {  # which a stored reason may name
    "allow": "--allow",
    "allow_pickle": "--allow-pickle",
    "encode": "--encode",
    "max_bad": "--max-bad",
    "on_error": "--on-error",
}


def ls(
    dataset: VersionOptions,
    *,
    urls: Annotated[
        bool,
        typer.Option("--urls", help="Print only the tars' URLs, one per line, and on standard error their pattern."),
    ] = False,
    as_json: AsJson = False,
    all_shards: Annotated[bool, typer.Option("--all", help="List all shards, not only the first 20.")] = False,
    left_out: Annotated[
        bool, typer.Option("--left-out", help="Print only the inputs that are left out, and why.")
    ] = False,
) -> None:
    """Show the datasets in a folder: version, size, parts, shards.

    [bold]Examples[/]

    [cyan]dray ls dray-quickstart/shards/train[/]

    [cyan]dray ls s3://lab/digits/train --prefix wdshards --version 3 --all[/]

    The tars of the version for another WebDataset reader; the folder may hold more:

    [cyan]dray ls s3://lab/digits/train --urls > tars.txt[/]

    Which inputs a build with --on-error skip left out:

    [cyan]dray ls s3://lab/digits/train --left-out[/]
    """
    snapshots = dataset.snapshots()
    if left_out:
        _print_left_out(snapshots, as_json=as_json)
    elif urls:
        for snapshot in snapshots:
            _print_urls(snapshot)
    elif as_json:
        typer.echo(json.dumps([_facts(snapshot) for snapshot in snapshots], indent=1))
    else:
        for snapshot in snapshots:
            _print_dataset(snapshot, max_rows=None if all_shards else MAX_ROWS)


def _print_urls(snapshot: Snapshot) -> None:
    """Print the tars on standard output, for a pipe, and their pattern on standard error."""
    typer.echo("\n".join(snapshot.urls()))
    if pattern := brace_pattern(snapshot):
        typer.echo(f"as one pattern: {pattern}", err=True)


def brace_pattern(snapshot: Snapshot) -> str | None:
    """Returns the URLs of all tars as one pattern, `.../wdshards-{000000..000009}.tar`; None if there is none."""
    is_indexed = snapshot.manifest.kind == Kind.INDEXED  # its tars have names of their own
    if is_indexed or re.search("[{}]", snapshot.store.url):  # a reader would expand the folder's own braces
        return None
    pattern = snapshot.layout.brace_pattern([shard.number for shard in snapshot.shards])
    return None if pattern is None else snapshot.store.url_of(pattern)


def _facts(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "url": snapshot.store.url,
        "prefix": snapshot.layout.prefix,
        "version": snapshot.version,
        "kind": snapshot.manifest.kind,
        "created": snapshot.commit.created,
        "num_samples": snapshot.num_samples,
        "num_bytes": snapshot.num_bytes,
        "num_shards": len(snapshot.shards),
        "num_skipped": snapshot.manifest.accounting.skipped,
        "num_quarantined": snapshot.manifest.accounting.quarantined,
        "num_empty": snapshot.manifest.accounting.empty,
        "left_out": snapshot.left_out_url(),
        "source_url": snapshot.manifest.source_url,
        "base": snapshot.manifest.base,
        "recipe": dict(snapshot.manifest.recipe),
        "parts": parts_of(snapshot),
        "pickles": pickles_of(snapshot),
        "brace_pattern": brace_pattern(snapshot),
        "shards": [
            {"url": url, "num_samples": shard.num_samples, "num_bytes": shard.num_bytes}
            for url, shard in zip(snapshot.urls(), snapshot.shards, strict=True)
        ],
    }


def _print_dataset(snapshot: Snapshot, *, max_rows: int | None) -> None:
    """Print a summary and a table of the shards."""
    manifest = snapshot.manifest
    has_both = manifest.sources is not None and manifest.samples is not None  # a source gave any number of samples
    of = f" of {counted(manifest.accounting.packed, 'source')}" if has_both else ""
    size = f"{counted(snapshot.num_samples, 'sample')}{of} in {counted(len(snapshot.shards), 'shard')}"
    lines = [
        f"{snapshot.store.url} {snapshot.layout.prefix} version {snapshot.version}, made {snapshot.commit.created}",
        f"  holds   {size}, {snapshot.num_bytes / 1e6:,.1f} MB",
        f"  parts   {_parts_line(snapshot)}",
        _pickles_line(snapshot),
    ]
    if snapshot.manifest.source_url:
        lines.append(f"  source  {snapshot.manifest.source_url}")
    if snapshot.manifest.left_out is not None:
        counts = snapshot.manifest.accounting
        empty = f", {counts.empty:,} empty" if counts.empty else ""
        lines.append(f"  without {counts.skipped:,} skipped, {counts.quarantined:,} quarantined{empty}: see --left-out")
    if pattern := brace_pattern(snapshot):
        lines.append(f"  tars    {pattern}")
    if snapshot.tars.is_foreign:
        lines.append(f"  tars    of other programs, indexed in place under {snapshot.tars.url}")
    typer.echo("\n".join(lines))
    Console().print(_shard_table(snapshot, max_rows))


def parts_of(snapshot: Snapshot) -> dict[str, int]:
    """Returns the suffix of each stored part -> number of samples that have it."""
    forms = (item for part in snapshot.manifest.parts for item in part.forms.items())
    return {suffix: count for suffix, count in forms if count}


def pickles_of(snapshot: Snapshot) -> dict[str, int]:
    """Returns the same for the parts that are pickles."""
    return {suffix: count for suffix, count in parts_of(snapshot).items() if is_pickled(suffix)}


def _parts_line(snapshot: Snapshot) -> str:
    """Returns the list of parts, an encoded one with its source: `tensor.npy (encoded from tensor.pyd)`."""
    recipe, parts = snapshot.manifest.recipe, parts_of(snapshot)
    if snapshot.manifest.kind != Kind.BUILD:
        return ", ".join(parts)
    encoder = Encoder.from_json(recipe)
    transform = f", transform {recipe['transform']}" if recipe["transform"] else ""
    if encoder is None and transform:
        return ", ".join(recipe["suffixes"]) + transform
    if encoder is None:
        return ", ".join(_with_count(suffix, parts, snapshot.num_samples) for suffix in recipe["suffixes"])
    if transform:
        return f"{', '.join(sorted(parts))} (encoded, of {', '.join(recipe['suffixes'])}){transform}"
    shown = []
    for suffix in recipe["suffixes"]:
        outputs = [name for name in encoder.outputs(suffix) if name in parts]
        shown.append(", ".join(outputs) + (f" (encoded from {suffix})" if outputs != [suffix] else ""))
    return ", ".join(shown)


def _with_count(suffix: str, parts: dict[str, int], num_samples: int) -> str:
    """Returns a suffix, and the number of samples that have that part if not all have."""
    count = parts.get(suffix, 0)
    return suffix if count == num_samples else f"{suffix} ({count:,} of {num_samples:,} samples)"


def _pickles_line(snapshot: Snapshot) -> str:
    """Returns which parts a reader has to unpickle."""
    of = f"of {counted(snapshot.num_samples, 'sample')}"
    counts = ", ".join(f"{suffix} ({count:,} {of})" for suffix, count in pickles_of(snapshot).items())
    return f"  pickles: {counts or 'none'}"


def _shard_table(snapshot: Snapshot, max_rows: int | None) -> Table:
    shown = snapshot.shards[:max_rows]
    table = Table(box=None, pad_edge=True)
    for heading in ("shard", "samples", "bytes"):
        table.add_column(heading, justify="right")
    for shard in shown:
        table.add_row(shard.label, f"{shard.num_samples:,}", f"{shard.num_bytes:,}")
    if more := len(snapshot.shards) - len(shown):
        table.add_row("...", f"{more:,} more", "--all")
    return table


def _print_left_out(snapshots: Sequence[Snapshot], *, as_json: bool) -> None:
    """Print the inputs that each snapshot leaves out."""
    if as_json:
        typer.echo(json.dumps([_left_out_facts(snapshot) for snapshot in snapshots], indent=1))
        return
    for snapshot in snapshots:
        inputs = _left_out_inputs(snapshot)
        what = f"{snapshot.store.url} {snapshot.layout.prefix} version {snapshot.version}"
        typer.echo(f"{what}: {counted(len(inputs), 'input is', 'inputs are')} left out")
        for entry in inputs:
            reason = in_words(" ".join(entry["error"].split()), _BUILD_OPTIONS)
            typer.echo(f"  {entry['name']}  {entry['fate']}: {reason}")


def _left_out_facts(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "url": snapshot.store.url,
        "prefix": snapshot.layout.prefix,
        "version": snapshot.version,
        "left_out": _left_out_inputs(snapshot),
    }


def _left_out_inputs(snapshot: Snapshot) -> list[dict[str, str]]:
    """Returns name, fate, stage, file and error of each input, sorted by name."""
    table = snapshot.left_out()
    return [] if table is None else table.select(_LEFT_OUT_FIELDS).to_pylist()
