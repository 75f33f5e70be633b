"""Merging small shards: a pure plan of groups, and a version of the same samples in fewer tars."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.pipelines.building import compact as compact_module
from dray.pipelines.building import tables
from dray.pipelines.building.build import build as build_spec
from dray.pipelines.building.compact import CompactReport, compact
from dray.pipelines.building.job import PackJob
from dray.pipelines.building.merge import merge_indexes
from dray.pipelines.building.pack import read_index
from dray.pipelines.building.survey import BuildSpec
from dray.pipelines.inputs.tolerance import Tolerance
from dray.pipelines.planning.merges import Group, num_small, plan_merges
from dray.pipelines.planning.recipe import Recipe
from dray.pipelines.versions.holds import hold, rollback
from dray.pipelines.versions.retention import Retention
from dray.shards import ConflictError, DamagedError, NotFoundError, Snapshot, Store, StoreError
from dray.shards.layout import Layout, Location
from dray.shards.log import new_write_id, read_head
from dray.shards.manifest import Shard
from dray.shards.tar import END, MAX_SHARD_BYTES, TarWriter
from dray.shards.verify import verify
from dray.shards.versions import read_holds
from tests.conftest import Inputs, MakeInputs, Place
from tests.pipelines.building.test_build import SUFFIX
from tests.support.datasets import build, latest, npy, overwrite, store_at, stored

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


def shard_of(number: int, num_bytes: int, num_samples: int = 1) -> Shard:
    return Shard(number=number, num_bytes=num_bytes, num_samples=num_samples, digest="", index_digest="")


def merged_of(group: Group) -> Shard:
    """What a group becomes; its number is its first shard's, so that groups stay comparable."""
    num_bytes = sum(shard.num_bytes - len(END) for shard in group) + len(END)
    return shard_of(group[0].number, num_bytes, sum(shard.num_samples for shard in group))


SIZES = st.lists(st.tuples(st.integers(2, 20).map(lambda blocks: 512 * blocks), st.integers(1, 12)), max_size=40)
TARGETS = st.integers(1, 40_000)
MOST_SAMPLES = st.none() | st.integers(1, 40)


def shards_of(sizes: Sequence[tuple[int, int]]) -> list[Shard]:
    return [shard_of(number, *size) for number, size in enumerate(sizes)]


@given(SIZES, TARGETS, MOST_SAMPLES)
def test_every_shard_is_in_one_group_in_its_order_and_groups_keep_the_limits(
    sizes: list[tuple[int, int]], target: int, most: int | None
) -> None:
    """A group takes the place of its first shard; only small shards are merged."""
    groups = plan_merges(shards_of(sizes), target, most)
    numbers = [[shard.number for shard in group] for group in groups]
    assert sorted(number for group in numbers for number in group) == list(range(len(sizes)))
    assert all(group == sorted(group) for group in numbers)
    assert [group[0] for group in numbers] == sorted(group[0] for group in numbers)
    for group in groups:
        if len(group) > 1:
            assert merged_of(group).num_bytes <= target
            assert all(2 * shard.num_bytes < target for shard in group)
            assert most is None or merged_of(group).num_samples <= most


@given(SIZES, TARGETS, MOST_SAMPLES)
def test_merging_again_changes_nothing(sizes: list[tuple[int, int]], target: int, most: int | None) -> None:
    """At most one small shard is left."""
    once = [merged_of(group) for group in plan_merges(shards_of(sizes), target, most)]
    assert plan_merges(once, target, most) == [(shard,) for shard in once]
    is_small = [2 * s.num_bytes < target and (most is None or 2 * s.num_samples < most) for s in once]
    assert sum(is_small) <= 1


@given(SIZES, st.integers(1, 12))
def test_merging_again_by_a_number_of_shards_changes_nothing(sizes: list[tuple[int, int]], num_shards: int) -> None:
    """Though merged tars are smaller by their ends, and so the target is too."""
    shards, recipe = shards_of(sizes), Recipe(suffixes=(SUFFIX,), num_shards=num_shards).to_json()
    target = -(-sum(shard.num_bytes for shard in shards) // num_shards)
    groups = plan_merges(shards, target)
    assert num_small(shards, recipe) == sum(len(group) for group in groups if len(group) > 1)
    assert num_small([merged_of(group) for group in groups], recipe) == 0


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([10], [[0]]),
        ([10, 10], [[0, 1]]),
        ([40, 90, 40, 90, 40, 9], [[0, 2], [1], [3], [4, 5]]),
        ([50, 50, 50], [[0], [1], [2]]),
        ([49, 49, 49], [[0, 1], [2]]),
    ],
)
def test_groups_by_size(sizes: list[int], expected: list[list[int]]) -> None:
    """In units of which a shard should have 100; less than half is small."""
    shards = [shard_of(number, len(END) + 1000 * size) for number, size in enumerate(sizes)]
    groups = plan_merges(shards, len(END) + 100_000)
    assert [[shard.number for shard in group] for group in groups] == expected


def test_exactly_half_of_the_target_is_not_small() -> None:
    """By size and by a number of shards, whose share of the bytes is rounded up."""
    assert len(plan_merges([shard_of(number, 2048) for number in range(3)], 4096)) == 3
    assert len(plan_merges([shard_of(number, 2048) for number in range(3)], 4097)) == 1
    recipe = Recipe(suffixes=(SUFFIX,), num_shards=3).to_json()
    assert num_small([shard_of(0, 1025), shard_of(1, 1025), shard_of(2, 4101)], recipe) == 2
    assert num_small([shard_of(0, 1025), shard_of(1, 1025), shard_of(2, 4100)], recipe) == 0


def test_no_shard_passes_4_gib_however_few_are_wanted() -> None:
    """A dataset that grew far beyond its number of shards."""
    shards = [shard_of(number, (1 << 30) + len(END)) for number in range(10)]
    groups = plan_merges(shards, 10 << 30)
    assert [len(group) for group in groups] == [3, 3, 3, 1]
    assert max(merged_of(group).num_bytes for group in groups) <= MAX_SHARD_BYTES


def test_a_shard_that_has_its_samples_is_not_small() -> None:
    """A million tiny samples make shards of the most samples, far below the size of a shard."""
    full, thin = shard_of(0, 60_000, 100_000), shard_of(1, 6000, 10_000)
    recipe = Recipe(suffixes=(SUFFIX,)).to_json()
    assert num_small([full, full, thin], recipe) == 0
    assert num_small([full, thin, full, thin, thin], recipe) == 3


def test_a_group_holds_no_more_samples_than_a_shard_may() -> None:
    """A group is closed by its samples as by its bytes."""
    shards = [shard_of(number, 2048, 4) for number in range(5)]
    assert [len(group) for group in plan_merges(shards, 1 << 20, 9)] == [2, 2, 1]
    assert [len(group) for group in plan_merges(shards, 1 << 20, 12)] == [3, 2]


NPY = st.sampled_from([npy(np.zeros(shape, dtype)) for shape in (2, 3) for dtype in ("<f4", "<i8")])
PARTS = st.dictionaries(st.sampled_from(["a", "b.npy", "dd"]), st.binary(max_size=600) | NPY, min_size=1)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_merged_index_is_what_reading_the_merged_tar_gives(shards: list[list[dict[str, bytes]]]) -> None:
    """For any suffixes of the samples, in any order."""
    store, whole, count = Store(f"memory://{new_write_id()}"), TarWriter(), 0
    for number, shard in enumerate(shards):
        tar = TarWriter()
        for parts in shard:
            count += 1
            for suffix, data in parts.items():
                name = f"{'long' * 40 if count == 3 else 'k'}{count}.{suffix}".encode()
                tar.add(name, data)
                whole.add(name, data)
        store.put_new(f"{number}.tar", tar.finish())
    store.put_new("whole.tar", whole.finish())
    merged = merge_indexes([read_index(store, f"{number}.tar") for number in range(len(shards))])
    assert merged.to_bytes() == read_index(store, "whole.tar").to_bytes()


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


class Crash(BaseException):
    """The process is dead."""


def die() -> None:
    raise Crash


class Watched(Store):
    """Notes what it creates, and does something once, before the first creation that a function chooses."""

    def __init__(
        self, place: Place, when: Callable[[str], bool] = lambda _: False, act: Callable[[], object] = die
    ) -> None:
        super().__init__(place.url, place.storage_options)
        self.sent: list[str] = []
        self.created: list[str] = []
        self.when, self.act = when, act

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(name)
        if self.when(name):
            self.when = lambda _: False
            self.act()
        super().put_new(name, data)
        self.created.append(name)

    @property
    def tars(self) -> list[str]:
        return [name for name in self.created if name.endswith(".tar")]


def copy_of(place: Place, objects: Mapping[str, bytes], name: str) -> Place:
    """Another place of the same kind, with these objects."""
    copy = Place(f"{place.url}-{name}", place.storage_options)
    store = store_at(copy)
    for path, body in objects.items():
        store.put_new(path, body)
    return copy


def test_a_rerun_after_a_crash_makes_only_what_was_missing(make_inputs: MakeInputs, place: Place) -> None:
    """Before each write in turn; until the commit the old version is the last, after it all is as undisturbed."""
    eight_small(make_inputs(24), place)
    before, version = stored(place), latest(place).version
    undisturbed = Watched(copy_of(place, before, "undisturbed"))
    compacted(undisturbed)
    assert len(undisturbed.tars) == 3
    for count in range(len(undisturbed.created)):
        crashed = copy_of(place, before, f"crashed-{count}")
        first, second = Watched(crashed), Watched(crashed)
        first.when = lambda _, first=first, count=count: len(first.created) == count
        with pytest.raises(Crash):
            compacted(first)
        assert latest(crashed).version == version
        assert compacted(second).version == version + 1
        assert first.created + second.created == undisturbed.created
        assert not set(first.tars) & set(second.sent)
        assert latest(crashed).manifest == Snapshot.load(Location(undisturbed, LAYOUT), latest(crashed).commit).manifest
        assert_whole(latest(crashed))


def test_what_was_merged_before_a_build_committed_serves(make_inputs: MakeInputs, place: Place) -> None:
    """A crash before the commit, and another sample: only the last shard is merged again."""
    inputs = make_inputs(25)
    eight_small(inputs, place)
    first, second = Watched(place, lambda name: "commits" in name), Watched(place)
    with pytest.raises(Crash):
        compacted(first)
    add_one(inputs, place)
    compacted(second)
    assert (first.tars, second.tars) == (["wds-000008.tar", "wds-000009.tar", "wds-000010.tar"], ["wds-000012.tar"])
    assert [shard.number for shard in latest(place).shards] == [8, 9, 12]
    assert_whole(latest(place))


def test_a_merged_shard_is_adopted_only_for_the_same_bytes(make_inputs: MakeInputs, place: Place) -> None:
    """A part was deleted by hand and packed again by a function that gives other bytes each time."""
    inputs, text = make_inputs(12), ["first"]
    options = {"func_output_data": lambda key, parts: {"x.txt": text[0].encode()}, "transform_version": "1"}
    grown(inputs, place, **options)
    crashing, rerun = Watched(place, lambda name: "commits" in name), Watched(place)
    with pytest.raises(Crash):
        compacted(crashing)
    store_at(place).delete(["wds-000001.tar", "__dray__/wds/index/000001.arrow"])
    text[0] = "second"
    build(inputs, place, min_num_shards=None, **options)
    compacted(rerun)
    assert (crashing.tars, rerun.tars) == (["wds-000003.tar"], ["wds-000005.tar"])
    found = [parts["x.txt"] for parts in samples_of(latest(place)).values()]
    assert found == [b"first"] * 4 + [b"second"] * 4 + [b"first"] * 4


def add_one(inputs: Inputs, place: Place, retention: Retention | None = None) -> None:
    """One more sample than `eight_small` packs."""
    build_from(store_at(place), inputs, 25, retention)


@pytest.mark.parametrize("when", ["intents", "wds-000009.tar", "commits"])
def test_a_build_that_commits_meanwhile_loses_nothing(
    make_inputs: MakeInputs, place: Place, when: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The compaction plans again from there."""
    inputs = make_inputs(25)
    eight_small(inputs, place)
    report = compacted(Watched(place, lambda name: when in name, lambda: add_one(inputs, place)), progress=True)
    assert "another writer committed meanwhile: planning again" in capsys.readouterr().err
    assert (report.version, report.num_merged, report.num_samples) == (10, 9, 25)
    assert len(samples_of(version_of(place, 9))) == 25
    assert_whole(latest(place))


def test_a_hold_that_is_committed_meanwhile_stays(make_inputs: MakeInputs, place: Place) -> None:
    """It is no other version: nothing is planned again."""
    eight_small(make_inputs(24), place)
    watched = Watched(place, lambda name: "commits" in name, lambda: hold(Location(store_at(place), LAYOUT), "mine"))
    assert compacted(watched).version == 10
    head = read_head(Location(watched, LAYOUT))
    assert head is not None
    assert (read_holds(Location(watched, LAYOUT), head), len(watched.tars)) == ({"mine": 8}, 3)


def test_shards_that_another_gc_deletes_while_they_are_read_are_no_damage(
    make_inputs: MakeInputs, place: Place
) -> None:
    """The last version has others in their place."""
    inputs = make_inputs(24)
    eight_small(inputs, place)

    def rewrite_all() -> None:
        for name in inputs.names:
            inputs.path(name, SUFFIX).write_bytes(f"new {name}".encode())
        build_from(store_at(place), inputs, len(inputs.names), Retention(keep=1, grace_s=0))

    watched = Watched(place, lambda name: "intents" in name, rewrite_all)
    assert compacted(watched).version == 10
    assert not {f"wds-{number:06d}.tar" for number in range(8)} & stored(place).keys()
    assert samples_of(latest(place))["sample-0007"] == {SUFFIX: b"new sample.0007"}
    assert_whole(latest(place))


def test_other_writers_that_are_always_faster_are_a_conflict(
    make_inputs: MakeInputs, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some attempts; what was merged serves the next run."""
    eight_small(make_inputs(24), place)
    watched = Watched(place)
    with monkeypatch.context() as patch:
        patch.setattr(compact_module, "commit_version", lambda *_, **__: None)
        with pytest.raises(ConflictError, match="faster 8 times in a row"):
            compacted(watched)
    rerun = Watched(place)
    assert (compacted(rerun).version, len(watched.tars), rerun.tars) == (9, 3, [])


def test_two_compactions_at_once_make_one_version(make_inputs: MakeInputs, place: Place) -> None:
    """They share an intent and its shards."""
    eight_small(make_inputs(24), place)
    with ThreadPoolExecutor(2) as threads:
        reports = list(threads.map(lambda _: compacted(place), range(2)))
    assert [report.version for report in reports] == [9, 9]
    assert len([name for name in stored(place) if name.endswith(".tar")]) == 11
    assert_whole(latest(place))


def test_a_compaction_undone_by_a_rollback_is_done_again_without_merging(make_inputs: MakeInputs, place: Place) -> None:
    """Its shards are still stored."""
    eight_small(make_inputs(24), place)
    compacted(place, retention=None)
    merged = latest(place)
    rollback(Location(store_at(place), LAYOUT), 8)
    watched = Watched(place)
    assert compacted(watched, retention=None).version == 11
    assert (watched.tars, latest(place).shards) == ([], merged.shards)


def test_what_the_rule_gives_up_is_deleted_and_the_rest_is_said(
    make_inputs: MakeInputs, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default the version before stays."""
    eight_small(make_inputs(24), place)
    before = samples_of(latest(place))
    compacted(place, progress=True, retention=Retention(keep=1, grace_s=0))
    said = capsys.readouterr().err
    assert "8 shards of version 8 stay for its readers; programs that glob wds-*.tar see them" in said
    assert "objects of versions before 9 and of builds that never ended were deleted" in said
    tars = [f"wds-{number:06d}.tar" for number in (8, 9, 10)]
    assert sorted(name for name in stored(place) if name.endswith(".tar")) == tars
    assert samples_of(latest(place)) == before


@pytest.fixture
def small_place(make_inputs: MakeInputs) -> Place:
    """Eight small shards in memory."""
    place = Place(f"memory://{new_write_id()}")
    eight_small(make_inputs(24), place)
    return place


def flipped(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


@pytest.mark.parametrize("where", ["data", "header", "padding"])
def test_a_damaged_byte_is_named_and_nothing_is_made_of_it(small_place: Place, where: str) -> None:
    """With shard, part and key: headers and padding are looked at too."""
    snapshot, name = latest(small_place), "wds-000004.tar"
    index = snapshot.index(snapshot.shards[4])
    start, size = int(index.offsets[1, 0]), int(index.sizes[1, 0])
    offset = {"data": start + size - 1, "header": start - 400, "padding": start + size}[where]
    assert size % 512
    overwrite(store_at(small_place), name, flipped(stored(small_place)[name], offset))
    pattern = rf"wds-000004\.tar at offset {start}, key 'sample-0013', suffix 'tensor\.pyd': .*dray verify"
    watched = Watched(small_place)
    with pytest.raises(DamagedError, match=pattern):
        compacted(watched)
    assert latest(small_place).version == 8
    assert watched.tars == ["wds-000008.tar"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("wds-000004.tar", lambda data: flipped(data, len(data) - 1), r"wds-000004\.tar at offset \d+: the end of the"),
        ("wds-000004.tar", lambda data: data[:-512], r"wds-000004\.tar: \d+ bytes expected, found \d+"),
        ("wds-000004.tar", None, r"wds-000004\.tar: \d+ bytes expected, found nothing"),
        ("__dray__/wds/index/000004.arrow", lambda data: flipped(data, len(data) // 2), r"000004\.arrow: not the"),
        ("__dray__/wds/index/000004.arrow", None, r"index/000004\.arrow: the index of shard 4 is missing"),
    ],
)
def test_a_cut_or_missing_shard_or_index_is_named(
    small_place: Place, name: str, change: Callable[[bytes], bytes] | None, message: str
) -> None:
    """And nothing is committed."""
    if change is None:
        store_at(small_place).delete([name])
    else:
        overwrite(store_at(small_place), name, change(stored(small_place)[name]))
    with pytest.raises(DamagedError, match=message):
        compacted(small_place)
    assert latest(small_place).version == 8


def test_a_shard_that_another_program_wrote_is_refused_as_verify_does(make_inputs: MakeInputs) -> None:
    """A build adopts a tar of the right members; what follows them is not copied."""
    inputs, place = make_inputs(8), Place(f"memory://{new_write_id()}")
    twin = Place(f"{place.url}-twin")
    grown(inputs, twin)
    options = {"names": inputs.names[:4], "min_num_shards": None}
    with pytest.raises(Crash):
        build_from(
            Watched(place, lambda name: name.endswith(".tar")), inputs, 4, shard_bytes=Recipe(suffixes="x").shard_bytes
        )
    store_at(place).put_new("wds-000000.tar", stored(twin)["wds-000000.tar"] + bytes(8192))
    assert build(inputs, place, **options).num_reused == 1
    build(inputs, place, min_num_shards=None)
    with pytest.raises(DamagedError, match=r"wds-000000\.tar at offset \d+: the end of the archive expected"):
        compacted(place)


def test_what_is_not_byte_for_byte_the_merged_shard_is_not_adopted(small_place: Place) -> None:
    """Though all its parts are right: nothing is overwritten, and once moved away it is made again."""
    name = "wds-000009.tar"
    undisturbed = copy_of(small_place, stored(small_place), "undisturbed")
    compacted(undisturbed)
    right = stored(undisturbed)[name]
    with pytest.raises(Crash):
        compacted(Watched(small_place, lambda created: created == name))
    for foreign in (bytes(1024), flipped(right, 100), flipped(right, len(right) - 1025), right + bytes(512)):
        overwrite(store_at(small_place), name, foreign)
        with pytest.raises(DamagedError, match=r"wds-000009\.tar.*did another program write there\? Move .* compact"):
            compacted(small_place)
        assert (stored(small_place)[name], latest(small_place).version) == (foreign, 8)
    store_at(small_place).delete([name])
    assert compacted(small_place).version == 9
    assert stored(small_place)[name] == right


def test_a_shard_that_appears_while_it_is_made_is_adopted_if_it_is_the_same(small_place: Place) -> None:
    """A parallel attempt's, or the retry of a request whose reply was lost."""
    name, undisturbed = "wds-000009.tar", copy_of(small_place, stored(small_place), "undisturbed")
    compacted(undisturbed)
    right = stored(undisturbed)[name]
    for copy, body in (("same", right), ("other", flipped(right, len(right) - 1025))):
        place = copy_of(small_place, stored(small_place), copy)
        watched = Watched(place, lambda created: created == name, partial(store_at(place).put_new, name, body))
        if copy == "same":
            compacted(watched)
            assert_whole(latest(place))
        else:
            with pytest.raises(DamagedError, match="did another program write there"):
                compacted(watched)
        assert stored(place)[name] == body


def test_an_index_that_is_not_the_merged_shards_is_refused(small_place: Place) -> None:
    """It was stored, though its shard was not."""
    with pytest.raises(Crash):
        compacted(Watched(small_place, lambda created: created == "wds-000009.tar"))
    store_at(small_place).put_new("__dray__/wds/index/000009.arrow", b"other")
    with pytest.raises(DamagedError, match=r"index/000009\.arrow: not the index of wds-000009\.tar.*Delete both"):
        compacted(small_place)


def test_a_shard_that_lies_elsewhere_is_not_committed(small_place: Place) -> None:
    """Workers that write to disks of their own are detected."""
    remove = partial(store_at(small_place).delete, ["wds-000009.tar"])
    with pytest.raises(
        StoreError, match=r"wds-000009\.tar was stored with \d+ bytes, but here is nothing: do the workers"
    ):
        compacted(Watched(small_place, lambda name: name == "wds-000010.tar", remove))
    assert latest(small_place).version == 8


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
