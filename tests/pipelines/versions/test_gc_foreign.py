"""Tars of other programs may be a user's only copy: nothing deletes them, whatever they are called."""

import tarfile
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.pipelines.building.compact import compact
from dray.pipelines.building.drop import drop_samples
from dray.pipelines.versions.gc import gc
from dray.pipelines.versions.holds import hold, release, rollback
from dray.pipelines.versions.retention import Retention
from dray.pipelines.writing.announce import announce_writing
from dray.shards import CallError, NotFoundError
from dray.shards.layout import Layout, Location
from tests.conftest import Dray, MakeInputs, Place
from tests.support.datasets import build, latest, store_at, stored
from tests.support.foreign import index_at, own_tar, put_tars, tar_of

NOTHING = Retention(keep=1, grace_s=0)
TARS = tuple(f"wds-{number:06d}.tar" for number in range(4))  # named as shards of the dataset would be
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("index"), st.sets(st.sampled_from(TARS), min_size=1)),
        st.tuples(st.just("gc"), st.integers(1, 2)),
        st.tuples(st.sampled_from(["hold", "release", "rollback"]), st.integers(1, 6)),
    ),
    max_size=12,
)


def location_of(place: Place, prefix: str = "wds") -> Location:
    return Location(store_at(place), Layout(prefix))


def tars_in(place: Place) -> dict[str, bytes]:
    return {info.name: store_at(place).get(info.name) for info in store_at(place).list_folder()}


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_no_sequence_of_commands_touches_a_tar(steps: list[tuple[str, object]]) -> None:
    """Byte for byte they stay, indexed or not, and each kept version is readable; only records are deleted."""
    place = Place(f"memory://{uuid.uuid4().hex}")
    put_tars(store_at(place), TARS)
    before = tars_in(place)
    index_at(place, TARS[:2])
    location = location_of(place)
    for step, value in steps:
        try:
            if step == "index":
                assert isinstance(value, set)
                index_at(place, sorted(value))
            elif step == "gc":
                assert isinstance(value, int)
                deleted = gc(location, Retention(keep=value, grace_s=0)).deleted
                assert all(name.startswith("__dray__/wds/") for name in deleted)
            elif step == "hold":
                hold(location, f"h{value}", str(value))
            elif step == "release":
                release(location, f"h{value}")
            else:
                rollback(location, str(value))
        except (CallError, NotFoundError):  # no such version, or it was dropped
            pass
        assert tars_in(place) == before
    snapshot = latest(place)
    assert all(snapshot.read(key) for key in snapshot.samples()["key"].to_pylist())


def test_gc_deletes_the_indexes_of_dropped_versions(place: Place) -> None:
    """And their manifests and tables."""
    put_tars(store_at(place), TARS)
    index_at(place, TARS[:2])
    index_at(place, TARS[2:])
    deleted = gc(location_of(place), NOTHING).deleted
    assert {name.split("/")[2] for name in deleted} == {"index", "manifests"}
    assert len(stored(place, "__dray__/wds/index")) == 2


def test_gc_deletes_no_tar_that_another_program_wrote_under_a_reserved_name(
    place: Place, make_inputs: MakeInputs
) -> None:
    """A program may announce many more numbers than it uses; a tar of another one may get such a name."""
    build(make_inputs(8), place)
    announce_writing(location_of(place), {}, latest(place), count=100)
    foreign = {
        f"wds-{4 + number:06d}.tar": tar_of([number], kind=kind)
        for number, kind in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT))
    }
    for name, data in {**foreign, "wds-000010.tar": b"no tar", "wds-000011.tar": own_tar()}.items():
        store_at(place).put_new(name, data)
    assert gc(location_of(place), NOTHING).deleted == ("wds-000011.tar",)
    assert tars_in(place).keys() >= foreign.keys() | {"wds-000010.tar"}


def test_what_a_failed_writer_deletes_is_its_own(place: Place) -> None:
    """Not the tar that another program wrote under a number that it reserved."""
    writing = announce_writing(location_of(place), {}, None, count=10)
    store_at(place).put_new("wds-000000.tar", own_tar())
    store_at(place).put_new("wds-000001.tar", tar_of([1]))
    writing.abandon()
    assert tars_in(place).keys() == {"wds-000001.tar"}


def test_leftovers_in_a_folder_of_foreign_tars_are_left(tmp_path: Path) -> None:
    """No tar of dray is written there, so an unfinished one is another program's."""
    place = Place(tmp_path.as_uri())
    put_tars(store_at(place), TARS)
    index_at(place, TARS)
    (tmp_path / "wds-000009.tar#1").write_bytes(b"half")
    assert gc(location_of(place), NOTHING).deleted == ()


def test_commands_that_would_replace_foreign_tars_are_refused(
    tmp_path: Path, make_inputs: MakeInputs, dray: Dray
) -> None:
    """With the way out; nothing was written."""
    place = Place((tmp_path / "tars").as_uri())
    put_tars(store_at(place), TARS)
    index_at(place, TARS)
    before, inputs = stored(place), make_inputs(3)
    refusal = "indexes tars that dray did not write.*another directory or prefix"
    with pytest.raises(CallError, match=refusal):
        build(inputs, place)
    with pytest.raises(CallError, match=refusal):
        compact(location_of(place), retention=None, progress=False)
    with pytest.raises(CallError, match=refusal):
        drop_samples(location_of(place), retention=None, progress=False)
    for words in (("build", inputs.folder), ("plan", inputs.folder)):
        found = dray(*words, place.url, "--prefix", "wds", "--suffix", "tensor.pyd")
        assert "indexes tars that dray did not write" in found.err
    assert "indexes tars that dray did not write" in dray("compact", place.url).err
    assert stored(place) == before


def test_a_build_beside_foreign_tars_of_its_names_keeps_them(place: Place, make_inputs: MakeInputs) -> None:
    """Its numbers begin after theirs, and its gc deletes none of them, also if they are indexed."""
    put_tars(store_at(place), TARS)
    before = tars_in(place)
    index_at(place, TARS, prefix="foreign")
    inputs = make_inputs(8)
    for names in (inputs.names, inputs.names[2:], inputs.names[4:]):
        build(inputs, place, names=names)
        gc(location_of(place), NOTHING)
    assert tars_in(place).items() >= before.items()
    assert min(shard.number for shard in latest(place).shards) >= len(TARS)
