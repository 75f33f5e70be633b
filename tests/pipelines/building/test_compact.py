"""Merging small shards: a pure plan of groups, and a version of the same samples in fewer tars."""

from pathlib import Path
from typing import Any

import pytest

from dray.pipelines.building import tables
from dray.pipelines.building.build import build as build_spec
from dray.pipelines.building.compact import CompactReport, compact
from dray.pipelines.building.job import PackJob
from dray.pipelines.building.pack import read_index
from dray.pipelines.building.survey import BuildSpec
from dray.pipelines.inputs.tolerance import Tolerance
from dray.pipelines.planning.merges import num_small
from dray.pipelines.planning.recipe import Recipe
from dray.pipelines.versions.retention import Retention
from dray.shards import NotFoundError, Snapshot, Store
from dray.shards.layout import Layout, Location
from dray.shards.tar import END
from dray.shards.verify import verify
from tests.conftest import Inputs, MakeInputs, Place
from tests.pipelines.building.test_build import SUFFIX
from tests.support.datasets import build, latest, store_at, stored

LAYOUT = Layout("wds")


def compacted(where: Place | Store, **options: Any) -> CompactReport:
    """With the defaults of these tests: two versions kept, no progress."""
    store = store_at(where) if isinstance(where, Place) else where
    return compact(Location(store, LAYOUT), **{"retention": Retention(), "progress": False, **options})


def version_of(place: Place, version: int) -> Snapshot:
    return Snapshot.open(place.url, "wds", version=version, storage_options=place.storage_options)


def samples_of(snapshot: Snapshot) -> dict[str, dict[str, bytes]]:
    """The parts of every sample, in order, checked."""
    shards = [(shard, snapshot.index(shard)) for shard in snapshot.shards]
    return {key: snapshot.read_row(shard, index, row) for shard, index in shards for row, key in enumerate(index.keys)}


def assert_whole(snapshot: Snapshot) -> None:
    """Every byte; indexes are what reading the tars gives, and the table of sources holds the samples' places."""
    assert list(verify(snapshot, "full")) == []
    places = {}
    for shard in snapshot.shards:
        index = snapshot.index(shard)
        name = snapshot.layout.shard(shard.number)
        assert read_index(snapshot.store, name).to_bytes() == index.to_bytes()
        places |= {key: (shard.number, row) for row, key in enumerate(index.keys)}
    table = snapshot.sources().select(["key", "shard", "row"]).to_pylist()
    assert {entry["key"]: (entry["shard"], entry["row"]) for entry in table} == places


def thinned_and_grown(inputs: Inputs, place: Place, **options: Any) -> list[str]:
    """Four shards of ten, two of which lose most of theirs, and two additions of three; returns the names."""
    names = [name for number, name in enumerate(inputs.names[:40]) if not (10 <= number < 17 or 30 <= number < 38)]
    for some in (inputs.names[:40], names, [*names, *inputs.names[40:43]], [*names, *inputs.names[40:46]]):
        build(inputs, place, names=some, **options)
    return [*names, *inputs.names[40:46]]


def test_thinned_and_added_shards_are_merged_and_every_sample_is_the_same(
    make_inputs: MakeInputs, place: Place
) -> None:
    """The old version stays as it was; both are whole to the last byte."""
    names = thinned_and_grown(make_inputs(46), place)
    old = latest(place)
    before, old_samples = stored(place), samples_of(old)
    report = compacted(place)
    new = latest(place)
    assert [[shard.num_samples for shard in version.shards] for version in (old, new)] == [
        [10, 3, 10, 2, 3, 3],
        [10, 8, 10, 3],
    ]
    assert (report.version, report.num_merged, report.num_made, report.num_shards) == (5, 3, 1, 4)
    assert (report.num_samples, report.num_bytes) == (31, new.num_bytes)
    assert "version 5: 31 samples in 4 shards, " in str(report)
    assert "; 3 small ones merged into 1; " in str(report)
    assert samples_of(new) == old_samples
    assert sorted(samples_of(new)) == sorted(name.replace(".", "-") for name in names)
    assert samples_of(version_of(place, 4)) == old_samples
    assert_whole(new)
    assert_whole(version_of(place, 4))
    kept = {name: body for name, body in stored(place).items() if name in before}
    assert kept == {name: body for name, body in before.items() if name in kept}
    assert (new.commit.operation, new.manifest.recipe) == ("compact", old.manifest.recipe)
    assert new.manifest.accounting == old.manifest.accounting


def grown(inputs: Inputs, place: Place, **options: Any) -> None:
    """By size, each build adds four samples: one small shard each."""
    for end in range(4, len(inputs.names) + 1, 4):
        build(inputs, place, names=inputs.names[:end], min_num_shards=None, **options)


def test_a_merged_shard_is_its_parts_one_after_another(make_inputs: MakeInputs, place: Place) -> None:
    """Each tar up to its end of the archive, in order; the same bytes wherever it is done."""
    inputs, again = make_inputs(12), Place(f"{place.url}-again", place.storage_options)
    for where in (place, again):
        grown(inputs, where)
        assert num_small(latest(where).shards, latest(where).manifest.recipe) == 3
        compacted(where)
    found = stored(place)
    parts = [found[f"wds-{number:06d}.tar"] for number in range(3)]
    assert found["wds-000003.tar"] == b"".join(part.removesuffix(END) for part in parts) + END
    records = ("commits", "intents")
    kept = [{n: b for n, b in stored(p).items() if not any(r in n for r in records)} for p in (place, again)]
    assert kept[0] == kept[1]


def test_where_nothing_is_small_nothing_is_written(make_inputs: MakeInputs, place: Place) -> None:
    """After a build of equal shards, and after a compaction."""
    inputs, other = make_inputs(46), Place(f"{place.url}-other", place.storage_options)
    build(inputs, place)
    thinned_and_grown(inputs, other)
    compacted(other)
    for where, version in ((place, 1), (other, 5)):
        before = stored(where)
        report = compacted(where)
        assert (report.version, report.num_merged, report.num_made) == (version, 0, 0)
        assert "nothing to merge" in str(report)
        assert stored(where) == before


def build_from(store: Store, inputs: Inputs, end: int, retention: Retention | None = None, **recipe: Any) -> None:
    """By a size of 12 KiB, the first samples."""
    job = PackJob(inputs=Store(inputs.folder), location=Location(store, LAYOUT), transform=None)
    recipe = {"suffixes": (SUFFIX,), "shard_bytes": 12 << 10, **recipe}
    spec = BuildSpec(job=job, recipe=Recipe(**recipe), names=inputs.names[:end], tolerance=Tolerance(), progress=False)
    build_spec(spec, retention=retention)


def eight_small(inputs: Inputs, place: Place) -> None:
    """By a size of 12 KiB, eight builds that add three samples each: a compaction makes three shards of the eight."""
    for end in range(3, 25, 3):
        build_from(store_at(place), inputs, end)


def test_by_size_small_shards_fill_shards_of_that_size(make_inputs: MakeInputs, place: Place) -> None:
    """None beyond it."""
    eight_small(make_inputs(24), place)
    old = latest(place)
    report = compacted(place)
    assert [shard.number for shard in latest(place).shards] == [8, 9, 10]
    assert (report.num_merged, report.num_made) == (8, 3)
    assert max(shard.num_bytes for shard in latest(place).shards) <= 12 << 10
    assert list(samples_of(latest(place)).items()) == list(samples_of(old).items())
    assert_whole(latest(place))


def test_after_a_compaction_a_build_has_nothing_to_do_and_one_change_rewrites_one_shard(
    make_inputs: MakeInputs, place: Place
) -> None:
    """The merged one, in its order."""
    inputs = make_inputs(46)
    names = thinned_and_grown(inputs, place)
    compacted(place)
    before, order = stored(place), list(samples_of(latest(place)))
    assert (build(inputs, place, names=names).version, stored(place)) == (5, before)
    changed = inputs.names[39]  # it is in the second small shard
    inputs.path(changed, SUFFIX).write_bytes(b"changed")
    report = build(inputs, place, names=names)
    assert (report.version, report.num_shards, report.num_reused) == (6, 4, 3)
    assert list(samples_of(latest(place))) == order
    assert latest(place).read(changed.replace(".", "-")) == {SUFFIX: b"changed"}
    assert_whole(latest(place))


def test_samples_added_to_and_removed_from_merged_shards_are_distinguished(
    make_inputs: MakeInputs, place: Place
) -> None:
    """A later build works on merged shards as on any."""
    inputs = make_inputs(50)
    names = thinned_and_grown(inputs, place)
    compacted(place)
    wanted = [*(name for name in names if name != inputs.names[17]), *inputs.names[46:]]
    report = build(inputs, place, names=wanted)
    assert (report.num_reused, [s.num_samples for s in latest(place).shards]) == (3, [10, 7, 10, 3, 4])
    assert samples_of(latest(place)) == {n.replace(".", "-"): {SUFFIX: inputs.part(n, SUFFIX)} for n in wanted}
    assert_whole(latest(place))


def test_shards_of_a_function_may_differ_in_their_suffixes(make_inputs: MakeInputs, place: Place) -> None:
    """Their columns are those that reading the merged tar gives."""
    inputs = make_inputs(16)

    def vary(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        number = int(key[-4:])
        made = {"a.bin": parts[SUFFIX], "b.txt": key.encode(), "c.txt": b"", "d.e.bin": b"x" * number}
        names = sorted(made, reverse=number % 2 == 0)
        return {name: made[name] for name in names[: 1 + number // 4]}

    grown(inputs, place, func_output_data=vary, transform_version="1")
    old = latest(place)
    suffixes = [old.index(shard).suffixes for shard in old.shards]
    assert len(set(map(frozenset, suffixes))) > 1
    compacted(place)
    (shard,) = latest(place).shards
    assert set(latest(place).index(shard).suffixes) == {"a.bin", "b.txt", "c.txt", "d.e.bin"}
    assert samples_of(latest(place)) == samples_of(old)
    assert_whole(latest(place))


def test_what_a_version_leaves_out_stays_noted(make_inputs: MakeInputs, place: Place) -> None:
    """The next build knows it, and has nothing to do."""
    inputs = make_inputs(12)

    def refuse(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        if key == "sample-0005":
            raise ValueError("bad")
        return parts

    options = {"on_error": "skip", "max_bad": 1, "func_output_data": refuse, "transform_version": "1"}
    grown(inputs, place, **options)
    old = latest(place)
    compacted(place)
    assert (latest(place).left_out(), latest(place).manifest.accounting) == (old.left_out(), old.manifest.accounting)
    assert build(inputs, place, min_num_shards=None, **options).version == latest(place).version == old.version + 1
    assert_whole(latest(place))


def test_chunks_of_the_table_of_sources_that_tell_of_no_merged_shard_are_kept(
    make_inputs: MakeInputs, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what changed is stored again."""
    monkeypatch.setattr(tables, "CHUNK_ROWS", 5)
    thinned_and_grown(make_inputs(46), place)
    old = latest(place).manifest
    compacted(place)
    new = latest(place).manifest
    is_kept = [chunk in old.sources for chunk in new.sources]
    assert is_kept == [True, True, False, True, False, False, True]
    assert [chunk.num_rows for chunk in new.sources] == [5, 5, 5, 5, 5, 5, 1]
    assert {chunk.intent for chunk, kept in zip(new.sources, is_kept, strict=True) if not kept} == {new.intent}
    assert_whole(latest(place))


def test_all_is_on_the_disk_before_the_commit(make_inputs: MakeInputs, tmp_path: Path, synced: list[str]) -> None:
    """Shards, indexes, the table, the manifest, the intent and their folders; then the commit itself."""
    place = Place(str(tmp_path / "out"))
    eight_small(make_inputs(24), place)
    old = stored(place).keys()
    synced.clear()
    compacted(place)
    new, commit = stored(place).keys() - old, "__dray__/wds/commits/0000000009.json"
    before = set(synced[: synced.index(commit)])
    assert new - before == {commit}
    assert {".", *(f"__dray__/wds/{folder}" for folder in ("index", "manifests", "intents"))} <= before
    assert "__dray__/wds/commits" in synced[synced.index(commit) :]


def test_a_dataset_that_is_not_there_is_said(place: Place) -> None:
    """And nothing is made there."""
    with pytest.raises(NotFoundError, match="no dataset with prefix 'wds'"):
        compacted(place)
    assert stored(place) == {}
