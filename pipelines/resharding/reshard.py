"""A copy of a dataset: read its indexes, plan, announce the plan, copy what is missing, commit.

As in a build, nothing is visible before the commit, and a run that dies anywhere leaves whole shards, which the next
one adopts. A shard whose samples did not change is kept, although the source packs them otherwise by now.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dray.pipelines.building.announce import announce
from dray.pipelines.building.report import BuildReport, report_of
from dray.pipelines.inputs.encoder import Encode, Encoder
from dray.pipelines.progress import shard_progress
from dray.pipelines.resharding.choose import Choice
from dray.pipelines.resharding.copy import CopyJob, CopyTask, copy_shards
from dray.pipelines.resharding.keys import UniqueKeys, grouped
from dray.pipelines.resharding.plan import PlannedShard, Shape, plan_shards
from dray.pipelines.resharding.rows import Rows, read_rows
from dray.pipelines.resharding.source import check_elsewhere
from dray.pipelines.running.parcel import Witness
from dray.pipelines.running.ray_session import IN_PROCESS
from dray.pipelines.running.tasks import fit_workers, run_tasks
from dray.pipelines.versions.attempts import stored_sizes, until_committed, whole_shards
from dray.pipelines.versions.retention import Retention
from dray.pipelines.writing.announce import open_written
from dray.pipelines.writing.shard import WrittenShard
from dray.pipelines.writing.version import Contents, Writing
from dray.shards.errors import CallError, ConflictError, InputError
from dray.shards.layout import Location, some
from dray.shards.log import Commit, Intent
from dray.shards.messages import counted
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.suffixes import open_parts
from dray.shards.snapshot import Snapshot

WRITER = "reshard"
MOST_NAMED = 20


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CopySpec:
    """The arguments of a copy.

    Attributes:
        source: The samples to copy.
        location: Where the copy is.
        shape: Size and order of its shards.
        choice: Which samples are copied.
        parts: The parts to copy; None: all.
        unique_keys: What is done about samples that share a key; None: an error.
        encode: See `pickles_to_tars`, as for `allow` and `allow_pickle`.
        address: See `run_tasks`.
        progress: Whether to show progress on standard error.
    """

    source: Catalog
    location: Location
    shape: Shape
    choice: Choice
    parts: tuple[str, ...] | None = None
    unique_keys: UniqueKeys | None = None
    encode: Encode | None = None
    allow: tuple[str, ...] = ()
    allow_pickle: bool = False
    address: str | None = None
    progress: bool = True


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Work:
    """What a copy is going to do.

    Attributes:
        location: Where the copy is.
        rows: The rows to copy.
        planned: Its shards, in order.
        encoder: Encodes the pickled parts; None: all parts are copied.
        recipe: What the manifest records of the arguments and the source.
        base: The last version of the copy; None if there is none.
        stored: Name -> bytes of the objects in its directory.
        source_url: Where the source is.
    """

    location: Location
    rows: Rows
    planned: tuple[PlannedShard, ...]
    encoder: Encoder | None
    recipe: dict[str, Any]
    base: Snapshot | None
    stored: dict[str, int]
    source_url: str

    @property
    def has_work(self) -> bool:
        """Whether the next version would differ from the last."""
        last = self.base.manifest if self.base else None
        numbers = [shard.number for shard in self.planned]
        return (
            last is None
            or (last.recipe, last.source_url) != (self.recipe, self.source_url)
            or [shard.number for shard in last.shards] != numbers
        )

    def facts(self) -> dict[str, Any]:
        """Returns the plan as JSON can hold it."""
        return {
            "url": self.location.url,
            "prefix": self.location.prefix,
            "has_work": self.has_work,
            "shards": [
                {"number": shard.number, "samples": shard.num_samples, "bytes": shard.num_bytes}
                for shard in self.planned
            ],
        }

    def __str__(self) -> str:
        if not self.has_work:
            return f"{self.location}: nothing to do, {counted(len(self.planned), 'shard stays', 'shards stay')}"
        to_make = [shard for shard in self.planned if shard.number is None]
        num_samples = sum(shard.num_samples for shard in self.planned)
        return (
            f"{self.location}: {counted(num_samples, 'sample')} in {counted(len(self.planned), 'shard')}; "
            f"{len(self.planned) - len(to_make):,} stay, {len(to_make):,} to make of at most "
            f"{sum(shard.num_bytes for shard in to_make) / 1e6:,.1f} MB"
        )


def survey(spec: CopySpec) -> Work:
    """Returns what a copy is going to do; writes nothing. The indexes of the source are read.

    Raises:
        CallError: A part or a limit names a suffix that no sample has; no sample is left; a shard would pass 4 GiB; or
            the copy would replace its source, or a dataset of another program.
        InputError: Samples share a key, a key is asked for that no sample has, or a sample has none of the parts.
        DamagedError: An index is damaged.
    """
    source = spec.source.snapshot
    check_elsewhere(source, spec.location)
    base = open_written(spec.location)
    if base is not None and base.manifest.recipe.get("writer") != WRITER:
        raise CallError(f"{base.name} was not made by resharding, so it is not replaced: choose another url or prefix")
    tars = [shard.name or source.layout.shard(shard.number) for shard in source.shards]
    rows, samples = grouped(read_rows(spec.source), tars, spec.unique_keys)
    chosen = np.flatnonzero(spec.choice.mask(rows, samples))
    if not len(chosen):
        raise CallError(f"{source.name}: no sample is left to copy: keys= and where= rule out every one")
    rows, samples = rows.take(chosen), samples[chosen]
    if spec.parts is not None:
        rows, samples = _with_parts(spec.source, spec.parts, rows, samples)
    encoder = Encoder.of(spec.encode, rows.stored(), allow=spec.allow, allow_pickle=spec.allow_pickle)
    stored = stored_sizes(spec.location)
    whole = {shard.digest: shard.number for shard in whole_shards(base, stored)} if base else {}
    return Work(
        location=spec.location,
        rows=rows,
        planned=tuple(plan_shards(rows, samples, spec.shape, encoder, whole)),
        encoder=encoder,
        recipe=_recipe(spec, source, rows, encoder),
        base=base,
        stored=stored,
        source_url=source.store.url,
    )


def _with_parts(
    source: Catalog, parts: Sequence[str], rows: Rows, samples: NDArray[np.int64]
) -> tuple[Rows, NDArray[np.int64]]:
    """Returns the rows with only some of their parts.

    Raises:
        CallError: No sample has one of the parts.
        InputError: A sample has none of them.
    """
    wanted = open_parts(source, parts, "none").parts
    narrow = rows.with_suffixes([suffix for part in wanted for suffix in part.among(rows.suffixes)])
    has_part = (narrow.offsets > 0).any(axis=1)
    left = np.setdiff1d(samples, samples[has_part])
    if len(left):
        keys = [rows.keys[int(row)].as_py() for row in np.searchsorted(samples, left[:MOST_NAMED])]
        raise InputError(
            f"{counted(len(left), 'sample has', 'samples have')} none of the parts {', '.join(parts)}: {some(keys)}. "
            "Leave them out by where=, or ask for more parts="
        )
    return narrow.take(np.flatnonzero(has_part)), samples[has_part]


def _recipe(spec: CopySpec, source: Snapshot, rows: Rows, encoder: Encoder | None) -> dict[str, Any]:
    """Returns what the manifest records. The names of parts that the source's build encoded stay known."""
    names = {} if encoder is not None else _encoding_of(source, rows.stored())
    return {
        "writer": WRITER,
        "source": {"prefix": source.layout.prefix, "version": source.version, "digest": source.commit.manifest},
        **spec.shape.to_json(),
        **spec.choice.to_json(),
        **({} if spec.parts is None else {"parts": list(spec.parts)}),
        **({} if spec.unique_keys is None else {"unique_keys": str(spec.unique_keys)}),
        **({} if encoder is None else {"suffixes": rows.stored(), **encoder.to_json()}),
        **names,
    }


def _encoding_of(source: Snapshot, stored: Sequence[str]) -> dict[str, Any]:
    recipe = source.manifest.recipe
    if "encode" not in recipe or "suffixes" not in recipe:
        return {}
    lower = {suffix.lower() for suffix in stored}
    kept = {part.name for part in source.manifest.parts if part.suffixes & lower}
    fields = ("transform", "encode", "allow", "allow_pickle")
    return {name: recipe[name] for name in fields if name in recipe} | {
        "suffixes": [suffix for suffix in recipe["suffixes"] if suffix in kept]
    }


def reshard(spec: CopySpec, *, retention: Retention | None) -> BuildReport:
    """Make the last version of a dataset a copy of the chosen samples. Atomic; if it is already, nothing is written.

    Args:
        spec: The arguments of the copy.
        retention: Which versions to keep; None: all.

    Raises:
        DamagedError: A sample of the source differs from its index; names tar, key and suffix. No version is made.
        InputError: A part cannot be encoded; names tar, key and suffix.
        ConflictError: Another writer committed a version of something else meanwhile.
        StoreError: A store failed.
    """
    started = time.monotonic()
    before: Snapshot | None = None  # base of the previous attempt

    def attempt(head: Commit | None, *, is_first: bool) -> BuildReport | None:  # noqa: ARG001  each starts from head
        nonlocal before
        work = survey(spec)
        if not is_first:
            _check_rebase(work, before)
        before = work.base
        return _commit(spec, work, retention, started)

    return until_committed(spec.location, attempt, progress=spec.progress)


def _check_rebase(work: Work, before: Snapshot | None) -> None:
    """Check that no other writer has made a version of something else since the previous attempt.

    Raises:
        ConflictError: One has.
    """
    last = work.base
    if last is None or (before is not None and before.version == last.version):
        return
    if (last.manifest.recipe, last.manifest.source_url) != (work.recipe, work.source_url):
        raise ConflictError(
            f"{work.location}: while this copy was made, another writer committed version {last.version} by other "
            "arguments or from another source; nothing was lost: decide which one is wanted, then run it again"
        )


def _commit(spec: CopySpec, work: Work, retention: Retention | None, started: float) -> BuildReport | None:
    """Announce, copy and commit; returns None if another writer committed meanwhile."""
    base = work.base
    if base is not None and not work.has_work:
        return report_of(base, None, seconds=time.monotonic() - started)
    has_tasks = any(shard.number is None for shard in work.planned)
    with fit_workers(spec.address if has_tasks else IN_PROCESS):
        slots = [shard.slot for shard in work.planned]
        intent = announce(spec.location, slots, base, work.stored, progress=spec.progress)
        written = _copy(spec, work, intent)
    kept = {shard.number for shard in work.planned}
    contents = Contents(
        recipe=work.recipe,
        written=written,
        kept=[shard for shard in (base.manifest.counted_shards() if base else ()) if shard.number in kept],
        order=intent.shards,
        source_url=work.source_url,
    )
    writing = Writing(
        location=spec.location,
        base=base,
        intent=intent,
        retention=retention,
        progress=spec.progress,
        started=started,
    )
    try:
        return writing.commit(contents)
    except ConflictError:
        return None


def _copy(spec: CopySpec, work: Work, intent: Intent) -> list[WrittenShard]:
    """Run the tasks; returns the records of the shards that were made or adopted."""
    layout, source = spec.location.layout, spec.source.snapshot
    job = CopyJob(
        source=Snapshot(source.location, source.commit, source.manifest),
        location=spec.location,
        encoder=work.encoder,
    )
    tasks = [
        CopyTask(
            number=number,
            rows=work.rows.take(shard.numbers),
            digest=shard.digest,
            num_bytes=shard.num_bytes,
            is_stored=layout.shard(number) in work.stored,
        )
        for shard, number in zip(work.planned, intent.shards, strict=True)
        if shard.number is None
    ]
    witness = Witness(spec.location.store, layout.intent(intent.number))
    written: list[WrittenShard] = []
    with shard_progress(f"copying to {layout.prefix}", num_shards=len(tasks), show=spec.progress) as advance:
        for shard in run_tasks(copy_shards, job, tasks, spec.address, witness=witness, progress=spec.progress):
            written.append(shard)
            advance(shard.num_bytes)
    return written
