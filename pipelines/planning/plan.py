"""The plan of a build: which shards stay, which are packed, and why.

A first build, or one whose recipe or input directory changed, deals all samples to new shards. Any other keeps each
shard whose samples all exist unchanged, rewrites in its old order one that lost or changed some, and puts new samples
into new shards. All functions here are pure: no I/O, no clock, no global state.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dray.pipelines.inputs.sources import Sources
from dray.pipelines.planning.changes import Changes
from dray.pipelines.planning.deal import bounds_by_size, even_bounds, sample_bytes, shuffled, too_large
from dray.pipelines.planning.recipe import Recipe
from dray.shards.errors import CallError
from dray.shards.index import digest_of
from dray.shards.manifest import Shard
from dray.shards.tar import END, MAX_SHARD_BYTES

Fate = Literal["reused", "rewritten", "new"]
Slot = tuple[str, int | None]
"""The digest of a shard of the next snapshot, and its number if it stays; None if it is still to be stored."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Last:
    """The last snapshot, as far as a plan needs it.

    Attributes:
        recipe: The recipe, as the manifest records it.
        source_url: The input directory.
        shards: The shards, in order.
        whole: Numbers of the shards that are stored with the expected size and an index.
        table: The table of sources.
    """

    recipe: Mapping[str, Any]
    source_url: str
    shards: Sequence[Shard]
    whole: frozenset[int]
    table: pa.Table


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PlannedShard:
    """One shard of the next snapshot.

    Attributes:
        rows: (n,) rows of the sources that it holds, in its order.
        fate: "reused" if it stays, "rewritten" or "new" if it is packed.
        reason: Why it is packed, in words.
        number: The number of a shard that stays; None if it is packed.
        num_bytes: Size of the tar; an upper bound for a shard that is packed, if parts are stored as they are.
        digest: Digest of its sources and the recipe.
    """

    rows: NDArray[np.int64]
    fate: Fate
    reason: str
    number: int | None
    num_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The shards of the next snapshot, in order.

    Attributes:
        shards: The shards that stay and those that are packed.
        num_refreshed: Number of samples whose fingerprint changed and whose content did not.
        dropped: Shards of the last snapshot that no shard of this plan replaces, and why.
        changes: How the samples differ from the last snapshot's.
    """

    shards: tuple[PlannedShard, ...]
    num_refreshed: int = 0
    dropped: tuple[tuple[Shard, str], ...] = ()
    changes: Changes = field(default_factory=Changes)

    @property
    def slots(self) -> list[Slot]:
        """Digest and number of each shard."""
        return [(shard.digest, shard.number) for shard in self.shards]

    @property
    def has_work(self) -> bool:
        """Whether the next snapshot would differ from the last."""
        return bool(self.num_refreshed or self.dropped) or any(shard.fate != "reused" for shard in self.shards)


@dataclass(frozen=True, slots=True)
class Numbering:
    """The number of each planned shard: its own, that of a stored shard with the same digest, or a new one."""

    numbers: tuple[int, ...]
    count: int  # number of new ones, which follow each other


def plan(sources: Sources, recipe: Recipe, last: Last | None = None, is_same: NDArray[np.bool_] | None = None) -> Plan:
    """Returns the plan of the next snapshot.

    Args:
        sources: The n samples to hold.
        recipe: How to store them.
        last: The snapshot to start from, if there is one.
        is_same: (n,) whether a sample's content is known to be the last snapshot's although its fingerprint differs.

    Raises:
        CallError: A shard would pass 4 GiB; the message says how many shards fit.
    """
    if last is None or not last.shards:
        rows = _order(sources, np.arange(len(sources)), recipe)
        first = tuple(_deal(sources, rows, recipe, recipe.num_shards, "first build"))
        return Plan(first, changes=Changes(num_added=len(sources)))
    if changes := changes_of(recipe, sources.url, last):
        rows = _order(sources, np.arange(len(sources)), recipe)
        shards = tuple(_deal(sources, rows, recipe, recipe.num_shards, changes))
        dropped = tuple((shard, changes) for shard in last.shards)
        return Plan(shards, dropped=dropped, changes=compare(last, sources))
    return _increment(sources, recipe, last, np.zeros(len(sources), bool) if is_same is None else is_same)


def plan_digest(slots: Sequence[Slot]) -> str:
    """Returns the digest of a whole plan, reused shards included: two builders with the same digest do the same."""
    return digest_of(json.dumps(slots).encode())


def number_shards(slots: Sequence[Slot], known: Mapping[str, int], first: int) -> Numbering:
    """Returns the number of each planned shard.

    Args:
        slots: The planned shards.
        known: Digest -> number of shards that exist.
        first: The first number that is not reserved.
    """
    numbers: list[int] = []
    free = first
    for digest, number in slots:
        if number is None:
            number = known.get(digest)
        if number is None:
            number, free = free, free + 1
        numbers.append(number)
    return Numbering(tuple(numbers), free - first)


def find_in(table: pa.Table, sources: Sources) -> NDArray[np.int64]:
    """Returns (n,) the row of each source in a table of sources, by key; -1 if it is missing."""
    options = pc.SetLookupOptions(value_set=table["key"].combine_chunks())
    rows = pc.call_function("index_in", [pa.array(sources.keys(), pa.string())], options)
    found: NDArray[np.int64] = rows.fill_null(-1).to_numpy().astype(np.int64)
    return found


def places_and_prints(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Returns rows of a table of sources without keys and names, whose copies would take most of a planner's memory."""
    return table.drop_columns(["key", "name"]).take(pa.array(rows))


def fingerprints_in(table: pa.Table, suffixes: Sequence[str], what: str) -> NDArray[Any]:
    """Returns (n, s) one kind of column of a table of sources: size, stamp or xxh3_64."""
    return np.stack([table[f"{suffix}/{what}"].to_numpy() for suffix in suffixes], axis=1)


def has_same_prints(old: pa.Table, sources: Sources, is_old: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns (n,) whether each source has the sizes and stamps of the last version.

    Args:
        old: The rows of m sources in the last version's table.
        sources: n sources.
        is_old: (n,) which m of them the rows are of, in order.
    """
    is_same = np.zeros(len(sources), bool)
    is_same[is_old] = (
        (fingerprints_in(old, sources.suffixes, "size") == sources.sizes[is_old])
        & (fingerprints_in(old, sources.suffixes, "stamp") == sources.stamps[is_old])
    ).all(axis=1)
    return is_same


def compare(last: Last | None, sources: Sources, hashes: NDArray[np.uint64] | None = None) -> Changes:
    """Returns how samples differ from the last snapshot's.

    Args:
        last: The last snapshot; None if there is none.
        sources: n samples of s files.
        hashes: (n, s) xxh3_64 of each file, to compare contents; None: fingerprints are compared.
    """
    if last is None:
        return Changes(num_added=len(sources))
    rows = find_in(last.table, sources)
    is_old = rows >= 0
    num_changed = num_old = int(is_old.sum())
    if set(last.recipe["suffixes"]) == set(sources.suffixes):  # else all samples changed
        old = places_and_prints(last.table, rows[is_old])
        now = {"size": sources.sizes, "stamp": sources.stamps} if hashes is None else {"xxh3_64": hashes}
        differs = [fingerprints_in(old, sources.suffixes, what) != found[is_old] for what, found in now.items()]
        num_changed = int(np.hstack(differs).any(axis=1).sum())
    return Changes(
        num_last=len(last.table),
        num_added=len(sources) - num_old,
        num_changed=num_changed,
        num_removed=len(last.table) - num_old,
    )


def changes_of(recipe: Recipe, source_url: str, last: Last) -> str:
    """Returns why all samples are packed again; empty if they are not. How they were found decides no byte."""
    return changed_fields(last, recipe.to_json() | {"recursive": last.recipe.get("recursive")}, source_url)


def changed_fields(last: Last, recipe: Mapping[str, Any], source_url: str, but: Collection[str] = ()) -> str:
    """Returns how a recipe and a source differ from the last version's, in words, without the fields in `but`."""
    then = last.recipe
    names = dict.fromkeys((*recipe, *then))  # "encode" is recorded only if something is encoded
    changed = [
        f"{name} was {then.get(name)!r}, is {recipe.get(name)!r}"
        for name in names
        if name not in but and then.get(name) != recipe.get(name)
    ]
    if source_url != last.source_url:
        changed.append(f"the inputs were in {last.source_url}, are in {source_url}")
    return "; ".join(changed)


def _increment(sources: Sources, recipe: Recipe, last: Last, is_same: NDArray[np.bool_]) -> Plan:
    old_rows = find_in(last.table, sources)
    is_old = old_rows >= 0
    old = places_and_prints(last.table, old_rows[is_old])
    has_same_print = has_same_prints(old, sources, is_old)
    shard_of = np.full(len(sources), -1)
    shard_of[is_old] = old["shard"].to_numpy()
    row_of = np.zeros(len(sources), np.int64)
    row_of[is_old] = old["row"].to_numpy()
    stays = is_old & (has_same_print | is_same)
    members = _members(shard_of, row_of)
    shards: list[PlannedShard] = []
    dropped: list[tuple[Shard, str]] = []
    for shard in last.shards:
        rows = members.get(shard.number, np.zeros(0, np.int64))
        num_changed, num_removed = int((~stays[rows]).sum()), shard.num_samples - len(rows)
        if not len(rows):
            samples = "its only sample" if shard.num_samples == 1 else f"all {shard.num_samples:,} samples"
            dropped.append((shard, f"{samples} removed"))
        elif shard.number in last.whole and not num_changed and not num_removed:
            shards.append(_reused(shard, rows))
        else:
            missing = "" if shard.number in last.whole else f"; {shard.number:06d} or its index is missing or cut"
            reason = f"of {shard.number:06d}: {num_changed} changed, {num_removed} removed{missing}"
            shards += _deal(sources, rows, recipe, 1, reason, fate="rewritten")
    new = _order(sources, np.flatnonzero(~is_old), recipe)
    if len(new):
        shards += _deal(sources, new, recipe, _num_new_shards(len(new), recipe, last), f"{len(new)} new samples")
    changes = Changes(
        num_last=len(last.table),
        num_added=len(new),
        num_changed=int((is_old & ~stays).sum()),
        num_removed=len(last.table) - int(is_old.sum()),
    )
    return Plan(tuple(shards), int((is_same & ~has_same_print).sum()), tuple(dropped), changes)


def _order(sources: Sources, rows: NDArray[np.int64], recipe: Recipe) -> NDArray[np.int64]:
    """Returns rows as given, or shuffled by xxh3_64 of the key under the seed: independent of other samples."""
    if recipe.shuffle_seed is None:
        return rows
    return rows[shuffled(sources.take(rows).keys(), recipe.shuffle_seed)]


def _members(shard_of: NDArray[np.int64], row_of: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Returns shard number -> rows of its samples that still exist, in its order."""
    order = np.lexsort((row_of, shard_of))
    numbers, starts = np.unique(shard_of[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(order, starts[1:]), strict=True))


def _num_new_shards(num_samples: int, recipe: Recipe, last: Last) -> int | None:
    """Returns the number that keeps the last snapshot's samples a shard; None if the recipe deals by size."""
    if recipe.num_shards is None:
        return None
    per_shard = -(-sum(shard.num_samples for shard in last.shards) // len(last.shards))
    return -(-num_samples // per_shard)


def _reused(shard: Shard, rows: NDArray[np.int64]) -> PlannedShard:
    return PlannedShard(
        rows=rows, fate="reused", reason="", number=shard.number, num_bytes=shard.num_bytes, digest=shard.digest
    )


def _deal(
    sources: Sources,
    rows: NDArray[np.int64],
    recipe: Recipe,
    num_shards: int | None,
    reason: str,
    *,
    fate: Fate = "new",
) -> Iterator[PlannedShard]:
    """Yield shards to pack: the samples in their order, cut evenly or by size.

    Raises:
        CallError: A shard would pass 4 GiB; the message says how many shards fit.
    """
    dealt = sources.take(rows)
    sizes = sample_bytes(dealt)
    has_outgrown = fate == "rewritten" and sizes.sum() + len(END) > MAX_SHARD_BYTES
    if num_shards is None or has_outgrown:
        bounds = bounds_by_size(sizes, shard_bytes=recipe.shard_bytes, shard_samples=recipe.shard_samples)
    else:
        bounds = even_bounds(len(rows), num_shards)
    totals = np.add.reduceat(sizes, bounds[:-1]) + len(END)
    if totals.max() > MAX_SHARD_BYTES and recipe.transform is None and recipe.encoder is None:
        raise CallError(too_large(sizes, len(totals)))
    content = recipe.content_digest()
    for start, stop, total in zip(bounds[:-1].tolist(), bounds[1:].tolist(), totals.tolist(), strict=True):
        digest = _shard_digest(content, dealt.take(np.arange(start, stop)))
        yield PlannedShard(rows=rows[start:stop], fate=fate, reason=reason, number=None, num_bytes=total, digest=digest)


def _shard_digest(content: str, sources: Sources) -> str:
    """Returns the digest of the files' directory, names and fingerprints, and of the recipe's content digest.

    The directory is part of it: two unpacked archives may hold different files of the same sizes and times.
    """
    names = "\0".join((content, sources.url, *sources.names)).encode()
    return digest_of(b"".join((names, sources.sizes.tobytes(), sources.stamps.tobytes())))
