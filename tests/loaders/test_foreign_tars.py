"""Tars that no build committed, read in place by all entry points; laws 5 to 8 are in tests/laws/test_loading.py."""

import gc
import os
import pickle
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset as wds

from dray.loaders import Dataset, PickledDataWDS, ShardDataModule, ShardLoader, Split, WebDataModule
from dray.pipelines import index_tars, open_data
from dray.shards.errors import CallError, DamagedError, NotFoundError
from tests.conftest import Place
from tests.support import datasets
from tests.support.foreign import numbered, write_tar

SIZES = (7, 1, 30, 12)
COUNT = sum(SIZES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four tars of different sizes, named as by many."""
    folder, first = tmp_path / "tars", 0
    for number, size in enumerate(SIZES):
        write_tar(folder / f"train-{number:03d}.tar", numbered(first, size))
        first += size
    return folder


def loader_of(url: Any, **options: Any) -> ShardLoader:
    return ShardLoader(url, **{"batch_size": 4, "remainder": "keep", **options})


def numbers_in(loader: Any) -> list[int]:
    return [int(number) for batch in loader for number in batch["cls"]]


@pytest.mark.parametrize(
    "pattern",
    ["", "train-{000..003}.tar", "train-*.tar", "train-00[0-3].tar", "train-000.tar::{}/train-{001..003}.tar"],
)
def test_a_folder_or_a_pattern_gives_every_sample_once(folder: Path, pattern: str) -> None:
    """In the order of the tars; shuffled, with workers and on ranks too."""
    url = f"{folder}/{pattern}".replace("{}", str(folder)).rstrip("/")
    assert numbers_in(loader_of(url)) == list(range(COUNT))
    shards = [loader_of(url, shuffle=True, num_workers=1, rank=rank, num_ranks=2) for rank in range(2)]
    assert sorted(number for loader in shards for number in numbers_in(loader)) == list(range(COUNT))
    assert len({loader.snapshot.commit.manifest for loader in shards}) == 1


def test_a_list_keeps_its_order(folder: Path) -> None:
    """One tar, or several in the order given, in all entry points."""
    tars = [folder / "train-003.tar", f"{folder}/train-001.tar"]
    expected = [*range(38, 50), 7]
    assert numbers_in(loader_of(tars)) == expected
    assert list(Dataset(tars)) == [f"s{number:04d}" for number in expected]
    data = ShardDataModule(train=tars, val={"url": tars[1]}, batch_size=5)
    data.setup("fit")
    assert numbers_in(data.train_dataloader()) == expected[:10]
    assert numbers_in(data.val_dataloader()) == numbers_in(data.val_dataloader()) == [7]
    wide = WebDataModule(None, "cls", {"val": tars, "test": folder / "train-{000..003}.tar"}, None)
    wide.setup("validate")
    wide.setup("test")
    assert [number for (number,) in wide.val_dataloader()] == expected
    assert [number for (number,) in wide.test_dataloader()] == list(range(COUNT))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_samples_are_those_of_webdataset(folder: Path) -> None:
    """Tars of its own writer, with meta members, folders and dotted names."""
    (folder / "own").mkdir()
    with wds.ShardWriter(f"{folder}/own/%05d.tar", maxcount=4, verbose=0) as writer:
        for number in range(10):
            writer.write({"__key__": f"a.b/k{number}", "cls": number, "x.y.txt": f"text {number}"})
    expected = {
        sample["__key__"]: (sample["cls"], sample["x.y.txt"])
        for sample in wds.WebDataset(f"{folder}/own/{{00000..00002}}.tar", shardshuffle=False).decode()
    }
    gc.collect()  # webdataset leaves its files open
    dataset = Dataset(folder / "own", "")
    assert {key: (dataset[key]["cls"], dataset[key]["x.y.txt"]) for key in dataset} == expected


def test_an_epoch_is_resumed_after_a_restart_on_other_ranks(folder: Path) -> None:
    """The id of the data depends on names and bytes alone, so a moved or touched folder resumes as well."""
    first = [loader_of(folder, shuffle=True, rank=rank, num_ranks=2) for rank in range(2)]
    taken = [number for loader in first for number in numbers_in(islice(loader, 3))]
    state = first[0].state_dict()
    os.utime(folder / "train-000.tar", (1, 1))
    moved = folder.rename(folder.parent / "moved")
    rest = [loader_of(f"{moved}/*.tar", shuffle=True, rank=rank, num_ranks=3, batch_size=2) for rank in range(3)]
    for loader in rest:
        loader.load_state_dict(state)
    assert sorted([*taken, *(number for loader in rest for number in numbers_in(loader))]) == list(range(COUNT))


def test_a_changed_tar_is_detected(folder: Path) -> None:
    """On resuming, by its content; in a run, when it is read."""
    loader = loader_of(folder, shuffle=True)
    next(iter(loader))
    state = loader.state_dict()
    old = loader_of(f"{folder}/train-002.tar")
    write_tar(folder / "train-002.tar", numbered(100, 30))
    with pytest.raises(DamagedError, match=r"train-002\.tar.*not the bytes that were indexed"):
        numbers_in(old)
    changed = loader_of(folder, shuffle=True)
    with pytest.raises(CallError, match=r"dataset: .* in the checkpoint.*the same, unchanged tars"):
        changed.load_state_dict(state)
    write_tar(folder / "train-002.tar", numbered(100, 90))
    with pytest.raises(DamagedError, match="not the tar that was indexed: size"):
        numbers_in(changed)
    (folder / "train-002.tar").unlink()
    with pytest.raises(NotFoundError, match=r"train-002\.tar: the tar is missing"):
        numbers_in(changed)


def test_tars_in_use_are_indexed_once(folder: Path) -> None:
    """While they do not change; a loader that is gone leaves nothing behind."""
    first, second = loader_of(folder), loader_of(folder)
    assert first.snapshot is second.snapshot
    write_tar(folder / "train-003.tar", numbered(200, 12))
    assert loader_of(folder).snapshot is not first.snapshot
    copied = pickle.loads(pickle.dumps(second))
    assert numbers_in(islice(copied, 2)) == list(range(8))


def test_equal_keys_are_different_samples(tmp_path: Path) -> None:
    """In several tars, and where members of one key are not adjacent; a key alone is ambiguous then."""
    write_tar(tmp_path / "a.tar", {"k0": {"cls": b"0"}, "k1": {"cls": b"1"}})
    write_tar(tmp_path / "b.tar", {"k1": {"cls": b"2"}, "x": {"cls": b"3"}})
    assert numbers_in(loader_of(tmp_path)) == [0, 1, 2, 3]
    dataset = Dataset(tmp_path)
    assert list(dataset) == ["k0", "k1", "k1", "x"]
    assert "k1" in dataset
    assert [dataset[number]["cls"] for number in range(4)] == [0, 1, 2, 3]
    with pytest.raises(CallError, match="2 samples have the key 'k1': ask for one by its number: 1, 2"):
        dataset["k1"]
    with pytest.raises(NotFoundError, match=f"no sample 'k9' in the tars in file://{tmp_path}: its neighbours"):
        dataset["k9"]
    assert repr(dataset) == f"Dataset of the tars in file://{tmp_path}"


def test_a_part_that_comes_twice_is_an_error(tmp_path: Path) -> None:
    """Webdataset merges such samples silently, or fails."""
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("k.cls"))
    with pytest.raises(DamagedError, match=r"a\.tar at offset \d+: key 'k' has 'cls' twice"):
        loader_of(tmp_path)


def test_tars_without_samples_and_compressed_tars_are_errors(tmp_path: Path) -> None:
    """An empty tar among others is none."""
    write_tar(tmp_path / "none/a.tar", {})
    with pytest.raises(CallError, match=r"no sample in 1 tar \('a\.tar'\): members with a suffix"):
        loader_of(tmp_path / "none")
    write_tar(tmp_path / "none/b.tar", numbered(0, 3))
    assert numbers_in(loader_of(tmp_path / "none")) == [0, 1, 2]
    for mode, name in (("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")):
        write_tar(tmp_path / "packed/a.tar", numbered(0, 3), mode=mode)
        with pytest.raises(DamagedError, match=rf"a\.tar at offset 0: it is compressed \({name}\).*unpack"):
            loader_of(tmp_path / "packed")


def test_a_dataset_comes_before_tars(tmp_path: Path) -> None:
    """Other tars beside it are left alone; under another prefix the error names that of the dataset."""
    url = Path(datasets.pack(tmp_path, 9))
    write_tar(url / "extra.tar", numbered(0, 3))
    assert ShardLoader(url, batch_size=1).snapshot.version == 1
    for prefix in ("", "train"):
        for entry in (Dataset, lambda url, prefix: ShardLoader(url, prefix=prefix, batch_size=1)):
            with pytest.raises(NotFoundError, match="a dataset of dray with the prefix 'wdshards'"):
                entry(url, prefix)
    assert numbers_in(loader_of(url / "extra.tar")) == [0, 1, 2]


def test_what_is_named_twice_or_wrongly_is_refused(folder: Path) -> None:
    """A version of tars, a URL of tars that shall be built."""
    with pytest.raises(CallError, match=r"version 3 of .*tars have no versions"):
        loader_of(f"{folder}/train-*.tar", version=3)
    with pytest.raises(CallError, match=r"version '3' of .*tars have no versions"):
        loader_of(f"{folder}/train-000.tar?version=3")
    with pytest.raises(NotFoundError, match="no version 3"):
        loader_of(f"{folder}?version=3")
    with pytest.raises(CallError, match=r"a directory expected, found .*WebDataModule reads tars"):
        PickledDataWDS("x", {"val": ["a"]}, "cls", {"val": f"{folder}/a-{{0..3}}.tar"}, 1)
    with pytest.raises(CallError, match="prefix ''"):
        PickledDataWDS("x", {"val": ["a"]}, "cls", {"val": folder}, 1, "")


@pytest.mark.parametrize("place", ["memory", "s3"], indirect=True)
def test_object_storage_needs_an_index(folder: Path, place: Place) -> None:
    """The error names the command, and what is there; WebDataModule streams the tars, and warns."""
    for path in folder.iterdir():
        datasets.store_at(place).put_new(path.name, path.read_bytes())
    options = {"storage_options": place.storage_options}
    message = rf"4 tars \('train-000\.tar' and 3 more\) without an index: run `dray index {re.escape(place.url)}`"
    for entry in (loader_of, Dataset):
        for url in (place.url, f"{place.url}/train-{{000..003}}.tar"):
            with pytest.raises(NotFoundError, match=message):
                entry(url, **options)
    data = WebDataModule(None, "cls", {Split.val: f"{place.url}/train-*.tar"}, None, **options)
    with pytest.warns(UserWarning, match="run `dray index`"):
        data.setup("validate")
    assert Counter(number for (number,) in data.val_dataloader()) == Counter(range(COUNT))


def test_an_index_gives_the_same_samples_in_the_same_order(folder: Path, place: Place) -> None:
    """Of a copy on any store, also where names of tars have no leading zeros; the tars can be read without it too."""
    store = datasets.store_at(place)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"{number + 8}.tar")
        store.put_new(f"{number + 8}.tar", (folder / f"{number + 8}.tar").read_bytes())
    report = index_tars(place.url, storage_options=place.storage_options, progress=False)
    assert report.num_samples == COUNT
    indexed = loader_of(place.url, storage_options=place.storage_options, with_keys=True, shuffle=True, seed=3)
    in_memory = loader_of(folder, with_keys=True, shuffle=True, seed=3)
    assert indexed.snapshot.version == 1
    assert [batch["__key__"] for batch in indexed] == [batch["__key__"] for batch in in_memory]
    if place.url.startswith("file:"):
        named = loader_of(f"{place.url}/*.tar")
        assert (named.snapshot.version, named.snapshot.num_samples) == (0, COUNT)


def test_a_glob_may_match_indexed_tars_of_the_names_of_shards(tmp_path: Path) -> None:
    """They are not dray's: none is replaced, so none comes twice."""
    write_tar(tmp_path / "wdshards-000000.tar", numbered(0, 3))
    index_tars(tmp_path, progress=False)
    assert loader_of(f"{tmp_path}/*.tar").snapshot.version == 0
    assert loader_of(tmp_path).snapshot.version == 1


def test_long_indexing_says_how_far_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And that `dray index` does it once; short indexing is silent."""
    loader_of(folder)
    assert not capfd.readouterr().err
    monkeypatch.setattr(open_data, "SILENT_S", 0.0)
    loader_of(f"{folder}/train-000.tar")
    said = capfd.readouterr().err
    assert re.fullmatch(
        rf"dray: indexing 1 tar in file://{folder} in memory: 0\.0 of 0\.0 GB after 0 s; `dray index file://{folder}` "
        "does this once for all runs\n",
        said,
    )


def test_batches_are_stacked_from_the_mapped_tars(tmp_path: Path) -> None:
    """Arrays of one dtype and shape are known from the index."""
    samples = {f"k{number}": {"x.npy": datasets.npy([number, number])} for number in range(6)}
    write_tar(tmp_path / "00000.tar", samples)
    (batch,) = ShardLoader(tmp_path, batch_size=6)
    assert torch.equal(batch["x.npy"], torch.arange(6)[:, None].expand(6, 2))
