"""What the next version of a dataset that is made of input files keeps, copies and makes again.

Inputs are compared with the table of sources of the last version, as a build does. Only sources that are new or changed
are made again; samples of the others stay in their shards, or are copied as they are stored.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dray.pipelines.building.survey import (
    BuildSpec,
    find_usable,
    last_of,
    marks_in,
    marks_of,
    refusal_of,
    same_contents,
    stamps_of,
    without,
)
from dray.pipelines.building.tables import LeftOut
from dray.pipelines.inputs.sources import EMPTY, BadInput, Sources
from dray.pipelines.inputs.tolerance import OnError
from dray.pipelines.planning.changes import Changes
from dray.pipelines.planning.plan import Last, changed_fields, compare, find_in, has_same_prints, places_and_prints
from dray.pipelines.planning.rewrites import COPIED, Copied, Place, Reuse, plan_reuse, plan_rewrites
from dray.pipelines.versions.attempts import stored_sizes
from dray.pipelines.writing.announce import open_written
from dray.pipelines.writing.sourced import SIZES, Copy, SourcedPlan, plan_of
from dray.pipelines.writing.stored import StoredShard, find_stored, view_of
from dray.shards.errors import CallError
from dray.shards.layout import Location, key_of
from dray.shards.manifest import Shard
from dray.shards.parsing.records import canonical_json
from dray.shards.snapshot import Snapshot


def plan_sourced(spec: BuildSpec, recipe: Mapping[str, Any]) -> SourcedPlan:
    """Returns what the next version keeps, copies and makes. Writes nothing.

    Args:
        spec: Where inputs and dataset are, and which names to take.
        recipe: What, besides the sources, decides the samples; with `suffixes`.

    Raises:
        CallError: The dataset is of another kind, or more would change than the guard allows.
        InputError: More inputs are missing than are accepted.
    """
    started = time.monotonic()
    location, num_inputs = spec.job.location, len(spec.names) + len(spec.unusable)
    base = _open_base(location)
    sources, left_out = find_usable(spec, num_inputs)
    last = last_of(base, stored_sizes(location)) if base else None
    reason = changed_fields(last, recipe, sources.url, but=SIZES) if last else ""
    if last is not None and (refusal := refusal_of(spec, last, compare(last, sources))):
        raise CallError(refusal)
    if base is not None and not reason:
        left_out = [*left_out, *_still_left_out(base, sources, spec)]
        sources = without(sources, left_out)
    found = _compare(spec, base, None if reason else last, sources)
    prints = fingerprints_of(sources, recipe)
    kept, survivors = _kept_of(base, last, sources, found.stays, prints)
    is_needed = not found.stays.all() or survivors
    stored = find_stored(location, plan_of(recipe, sources.url), base) if is_needed else []
    reuse = _reuse_of(stored, prints[~found.stays], survivors)
    is_done = np.isin(prints, np.array(sorted(reuse.done), np.uint64))
    by_number = {shard.number: shard for _, shards in stored for shard in shards}
    copies = _copies(reuse, prints)
    return SourcedPlan(
        spec=spec,
        recipe=recipe,
        base=base,
        last=last,
        sources=sources,
        prints=prints,
        to_make=np.flatnonzero(~found.stays & ~is_done),
        num_done=len(reuse.done),
        kept=kept,
        adopted=tuple(by_number[number] for number in reuse.adopted),
        copies=copies,
        view=view_of(location, base, by_number.values(), copies[0].place[0] if copies else None),
        left_out=tuple(left_out),
        changes=found.changes,
        reason=reason,
        has_work=base is None or found.differs or len(kept) < len(base.shards) or marks_of(left_out) != marks_in(base),
        seconds=time.monotonic() - started,
    )


def _open_base(location: Location) -> Snapshot | None:
    """Returns the last version; None if there is none.

    Raises:
        CallError: It is of another kind, or does not record its sources.
    """
    base = open_written(location)
    if base is not None and base.manifest.sources is None:
        raise CallError(f"{base.name} does not record what its samples were made of: choose another url or prefix")
    return base


def _reuse_of(
    stored: Sequence[tuple[int, Sequence[StoredShard]]], wanted: NDArray[np.uint64], survivors: Mapping[Copied, Place]
) -> Reuse:
    of_writers = [(first, [shard.rows() for shard in shards]) for first, shards in stored]
    return plan_reuse(of_writers, set(wanted.tolist()), survivors)


def _copies(reuse: Reuse, prints: NDArray[np.uint64]) -> tuple[Copy, ...]:
    rows = {source: row for row, source in enumerate(prints.tolist())}
    return tuple(
        Copy(key=key, place=place, source=(rows[source ^ COPIED], source))
        for (key, source), place in reuse.copies.items()
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Compared:
    """How n sources compare with the last version's.

    Attributes:
        stays: (n,) whether the samples of each source stay.
        differs: Whether any source is new or changed, or has another fingerprint.
        changes: The counts.
    """

    stays: NDArray[np.bool_]
    differs: bool
    changes: Changes


def _compare(spec: BuildSpec, base: Snapshot | None, last: Last | None, sources: Sources) -> _Compared:
    if base is None or last is None:
        num_last = 0 if base is None else base.manifest.accounting.packed
        changes = Changes(num_last=num_last, num_added=len(sources))
        return _Compared(stays=np.zeros(len(sources), bool), differs=True, changes=changes)
    rows = find_in(last.table, sources)
    is_old = rows >= 0
    has_same = has_same_prints(places_and_prints(last.table, rows[is_old]), sources, is_old)
    is_same = has_same | same_contents(spec, sources, last)
    changes = Changes(
        num_last=len(last.table),
        num_added=int((~is_old).sum()),
        num_changed=int((is_old & ~is_same).sum()),
        num_removed=len(last.table) - int(is_old.sum()),
    )
    stays = is_same & ~_is_damaged(base, last, sources)
    return _Compared(stays=stays, differs=not (has_same & stays).all(), changes=changes)


def fingerprints_of(sources: Sources, recipe: Mapping[str, Any]) -> NDArray[np.uint64]:
    """Returns (n,) a fingerprint of the key and files of each source, and of the recipe."""
    seed = xxh3_64_intdigest(canonical_json(plan_of(recipe, sources.url)))
    prints = np.hstack([sources.sizes, sources.stamps])
    found = [
        xxh3_64_intdigest(key.encode() + row.tobytes(), seed) or 1
        for key, row in zip(sources.keys(), prints, strict=True)
    ]
    return np.array(found, np.uint64)


def _still_left_out(base: Snapshot, sources: Sources, spec: BuildSpec) -> list[LeftOut]:
    """Returns the sources that gave no sample, or are skipped, and did not change since."""
    table = base.left_out()
    fates = {EMPTY, "skipped"} if spec.tolerance.on_error == OnError.SKIP else {EMPTY}
    listed = [entry for entry in table.to_pylist() if entry["fate"] in fates] if table is not None else []
    if not listed:
        return []
    stamps = stamps_of(sources)
    return [
        LeftOut(
            bad=BadInput(name=entry["name"], file=entry["file"], stage=entry["stage"], error=entry["error"]),
            fate=entry["fate"],
            stamp=entry["stamp"],
        )
        for entry in listed
        if stamps.get(entry["name"]) == entry["stamp"]
    ]


def _is_damaged(base: Snapshot, last: Last, sources: Sources) -> NDArray[np.bool_]:
    """Returns (n,) whether a sample of each source is in a shard that someone deleted or cut."""
    lost = {shard.number for shard in last.shards} - last.whole
    if not lost:
        return np.zeros(len(sources), bool)
    samples = base.samples()
    is_lost = np.isin(samples["shard"].to_numpy(), list(lost))
    keys = set(samples["source"].filter(pa.array(is_lost)).to_pylist())
    return np.array([key in keys for key in map(key_of, sources.names)], bool)


def _kept_of(
    base: Snapshot | None,
    last: Last | None,
    sources: Sources,
    is_kept: NDArray[np.bool_],
    prints: NDArray[np.uint64],
) -> tuple[tuple[Shard, ...], dict[Copied, Place]]:
    """Returns the shards that stay, and the samples to copy from the others."""
    if base is None or last is None:
        return (), {}
    keys = [key for key, stays in zip(sources.keys(), is_kept.tolist(), strict=True) if stays]
    print_of = dict(zip(keys, (prints[is_kept] ^ np.uint64(COPIED)).tolist(), strict=True))
    stale = set(last.table["key"].to_pylist()).difference(keys)
    rewrites = plan_rewrites(base.samples(), [shard.number for shard in base.shards], stale)
    kept = set(rewrites.kept)
    survivors = rewrites.survivors.select(["key", "source", "shard", "row"]).to_pydict()
    return tuple(shard for shard in base.manifest.counted_shards() if shard.number in kept), {
        (key, print_of[source]): (shard, row) for key, source, shard, row in zip(*survivors.values(), strict=True)
    }
