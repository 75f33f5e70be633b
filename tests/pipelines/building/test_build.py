"""`pickles_to_tars` from files to a committed version, in process."""

import gc
import os
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines import BuildReport, pickles_to_tars
from dray.pipelines.building.announce import announce
from dray.pipelines.building.fill import WAITING_BYTES, WAITING_PARTS
from dray.pipelines.building.pack import read_index
from dray.pipelines.inputs.sources import FETCH_FILES, find_sources
from dray.pipelines.planning.plan import plan
from dray.pipelines.planning.recipe import Recipe
from dray.shards import CallError, DamagedError, DeniedError, InputError, NotFoundError, Snapshot, Store, StoreError
from dray.shards.layout import Layout, Location
from dray.shards.parsing.arrays import ArrayLayout
from dray.shards.tar import TarWriter
from tests.conftest import Inputs, MakeInputs, Place
from tests.support.chaos import Chaos
from tests.support.datasets import build, latest, npy, pack, stored, tensor_of

SUFFIX = "tensor.pyd"
TWO_SUFFIXES = ("image.pyd", "label.cls")
PYD = tensor_of(5)


def parts_of(snapshot: Snapshot) -> Iterator[tuple[str, str, bytes]]:
    """(key, suffix, bytes) of every part, by index."""
    for shard in snapshot.shards:
        index = snapshot.index(shard)
        name = snapshot.layout.shard(shard.number)
        for row, key in enumerate(index.keys):
            offsets, sizes = index.offsets[row].tolist(), index.sizes[row].tolist()
            for suffix, data in zip(index.suffixes, snapshot.store.get_ranges(name, offsets, sizes), strict=True):
                yield key, suffix, bytes(data)


def test_every_part_is_its_file_in_the_order_given(make_inputs: MakeInputs, place: Place) -> None:
    """Keys have dashes for dots; the index finds every byte."""
    inputs = make_inputs(23, TWO_SUFFIXES)
    report = build(inputs, place)
    expected = [(n.replace(".", "-"), s, inputs.part(n, s)) for n in inputs.names for s in inputs.suffixes]
    assert list(parts_of(latest(place))) == expected
    assert (report.version, report.num_samples, report.num_shards, report.num_reused) == (1, 23, 4, 0)


def test_an_index_notes_the_layout_of_arrays_that_are_alike(tmp_path: Path) -> None:
    """It is equal to the index that reading the tar gives, for files packed as they are and for encoded pickles."""
    parts = {"same.npy": lambda _: npy(np.zeros((2, 3), "<f4")), "other.npy": lambda n: npy(np.zeros(n)), "x.pyd": PYD}
    snapshot = Snapshot.open(pack(tmp_path, 6, 2, parts=parts, encode={"x.pyd": "npy"}))
    for shard in snapshot.shards:
        index = snapshot.index(shard)
        assert index.arrays == {
            "same.npy": ArrayLayout(dtype="<f4", shape=(2, 3), data_offset=128),
            "x.npy": ArrayLayout(dtype="<f4", shape=(5,), data_offset=128),
        }
        read = read_index(snapshot.store, snapshot.layout.shard(shard.number))
        assert read.to_bytes() == index.to_bytes()


def test_an_empty_file_is_an_empty_part(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """It is there, so it is no missing file, and comes back as no bytes."""
    inputs, place = make_inputs(6, TWO_SUFFIXES), Place(str(tmp_path / "out"))
    inputs.path(inputs.names[2], TWO_SUFFIXES[1]).write_bytes(b"")
    build(inputs, place, min_num_shards=2)
    assert ("sample-0002", TWO_SUFFIXES[1], b"") in list(parts_of(latest(place)))
    assert latest(place).read("sample-0002")[TWO_SUFFIXES[1]] == b""
    assert build(inputs, place, min_num_shards=2).version == 1


@pytest.mark.parametrize(("num_samples", "num_bytes"), [(WAITING_PARTS + 50, 10), (3, WAITING_BYTES // 2 + 1)])
@pytest.mark.parametrize("function", [None, lambda key, parts: parts], ids=["files", "function"])
def test_a_shard_that_is_filled_in_several_portions_holds_each_sample_once(
    make_inputs: MakeInputs, tmp_path: Path, num_samples: int, num_bytes: int, function: Any
) -> None:
    """Many samples or large ones are appended to the tar before the last of them is read."""
    inputs, place = make_inputs(num_samples), Place(str(tmp_path / "out"))
    for number, name in enumerate(inputs.names):
        inputs.path(name, SUFFIX).write_bytes(number.to_bytes(4, "big") + bytes(num_bytes))
    build(inputs, place, min_num_shards=1, func_output_data=function)
    expected = [(name.replace(".", "-"), SUFFIX, inputs.part(name, SUFFIX)) for name in inputs.names]
    assert list(parts_of(latest(place))) == expected


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
def test_tarfile_gnu_tar_and_webdataset_read_every_shard_alike(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """Law 11: names, sizes and bytes."""
    inputs = make_inputs(23, TWO_SUFFIXES)
    build(inputs, Place(str(tmp_path / "out")))
    shards = sorted((tmp_path / "out").glob("wds-*.tar"))
    files = {f"{n.replace('.', '-')}.{s}": inputs.part(n, s) for n in inputs.names for s in inputs.suffixes}
    by_tarfile: dict[str, bytes] = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            by_tarfile |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    by_gnu_tar = [subprocess.check_output(["tar", "tf", shard], text=True).splitlines() for shard in shards]
    samples = webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False)
    by_webdataset = {f"{s['__key__']}.{suffix}": s[suffix] for s in samples for suffix in inputs.suffixes}
    gc.collect()
    assert by_tarfile == by_webdataset == files
    assert [name for names in by_gnu_tar for name in names] == list(files)


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


def test_the_same_files_give_the_same_bytes_anywhere(make_inputs: MakeInputs, place: Place, tmp_path: Path) -> None:
    """Law 1, across kinds of stores: tars, indexes, tables and manifests."""
    inputs = make_inputs(10, TWO_SUFFIXES)
    build(inputs, place)
    build(inputs, Place(str(tmp_path / "again")))
    kept = [{n: b for n, b in stored(p).items() if "commits" not in n and "intents" not in n}
            for p in (place, Place(str(tmp_path / "again")))]  # fmt: skip
    assert kept[0] == kept[1]


@pytest.mark.parametrize(("suffix", "error"), [(7, TypeError), (["a", 7], TypeError), ([], ValueError),
    ("", ValueError), ("../x", ValueError), (["a", "a"], ValueError), (["a", "A"], ValueError)])  # fmt: skip
def test_wrong_suffixes_are_refused(tmp_path: Path, suffix: Any, error: type[Exception]) -> None:
    """A wrong type is a TypeError, a wrong value a ValueError."""
    with pytest.raises(error):
        pickles_to_tars(tmp_path, ["a"], suffix, tmp_path / "out", "wds", progress=False)
    assert not (tmp_path / "out").exists()


def test_refused_inputs_leave_nothing_behind(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """What is wrong with the inputs as a whole is said before anything is written."""
    inputs = make_inputs(5)
    for names in (["gone"], [], [*inputs.names, inputs.names[0]]):
        with pytest.raises((RuntimeError, ValueError)):
            build(inputs, Place(str(tmp_path / "out")), names=names)
    assert not (tmp_path / "out").exists()


def test_a_function_replaces_the_parts(make_inputs: MakeInputs, place: Place) -> None:
    """It gets the key and the bytes by suffix; other values than bytes are encoded by their suffix."""
    inputs = make_inputs(9)

    def transform(key: str, suffix_to_data: Mapping[str, bytes]) -> dict[str, Any]:
        return {"__key__": key, "size.cls": len(suffix_to_data[SUFFIX]), "name.txt": key}

    build(inputs, place, func_output_data=transform)
    parts = list(parts_of(latest(place)))
    assert parts[:2] == [("sample-0000", "size.cls", b"15"), ("sample-0000", "name.txt", b"sample-0000")]
    assert len(parts) == 18


def test_a_function_without_a_version_is_never_reused(make_inputs: MakeInputs, place: Place) -> None:
    """Whether it changed is unknown; with a declared version it is reused."""
    inputs = make_inputs(9)
    kept = {"func_output_data": lambda key, parts: parts, "transform_version": "1"}
    assert [build(inputs, place, **kept).version for _ in range(2)] == [1, 1]
    assert [build(inputs, place, func_output_data=lambda key, parts: parts).version for _ in range(2)] == [2, 3]
    assert build(inputs, place, **{**kept, "transform_version": "2"}).num_reused == 0


def fail_at(bad_key: str, error: Exception) -> Any:
    def transform(key: str, suffix_to_data: dict[str, bytes]) -> dict[str, bytes]:
        if key == bad_key:
            raise error
        return suffix_to_data

    return transform


def test_a_failing_function_names_the_sample_and_leaves_no_version(make_inputs: MakeInputs, place: Place) -> None:
    """All other shards are stored, for the rerun."""
    inputs = make_inputs(20)
    failing = fail_at("sample-0012", ZeroDivisionError("oops"))
    with pytest.raises(RuntimeError, match=r"sample\.0012.*ZeroDivisionError.*oops"):
        build(inputs, place, func_output_data=failing, transform_version="1")
    with pytest.raises(NotFoundError):
        latest(place)
    before = {name: body for name, body in stored(place).items() if name.endswith(".tar")}
    report = build(inputs, place, func_output_data=lambda key, parts: parts, transform_version="1")
    assert sorted(before) == ["wds-000000.tar", "wds-000001.tar", "wds-000003.tar"]
    assert report.num_reused == 3
    assert before.items() <= stored(place).items()


def test_after_a_bad_file_was_repaired_only_its_shard_is_packed(make_inputs: MakeInputs, place: Place) -> None:
    """The repaired file makes another plan, which adopts the shards of the first."""
    inputs = make_inputs(20)
    options = {"transform_version": "1", "func_output_data": refuse_bad_files}
    inputs.path(inputs.names[17], SUFFIX).write_bytes(b"bad")
    with pytest.raises(InputError, match=r"sample\.0017"):
        build(inputs, place, **options)
    inputs.path(inputs.names[17], SUFFIX).write_bytes(b"good")
    report = build(inputs, place, **options)
    assert report.num_reused == 3
    assert [shard.number for shard in latest(place).shards] == [0, 1, 2, 4]


def refuse_bad_files(key: str, suffix_to_data: dict[str, bytes]) -> dict[str, bytes]:
    if suffix_to_data[SUFFIX] == b"bad":
        raise ValueError("a bad file")
    return suffix_to_data


def test_a_missing_module_is_a_runtime_error_that_names_it(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """And the sample, and what to do."""

    def transform(key: str, suffix_to_data: dict[str, bytes]) -> dict[str, bytes]:
        import a_module_that_is_not_there  # type: ignore[import-not-found]

        return {**suffix_to_data, "x": a_module_that_is_not_there}

    with pytest.raises(RuntimeError, match=r"sample\.0000.*'a_module_that_is_not_there'.*install"):
        build(make_inputs(3), Place(str(tmp_path / "out")), func_output_data=transform)


@pytest.mark.parametrize("result", [{}, 7, {"x.bin": object()}, {"../x": b""}, {"__key__": "other", "x": b""}])
def test_a_function_result_that_cannot_be_stored_names_the_sample(
    make_inputs: MakeInputs, tmp_path: Path, result: Any
) -> None:
    """Nothing, no bytes, a path that leaves, another key."""
    with pytest.raises(RuntimeError, match=r"sample\.0000"):
        build(make_inputs(3), Place(str(tmp_path / "out")), func_output_data=lambda key, parts: result)


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
    with pytest.raises(DamagedError, match=r"wds-000001\.tar: the shard holds other samples.*away, then build again"):
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


RECIPE = Recipe(suffixes=(SUFFIX,), num_shards=4)


def test_all_is_on_the_disk_before_the_commit(make_inputs: MakeInputs, tmp_path: Path, synced: list[str]) -> None:
    """Shards, indexes, tables, their folders and the intent; then the commit itself."""
    build(make_inputs(8), Place(str(tmp_path / "out")))
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
    commit = "__dray__/wds/commits/0000000001.json"
    before = set(synced[: synced.index(commit)])
    assert files - before == {commit, "__dray__/wds/commits"}
    assert {".", ".."} <= before
    assert "__dray__/wds/commits" in synced[synced.index(commit) :]


def test_another_folder_of_files_of_the_same_sizes_and_times_is_another_source(
    make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """Archives unpack with the same times: fingerprints alone would take the new files for the old."""
    first, place = make_inputs(5), Place(str(tmp_path / "out"))
    second = Inputs(tmp_path / "second", first.names, first.suffixes)
    second.folder.mkdir()
    for name in first.names:
        second.path(name, SUFFIX).write_bytes(first.part(name, SUFFIX)[::-1])
        for inputs in (first, second):
            os.utime(inputs.path(name, SUFFIX), ns=(0, 0))
    build(first, place)
    assert build(second, place).num_reused == 0
    assert [data for _, _, data in parts_of(latest(place))] == [second.part(name, SUFFIX) for name in second.names]


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


def test_an_index_that_is_not_its_shards_is_never_committed(make_inputs: MakeInputs, place: Place) -> None:
    """A shard deleted by hand left its index; the function gives other bytes now."""
    inputs, numbers = make_inputs(8), count()

    def transform(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        if (number := next(numbers)) == 7:
            raise ValueError("the first build fails at its end")
        return {"x.txt": b"%05d" % number}

    options: Any = {"transform_version": "1", "func_output_data": transform}
    with pytest.raises(InputError):
        build(inputs, place, **options)
    Store(place.url, place.storage_options).delete(["wds-000000.tar"])
    for _ in range(2):
        with pytest.raises(DamagedError, match=r"index/000000\.arrow: not the index of wds-000000\.tar.*Delete both"):
            build(inputs, place, **options)


def test_what_a_user_must_know_is_said_and_silence_is_kept(
    make_inputs: MakeInputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Old shards that stay under the glob; a function that is never reused."""
    inputs, place = make_inputs(8), Place(str(tmp_path / "out"))
    build(inputs, place)
    inputs.path(inputs.names[0], SUFFIX).write_bytes(b"changed")
    build(inputs, place, func_output_data=lambda key, parts: parts)
    assert capsys.readouterr().err == ""
    build(inputs, place, func_output_data=lambda key, parts: parts, progress=True)
    said = capsys.readouterr().err
    assert "no transform_version: nothing of an earlier build is reused" in said
    assert "4 shards of version 2 stay for its readers; programs that glob wds-*.tar see them" in said


def test_in_process_the_function_itself_is_called(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """Not a copy: what it notes is there afterwards, and it may hold what cannot be pickled."""
    inputs, seen, lock = make_inputs(5), list[str](), threading.Lock()

    def transform(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        with lock:
            seen.append(key)
        return parts

    build(inputs, Place(str(tmp_path / "out")), func_output_data=transform)
    assert seen == [name.replace(".", "-") for name in inputs.names]


def test_a_set_of_names_or_suffixes_is_sorted(make_inputs: MakeInputs, tmp_path: Path) -> None:
    """A set has another order in every process; a build must not."""
    inputs = make_inputs(9, TWO_SUFFIXES)
    names, suffixes = set(inputs.names), set(inputs.suffixes)
    pickles_to_tars(inputs.folder, names, suffixes, tmp_path / "out", "wds", progress=False)
    index = latest(Place(str(tmp_path / "out"))).index(latest(Place(str(tmp_path / "out"))).shards[0])
    assert list(index.keys) == sorted(index.keys)
    assert index.suffixes == TWO_SUFFIXES


@pytest.mark.parametrize(("names", "options"), [("abc", {}), (["a", 7], {}), (["a"], {"min_num_shards": 2.5})])
def test_wrong_types_are_type_errors(tmp_path: Path, names: Any, options: Any) -> None:
    """A string is not a list of names, and half a shard is none."""
    with pytest.raises((TypeError, CallError)):
        pickles_to_tars(tmp_path / "in", names, SUFFIX, tmp_path / "out", "wds", progress=False, **options)


def test_a_destination_in_the_source_is_refused(make_inputs: MakeInputs, place: Place) -> None:
    """On object storage too. A source in the destination is fine: nothing of it is a name of the dataset."""
    inputs, store = make_inputs(3), Store(place.url, place.storage_options)
    options: Any = {"storage_options": place.storage_options, "progress": False}
    for name in inputs.names:
        store.put_new(f"raw/{name}.{SUFFIX}", inputs.part(name, SUFFIX))
    source = store.url_of("raw")
    for destination in (source, f"{source}/", f"{source}/shards"):
        with pytest.raises(CallError, match="choose a folder beside the source"):
            pickles_to_tars(source, inputs.names, SUFFIX, destination, "wds", **options)
    if not place.url.startswith("memory:"):  # where each URL is a store of its own
        assert pickles_to_tars(source, inputs.names, SUFFIX, place.url, "wds", **options).num_samples == 3


def test_two_builders_of_the_same_plan_both_succeed_with_one_result(make_inputs: MakeInputs, place: Place) -> None:
    """They adopt each other's intent and shards."""
    inputs, reports = make_inputs(40), list[BuildReport]()
    threads = [threading.Thread(target=lambda: reports.append(build(inputs, place))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.version for report in reports] == [1, 1, 1]
    assert [shard.number for shard in latest(place).shards] == [0, 1, 2, 3]
    assert len([name for name in stored(place) if name.endswith(".tar")]) == 4


def test_inputs_may_lie_on_object_storage(make_inputs: MakeInputs, s3: SeaweedServer, tmp_path: Path) -> None:
    """More of them than are fetched at a time; the rerun knows them by their ETags."""
    inputs, store = make_inputs(FETCH_FILES + 30), Store(s3.url("pickles"), s3.storage_options)
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda name: store.put_new(f"{name}.{SUFFIX}", inputs.part(name, SUFFIX)), inputs.names))
    call: Any = (store.url, inputs.names, SUFFIX, tmp_path / "out", "wds")
    options: Any = {"storage_options": s3.storage_options, "progress": False}
    assert [pickles_to_tars(*call, **options).num_reused for _ in range(2)] == [0, 1]
    assert [data for _, _, data in parts_of(latest(Place(str(tmp_path / "out"))))] == [
        inputs.part(name, SUFFIX) for name in inputs.names
    ]


def test_a_read_only_key_cannot_build_and_says_so(make_inputs: MakeInputs, s3: SeaweedServer) -> None:
    """But may find that there is nothing to do."""
    inputs = make_inputs(4)
    place = Place(s3.url("read-only"), s3.storage_options)
    read_only = Place(place.url, s3.read_only_options)
    with pytest.raises(DeniedError, match="permission denied"):
        build(inputs, read_only)
    build(inputs, place)
    assert build(inputs, read_only).num_reused == 4


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    mount = tmp_path / "tiny"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield mount
    subprocess.run(["umount", mount], check=True)


def test_a_full_disk_leaves_no_truncated_object_and_no_version(make_inputs: MakeInputs, full_disk: Path) -> None:
    """After space was made, the rerun packs what was missing."""
    inputs = make_inputs(3)
    for name in inputs.names:
        inputs.path(name, SUFFIX).write_bytes(os.urandom(300_000))
    (full_disk / "ballast").write_bytes(bytes(500_000))
    place = Place(str(full_disk / "out"))
    with pytest.raises(OSError, match=r"wds-00000\d\.tar.*No space left"):
        build(inputs, place, min_num_shards=3)
    names = [name for name in stored(place) if name.endswith(".tar")]
    for name in names:
        with tarfile.open(full_disk / "out" / name) as tar:
            assert len(tar.getmembers()) == 1
    with pytest.raises(NotFoundError):
        latest(place)
    (full_disk / "ballast").unlink()
    assert build(inputs, place, min_num_shards=3).num_reused == len(names) == 1


def test_a_plan_over_4_gib_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    """Sparse files stand in for large ones."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        with (folder / f"{name}.{SUFFIX}").open("wb") as file:
            file.truncate(3 << 30)
    with pytest.raises(ValueError, match="2 shards fit"):
        pickles_to_tars(folder, ["a", "b"], SUFFIX, tmp_path / "out", "wds", min_num_shards=1, progress=False)
    assert not (tmp_path / "out").exists()
