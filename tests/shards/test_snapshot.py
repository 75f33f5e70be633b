"""A snapshot is found by its version, complete or refused, and never changes."""

import io
import pickle
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from dray.pipelines.building.tables import parquet_of, source_table
from dray.pipelines.inputs.sources import Sources
from dray.shards.errors import DamagedError, NotFoundError, StoreError
from dray.shards.index import ShardIndex, digest_of
from dray.shards.layout import Layout, Location
from dray.shards.log import Commit, create_commit, new_write_id, now, put_content
from dray.shards.manifest import Accounting, Manifest, Shard, TableChunk
from dray.shards.parts import PartForms
from dray.shards.snapshot import Snapshot
from dray.shards.storage.store import Store
from dray.shards.tar import TarWriter, scan
from tests.conftest import Place
from tests.support.datasets import latest, overwrite, recipe_of

LAYOUT = Layout("wdshards")


def table_of(places: Mapping[str, tuple[int, int]]) -> pa.Table:
    """Returns a table of sources from key -> (shard, row)."""
    shards, rows = np.array([*places.values()], np.int64).reshape(-1, 2).T
    zeros = np.zeros((len(places), 1), np.int64)
    sources = Sources(url="file:///in", names=[*places], suffixes=("cls",), sizes=zeros, stamps=zeros)
    return source_table(sources, zeros.astype(np.uint64), (shards, rows))


SOURCES = table_of({"a": (0, 0), "b": (0, 1), "c": (1, 0)})


def put_shard(store: Store, number: int, keys: list[str]) -> Shard:
    """Store a shard of these keys with its index."""
    writer = TarWriter()
    for key in keys:
        writer.add(f"{key}.cls".encode(), key.encode())
    tar = bytes(writer.finish())
    index = ShardIndex.of_members(scan(io.BytesIO(tar), ""), shard_bytes=len(tar), where="").to_bytes()
    store.put_new(LAYOUT.shard(number), tar)
    store.put_new(LAYOUT.index(number), index)
    return Shard(
        number=number,
        num_bytes=len(tar),
        num_samples=len(keys),
        digest="ab" * 16,
        index_digest=digest_of(index),
    )


def put_sources(store: Store, table: pa.Table) -> TableChunk:
    """Store a chunk of sources."""
    body = parquet_of(table)
    put_content(store, LAYOUT.table(1, digest_of(body)), body)
    return TableChunk(intent=1, digest=digest_of(body), num_rows=table.num_rows)


def put_version(store: Store, version: int, manifest: Manifest) -> None:
    """Store a manifest and commit it."""
    body = manifest.to_bytes()
    put_content(store, LAYOUT.manifest(manifest.intent, digest_of(body)), body)
    commit = Commit(
        number=version,
        operation="build",
        version=version,
        intent=manifest.intent,
        manifest=digest_of(body),
        num_samples=manifest.accounting.packed,
        num_shards=len(manifest.shards),
        num_bytes=sum(shard.num_bytes for shard in manifest.shards),
        write_id=new_write_id(),
        created=now(),
    )
    create_commit(Location(store, LAYOUT), commit)


@pytest.fixture
def manifest(place: Place) -> Manifest:
    """Version 1 of a dataset at `place` with two shards, three samples and two chunks of sources."""
    store = Store(place.url, place.storage_options)
    manifest = Manifest(
        prefix="wdshards",
        source_url="file:///in",
        recipe={**recipe_of("cls"), "nested": {"ü": 1.5}},
        intent=1,
        num_samples=3,
        accounting=Accounting(inputs=3, packed=3),
        parts=(PartForms(name="cls", forms={"cls": 3}),),
        shards=(put_shard(store, 0, ["a", "b"]), put_shard(store, 1, ["c"])),
        sources=(put_sources(store, SOURCES[:2]), put_sources(store, SOURCES[2:])),
    )
    put_version(store, 1, manifest)
    return manifest


def test_a_snapshot_comes_back_as_it_was_committed(place: Place, manifest: Manifest) -> None:
    """The manifest and the derived values are equal."""
    snapshot = latest(place, "wdshards")
    assert snapshot.manifest == manifest
    assert (snapshot.version, snapshot.num_samples, snapshot.shards) == (1, 3, manifest.shards)
    assert snapshot.num_bytes == sum(shard.num_bytes for shard in manifest.shards)
    assert snapshot.urls() == [f"{place.url}/wdshards-000000.tar", f"{place.url}/wdshards-000001.tar"]


def test_indexes_and_sources_come_back(place: Place, manifest: Manifest) -> None:
    """Keys are in the order of the shard, and the sources of all chunks are in one table."""
    snapshot = latest(place, "wdshards")
    assert [list(snapshot.index(shard).keys) for shard in snapshot.shards] == [["a", "b"], ["c"]]
    assert snapshot.sources().equals(SOURCES)


def test_an_open_snapshot_does_not_move(place: Place, manifest: Manifest) -> None:
    """A later version needs a new snapshot; each stays accessible by its number."""
    store = Store(place.url, place.storage_options)
    before = latest(place, "wdshards")
    shards, counts = (*manifest.shards, put_shard(store, 2, ["d"])), Accounting(inputs=4, packed=4)
    sources = (*(manifest.sources or ()), put_sources(store, table_of({"d": (2, 0)})))
    parts = (PartForms(name="cls", forms={"cls": 4}),)
    later = replace(manifest, shards=shards, sources=sources, num_samples=4, accounting=counts, parts=parts)
    put_version(store, 2, later)
    assert (before.version, before.num_samples) == (1, 3)
    assert (latest(place, "wdshards").version, latest(place, "wdshards").num_samples) == (2, 4)
    first = Snapshot.open(place.url, "wdshards", version=1, storage_options=place.storage_options)
    assert (first.commit, first.manifest) == (before.commit, before.manifest)


def test_a_snapshot_crosses_processes_and_shows_no_secret(place: Place, manifest: Manifest) -> None:
    """It can be pickled, and its repr shows only its URL."""
    snapshot = pickle.loads(pickle.dumps(latest(place, "wdshards")))
    assert list(snapshot.index(snapshot.shards[0]).keys) == ["a", "b"]
    secret = place.storage_options.get("secret_access_key", "no secret here")
    assert secret not in repr(snapshot) + repr(place)


def test_no_dataset_is_not_found_with_a_hint(place: Place) -> None:
    """The message names URL, prefix and the next step."""
    with pytest.raises(NotFoundError) as caught:
        latest(place, "wdshards")
    assert f"no dataset with prefix 'wdshards' under {place.url}: check the URL" in str(caught.value)
    assert "dray build" in str(caught.value)


def test_no_such_version_is_not_found_with_a_hint(place: Place, manifest: Manifest) -> None:
    """The message names the last existing version; another prefix has none."""
    with pytest.raises(NotFoundError, match=f"no version 7 .* under {place.url}; the last one there is 1: check"):
        Snapshot.open(place.url, "wdshards", version=7, storage_options=place.storage_options)
    with pytest.raises(NotFoundError, match=r"no version 1 of prefix 'other' .* the last one there is none"):
        Snapshot.open(place.url, "other", version=1, storage_options=place.storage_options)


def _assert_damaged(snapshot_of: Place, read: str, name: str) -> None:
    snapshot = latest(snapshot_of, "wdshards")
    with pytest.raises(DamagedError) as caught:
        snapshot.sources() if read == "sources" else snapshot.index(snapshot.shards[0])
    assert f"{snapshot_of.url}/{name}" in str(caught.value)


def test_a_replaced_manifest_is_damage(place: Place, manifest: Manifest) -> None:
    """A valid manifest of another build is damage too."""
    store, name = (
        Store(place.url, place.storage_options),
        LAYOUT.manifest(manifest.intent, digest_of(manifest.to_bytes())),
    )
    overwrite(store, name, replace(manifest, shards=manifest.shards[:1]).to_bytes())
    with pytest.raises(DamagedError, match=f"{place.url}/{name}: the manifest is not the one that version 1 committed"):
        latest(place, "wdshards")


def test_a_replaced_index_is_damage(place: Place, manifest: Manifest) -> None:
    """A valid index of another shard is damage too."""
    store = Store(place.url, place.storage_options)
    overwrite(store, LAYOUT.index(0), store.get(LAYOUT.index(1)))
    _assert_damaged(place, "index", LAYOUT.index(0))


def test_replaced_sources_are_damage(place: Place, manifest: Manifest) -> None:
    """Another chunk of the same snapshot is damage too."""
    store, (first, second) = Store(place.url, place.storage_options), manifest.sources
    overwrite(store, LAYOUT.table(1, first.digest), store.get(LAYOUT.table(1, second.digest)))
    _assert_damaged(place, "sources", LAYOUT.table(1, first.digest))


def test_a_missing_manifest_is_not_an_older_version(place: Place, manifest: Manifest) -> None:
    """A damaged last version raises an error instead of opening an older one."""
    store = Store(place.url, place.storage_options)
    later = replace(manifest, intent=2)
    put_version(store, 2, later)
    name = LAYOUT.manifest(2, digest_of(later.to_bytes()))
    store.delete([name])
    with pytest.raises(DamagedError, match=f"{place.url}/{name}: the manifest of version 2 is missing"):
        latest(place, "wdshards")


def test_a_manifest_is_the_same_bytes_for_the_same_build(manifest: Manifest) -> None:
    """The order of the recipe does not matter, and the manifest has no times or ids."""
    backwards = replace(manifest, recipe=dict(reversed(manifest.recipe.items())))
    assert backwards.to_bytes() == manifest.to_bytes()
    assert Manifest.from_bytes(manifest.to_bytes(), "x") == manifest


@pytest.mark.parametrize(
    "change", [(b'"format": 2', b'"format": "2"'), (b'"shards"', b'"shard"'), (b"{", b"["), (b"}", b"")]
)
def test_a_broken_manifest_is_damage(manifest: Manifest, change: tuple[bytes, bytes]) -> None:
    """The content is checked even if the digest matches."""
    with pytest.raises(DamagedError, match=r"x.json: not a readable manifest"):
        Manifest.from_bytes(manifest.to_bytes().replace(*change), "x.json")


def test_content_that_is_there_already_is_kept(place: Place) -> None:
    """Two builds that write the same manifest both succeed."""
    store = Store(place.url, place.storage_options)
    put_content(store, "m/a", b"cargo")
    put_content(store, "m/a", b"cargo")
    assert store.get("m/a") == b"cargo"


def test_other_content_under_its_name_is_damage(place: Place) -> None:
    """A build must not commit a snapshot that cannot be opened."""
    store = Store(place.url, place.storage_options)
    store.put_new("m/a", b"cargX")
    with pytest.raises(DamagedError, match=f"{place.url}/m/a: not the content"):
        put_content(store, "m/a", b"cargo")


class LostReply(Store):
    """Reports a failure, with or without storing the object."""

    stores = True

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        if self.stores:
            super().put_new(name, data)
        raise StoreError("no answer")


def test_content_whose_reply_was_lost_is_there() -> None:
    """A stored object is accepted; otherwise the error of the store is raised."""
    store = LostReply("memory://snapshot-lost")
    put_content(store, "a", b"cargo")
    store.stores = False
    with pytest.raises(StoreError, match="no answer"):
        put_content(store, "b", b"cargo")
