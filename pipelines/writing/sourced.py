"""The plan of a dataset that is made of input files, and the version that follows from it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dray.pipelines.building.hashing import hash_contents
from dray.pipelines.building.report import BuildReport, report_of
from dray.pipelines.building.survey import BuildSpec, as_left_out
from dray.pipelines.building.tables import LeftOut, source_table
from dray.pipelines.inputs.sources import EMPTY, BadInput, Sources
from dray.pipelines.planning.changes import Changes
from dray.pipelines.planning.plan import Last, find_in, fingerprints_in, has_same_prints, places_and_prints
from dray.pipelines.planning.rewrites import COPIED, Place
from dray.pipelines.versions.retention import Retention
from dray.pipelines.writing.announce import announce_writing
from dray.pipelines.writing.shard import Sample, ShardSize, WrittenShard
from dray.pipelines.writing.stored import StoredShard, read_copies
from dray.pipelines.writing.version import Contents, Writing
from dray.shards.errors import InputError, NotFoundError
from dray.shards.manifest import Shard
from dray.shards.messages import counted
from dray.shards.snapshot import Snapshot

SIZES = ("num_shards", "shard_bytes", "shard_samples")  # fields of a recipe that change no sample


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Copy:
    """A sample that is copied as it is stored.

    Attributes:
        key: Its key.
        place: Where it is stored.
        source: Number and fingerprint of its source, as in the shard that it is copied to.
    """

    key: str
    place: Place
    source: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SourcedPlan:
    """What the next version of a dataset that is made of sources keeps, copies and makes.

    Attributes:
        spec: Where inputs and dataset are.
        recipe: What, besides the sources, decides the samples.
        base: The last version; None if there is none.
        last: The last version as far as the plan used it.
        sources: The n sources that can be read and are not left out.
        prints: (n,) uint64, the fingerprint of each.
        to_make: Ascending rows of the sources that are made: new or changed, and not done by an interrupted run.
        num_done: Number of sources that an interrupted run stored.
        kept: Shards of the last version that stay.
        adopted: Shards of interrupted runs that the next version holds.
        copies: The samples to copy.
        view: The shards that these are copied from.
        left_out: The sources that stay without a sample.
        changes: How the sources differ from the last version's.
        reason: Why all sources are made again; empty if they are not.
        has_work: Whether the next version would differ from the last.
        seconds: Duration of planning.
    """

    spec: BuildSpec
    recipe: Mapping[str, Any]
    base: Snapshot | None
    last: Last | None
    sources: Sources
    prints: NDArray[np.uint64]
    to_make: NDArray[np.int64]
    num_done: int
    kept: tuple[Shard, ...]
    adopted: tuple[StoredShard, ...]
    copies: tuple[Copy, ...]
    view: Snapshot
    left_out: tuple[LeftOut, ...]
    changes: Changes
    reason: str
    has_work: bool
    seconds: float

    def __str__(self) -> str:
        if not self.has_work:
            return f"nothing to do: {counted(len(self.sources), 'source')} unchanged"
        rewritten = len(self.base.shards) - len(self.kept) if self.base else 0
        done = f"; {self.num_done:,} of these done by an interrupted run" if self.num_done else ""
        return (
            f"sources: {self.changes}; {len(self.to_make):,} to make{done}; "
            f"{counted(len(self.kept), 'shard stays', 'shards stay')}, {rewritten:,} rewritten, "
            f"{counted(len(self.copies), 'sample')} copied" + (f"; because {self.reason}" if self.reason else "")
        )

    def numbers(self) -> dict[str, tuple[int, int]]:
        """Returns key -> number and fingerprint of each source that is made."""
        keys, prints = self.sources.keys(), self.prints.tolist()
        return {keys[row]: (row, prints[row]) for row in self.to_make.tolist()}

    def read_copies(self) -> Iterator[Sample]:
        """Yields the samples to copy, as they are stored."""
        parts = read_copies(self.view, [copy.place for copy in self.copies])
        for copy, found in zip(self.copies, parts, strict=True):
            yield Sample(copy.key, found, copy.source)

    def announce(self, retention: Retention | None) -> Writing:
        """Returns the announced version. What it stores is found by the next plan, if it is not committed."""
        spec = self.spec
        plan = plan_of(self.recipe, self.sources.url)
        return announce_writing(spec.job.location, plan, self.base, retention=retention, progress=spec.progress)

    def unchanged(self) -> BuildReport:
        """Returns the report of a run that has nothing to do."""
        if self.base is None:
            raise NotFoundError(f"{self.spec.job.location} has no version")
        return report_of(self.base, None, seconds=self.seconds)

    def commit(
        self,
        writing: Writing,
        written: Sequence[WrittenShard],
        size: ShardSize,
        bad: Iterable[BadInput] = (),
        renamed: Mapping[str, str] | None = None,
    ) -> BuildReport:
        """Commit the version with these new shards. Atomic; see `Writing.commit` for errors.

        Args:
            writing: What `announce` returned.
            written: The new shards, in order.
            size: The limits of the new shards, for the recipe.
            bad: Sources that could not be made.
            renamed: See `BuildReport`.
        """
        numbers = {int(number): row for row, number in enumerate(self.prints.tolist())}
        adopted = [_renumbered(shard, numbers) for shard in self.adopted]
        shards = [*adopted, *written]
        failed = {entry.name: entry for entry in bad}
        has_sample = np.ones(len(self.sources), bool)
        has_sample[self.to_make] = False
        for shard in shards:
            if shard.sources is not None:
                has_sample[shard.sources.astype(np.int64)] = True
        held = self.sources.take(np.flatnonzero(has_sample))
        empty = self.sources.take(np.flatnonzero(~has_sample))
        entries = [failed.get(name) or _empty(name) for name in empty.names]
        tolerance = self.spec.tolerance
        return writing.commit(
            Contents(
                recipe={
                    **self.recipe,
                    "shard_bytes": size.num_bytes,
                    "shard_samples": size.samples,
                    "num_shards": None,
                },
                written=shards,
                kept=self.kept,
                source_keys=self.sources.keys(),
                sources=source_table(held, self._hashes(held)),
                source_url=self.spec.job.inputs.url,
                left_out=[*self.left_out, *as_left_out(entries, empty, tolerance)],
                renamed=renamed,
            )
        )

    def _hashes(self, sources: Sources) -> NDArray[np.uint64]:
        """Returns (n, s) xxh3_64 of each file: that of the last version if the file is the same, else of its content.

        Raises:
            InputError: A file was changed since the plan was made.
        """
        if sources.by_content:
            return sources.stamps.view(np.uint64)
        hashes = np.zeros(sources.sizes.shape, np.uint64)
        is_known = np.zeros(len(sources), bool)
        if self.last is not None and not self.reason:
            rows = find_in(self.last.table, sources)
            is_old = rows >= 0
            old = places_and_prints(self.last.table, rows[is_old])
            is_known = has_same_prints(old, sources, is_old)
            hashes[is_known] = fingerprints_in(old, sources.suffixes, "xxh3_64")[is_known[is_old]]
        new = sources.take(np.flatnonzero(~is_known))
        spec = self.spec
        found = hash_contents(spec.job.inputs, new, "to record", address=spec.address, progress=False)
        changed = ((found == 0) & (new.sizes >= 0)).any(axis=1)
        if changed.any():
            name = new.names[int(changed.argmax())]
            raise InputError(f"a file of {name!r} in {new.url} was changed meanwhile: plan again")
        hashes[~is_known] = found
        return hashes


def plan_of(recipe: Mapping[str, Any], source_url: str) -> Mapping[str, Any]:
    """Returns what the intents of writers that can use each other's shards have in common."""
    return {**recipe, "source_url": source_url}


def _renumbered(shard: StoredShard, rows: Mapping[int, int]) -> WrittenShard:
    """Returns the record of an adopted shard with the numbers that its sources have now."""
    prints = shard.rows().fingerprints.tolist()
    found = [rows[source] if source in rows else rows[source ^ COPIED] for source in prints]
    return replace(shard.record(), sources=np.array(found, np.uint64))


def _empty(name: str) -> BadInput:
    return BadInput(name=name, file="", stage=EMPTY, error="it gave no sample")
