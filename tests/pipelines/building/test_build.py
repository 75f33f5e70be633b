"""`pickles_to_tars` from files to a committed version, in process."""

import gc
import os
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines import BuildReport, pickles_to_tars
from dray.pipelines.building.fill import WAITING_BYTES, WAITING_PARTS
from dray.pipelines.building.pack import read_index
from dray.pipelines.inputs.sources import FETCH_FILES
from dray.pipelines.planning.recipe import Recipe
from dray.shards import CallError, DamagedError, DeniedError, InputError, NotFoundError, Snapshot, Store
from dray.shards.parsing.arrays import ArrayLayout
from tests.conftest import Inputs, MakeInputs, Place
from tests.support.datasets import build, latest, npy, pack, stored, tensor_of

SUFFIX = "tensor.pyd"
TWO_SUFFIXES = ("image.pyd", "label.cls")
PYD = tensor_of(5)


def fail_at(bad_key: str, error: Exception) -> Any:
    def transform(key: str, suffix_to_data: dict[str, bytes]) -> dict[str, bytes]:
        if key == bad_key:
            raise error
        return suffix_to_data

    return transform


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
