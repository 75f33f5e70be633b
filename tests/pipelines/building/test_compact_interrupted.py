"""A crash, and other writers that commit while shards are merged: nothing is lost and little is made again."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from dray.pipelines.building import compact as compact_module
from dray.pipelines.versions.holds import hold, rollback
from dray.pipelines.versions.retention import Retention
from dray.shards import ConflictError, Snapshot, Store
from dray.shards.layout import Location
from dray.shards.log import read_head
from dray.shards.versions import read_holds
from tests.conftest import Inputs, MakeInputs, Place
from tests.pipelines.building.test_build import SUFFIX
from tests.pipelines.building.test_compact import (
    LAYOUT,
    assert_whole,
    build_from,
    compacted,
    eight_small,
    grown,
    samples_of,
    version_of,
)
from tests.support.datasets import build, latest, store_at, stored


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
