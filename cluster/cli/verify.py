"""What `dray verify` prints: what is wrong with a version of a dataset, and how to mend it.

A build packs anew what is missing, and never overwrites: so a damaged shard is deleted by hand first, and its index.
"""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import typer

from dray.cluster.cli.datasets import Found, find_dataset, find_datasets
from dray.cluster.cli.ls import parts_of
from dray.pipelines.inputs.encoder import Encoder
from dray.pipelines.progress import shard_progress
from dray.shards import Snapshot
from dray.shards.messages import counted
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.urls import local_path, split_version
from dray.shards.verify import Finding, Level, open_whole, verify
from dray.shards.versions import read_version

MOST_FINDINGS = 5  # printed of one object
_SHOWN_OPTIONS = ("endpoint", "region")  # of the storage options, in a printed command: the others may be secret


def verify_datasets(
    url: str,
    *,
    prefix: str | None,
    version: str | None,
    level: str,
    as_json: bool,
    names_file: Path | None,
    storage_options: StorageOptions,
) -> bool:
    """Returns whether a version of each dataset under a URL is whole; prints what is wrong and how to repair it.

    Raises:
        CallError: A file for the names of one dataset's samples, and several datasets.
        NotFoundError: There is no such dataset or version.
        StoreError: The store does not answer.
    """
    directory, pinned = split_version(url, version)
    if names_file is not None:
        words = ("verify", "--level", level, "--names", str(names_file))
        datasets = [find_dataset(directory, prefix, storage_options, words)]
    else:
        datasets = find_datasets(directory, prefix, storage_options)
    found = [_verify(one, pinned, level, names_file, storage_options, as_json=as_json) for one in datasets]
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    return not any(facts["findings"] for facts in found)


def _verify(
    found: Found,
    pinned: int | str | None,
    level: str,
    names_file: Path | None,
    storage_options: StorageOptions,
    *,
    as_json: bool,
) -> dict[str, Any]:
    """Returns what is wrong with one version; prints it, unless all is to be printed as JSON."""
    store, layout = found
    opened = open_whole(store, layout, pinned)
    snapshot = opened if isinstance(opened, Snapshot) else None
    number = snapshot.version if snapshot else pinned or "the last"
    findings = [opened] if isinstance(opened, Finding) else _verified(opened, level)
    facts: dict[str, Any] = {
        "url": store.url,
        "prefix": layout.prefix,
        "version": number,
        "level": level,
        "findings": [asdict(finding) for finding in findings],
        "delete": [],
        "rebuild": None,
    }
    if snapshot is not None and findings:
        if names_file and _can_mend(findings):
            names_file.write_text("".join(f"{name}\n" for name in names_in_order(snapshot)), encoding="utf-8")
        facts["delete"] = names_to_delete(snapshot, findings)
        facts["rebuild"] = rebuild_command(snapshot, findings, names_file, storage_options)
    if not as_json:
        _print_findings(findings)
        typer.echo(_summary(store.url, layout.prefix, number, level, findings, snapshot))
        is_last = pinned is None or number == read_version(store, layout).version
        for line in _advice(findings, snapshot, facts["delete"], facts["rebuild"], is_last=is_last):
            typer.echo(line)
    return facts


def _verified(snapshot: Snapshot, level: str) -> list[Finding]:
    title, num_shards = f"verifying {snapshot.layout.prefix}", len(snapshot.shards)
    with shard_progress(title, num_shards=num_shards, show=level != Level.QUICK) as advance:
        return list(verify(snapshot, level, on_shard=advance))


def _print_findings(findings: Iterable[Finding]) -> None:
    """The first few of each object: one damaged header may put a thousand samples in doubt."""
    for url, group in groupby(findings, lambda finding: finding.url):
        found = list(group)
        for finding in found[:MOST_FINDINGS]:
            typer.echo(str(finding))
        if (more := len(found) - MOST_FINDINGS) > 0:
            typer.echo(f"{url}: {more:,} more like these")


def _can_mend(findings: Sequence[Finding]) -> bool:
    """Whether a build can pack anew just what is wrong: it starts from the records of the last version."""
    return all(finding.shard is not None for finding in findings)


def names_to_delete(snapshot: Snapshot, findings: Sequence[Finding]) -> list[str]:
    """The tar and the index of each shard that something is wrong with, as far as they lie there: paths or URLs."""
    if not _can_mend(findings):
        return []
    store, layout = snapshot.store, snapshot.layout
    numbers = sorted({finding.shard for finding in findings if finding.shard is not None})
    names = [name for number in numbers for name in (layout.shard(number), layout.index(number))]
    urls = [store.url_of(name) for name in names if store.head(name)]
    return [local_path(url) or url for url in urls]


def names_in_order(snapshot: Snapshot) -> list[str]:
    """The names of all samples in the order in which they were packed: what a build needs to make the same shards."""
    table = snapshot.sources()
    places = {shard.number: place for place, shard in enumerate(snapshot.shards)}
    places_and_rows = [
        (places[number], row) for number, row in zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True)
    ]
    names = table["name"].to_pylist()
    return [names[row] for row in sorted(range(len(names)), key=places_and_rows.__getitem__)]


def _suffix_words(snapshot: Snapshot) -> list[str]:
    """The suffixes in their order; from the first on that samples lack they are optional."""
    recipe, parts = snapshot.manifest.recipe, parts_of(snapshot) or {}
    encoder = Encoder.from_json(recipe)
    words, option = [], "--suffix"
    for suffix in recipe["suffixes"]:
        outputs = encoder.outputs(suffix) if encoder else (suffix,)
        if sum(parts.get(name, 0) for name in outputs) < snapshot.num_samples:
            option = "--optional-suffix"
        words += [option, suffix]
    return words


def rebuild_command(
    snapshot: Snapshot, findings: Sequence[Finding], names_file: Path | None, storage_options: StorageOptions
) -> str | None:
    """The command line that packs anew what is missing; None where the dataset was made by a program's function."""
    recipe, prefix, counts = snapshot.manifest.recipe, snapshot.layout.prefix, snapshot.manifest.accounting
    if recipe["transform"] is not None:
        return None
    words = ["dray", "build", snapshot.manifest.source_url, snapshot.store.url]
    words += ["--prefix", prefix if _can_mend(findings) else f"mended-{prefix}"]
    words += _suffix_words(snapshot)
    if recipe["num_shards"] is not None:
        words += ["--shards", str(recipe["num_shards"])]
    if recipe["shuffle_seed"] is not None:
        words += ["--shuffle-seed", str(recipe["shuffle_seed"])]
    words += _encode_words(recipe)
    if names_file is not None and _can_mend(findings):
        words += ["--names", str(names_file)]
    elif counts.inputs > counts.packed:  # the file of names has only those that were packed
        on_error = "skip" if counts.skipped else "quarantine"
        words += ["--on-error", on_error, "--max-bad", str(counts.inputs - counts.packed)]
    for name in _SHOWN_OPTIONS:
        if name in storage_options and "@" not in storage_options[name]:
            words += ["--storage-option", f"{name}={storage_options[name]}"]
    return shlex.join(words)


def _encode_words(recipe: Mapping[str, Any]) -> list[str]:
    """How the parts were encoded."""
    encode = recipe.get("encode", {})
    wanted = [encode] if isinstance(encode, str) else [f"{suffix}={target}" for suffix, target in encode.items()]
    words = [word for value in wanted for word in ("--encode", value)]
    words += [word for name in recipe.get("allow", ()) for word in ("--allow", name)]
    return [*words, "--allow-pickle"] if recipe.get("allow_pickle") else words


def _summary(
    url: str, prefix: str, version: int | str, level: str, findings: Sequence[Finding], snapshot: Snapshot | None
) -> str:
    what = f"{url} {prefix} version {version}"
    size = ""
    if snapshot is not None:
        size = f": {counted(snapshot.num_samples, 'sample')} in {counted(len(snapshot.shards), 'shard')}"
    if not findings:
        return f"{what}{size}, all whole at level {level}"
    damaged = len({finding.shard for finding in findings if finding.shard is not None})
    return f"{what}{size}, {counted(len(findings), 'finding')} in {counted(damaged, 'shard')} at level {level}"


def _advice(
    findings: Sequence[Finding], snapshot: Snapshot | None, delete: Sequence[str], rebuild: str | None, *, is_last: bool
) -> Iterator[str]:
    """What to do, step by step."""
    if not findings:
        return
    yield ""
    if snapshot is None:
        yield "The version's own record is damaged, and no build can start from it. Build again under another prefix:"
        yield "dray build SRC DEST --prefix OTHER --suffix SUFFIX"
        return
    if not _can_mend(findings):
        yield "A record of the version is damaged, and no build can start from it. Go back to a whole version, which"
        yield f"dray log {snapshot.store.url} lists, by dray rollback; or build again under another prefix:"
    elif delete:
        yield f"To mend it, if the samples still lie in {snapshot.manifest.source_url}: delete these, or move them to"
        yield "another folder, for dray never overwrites"
        yield from (f"  {name}" for name in delete)
        yield "and build again; what is whole is kept:"
    else:
        yield "To mend it, build again; what is whole is kept:"
    if rebuild is None:
        yield f"Run the program that made it, with transform_version={snapshot.manifest.recipe['transform']!r}."
    else:
        yield f"  {rebuild}"
        if " --names " not in rebuild:
            yield "That packs every sample in the source. Was this dataset made of some (--names, --split), or in"
            yield "another order? Then run `dray verify` with --names FILE, and build with the same."
    if not is_last:
        yield "This is not the last version: a build mends only the shards that the last one has too."
