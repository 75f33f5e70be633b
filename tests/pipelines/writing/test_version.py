"""Versions that a program writes: announced, stored, committed, found again, abandoned."""

import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from dray.pipelines.inputs.values import encode_sample
from dray.pipelines.versions.gc import gc
from dray.pipelines.versions.retention import Retention
from dray.pipelines.writing.announce import announce_writing, open_written
from dray.pipelines.writing.shard import Sample, ShardSize, WrittenShard, store_in_order
from dray.pipelines.writing.version import Contents, Writing
from dray.shards import CallError, ConflictError, InputError, Snapshot, Store
from dray.shards.layout import Layout, Location
from dray.shards.verify import verify
from tests.conftest import Place

RECIPE = {"writer": "test"}


def location_of(place: Place) -> Location:
    return Location(Store(place.url, place.storage_options), Layout("wds"))


def samples(keys: Iterable[int], factor: int = 1) -> list[Sample]:
    return [
        Sample(f"s{key:03d}", encode_sample({"x": np.full(3, key * factor), "cls": key, "note": f"no. {key}"}))
        for key in keys
    ]


def store(writing: Writing, stored: Iterable[Sample], per_shard: int = 4) -> list[WrittenShard]:
    numbers = writing.intent.numbers
    return list(store_in_order(writing.location, stored, numbers, ShardSize.of(per_shard, None), "the test"))


def test_a_written_version_holds_its_samples_in_order(place: Place) -> None:
    """It has no sources, and its shards are cut at the number of samples."""
    location = location_of(place)
    writing = announce_writing(location, RECIPE, open_written(location))
    report = writing.commit(Contents(recipe=RECIPE, written=store(writing, samples(range(10)))))
    assert (report.version, report.num_samples, report.num_shards, report.num_added) == (1, 10, 3, 10)
    version = Snapshot.open(place.url, "wds", storage_options=place.storage_options)
    assert [shard.num_samples for shard in version.shards] == [4, 4, 2]
    assert version.samples()["key"].to_pylist() == [f"s{key:03d}" for key in range(10)]
    assert version.read("s007")["note.txt"] == b"no. 7"
    assert {part.name: (part.dtype, part.shape) for part in version.manifest.parts} == {
        "x.npy": ("<i8", (3,)),
        "cls": (None, None),
        "note.txt": (None, None),
    }


def test_a_report_counts_what_changed_by_content(place: Place) -> None:
    """Shards that stay are shared with the last version."""
    location = location_of(place)
    first = announce_writing(location, RECIPE, None)
    first.commit(Contents(recipe=RECIPE, written=store(first, samples(range(8)))))
    base = open_written(location)
    assert base is not None
    second = announce_writing(location, RECIPE, base)
    kept = base.manifest.counted_shards()[:1]
    stored = store(second, [*samples([4, 5]), *samples([6], factor=2), *samples([9])])
    report = second.commit(Contents(recipe=RECIPE, written=stored, kept=kept))
    assert (report.num_added, report.num_changed, report.num_removed, report.num_reused) == (1, 1, 1, 1)
    version = open_written(location)
    assert version is not None
    assert version.shards[0] == base.shards[0]
    assert [key for shard in version.shards for key in version.index(shard).keys] == [
        f"s{key:03d}" for key in (0, 1, 2, 3, 4, 5, 6, 9)
    ]


def test_a_rerun_with_the_build_id_adopts_equal_shards_and_refuses_others(place: Place) -> None:
    """Under the same numbers; a committed one has nothing to do."""
    location = location_of(place)
    dead = announce_writing(location, RECIPE, None, build_id="nightly-1")
    store(dead, samples(range(8)))
    again = announce_writing(location, RECIPE, None, build_id="nightly-1")
    assert again.intent == dead.intent
    with pytest.raises(InputError, match="by the test: it is not deterministic"):
        store(again, samples(range(8), factor=7))
    written = store(again, samples(range(10)))
    assert [shard.adopted for shard in written] == [True, True, False]
    report = again.commit(Contents(recipe=RECIPE, written=written))
    assert (report.num_reused, report.num_samples) == (2, 10)
    done = announce_writing(location, RECIPE, open_written(location), build_id="nightly-1")
    assert done.is_committed
    assert not done.report().is_new
    with pytest.raises(CallError, match="with other arguments"):
        announce_writing(location, {"writer": "other"}, open_written(location), build_id="nightly-1")


def test_an_abandoned_writing_leaves_no_shard(place: Place) -> None:
    """Shards of other writings stay; gc deletes what came too late."""
    location = location_of(place)
    failed = announce_writing(location, RECIPE, None)
    store(failed, samples(range(8)))
    failed.abandon()
    assert not [info for info in location.store.list_tree() if not info.name.endswith(".json")]
    first = announce_writing(location, RECIPE, None)
    first.commit(Contents(recipe=RECIPE, written=store(first, samples(range(8)))))
    second = announce_writing(location, RECIPE, open_written(location))
    late = samples(range(5))
    store(second, late)
    second.abandon()
    tars = {location.layout.shard(number) for number in first.intent.numbers[:2]}
    assert {info.name for info in location.store.list_folder() if info.name.endswith(".tar")} == tars
    store(second, late)
    gc(location, Retention(keep=1, grace_s=0))
    assert {info.name for info in location.store.list_folder() if info.name.endswith(".tar")} == tars


def test_a_late_failure_deletes_no_shard_of_a_version(place: Place) -> None:
    """Two runs have one `build_id`: one commits, and the other fails after it adopted the same shards."""
    location = location_of(place)
    one, two = (announce_writing(location, RECIPE, None, build_id="twin") for _ in range(2))
    one.commit(Contents(recipe=RECIPE, written=store(one, samples(range(8)))))
    with pytest.raises(InputError, match="not deterministic"), two.storing():
        store(two, [*samples(range(4)), *samples(range(4, 9), factor=2)])
    version = open_written(location)
    assert version is not None
    assert not list(verify(version, "full"))
    assert {info.name for info in location.store.list_folder()} >= {"wds-000000.tar", "wds-000001.tar"}


def test_a_commit_that_drops_the_last_version_still_counts_what_changed(place: Place) -> None:
    """The index of the last version is gone by then."""
    location, retention = location_of(place), Retention(keep=1, grace_s=0)
    for factor, expected in ((1, (8, 0, 0)), (2, (0, 7, 0)), (2, (0, 0, 0))):
        writing = announce_writing(location, RECIPE, open_written(location), retention=retention)
        report = writing.commit(Contents(recipe=RECIPE, written=store(writing, samples(range(8), factor))))
        assert (report.num_added, report.num_changed, report.num_removed) == expected


def test_keys_that_repeat_are_an_error_and_no_version(place: Place) -> None:
    """In one shard or in two, and an empty writing as well."""
    location = location_of(place)
    for keys in ([1, 2, 1], [*range(7), 0]):
        writing = announce_writing(location, RECIPE, None)
        written = store(writing, samples(keys))
        with pytest.raises(InputError, match="share a key: 's00"):
            writing.commit(Contents(recipe=RECIPE, written=written))
    with pytest.raises(InputError, match="no sample was given"):
        announce_writing(location, RECIPE, None).commit(Contents(recipe=RECIPE, written=[]))
    assert open_written(location) is None


def test_of_two_writers_one_wins(place: Place) -> None:
    """The other one gets an error, and its shards are kept."""
    location = location_of(place)
    one, two = announce_writing(location, RECIPE, None), announce_writing(location, RECIPE, None, build_id="two")
    written = store(two, samples(range(4)))
    one.commit(Contents(recipe=RECIPE, written=store(one, samples(range(3)))))
    with pytest.raises(ConflictError, match="same build_id"):
        two.commit(Contents(recipe=RECIPE, written=written))
    again = announce_writing(location, RECIPE, open_written(location), build_id="two")
    assert again.commit(Contents(recipe=RECIPE, written=store(again, samples(range(4))))).num_reused == 1


def test_shards_are_cut_by_size(tmp_path: Path) -> None:
    """A shard is full before it passes its bytes; a larger sample has a shard of its own."""
    location = Location(Store(tmp_path), Layout("wds"))
    chance = random.Random(0)
    sizes = [chance.choice([10, 3000, 20_000]) for _ in range(40)]
    given = [Sample(f"s{n:03d}", {"bin": bytes(size)}) for n, size in enumerate(sizes)]
    writing = announce_writing(location, RECIPE, None)
    size = ShardSize.of(None, 16_384)
    written = list(store_in_order(location, given, writing.intent.numbers, size, "the test"))
    assert sum(len(shard.keys) for shard in written) == 40
    assert all(shard.num_bytes <= 16_384 or len(shard.keys) == 1 for shard in written)
    assert len(written) < 40
