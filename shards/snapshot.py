"""One version of a dataset: an immutable list of shards with the recipe and the sources that made it.

Opening one costs a listing of the commits and two reads, whatever the number of shards. A snapshot never globs and
never changes: while builders add versions, its shards and indexes stay as they are.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from xxhash import xxh3_64_intdigest

from dray.shards.errors import CallError, DamagedError, NotFoundError
from dray.shards.index import ShardIndex, digest_of
from dray.shards.layout import DataPlace, Layout, Location
from dray.shards.log import Commit, read_head
from dray.shards.manifest import Kind, Manifest, Shard, TableChunk
from dray.shards.parsing.parquet import (
    LEFT_OUT,
    check_keys,
    check_places,
    place_of,
    read_table,
    sample_schema,
    source_schema,
)
from dray.shards.reading.missing_keys import missing_key
from dray.shards.reading.tars import Tars
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store
from dray.shards.storage.urls import split_version
from dray.shards.versions import keeps, read_holds, read_version

DEFAULT_PREFIX = "wdshards"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of a dataset, opened for reading by `Snapshot.open(url, prefix)`.

    Attributes:
        location: Where the dataset is.
        commit: The commit that made the version.
        manifest: Its content.
        tars: Its tars.
    """

    location: Location
    commit: Commit
    manifest: Manifest
    tars: Tars = field(init=False, compare=False)

    def __post_init__(self) -> None:
        is_foreign = self.manifest.kind == Kind.INDEXED
        object.__setattr__(self, "tars", Tars(self.location, self.manifest.base, is_foreign=is_foreign))

    @property
    def store(self) -> Store:
        """Store of the dataset's directory."""
        return self.location.store

    @property
    def layout(self) -> Layout:
        """Names of the dataset's objects."""
        return self.location.layout

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str],
        prefix: str = DEFAULT_PREFIX,
        *,
        version: int | str | None = None,
        storage_options: StorageOptions | None = None,
        data_url: str | os.PathLike[str] | None = None,
        data_storage_options: StorageOptions | None = None,
    ) -> "Snapshot":
        """Returns a version of a dataset.

        Args:
            url: The dataset's directory; one that ends in `?version=7` names the version as well.
            prefix: The dataset's prefix.
            version: Number of the version, or the name of a hold; None: the last version.
            storage_options: See `Store`.
            data_url: Where the tars of an indexed dataset are, if they are outside its folder: they are read there only
                if you say so.
            data_storage_options: Options for the store of `data_url`, which gets none of `storage_options`.

        Raises:
            CallError: The URL names another version than the argument, or the tars are not under `data_url`.
            NotFoundError: Nothing was ever committed under that URL and prefix, or that version does not exist or was
                dropped.
            DamagedError: Its manifest differs from the one that was committed.
        """
        directory, pinned = split_version(url, version)
        data = DataPlace.of(data_url, data_storage_options)
        location = Location(Store(directory, storage_options), Layout(prefix), data)
        snapshot = cls.load(location, read_version(location, pinned))
        snapshot.tars.check_access()
        return snapshot

    @classmethod
    def load(cls, location: Location, commit: Commit) -> "Snapshot":
        """Returns the last version as of a commit.

        Raises:
            NotFoundError: It was dropped.
            DamagedError: Its manifest is missing, or differs from the one that was committed.
        """
        name = location.layout.manifest(commit.intent, commit.manifest)
        url, body = location.store.url_of(name), _read_record(location, commit, name, "manifest")
        if digest_of(body) != commit.manifest:
            raise DamagedError(f"the manifest is not the one that version {commit.version} committed", url=url)
        snapshot = cls(location, commit, Manifest.from_bytes(body, url))
        found = snapshot.num_samples, len(snapshot.shards), snapshot.num_bytes
        if found != (commit.num_samples, commit.num_shards, commit.num_bytes):
            raise DamagedError(
                f"the manifest does not hold the samples, shards and bytes that version {commit.version} committed: "
                "dray log lists the versions, dray rollback goes back to one",
                url=url,
            )
        return snapshot

    @property
    def version(self) -> int:
        """Number of the version, counted from 1."""
        return self.commit.version

    @property
    def shards(self) -> tuple[Shard, ...]:
        """Shards in the order of the samples."""
        return self.manifest.shards

    @property
    def num_samples(self) -> int:
        """Number of samples in all shards."""
        return self.manifest.num_samples

    @property
    def num_bytes(self) -> int:
        """Size of all tars in bytes."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def is_local(self) -> bool:
        """Whether the dataset and its tars are on a local disk."""
        return self.store.local_root is not None and self.tars.is_local

    def shard_url(self, shard: Shard) -> str:
        """Returns the URL of a shard's tar."""
        return self.tars.url_of(shard)

    def urls(self) -> list[str]:
        """Returns the URLs of the tars, in order."""
        return [self.shard_url(shard) for shard in self.shards]

    def index(self, shard: Shard) -> ShardIndex:
        """Returns the index of a shard.

        Raises:
            DamagedError: It differs from the one that the snapshot names, or does not describe that shard.
        """
        name = self.layout.index(shard.number)
        url, body = self.store.url_of(name), self.store.get(name)
        if digest_of(body) != shard.index_digest:
            raise DamagedError(f"not the index that version {self.version} names", url=url)
        return ShardIndex.from_bytes(body, url, (shard.num_samples, shard.num_bytes))

    def sources(self) -> pa.Table:
        """Returns the sources, sorted by key: key, name, and size, stamp and xxh3_64 of each suffix.

        If each source is one sample, the table has its shard and row as well.

        Raises:
            CallError: The version does not record its sources.
            NotFoundError: The version was dropped.
            DamagedError: A table is missing or differs from the one that the snapshot names, or the tables do not give
                each sample of the shards one key.
        """
        chunks, has_places = self.manifest.sources, self.manifest.samples is None
        if chunks is None:
            raise CallError(f"{self.name} is a dataset of kind {self.manifest.kind!r}, which records no sources")
        schema = source_schema(self.manifest.recipe.get("suffixes", ()), has_places=has_places)
        return self._checked_table(chunks, schema, self.shards if has_places else None)

    def samples(self) -> pa.Table:
        """Returns the samples, sorted by key: key, shard, row.

        Raises:
            NotFoundError: The version was dropped.
            DamagedError: See `sources`.
        """
        chunks = self.manifest.samples
        if chunks is None:
            return self.sources().select(["key", "shard", "row"])
        schema = sample_schema(has_sources=self.manifest.sources is not None)
        return self._checked_table(chunks, schema, self.shards)

    def left_out(self) -> pa.Table | None:
        """Returns the inputs without a sample: key, name, file, stage, error, fate, stamp; None if there are none.

        Raises:
            NotFoundError: The version was dropped.
            DamagedError: The table is missing, or differs from the one that the snapshot names.
        """
        left_out, counts = self.manifest.left_out, self.manifest.accounting
        if left_out is None:
            return None
        table = self._table(left_out, LEFT_OUT)
        fates = table["fate"].to_pylist()
        if (fates.count("skipped"), fates.count("quarantined")) != (counts.skipped, counts.quarantined):
            raise self._damaged_table(
                left_out, f"{counts.skipped} skipped and {counts.quarantined} quarantined expected"
            )
        return table

    def left_out_url(self) -> str | None:
        """Returns the URL of the Parquet table of inputs without a sample; None if there is none."""
        table = self.manifest.left_out
        return self.store.url_of(self.layout.table(table.intent, table.digest)) if table else None

    def record_names(self) -> list[str]:
        """Returns the names of the manifest and its tables."""
        return [
            self.layout.manifest(self.commit.intent, self.commit.manifest),
            *(self.layout.table(chunk.intent, chunk.digest) for chunk in self.manifest.chunks()),
        ]

    def find(self, key: str) -> tuple[Shard, ShardIndex, int]:
        """Returns the shard that holds a sample, its index, and the sample's row there.

        Reads the table of samples and one index.

        Raises:
            NotFoundError: No sample has that key; names its neighbours, or its source's samples.
            DamagedError: The table or the index is damaged.
        """
        table = self.samples()
        keys = table["key"]
        row = place_of(keys, key)
        if row == len(keys) or keys[row].as_py() != key:
            raise missing_key(key, self.name, table, self.left_out())
        number = table["shard"][row].as_py()
        for shard in self.shards:
            if shard.number == number:
                index = self.index(shard)
                if key in index.keys:
                    return shard, index, list(index.keys).index(key)
        raise DamagedError(f"shard {number} does not hold sample {key!r}, as the table of samples says", url=self.name)

    def source_of(self, key: str) -> str | None:
        """Returns the key of the source of a sample; None if the version does not record it for each sample.

        Raises:
            DamagedError: The table of samples is damaged.
        """
        if self.manifest.sources is None or self.manifest.samples is None:
            return None
        table = self.samples()
        row = place_of(table["key"], key)
        is_found = row < len(table) and table["key"][row].as_py() == key
        return str(table["source"][row].as_py()) if is_found else None

    def read(self, key: str) -> dict[str, bytes]:
        """Returns the parts of one sample, by suffix, checked.

        Raises:
            NotFoundError: No sample has that key; names its neighbours.
            DamagedError: A part differs from its index; names shard, key and suffix.
        """
        return self.read_row(*self.find(key))

    def read_row(self, shard: Shard, index: ShardIndex, row: int) -> dict[str, bytes]:
        """Returns the parts of the sample in one row of a shard, by suffix, checked.

        Raises:
            NotFoundError: The shard is missing.
            ChangedError: Another program replaced the tar.
            DamagedError: A part differs from the index; names shard, key and suffix.
        """
        columns = [column for column in range(len(index.suffixes)) if index.offsets[row, column]]
        starts, sizes = index.offsets[row, columns].tolist(), index.sizes[row, columns].tolist()
        parts: dict[str, bytes] = {}
        for column, data in zip(columns, self.tars.get_ranges(shard, starts, sizes), strict=True):
            suffix = index.suffixes[column]
            if xxh3_64_intdigest(data) != index.xxh3_64[row, column]:
                raise self.tars.bad_part(shard).at(
                    key=index.keys[row], suffix=suffix, offset=int(index.offsets[row, column])
                )
            parts[suffix] = bytes(data)
        return parts

    @property
    def name(self) -> str:
        """The version with URL and prefix, for messages."""
        return f"version {self.version} of {self.store.url} {self.layout.prefix}"

    def _checked_table(
        self, chunks: Sequence[TableChunk], schema: pa.Schema, shards: Sequence[Shard] | None
    ) -> pa.Table:
        """Returns a table of ascending keys; its rows must be the samples of the shards, unless these are None."""
        table = pa.concat_tables([self._table(chunk, schema) for chunk in chunks])
        try:
            check_keys(table["key"])
            if shards is not None:
                check_places(table, {shard.number: shard.num_samples for shard in shards})
        except ValueError as exc:
            raise self._damaged_table(chunks[0], exc) from exc
        return table

    def _table(self, chunk: TableChunk, schema: pa.Schema) -> pa.Table:
        name = self.layout.table(chunk.intent, chunk.digest)
        body = _read_record(self.location, self.commit, name, "table")
        if digest_of(body) != chunk.digest:
            raise self._damaged_table(chunk, "not the one that its name says")
        try:
            return read_table(body, schema, chunk.num_rows)
        except ValueError as exc:
            raise self._damaged_table(chunk, exc) from exc

    def _damaged_table(self, chunk: TableChunk, why: object) -> DamagedError:
        return DamagedError(
            f"not a readable table of version {self.version} ({why}): "
            "dray log lists the versions, dray rollback goes back to one",
            url=self.store.url_of(self.layout.table(chunk.intent, chunk.digest)),
        )


def _read_record(location: Location, commit: Commit, name: str, what: str) -> bytes:
    """Returns the bytes of a manifest or one of its tables.

    Raises:
        NotFoundError: The version was dropped.
        DamagedError: It is missing.
    """
    try:
        return location.store.get(name)
    except NotFoundError as exc:
        head = read_head(location)
        if head is not None and not keeps(location, head, commit.version):
            holds = read_holds(location, head)
            held = "".join(f", {version} as {name!r}" for name, version in sorted(holds.items()))
            raise NotFoundError(
                f"version {commit.version} of {location.prefix!r} under {location.url} was dropped: kept are those "
                f"from {head.kept_from} on{held}; dray log {location.url} shows them"
            ) from exc
        url = location.store.url_of(name)
        raise DamagedError(f"the {what} of version {commit.version} is missing", url=url) from exc
