"""The next version's manifest, made from the plan and the results of its tasks, and its tables."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dray.pipelines.building.job import PackedShard, PackJob
from dray.pipelines.building.survey import Work, none_left
from dray.pipelines.building.tables import LeftOut, left_out_table, source_table, table_chunks
from dray.pipelines.inputs.sources import EMPTY
from dray.pipelines.planning.changes import Changes
from dray.pipelines.planning.plan import compare, find_in, fingerprints_in, places_and_prints
from dray.pipelines.planning.recipe import Recipe
from dray.shards.errors import InputError
from dray.shards.index import digest_of
from dray.shards.layout import Location
from dray.shards.log import Intent, put_content
from dray.shards.manifest import Accounting, Manifest, Shard, TableChunk, part_table


def next_manifest(
    job: PackJob,
    recipe: Recipe,
    work: Work,
    intent: Intent,
    packed: Mapping[int, PackedShard],
    left_out: Sequence[LeftOut],
) -> tuple[Manifest, Changes]:
    """Returns the next version's manifest, and how it differs from the last; stores its tables, durably.

    Args:
        job: Where inputs and dataset are.
        recipe: The recipe of the build.
        work: The plan, and what it is based on.
        intent: The number of each planned shard.
        packed: Number -> record of each shard that was packed.
        left_out: The inputs that the version does not hold.

    Raises:
        InputError: No sample is left.
    """
    sources = work.sources
    last = work.snapshot.manifest if work.snapshot else None
    last_arrays = last.arrays() if last else {}
    kept = {shard.number: shard for shard in (last.counted_shards() if last else ())}
    numbers, rows = np.full(len(sources), -1, np.int64), np.zeros(len(sources), np.int64)
    hashes = _hashes_of_kept(work)
    shards, arrays = [], []
    for planned, number in zip(work.planned.shards, intent.shards, strict=True):
        held, found = planned.rows, packed.get(number)
        if found is not None and not found.num_samples:
            continue
        if found is not None:
            held = held[found.is_packed]
            hashes[held] = found.source_hashes
        shards.append(kept[number] if found is None else _made(found, planned.digest))
        arrays.append(last_arrays if found is None else found.arrays)
        numbers[held], rows[held] = number, np.arange(len(held))
    is_held = np.flatnonzero(numbers >= 0)
    if not len(is_held):
        raise InputError(none_left(work.num_inputs, job.inputs.url, left_out))
    held_sources, held_hashes = sources.take(is_held), hashes[is_held]
    table = source_table(held_sources, held_hashes, (numbers[is_held], rows[is_held]))
    parts, shown = part_table(recipe.to_json(), shards, arrays)
    manifest = Manifest(
        prefix=job.location.prefix,
        source_url=job.inputs.url,
        recipe=recipe.to_json(),
        intent=intent.number,
        num_samples=len(is_held),
        accounting=accounting_of(work.num_inputs, len(is_held), left_out),
        parts=parts,
        shards=shown,
        sources=put_rows(job.location, intent, table, last.sources if last else None),
        left_out=put_table(job.location, intent, left_out_table(left_out), len(left_out), {}) if left_out else None,
    )
    return manifest, compare(work.last, held_sources, held_hashes)


def _made(packed: PackedShard, digest: str) -> Shard:
    """Returns the manifest's record of a shard that was packed, with the counts of its parts."""
    return Shard(
        number=packed.number,
        num_bytes=packed.num_bytes,
        num_samples=packed.num_samples,
        digest=digest,
        index_digest=packed.index_digest,
        parts=packed.parts,
    )


def accounting_of(num_inputs: int, num_packed: int, left_out: Sequence[LeftOut]) -> Accounting:
    """Returns the counts of inputs by outcome."""
    fates = [left.fate for left in left_out]
    return Accounting(
        inputs=num_inputs,
        packed=num_packed,
        empty=fates.count(EMPTY),
        skipped=fates.count("skipped"),
        quarantined=fates.count("quarantined"),
    )


def put_rows(
    location: Location, intent: Intent, table: pa.Table, last: Sequence[TableChunk] | None = None
) -> tuple[TableChunk, ...]:
    """Store a table of sources or samples under the intent, durably; chunks that `last` has as well are shared."""
    known = {chunk.digest: chunk for chunk in last or ()}
    return tuple(put_table(location, intent, body, num_rows, known) for num_rows, body in table_chunks(table))


def put_table(
    location: Location, intent: Intent, body: bytes, num_rows: int, known: Mapping[str, TableChunk]
) -> TableChunk:
    """Store a table of the manifest under the intent, durably, unless its digest is among the known ones."""
    digest = digest_of(body)
    if digest in known:
        return known[digest]
    put_content(location.store, location.layout.table(intent.number, digest), body)
    return TableChunk(intent=intent.number, digest=digest, num_rows=num_rows)


def _hashes_of_kept(work: Work) -> NDArray[np.uint64]:
    """Returns (n, s) xxh3_64 of each input file of the shards that stay, by the last version; 0 for the others."""
    sources = work.sources
    hashes = np.zeros(sources.sizes.shape, np.uint64)
    kept = [shard.rows for shard in work.planned.shards if shard.fate == "reused"]
    if work.last is not None and kept:
        rows = np.concatenate(kept)
        old = places_and_prints(work.last.table, find_in(work.last.table, sources.take(rows)))
        hashes[rows] = fingerprints_in(old, sources.suffixes, "xxh3_64")
    return hashes
