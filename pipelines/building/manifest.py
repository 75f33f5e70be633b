"""The next version's manifest, from the plan and what came of its tasks; its tables are stored on the way."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dray.pipelines.building.job import PackedShard, PackJob
from dray.pipelines.building.survey import Work, none_left
from dray.pipelines.building.tables import LeftOut, left_out_table, source_chunks
from dray.pipelines.inputs.sources import EMPTY
from dray.pipelines.planning.changes import Changes
from dray.pipelines.planning.plan import Recipe, compare, find_in, fingerprints_in
from dray.shards.errors import InputError
from dray.shards.index import digest_of
from dray.shards.log import Intent, put_content
from dray.shards.manifest import Accounting, Manifest, Shard, SourceChunk


def next_manifest(
    job: PackJob,
    recipe: Recipe,
    work: Work,
    intent: Intent,
    packed: Mapping[int, PackedShard],
    left_out: Sequence[LeftOut],
) -> tuple[Manifest, Changes]:
    """The content of the next version, and how it differs from the last; its tables are stored, durably.

    Args:
        job: The stores and the names on them.
        recipe: What decided the bytes.
        work: With the plan.
        intent: The number of each planned shard.
        packed: Number -> record of each shard that does not stay.
        left_out: All inputs that the version does not hold.

    Raises:
        InputError: No sample is left.
    """
    sources = work.sources
    kept = {shard.number: shard for shard in (work.last.shards if work.last else ())}
    numbers, rows = np.full(len(sources), -1, np.int64), np.zeros(len(sources), np.int64)
    hashes = _hashes_of_kept(work)
    shards = []
    for planned, number in zip(work.planned.shards, intent.shards, strict=True):
        held = planned.rows
        if number not in packed:
            shards.append(kept[number])
        elif num_samples := packed[number].num_samples:
            held = planned.rows[packed[number].is_packed]
            hashes[held] = packed[number].source_hashes
            shard = packed[number]
            shards.append(
                Shard(
                    number=number,
                    num_bytes=shard.num_bytes,
                    num_samples=num_samples,
                    digest=planned.digest,
                    index_digest=shard.index_digest,
                    parts=shard.parts,
                )
            )
        else:
            continue
        numbers[held], rows[held] = number, np.arange(len(held))
    is_held = np.flatnonzero(numbers >= 0)
    if not len(is_held):
        raise InputError(none_left(work.num_inputs, job.inputs.url, left_out))
    held_sources, held_hashes = sources.take(is_held), hashes[is_held]
    tables = source_chunks(held_sources, numbers[is_held], rows[is_held], held_hashes)
    known = {chunk.digest: chunk for chunk in (work.snapshot.manifest.sources if work.snapshot else ())}
    fates = [left.fate for left in left_out]
    manifest = Manifest(
        prefix=job.layout.prefix,
        source_url=job.inputs.url,
        recipe=recipe.to_json(),
        intent=intent.number,
        accounting=Accounting(
            inputs=work.num_inputs,
            packed=sum(shard.num_samples for shard in shards),
            skipped=fates.count("skipped"),
            quarantined=fates.count("quarantined"),
            empty=fates.count(EMPTY),
        ),
        shards=tuple(shards),
        sources=tuple(put_table(job, intent, body, num_rows, known) for num_rows, body in tables),
        left_out=put_table(job, intent, left_out_table(left_out), len(left_out), {}) if left_out else None,
    )
    return manifest, compare(work.last, held_sources, held_hashes)


def put_table(
    job: PackJob, intent: Intent, body: bytes, num_rows: int, known: Mapping[str, SourceChunk]
) -> SourceChunk:
    """Store a table of the manifest under the intent, durably; one that the last version has too stays where it is."""
    digest = digest_of(body)
    if digest in known:
        return known[digest]
    put_content(job.output, job.layout.table(intent.number, digest), body)
    return SourceChunk(intent=intent.number, digest=digest, num_rows=num_rows)


def _hashes_of_kept(work: Work) -> NDArray[np.uint64]:
    """(n, s) xxh3_64 of each input file of the shards that stay, as the last version noted it; 0 for the others."""
    sources = work.sources
    hashes = np.zeros(sources.sizes.shape, np.uint64)
    kept = [shard.rows for shard in work.planned.shards if shard.fate == "reused"]
    if work.last is not None and kept:
        rows = np.concatenate(kept)
        old = work.last.table.take(pa.array(find_in(work.last.table, sources.take(rows))))
        hashes[rows] = fingerprints_in(old, sources.suffixes, "xxh3_64")
    return hashes
