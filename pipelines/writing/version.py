"""Committing a version whose shards a program filled, and deleting what a failed one stored."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dray.pipelines.building.manifest import accounting_of, put_rows, put_table
from dray.pipelines.building.report import BuildReport, report_of
from dray.pipelines.building.tables import LeftOut, left_out_table
from dray.pipelines.planning.changes import Changes
from dray.pipelines.versions.attempts import check_stored, finish
from dray.pipelines.versions.commit import commit_version
from dray.pipelines.versions.gc import kept_versions, own_tars
from dray.pipelines.versions.retention import Retention
from dray.pipelines.writing.shard import WrittenShard
from dray.shards.errors import ConflictError, DamagedError, InputError, NotFoundError, StoreError
from dray.shards.index import content_hashes
from dray.shards.layout import Location, indexed_number, some
from dray.shards.log import Intent, Operation, read_commit, read_head
from dray.shards.manifest import Kind, Manifest, Shard, part_table
from dray.shards.parsing.parquet import sample_schema
from dray.shards.snapshot import Snapshot

READS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Contents:
    """What a written version holds.

    Attributes:
        recipe: What, besides the sources, decides its bytes; for the manifest.
        written: The new shards, in order.
        kept: Shards of the last version that stay, with the counts of their parts; they come first.
        order: Numbers of all shards in their order; None: the kept ones, then the new ones.
        source_keys: Key of each source by its number in the new shards' indexes; None if samples have no sources.
        sources: The sources with a sample, sorted by key, as `parsing.parquet.source_schema` without places; None if
            samples have no sources.
        source_url: Where the sources are.
        left_out: The sources without a sample.
        renamed: Field -> suffix, for the report.
    """

    recipe: Mapping[str, Any]
    written: Sequence[WrittenShard]
    kept: Sequence[Shard] = ()
    order: Sequence[int] | None = None
    source_keys: Sequence[str] | None = None
    sources: pa.Table | None = None
    source_url: str = ""
    left_out: Sequence[LeftOut] = ()
    renamed: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Writing:
    """A version that is being written: announced, not yet committed.

    Attributes:
        location: Where the dataset is.
        base: The last version when it was announced; None if there was none.
        intent: What was announced; shards are stored under `intent.numbers`.
        retention: Which versions the commit keeps; None: all.
        progress: Whether to show progress on standard error.
        started: When it began, by `time.monotonic`.
    """

    location: Location
    base: Snapshot | None
    intent: Intent
    retention: Retention | None
    progress: bool
    started: float

    @property
    def is_committed(self) -> bool:
        """Whether an earlier run with the same `build_id` made the last version: there is nothing to do."""
        return self.base is not None and self.base.manifest.intent == self.intent.number

    def report(self) -> BuildReport:
        """Returns the report of a run that found its version committed, or nothing to do."""
        if self.base is None:
            raise NotFoundError(f"{self.location} has no version")
        return report_of(self.base, None, seconds=time.monotonic() - self.started)

    def commit(self, contents: Contents) -> BuildReport:
        """Commit the version. Atomic: readers see the last version or this one.

        Raises:
            InputError: It would hold no sample, or two samples of one key; names keys and sources.
            ConflictError: Another writer committed meanwhile; what was stored is kept for a rerun.
            StoreError: A shard is missing here.
        """
        samples = self._samples(contents)
        check_stored(self.location, {shard.number: shard.num_bytes for shard in contents.written})
        changes = _changes(self.base, contents, len(samples))  # the commit may drop the last version
        made = commit_version(
            self.location,
            self._manifest(contents, samples),
            self.base,
            operation=Operation.WRITE,
            retention=self.retention,
        )
        if made is None:
            raise ConflictError(
                f"{self.location}: another writer committed a version meanwhile; what was stored is kept: "
                "plan again, or write again with the same build_id"
            )
        finish(made, self.base, self.retention, progress=self.progress)
        return report_of(
            made,
            changes,
            num_stored=sum(not shard.adopted for shard in contents.written),
            renamed=contents.renamed,
            seconds=time.monotonic() - self.started,
        )

    def commit_or_abandon(self, contents: Contents) -> BuildReport:
        """Commit the version; delete what was stored if its samples cannot make one. See `commit`."""
        try:
            return self.commit(contents)
        except InputError:
            self.abandon()
            raise

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Shards that are stored in this context are deleted if it is left by an error or an interrupt."""
        try:
            yield
        except BaseException as exc:
            try:
                self.abandon()
            except StoreError as failed:
                exc.add_note(f"what was stored is left to dray gc: it could not be deleted ({failed})")
            raise

    def abandon(self) -> None:
        """Delete what was stored under the reserved numbers; what a late task still stores is left to gc.

        Shards of a version stay: another run with the same `build_id` may have committed it.
        """
        layout, store, numbers, live = self.location.layout, self.location.store, self.intent.numbers, self._live()

        def is_ours(number: int | None) -> bool:
            return number in numbers and number not in live

        tars = [info for info in store.list_folder() if is_ours(layout.shard_number(info.name))]
        indexes = [info for info in store.list_folder(layout.indexes) if is_ours(indexed_number(info.name))]
        store.delete([info.name for info in (*own_tars(self.location, tars), *indexes)])

    def _live(self) -> set[int]:
        """Returns the numbers of the shards of all versions that are kept."""
        head = read_head(self.location)
        versions = kept_versions(self.location, head) if head else []
        snapshots = (Snapshot.load(self.location, read_commit(self.location, version)) for version in versions)
        return {shard.number for snapshot in snapshots for shard in snapshot.shards}

    def _samples(self, contents: Contents) -> pa.Table:
        """Returns the table of samples, sorted by key.

        Raises:
            InputError: There is none, or two have one key.
        """
        schema = sample_schema(has_sources=contents.source_keys is not None)
        tables = [_written_rows(shard, contents.source_keys, schema) for shard in contents.written]
        if contents.kept and self.base is not None:
            kept = pa.array([shard.number for shard in contents.kept], pa.int64())
            old = self.base.samples()
            tables.append(old.filter(_is_in(old["shard"], kept)).cast(schema))
        table = pa.concat_tables(tables).sort_by("key") if tables else schema.empty_table()
        if not len(table):
            raise InputError(f"{self.location}: no sample was given; a version holds one at least")
        _check_unique(table)
        return table

    def _manifest(self, contents: Contents, samples: pa.Table) -> Manifest:
        location, intent, last = self.location, self.intent, self.base.manifest if self.base else None
        old_arrays = last.arrays() if last else {}
        found = [(shard, old_arrays) for shard in contents.kept]
        found += [(shard.shard(), shard.arrays) for shard in contents.written]
        if contents.order is not None:
            place_of = {number: place for place, number in enumerate(contents.order)}
            found.sort(key=lambda pair: place_of[pair[0].number])
        parts, shown = part_table(contents.recipe, [shard for shard, _ in found], [arrays for _, arrays in found])
        left_out, sources = contents.left_out, contents.sources
        num_inputs = 0 if sources is None else len(sources) + len(left_out)
        return Manifest(
            kind=Kind.WRITTEN,
            prefix=location.prefix,
            source_url=contents.source_url,
            recipe=contents.recipe,
            intent=intent.number,
            num_samples=len(samples),
            accounting=accounting_of(num_inputs, num_inputs - len(left_out), left_out),
            parts=parts,
            shards=shown,
            sources=None if sources is None else put_rows(location, intent, sources, last.sources if last else None),
            samples=put_rows(location, intent, samples, last.samples if last else None),
            left_out=put_table(location, intent, left_out_table(left_out), len(left_out), {}) if left_out else None,
        )


def _written_rows(shard: WrittenShard, source_keys: Sequence[str] | None, schema: pa.Schema) -> pa.Table:
    columns = {
        "key": shard.keys,
        "shard": pa.array(np.full(len(shard.keys), shard.number, np.int64)),
        "row": pa.array(np.arange(len(shard.keys), dtype=np.int64)),
    }
    if source_keys is not None and shard.sources is not None:
        columns["source"] = pa.array([source_keys[number] for number in shard.sources.tolist()], pa.string())
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _is_in(column: pa.ChunkedArray, values: pa.Array) -> pa.ChunkedArray:
    return pc.call_function("is_in", [column], pc.SetLookupOptions(value_set=values))


def _check_unique(samples: pa.Table) -> None:
    """Check that the keys of a sorted table differ.

    Raises:
        InputError: Some are equal; names up to 20, and their sources.
    """
    keys = samples["key"]
    is_twice = (
        np.flatnonzero(pc.call_function("equal", [keys[1:], keys[:-1]]).to_numpy())
        if len(keys) > 1
        else np.zeros(0, int)
    )
    if not len(is_twice):
        return
    of = ""
    if "source" in samples.column_names:
        first = int(is_twice[0])
        of = " (the first one of the sources {!r} and {!r})".format(*samples["source"][first : first + 2].to_pylist())
    twice = dict.fromkeys(keys.take(pa.array(is_twice)).to_pylist())
    raise InputError(
        f"samples share a key: {some(twice)}{of}. Each sample needs a key of its own; note that dots of a name become "
        "dashes. A function that makes several samples of one must give each another `__key__`"
    )


def _changes(base: Snapshot | None, contents: Contents, num_samples: int) -> Changes:
    """Returns how the samples differ from the last version's, by their contents."""
    if base is None:
        return Changes(num_added=num_samples)
    kept = {shard.number for shard in contents.kept}
    old_keys, old_hashes = _contents_of(base, [shard for shard in base.shards if shard.number not in kept])
    new_keys = pa.chunked_array([shard.keys for shard in contents.written], pa.string())
    new_hashes = np.concatenate([shard.hashes for shard in contents.written] or [np.zeros(0, np.uint64)])
    rows = pc.call_function("index_in", [new_keys], pc.SetLookupOptions(value_set=old_keys))
    places = rows.fill_null(-1).to_numpy().astype(np.int64)
    is_old = places >= 0
    return Changes(
        num_last=base.num_samples,
        num_added=int((~is_old).sum()),
        num_changed=int((old_hashes[places[is_old]] != new_hashes[is_old]).sum()),
        num_removed=len(old_keys) - int(is_old.sum()),
    )


def _contents_of(base: Snapshot, shards: Sequence[Shard]) -> tuple[pa.Array, NDArray[np.uint64]]:
    """Returns keys and content hashes of the samples of some shards; a damaged index counts as other contents."""

    def read(shard: Shard) -> tuple[list[str], NDArray[np.uint64]]:
        index = base.index(shard)
        return list(index.keys), content_hashes(index)

    try:
        with ThreadPoolExecutor(READS_AT_ONCE) as threads:
            found = list(threads.map(read, shards))
    except (DamagedError, NotFoundError):
        table = base.samples()
        numbers = pa.array([shard.number for shard in shards], pa.int64())
        keys = table.filter(_is_in(table["shard"], numbers))["key"].combine_chunks()
        return keys, np.zeros(len(keys), np.uint64)
    keys = pa.array([key for keys, _ in found for key in keys], pa.string())
    return keys, np.concatenate([hashes for _, hashes in found] or [np.zeros(0, np.uint64)])
