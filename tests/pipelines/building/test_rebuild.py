"""A build over an earlier version writes what changed, and reuses or adopts the rest."""

import os
from pathlib import Path

import pytest

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines.building.announce import announce
from dray.pipelines.inputs.sources import find_sources
from dray.pipelines.planning.plan import plan
from dray.shards import DamagedError, InputError, Snapshot, Store, StoreError
from dray.shards.layout import Layout, Location
from dray.shards.tar import TarWriter
from tests.conftest import MakeInputs, Place
from tests.pipelines.building.test_build import RECIPE, SUFFIX, TWO_SUFFIXES, fail_at, parts_of
from tests.support.chaos import Chaos
from tests.support.datasets import build, latest, stored


def test_a_rerun_over_the_same_files_writes_nothing(make_inputs: MakeInputs, place: Place) -> None:
    """Law 4; only a key that may read is needed."""
    inputs = make_inputs(10)
    build(inputs, place)
    before = stored(place)
    report = build(inputs, place)
    assert (report.version, report.num_reused) == (1, 4)
    assert stored(place) == before


def test_one_changed_file_rewrites_one_shard_under_a_new_name(make_inputs: MakeInputs, place: Place) -> None:
    """The other shards and the old version stay as they are."""
    inputs = make_inputs(20)
    build(inputs, place)
    before, old_parts = stored(place), list(parts_of(latest(place)))
    inputs.path(inputs.names[7], SUFFIX).write_bytes(b"changed")
    report = build(inputs, place)
    assert (report.version, report.num_reused) == (2, 3)
    assert [shard.number for shard in latest(place).shards] == [0, 4, 2, 3]
    assert ("sample-0007", SUFFIX, b"changed") in set(parts_of(latest(place)))
    old = Snapshot.open(place.url, "wds", version=1, storage_options=place.storage_options)
    assert list(parts_of(old)) == old_parts
    assert before.items() <= stored(place).items()


def test_new_samples_go_to_new_shards_and_removed_ones_leave_theirs(make_inputs: MakeInputs, place: Place) -> None:
    """Shards of other samples stay, and the reader sees just the samples asked for."""
    inputs = make_inputs(26)
    build(inputs, place, names=inputs.names[:20])
    names = [name for name in inputs.names if name != inputs.names[11]]
    report = build(inputs, place, names=names)
    assert [shard.number for shard in latest(place).shards] == [0, 1, 4, 3, 5, 6]
    assert [shard.num_samples for shard in latest(place).shards] == [5, 5, 4, 5, 3, 3]
    expected = {(name.replace(".", "-"), inputs.part(name, SUFFIX)) for name in names}
    assert {(key, data) for key, _, data in parts_of(latest(place))} == expected
    assert (report.num_samples, report.num_reused) == (25, 3)


def test_touched_files_are_read_and_found_the_same(
    make_inputs: MakeInputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is packed; the next run need not read them again."""
    inputs, place = make_inputs(20), Place(str(tmp_path / "out"))
    build(inputs, place)
    for name in inputs.names:
        os.utime(inputs.path(name, SUFFIX), ns=(7, 7))
    tars = {name for name in stored(place) if name.endswith(".tar")}
    reports = [build(inputs, place, progress=True) for _ in range(2)]
    assert [(report.version, report.num_reused) for report in reports] == [(2, 4), (2, 4)]
    assert capsys.readouterr().err.count("20 samples touched: reading") == 1
    assert {name for name in stored(place) if name.endswith(".tar")} == tars
    assert latest(place).sources()[f"{SUFFIX}/stamp"].to_pylist() == [7] * 20


@pytest.mark.parametrize("suffix", TWO_SUFFIXES)
def test_one_touched_part_of_a_sample_is_no_change(make_inputs: MakeInputs, tmp_path: Path, suffix: str) -> None:
    """Its content is found the same, and the table of sources notes the new time."""
    inputs, place = make_inputs(20, TWO_SUFFIXES), Place(str(tmp_path / "out"))
    build(inputs, place)
    os.utime(inputs.path(inputs.names[9], suffix), ns=(7, 7))
    assert build(inputs, place).num_reused == 4
    assert latest(place).sources()[f"{suffix}/stamp"].to_pylist()[9] == 7


def test_a_file_of_the_same_size_and_another_content_is_packed(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """Its content decides, not its time."""
    inputs, place = make_inputs(20), Place(str(tmp_path / "out"))
    build(inputs, place)
    path = inputs.path(inputs.names[9], SUFFIX)
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(7, 7))
    assert build(inputs, place).num_reused == 3
    assert ("sample-0009", SUFFIX, path.read_bytes()) in set(parts_of(latest(place)))


@pytest.mark.parametrize("suffix", TWO_SUFFIXES)
@pytest.mark.parametrize("how", ["size", "content", "checksum"])
def test_one_changed_part_of_a_sample_is_a_changed_sample(
    make_inputs: MakeInputs, tmp_path: Path, suffix: str, how: str
) -> None:
    """The other part stays as it is: its size, time and content say nothing about this one."""
    inputs, place = make_inputs(20, TWO_SUFFIXES), Place(str(tmp_path / "out"))
    build(inputs, place, checksum=how == "checksum")
    path = inputs.path(inputs.names[9], suffix)
    info = path.stat()
    path.write_bytes(path.read_bytes() + b"more" if how == "size" else path.read_bytes()[::-1])
    if how != "content":  # the time does not show it either
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert build(inputs, place, checksum=how == "checksum").num_reused == 3
    assert latest(place).read("sample-0009") == {part: inputs.part(inputs.names[9], part) for part in TWO_SUFFIXES}


def test_every_sample_removed_but_one_leaves_one_shard(make_inputs: MakeInputs, place: Place) -> None:
    """The others are dropped; the old version still has them."""
    inputs = make_inputs(20)
    build(inputs, place)
    build(inputs, place, names=inputs.names[3:4])
    assert [key for key, _, _ in parts_of(latest(place))] == ["sample-0003"]
    old = Snapshot.open(place.url, "wds", version=1, storage_options=place.storage_options)
    assert len(list(parts_of(old))) == 20


def test_hashes_of_sources_are_kept_for_reused_shards(make_inputs: MakeInputs, place: Place) -> None:
    """The table of sources of a second version equals that of a first build of the same files, but for numbers."""
    inputs = make_inputs(20, TWO_SUFFIXES)
    build(inputs, place)
    inputs.path(inputs.names[7], TWO_SUFFIXES[0]).write_bytes(b"changed")
    build(inputs, place)
    fresh = Place(f"{place.url}-fresh", place.storage_options)
    build(inputs, fresh)
    assert latest(place).sources().drop_columns("shard") == latest(fresh).sources().drop_columns("shard")


def test_the_table_of_sources_tells_where_every_sample_lies(make_inputs: MakeInputs, place: Place) -> None:
    """Shard and row of each key, as the indexes have it."""
    build(make_inputs(20), place)
    snapshot = latest(place)
    by_index = {key: (shard.number, row) for shard in snapshot.shards
                for row, key in enumerate(snapshot.index(shard).keys)}  # fmt: skip
    table = snapshot.sources().select(["key", "shard", "row"]).to_pylist()
    assert {entry["key"]: (entry["shard"], entry["row"]) for entry in table} == by_index


def test_a_shard_whose_index_was_lost_is_adopted_as_it_lies(make_inputs: MakeInputs, place: Place) -> None:
    """A crash between the two writes: the rerun reads the shard, indexes it, and ends in the same bytes."""
    inputs = make_inputs(20)
    with pytest.raises(InputError):
        build(inputs, place, transform_version="1", func_output_data=fail_at("sample-0019", ValueError()))
    Store(place.url, place.storage_options).delete(["__dray__/wds/index/000001.arrow"])
    report = build(inputs, place, transform_version="1", func_output_data=lambda key, parts: parts)
    fresh = Place(f"{place.url}-fresh", place.storage_options)
    build(inputs, fresh, transform_version="1", func_output_data=lambda key, parts: parts)
    assert report.num_reused == 3
    assert latest(place).manifest.shards == latest(fresh).manifest.shards


def test_a_foreign_object_under_a_reserved_number_is_an_error(make_inputs: MakeInputs, place: Place) -> None:
    """It is not taken for ours, and not overwritten."""
    inputs = make_inputs(20)
    with pytest.raises(InputError):
        build(inputs, place, transform_version="1", func_output_data=fail_at("sample-0007", ValueError()))
    Store(place.url, place.storage_options).put_new("wds-000001.tar", bytes(1024))
    with pytest.raises(
        DamagedError, match=r"wds-000001\.tar: the shard holds other samples.*away, or choose another prefix"
    ):
        build(inputs, place, transform_version="1", func_output_data=lambda key, parts: parts)
    assert stored(place)["wds-000001.tar"] == bytes(1024)


def test_a_store_that_ignores_conditional_puts_is_refused(
    make_inputs: MakeInputs, s3: SeaweedServer, chaos: Chaos
) -> None:
    """It reports "created" although the object exists: detected before a shard is written."""
    place = Place(s3.url("careless"), {**s3.storage_options, "endpoint": chaos.endpoint})
    careless = chaos.rule("ignore_condition")
    with pytest.raises(StoreError, match="ignores conditional puts"):
        build(make_inputs(5), place)
    assert careless.hits == 1
    assert [name for name in stored(place) if name.endswith(".tar")] == []


def test_tars_of_another_maker_are_kept_and_said(
    make_inputs: MakeInputs, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """New shards are numbered after them."""
    store = Store(place.url, place.storage_options)
    store.put_new("wds-000041.tar", b"foreign")
    store.put_new("wdsx-000099.tar", b"of another dataset")
    build(make_inputs(4), place, progress=True)
    assert [shard.number for shard in latest(place).shards] == [42, 43, 44, 45]
    assert store.get("wds-000041.tar") == b"foreign"
    assert "1 tar that dray did not write" in capsys.readouterr().err


def test_shards_deleted_by_hand_are_packed_again(make_inputs: MakeInputs, place: Place) -> None:
    """A rebuild repairs it, as the reader's error says."""
    inputs = make_inputs(20)
    build(inputs, place)
    Store(place.url, place.storage_options).delete(["wds-000001.tar", "wds-000003.tar"])
    report = build(inputs, place)
    assert (report.version, report.num_reused) == (2, 2)
    assert [shard.number for shard in latest(place).shards] == [0, 4, 2, 5]
    assert [data for _, _, data in parts_of(latest(place))] == [inputs.part(name, SUFFIX) for name in inputs.names]


def test_a_truncated_shard_is_packed_again(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """The rebuild does not adopt the cut one, and leaves it in place."""
    inputs, place = make_inputs(20), Place(str(tmp_path / "out"))
    build(inputs, place)
    shard = tmp_path / "out" / "wds-000002.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    assert build(inputs, place).num_reused == 3
    assert [shard.number for shard in latest(place).shards] == [0, 1, 4, 3]
    assert [data for _, _, data in parts_of(latest(place))] == [inputs.part(name, SUFFIX) for name in inputs.names]


def test_a_foreign_shard_with_the_right_keys_is_not_adopted(make_inputs: MakeInputs, place: Place) -> None:
    """Its parts must be the planned ones, by suffix and size."""
    inputs = make_inputs(8)
    tar = TarWriter()
    for name in inputs.names[:2]:
        tar.add(f"{name.replace('.', '-')}.other".encode(), b"foreign")
    store = Store(place.url, place.storage_options)
    planned = plan(find_sources(Store(inputs.folder), inputs.names, (SUFFIX,)), RECIPE)
    announce(Location(store, Layout("wds")), planned.slots, None, ())
    store.put_new("wds-000000.tar", tar.finish())
    with pytest.raises(DamagedError, match="holds other samples"):
        build(inputs, place)


def test_a_failed_build_serves_a_later_one_though_others_committed_meanwhile(
    make_inputs: MakeInputs, place: Place
) -> None:
    """Its whole shards are found in the log of intents."""
    inputs = make_inputs(20)
    with pytest.raises(InputError):
        build(inputs, place, transform_version="1", func_output_data=fail_at("sample-0019", ValueError()))
    build(inputs, place, names=inputs.names[:3], min_num_shards=1)
    report = build(inputs, place, transform_version="1", func_output_data=lambda key, parts: parts)
    assert (report.version, report.num_reused) == (2, 3)


def test_a_failed_and_repaired_build_ends_in_the_same_bytes(make_inputs: MakeInputs, place: Place) -> None:
    """Law 3: the table of sources and the manifest too."""
    inputs, fresh = make_inputs(20), Place(f"{place.url}-fresh", place.storage_options)
    with pytest.raises(InputError):
        build(inputs, place, transform_version="1", func_output_data=fail_at("sample-0019", ValueError()))
    for where in (place, fresh):
        build(inputs, where, transform_version="1", func_output_data=lambda key, parts: parts)
    kept = [{n: b for n, b in stored(w).items() if "commits" not in n and "intents" not in n} for w in (place, fresh)]
    assert kept[0] == kept[1]
