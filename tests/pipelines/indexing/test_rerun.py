"""Indexing again: only new and changed tars are read, and a listing of the wrong folder does not empty a dataset."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.loaders import Dataset
from dray.pipelines import index_tars
from dray.pipelines.versions.commit import commit_version
from dray.shards import CallError, DeniedError, InputError, MissingInputError, Snapshot, Store
from dray.shards.layout import Layout, Location
from dray.shards.log import numbers_in
from tests.conftest import MakeInputs, Place
from tests.support.datasets import build, latest, store_at, stored
from tests.support.foreign import put_tars, replace_tar, tar_of

NAMES = [f"t-{number:02}.tar" for number in range(6)]
PER_TAR = 4


@pytest.fixture
def tars(place: Place) -> Place:
    """Six tars of four samples each, indexed."""
    put_tars(store_at(place), NAMES)
    assert index(place).num_scanned == 6
    return place


def index(place: Place, pattern: str | list[str] | None = None, **options: object):  # type: ignore[no-untyped-def]
    defaults = {"storage_options": place.storage_options, "prefix": "wds", "progress": False}
    return index_tars(place.url, pattern, **{**defaults, **options})  # type: ignore[arg-type]


def test_a_rerun_writes_nothing(tars: Place) -> None:
    """Neither an intent nor an index."""
    before = stored(tars)
    report = index(tars)
    assert (report.is_new, report.num_scanned, str(report).count("nothing to do")) == (False, 0, 1)
    assert stored(tars) == before


def test_only_new_and_changed_tars_are_read(tars: Place) -> None:
    """The indexes of the others stay; the report says which is which."""
    first = latest(tars)
    replace_tar(store_at(tars), NAMES[2], tar_of(range(100, 105)))
    replace_tar(store_at(tars), "t-10.tar", tar_of(range(200, 203)))
    replace_tar(store_at(tars), "t-9.tar", tar_of(range(300, 301)))
    report = index(tars)
    counts = report.num_added, report.num_changed, report.num_touched, report.num_removed, report.num_scanned
    assert counts == (2, 1, 0, 0, 3)
    second = latest(tars)
    assert [shard.name for shard in second.shards] == [*NAMES, "t-9.tar", "t-10.tar"]
    assert [shard.number for shard in second.shards if shard in first.shards] == [0, 1, 3, 4, 5]
    assert second.num_samples == 5 * PER_TAR + 5 + 3 + 1


def test_a_tar_that_was_only_touched_keeps_its_samples(tmp_path: Path) -> None:
    """Its time is another, so readers would refuse it: it is read again."""
    put_tars(Store(tmp_path), NAMES)
    index_tars(tmp_path, progress=False)
    os.utime(tmp_path / NAMES[1])
    report = index_tars(tmp_path, progress=False)
    assert (report.num_changed, report.num_touched, report.num_scanned) == (0, 1, 1)
    assert len(Dataset(str(tmp_path))) == 6 * PER_TAR


def test_removed_tars_are_left_out_and_many_are_refused(tars: Place) -> None:
    """As with the samples of a build."""
    store_at(tars).delete(NAMES[:3])
    before = stored(tars, "__dray__")
    with pytest.raises(CallError, match=r"3 tars .* not among the 3 tars .*12 of 24 samples would go.*'100%'"):
        index(tars)
    assert stored(tars, "__dray__") == before
    report = index(tars, allow_removal="50%")
    assert (report.num_removed, report.num_scanned, latest(tars).num_samples) == (3, 0, 12)


def test_an_index_that_was_deleted_is_made_again(tars: Place) -> None:
    """The tar is read again."""
    store_at(tars).delete([latest(tars).layout.index(4)])
    report = index(tars)
    assert (report.num_scanned, report.num_touched) == (1, 1)
    assert latest(tars).read("b/s0017")["cls"] == b"17"


def test_the_selection_of_the_last_version_is_kept(tars: Place) -> None:
    """So that a rerun without a pattern does not take tars that were never asked for."""
    assert index(tars, "t-{00..04}.tar", allow_removal="20%").num_tars == 5
    assert not index(tars).is_new
    assert index(tars, "**/*.tar").num_tars == 6


def test_a_run_that_died_is_continued(place: Place) -> None:
    """Law 3: indexes that are stored are adopted, also where another tar changed meanwhile."""
    put_tars(store_at(place), NAMES)
    replace_tar(store_at(place), NAMES[5], b"no tar" * 1000)
    with pytest.raises(InputError, match="1 tar of 6"):
        index(place)
    replace_tar(store_at(place), NAMES[5], tar_of(range(20, 24)))
    replace_tar(store_at(place), NAMES[0], tar_of(range(3)))
    report = index(place)
    assert (report.num_adopted, report.num_scanned, report.num_samples) == (4, 2, 23)
    location = Location(store_at(place), Layout("wds"))
    assert len(numbers_in(location.store, location.layout.intents)) == 2


def test_tars_of_braces_must_exist_and_globs_must_match(tars: Place) -> None:
    """The error says what is there."""
    with pytest.raises(MissingInputError, match=r"2 of 8 tars do not exist .*'t-06.tar', 't-07.tar'; there are 't-00"):
        index(tars, "t-{00..07}.tar")
    with pytest.raises(MissingInputError, match=r"nothing matches pattern 'v-\*.tar'"):
        index(tars, "v-*.tar")
    assert index(tars, ["t-0[0-3].tar", "t-0{4,5}.tar"]).num_tars == 6


def test_tars_that_dray_wrote_are_left_out(place: Place, make_inputs: MakeInputs) -> None:
    """They belong to a dataset, whose later versions delete them."""
    build(make_inputs(8), place)
    put_tars(store_at(place), NAMES)
    with pytest.raises(CallError, match=r"kind 'build', whose tars dray wrote.* another prefix="):
        index(place)
    report = index(place, prefix="theirs")
    assert (report.num_tars, len(report.own)) == (6, 4)
    assert "left out: 4 tars of other datasets that dray wrote, 'wds-000000.tar' first" in str(report)


def test_the_index_may_be_elsewhere(place: Place, tmp_path: Path) -> None:
    """Nothing is written beside the tars; another source under the same prefix is refused."""
    put_tars(store_at(place), NAMES)
    before = stored(place)
    into = f"file://{tmp_path}/index"
    report = index(place, into=into)
    assert stored(place) == before
    assert (report.url, report.tars_url) == (into, place.url)
    assert not index(place, into=into).is_new
    found = Snapshot.open(into, "wds", data_url=place.url, data_storage_options=place.storage_options)
    assert found.read("b/s0005")["txt"] == b"text 5"
    with pytest.raises(CallError, match=r"indexes tars that are in .*: give that URL, and into="):
        index_tars(into, prefix="wds", progress=False)
    put_tars(Store(tmp_path / "other"), NAMES)
    with pytest.raises(CallError, match=r"indexes the tars of .*allow_changed_source=True"):
        index_tars(tmp_path / "other", prefix="wds", into=into, progress=False)


def test_a_folder_without_tars_is_named(tmp_path: Path) -> None:
    """It may be misspelt."""
    with pytest.raises(MissingInputError, match=r"no tar in .*check the URL"):
        index_tars(tmp_path / "missing", progress=False)


def test_lists_and_single_tars(tmp_path: Path) -> None:
    """The dataset of a list is in the innermost folder above its tars."""
    put_tars(Store(tmp_path), ["a b/x%20/0.tar", "a b/y#1/1.tar", "a b/z.tar"])
    assert index_tars([tmp_path / "a b/x%20/0.tar", tmp_path / "a b/y#1/1.tar"], progress=False).num_tars == 2
    assert len(Dataset(str(tmp_path / "a b"))) == 8
    assert index_tars(tmp_path / "a b/z.tar", prefix="one", progress=False).num_tars == 1
    assert index_tars(f"{tmp_path}/a b/*/{{0,1}}.tar", prefix="two", progress=False).num_tars == 2


def test_a_bucket_that_may_only_be_read_needs_another_folder(s3: SeaweedServer, tmp_path: Path) -> None:
    """The error says how to give it; each store has options of its own."""
    url = s3.url("index/read-only")
    put_tars(Store(url, s3.storage_options), NAMES)
    options = s3.read_only_options
    with pytest.raises(DeniedError, match=r"permission denied.*give into='URL'"):
        index_tars(url, storage_options=options, progress=False)
    assert index_tars(url, into=tmp_path, storage_options=options, progress=False).num_samples == 24
    found = Snapshot.open(tmp_path, data_url=url, data_storage_options=options)
    assert found.read("b/s0001")["txt"] == b"text 1"


@pytest.mark.parametrize("left_out", [None, [], {"t": 1}, {"t": {"digest": 1}}, {NAMES[0]: {"why": "no"}}])
def test_an_index_of_another_program_is_taken_over(tmp_path: Path, left_out: object) -> None:
    """Its recipe and digests mean nothing to dray: all tars are read."""
    place = Place(f"file://{tmp_path}")
    put_tars(Store(tmp_path), NAMES)
    index(place, "t-0[0-4].tar")
    theirs = latest(place)
    shards = tuple(replace(shard, digest="0" * 32) for shard in theirs.shards)
    recipe = {"left_out": left_out, "patterns": [1], "keys": 7}
    commit_version(theirs.location, replace(theirs.manifest, recipe=recipe, shards=shards), theirs, retention=None)
    report = index(place)
    assert (report.version, report.num_added, report.num_touched, report.num_scanned) == (3, 1, 5, 6)
