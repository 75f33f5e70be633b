"""The manifest of a version that indexes tars, and its table of samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dray.pipelines.building.manifest import put_rows
from dray.pipelines.indexing.changes import LEFT_OUT, KeyScope, TarPlan
from dray.pipelines.indexing.scan import ScannedTar
from dray.shards.errors import InputError
from dray.shards.layout import Location
from dray.shards.log import Intent
from dray.shards.manifest import Accounting, Kind, Manifest, Shard, part_table
from dray.shards.messages import counted
from dray.shards.parsing.parquet import sample_schema
from dray.shards.snapshot import Snapshot

MOST_NAMED = 5  # keys in an error


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Contents:
    """What a version is made of.

    Attributes:
        plan: The tars, and which of them keep their index.
        scanned: The records of the others, in order.
        keys: How keys are made of names.
        patterns: Names of the tars as the caller gave them; None: all tars of the folder.
    """

    plan: TarPlan
    scanned: Sequence[ScannedTar]
    keys: str
    patterns: Sequence[str] | None


def next_manifest(
    location: Location, base: str | None, contents: Contents, intent: Intent, last: Snapshot | None
) -> Manifest:
    """Returns the manifest of the next version; stores its table of samples, durably.

    Raises:
        InputError: No tar has a sample, or two samples have one key.
    """
    scanned = {one.number: one for one in contents.scanned}
    kept = {shard.number: shard for shard in last.manifest.counted_shards()} if last else {}
    digests = dict(zip(intent.shards, contents.plan.digests, strict=True))
    held = [number for number in intent.shards if number not in scanned or len(scanned[number].keys)]
    shards = [scanned[number].shard(digests[number]) if number in scanned else kept[number] for number in held]
    if not shards:
        raise InputError(f"{base or location.url}: none of {counted(len(contents.plan.tars), 'tar')} has a sample")
    samples = _samples([number for number in held if number not in scanned], scanned, last)
    _check_unique(samples, shards, contents.keys)
    last_arrays = last.manifest.arrays() if last else {}
    arrays = [scanned[number].arrays if number in scanned else last_arrays for number in held]
    parts, shown = part_table({}, shards, arrays)
    return Manifest(
        kind=Kind.INDEXED,
        base=base,
        prefix=location.prefix,
        source_url="",
        recipe={
            "keys": contents.keys,
            LEFT_OUT: _left_out(contents, digests),
            "patterns": None if contents.patterns is None else list(contents.patterns),
        },
        intent=intent.number,
        num_samples=len(samples),
        accounting=Accounting(inputs=0, packed=0),
        parts=parts,
        shards=shown,
        samples=put_rows(location, intent, samples, last.manifest.samples if last else None),
    )


def _left_out(contents: Contents, digests: dict[int, str]) -> dict[str, dict[str, str]]:
    """Returns name -> digest and reason of the tars that the version leaves out; no reason: they have no sample."""
    left = {
        one.tar.name: {"digest": digests[one.number], "why": one.problem}
        for one in contents.scanned
        if not len(one.keys)
    }
    return {**{name: dict(entry) for name, entry in contents.plan.left_out.items()}, **left}


def _samples(kept: Sequence[int], scanned: dict[int, ScannedTar], last: Snapshot | None) -> pa.Table:
    """Returns the table of samples, sorted by key."""
    schema = sample_schema(has_sources=False)
    tables = [_rows(one, schema) for one in scanned.values()]
    if last is not None and kept:
        old = last.samples()
        tables.append(
            old.filter(
                pc.call_function("is_in", [old["shard"]], pc.SetLookupOptions(value_set=pa.array(kept, pa.int64())))
            ).cast(schema)
        )
    return pa.concat_tables(tables).sort_by("key")


def _rows(one: ScannedTar, schema: pa.Schema) -> pa.Table:
    places = np.full(len(one.keys), one.number, np.int64), np.arange(len(one.keys), dtype=np.int64)
    return pa.table(dict(zip(schema.names, (one.keys, *map(pa.array, places)), strict=True)), schema=schema)


def _check_unique(samples: pa.Table, shards: Sequence[Shard], keys: str) -> None:
    """Checks that no two tars have a sample of one key.

    Raises:
        InputError: Some have; names keys and tars.
    """
    column = samples["key"]
    is_twice = (
        np.flatnonzero(pc.call_function("equal", [column[1:], column[:-1]]).to_numpy())
        if len(column) > 1
        else np.zeros(0, int)
    )
    if not len(is_twice):
        return
    order = {shard.number: place for place, shard in enumerate(shards)}
    sizes = {shard.number: shard.num_samples for shard in shards}
    split, listed = 0, list[str]()
    for row in is_twice.tolist():
        first, second = sorted(samples.slice(row, 2).to_pylist(), key=lambda found: order[found["shard"]])
        is_split = (
            order[first["shard"]] + 1 == order[second["shard"]]
            and first["row"] + 1 == sizes[first["shard"]]
            and second["row"] == 0
        )
        split += is_split
        if len(listed) < MOST_NAMED:
            names = [str(shards[order[found["shard"]]].name) for found in (first, second)]
            listed.append(f"{first['key']!r} in {names[0]} and {names[1]}{' (split over both)' if is_split else ''}")
    more = f" and {len(is_twice) - MOST_NAMED:,} more" if len(is_twice) > MOST_NAMED else ""
    hint = (
        "two tars differ in their folders' names alone: rename one"
        if keys == KeyScope.PER_TAR
        else "if they are different samples, give keys='per-tar', which puts the path of its tar before each key; if "
        "tars repeat each other, leave some out by a pattern; a sample that is split over two tars must be put "
        "together, as `dray reshard --unique-keys join` does in a copy of tars that are on a disk"
    )
    raise InputError(
        f"no version was made: {counted(len(is_twice), 'key')} in more than one tar, {split:,} of them of samples that "
        f"are split over two: {', '.join(listed)}{more}. Keys must be unique in a dataset; webdataset yields all of "
        f"them: {hint}. The indexes are kept for the next run"
    )
