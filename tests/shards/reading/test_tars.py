"""Tars that dray did not write: each read checks that they are the ones that were indexed."""

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.loaders import Dataset, ShardLoader
from dray.shards import ChangedError, NotFoundError, Snapshot
from dray.shards.storage.store import Store
from dray.shards.verify import verify
from tests.conftest import Place
from tests.support.chaos import Chaos
from tests.support.datasets import latest, store_at
from tests.support.foreign import NAMES, PER_TAR, index_at, key_of, put_tars, replace_tar, tar_of

SAME_SIZE = tar_of(range(500, 500 + PER_TAR))  # the tar of other samples
Read = Callable[[Place], object]


def by_loader(place: Place, **options: Any) -> Iterator[Any]:
    return iter(ShardLoader(place.url, prefix="wds", batch_size=1, storage_options=place.storage_options, **options))


READERS: dict[str, Read] = {
    "loader": lambda place: list(by_loader(place)),
    "workers": lambda place: list(by_loader(place, num_workers=1)),
    "dataset": lambda place: Dataset(place.url, "wds", storage_options=place.storage_options)[PER_TAR],
    "read": lambda place: latest(place).read(key_of(PER_TAR)),
}


@pytest.fixture
def indexed(place: Place) -> Place:
    """A place with tars and a dataset that indexes them."""
    put_tars(store_at(place))
    index_at(place)
    return place


@pytest.mark.parametrize("reader", [name for name in READERS if name != "workers"])
def test_a_replaced_tar_is_named_by_every_reader(indexed: Place, reader: str) -> None:
    """Law 10: also one of the same size; the error says what was expected and found, and what to do."""
    READERS[reader](indexed)
    replace_tar(store_at(indexed), NAMES[1], SAME_SIZE)
    with pytest.raises(
        ChangedError, match=r"a/01\.tar: .*was indexed: (ETag|modification time) .* expected, found"
    ) as exc:
        READERS[reader](indexed)
    assert f"dray index {indexed.url} --prefix wds" in str(exc.value)
    assert latest(indexed).read(key_of(0))["cls"] == b"0"


def test_workers_name_a_replaced_tar(tmp_path: Path) -> None:
    """A worker's error reaches the trainer as it is."""
    place = Place(tmp_path.as_uri())
    put_tars(store_at(place))
    index_at(place)
    replace_tar(store_at(place), NAMES[1], SAME_SIZE)
    with pytest.raises(ChangedError, match=r"a/01\.tar"):
        READERS["workers"](place)


@pytest.mark.parametrize("data", [SAME_SIZE, SAME_SIZE[:1024], SAME_SIZE + bytes(512), b""])
def test_a_tar_that_is_replaced_while_a_loader_has_it_open_is_named(indexed: Place, data: bytes) -> None:
    """No sample of the new one is taken for one of the old, and a mapped file that shrinks crashes nothing."""
    loader = ShardLoader(indexed.url, prefix="wds", batch_size=1, storage_options=indexed.storage_options)
    assert [batch["cls"].item() for batch in loader] == [*range(3 * PER_TAR)]
    replace_tar(store_at(indexed), NAMES[1], data)
    found = []
    with pytest.raises(ChangedError, match=r"a/01\.tar"):
        found += [batch["cls"].item() for batch in loader]
    assert found == list(range(len(found)))


def test_a_tar_that_was_renamed_is_missing(indexed: Place) -> None:
    """The error says so, and what to do."""
    store_at(indexed).delete([NAMES[1]])
    with pytest.raises(NotFoundError, match=r"a/01\.tar"):
        list(by_loader(indexed))
    assert [finding.what for finding in verify(latest(indexed), "quick")] == [
        f"the tar is missing: put it back, or leave its samples out by dray index {indexed.url} --prefix wds"
    ]


def test_samples_of_a_replaced_tar_are_skipped_where_that_is_wanted(indexed: Place, tmp_path: Path) -> None:
    """As those of a missing shard."""
    replace_tar(store_at(indexed), NAMES[1], SAME_SIZE)
    loader = ShardLoader(
        indexed.url, prefix="wds", batch_size=4, on_error="skip", bad_samples=tmp_path / "bad",
        storage_options=indexed.storage_options,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="cannot be read are replaced"):
        found = [value for batch in loader for value in batch["cls"].tolist()]
    assert len(found) == 3 * PER_TAR
    assert not set(found) & set(range(PER_TAR, 2 * PER_TAR))
    assert loader.stats()["skipped"] == PER_TAR
    assert (tmp_path / "bad").read_text().count("not the tar that was indexed") == PER_TAR


def test_a_version_of_the_tars_as_they_are_now_reads_them(indexed: Place, tmp_path: Path) -> None:
    """A cache that both versions share mixes nothing."""
    cache = {"cache_dir": tmp_path / "cache"}
    assert [batch["cls"].item() for batch in by_loader(indexed, **cache)] == [*range(3 * PER_TAR)]
    replace_tar(store_at(indexed), NAMES[0], SAME_SIZE)
    index_at(indexed)
    for _ in range(2):
        found = [batch["cls"].item() for batch in by_loader(indexed, **cache)]
        assert found == [*range(500, 500 + PER_TAR), *range(PER_TAR, 3 * PER_TAR)]


def test_a_touched_tar_counts_as_another_one(tmp_path: Path) -> None:
    """Its bytes may be the same, but only reading all of it would tell."""
    place = Place(tmp_path.as_uri())
    put_tars(store_at(place))
    snapshot = index_at(place)
    os.utime(tmp_path / NAMES[0], ns=(0, 1_500_000_000_123_456_789))
    with pytest.raises(ChangedError, match=r"found 2017-07-14T02:40:00\.123456789Z"):
        snapshot.read(key_of(0))


def test_the_check_costs_no_request(s3: SeaweedServer, chaos: Chaos) -> None:
    """One GET reads a sample, whatever it is compared with; a stream of a tar needs no HEAD either."""
    options = s3.storage_options | {"endpoint": chaos.endpoint}
    place = Place(s3.url("no-more-requests"), options)
    put_tars(store_at(place))
    snapshot = index_at(place)
    (shard, index, row) = snapshot.find(key_of(1))
    chaos.log.clear()
    assert snapshot.read_row(shard, index, row)["cls"] == b"1"
    with snapshot.tars.open_stream(shard) as stream:
        assert len(stream.read()) == shard.num_bytes
    assert [asked.method for asked in chaos.log] == ["GET", "GET"]


def test_ranges_of_a_tar_are_joined_and_come_in_the_order_asked_for(indexed: Place) -> None:
    """Also empty ones and ones that are far apart."""
    snapshot = latest(indexed)
    body = store_at(indexed).get(NAMES[0])
    starts, lengths = [4096, 0, 512, 700, 5000, 9], [100, 512, 0, 300, 1, 600]
    for gap in (0, 1 << 20):
        found = snapshot.tars.get_ranges(snapshot.shards[0], starts, lengths, gap=gap)
        assert found == [body[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def test_a_replaced_tar_is_asked_for_once(s3: SeaweedServer, chaos: Chaos) -> None:
    """What is known to be another tar is not requested again for each of its samples."""
    place = Place(s3.url("asked-once"), s3.storage_options)
    put_tars(store_at(place))
    index_at(place)
    replace_tar(store_at(place), NAMES[1], SAME_SIZE)
    far = Place(place.url, s3.storage_options | {"endpoint": chaos.endpoint})
    batches = by_loader(far, on_error="skip", bad_samples=os.devnull)
    with pytest.warns(UserWarning, match="cannot be read are replaced"):
        assert len(list(batches)) == 3 * PER_TAR
    assert sum("01.tar" in asked.path for asked in chaos.log) <= 2


def test_errors_and_snapshots_cross_processes(indexed: Place) -> None:
    """They keep what they say and where they are."""
    snapshot: Snapshot = pickle.loads(pickle.dumps(latest(indexed)))
    if store_at(indexed).url.startswith("memory:"):
        assert snapshot.urls() == latest(indexed).urls()
        return
    assert snapshot.read(key_of(2))["cls"] == b"2"
    replace_tar(Store(indexed.url, indexed.storage_options), NAMES[0], SAME_SIZE)
    with pytest.raises(ChangedError) as exc:
        snapshot.read(key_of(2))
    assert str(pickle.loads(pickle.dumps(exc.value))) == str(exc.value)
