"""`Dataset`: samples by key or number, decoded, for torch as well."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.loaders import Dataset, ShardLoader
from dray.pipelines import pickles_to_tars
from dray.shards import DamagedError, NotFoundError, PositionError, RefusedError, StoreError
from tests.conftest import Place
from tests.loaders.workers.test_forks import from_torch

NAMES = [f"s.{number:02d}" for number in range(30)]


class Evil:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pickled tensors and labels that hold the sample's number."""
    folder = tmp_path / "pickles"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / f"{name}.tensor.pyd").write_bytes(pickle.dumps(torch.full((2,), number)))
        (folder / f"{name}.label.cls").write_bytes(str(number).encode())
    return folder


def build(folder: Path, place: Place, names: list[str] = NAMES) -> None:
    pickles_to_tars(
        folder, names, ["tensor.pyd", "label.cls"], place.url, "wds", min_num_shards=4,
        storage_options=place.storage_options, progress=False,
    )  # fmt: skip


def test_every_sample_is_found_by_its_key(folder: Path, place: Place) -> None:
    """Also after an incremental build moved some of them."""
    build(folder, place, NAMES[:20])
    build(folder, place, NAMES[3:])
    dataset = Dataset(place.url, "wds", storage_options=place.storage_options)
    assert len(dataset) == 27
    assert list(dataset) == [name.replace(".", "-") for name in NAMES[3:]]
    for number, name in list(enumerate(NAMES))[3:]:
        sample = dataset[name.replace(".", "-")]
        assert sample.keys() == {"tensor.pyd", "label.cls"}
        assert (sample["tensor.pyd"].tolist(), sample["label.cls"]) == ([number, number], number)


def test_an_old_version_is_read_by_number_or_url(folder: Path, tmp_path: Path) -> None:
    """By argument, and by URL."""
    build(folder, Place(str(tmp_path / "out")), NAMES[:20])
    build(folder, Place(str(tmp_path / "out")), NAMES[3:])
    for dataset in (Dataset(f"{tmp_path}/out?version=1", "wds"), Dataset(tmp_path / "out", "wds", version=1)):
        assert ("s-00" in dataset, "s-29" in dataset, len(dataset)) == (True, False, 20)


def test_an_unknown_key_is_named_with_its_neighbours(folder: Path, tmp_path: Path) -> None:
    """A name with dots is not a key, and the message says so."""
    build(folder, Place(str(tmp_path / "out")))
    dataset = Dataset(tmp_path / "out", "wds")
    with pytest.raises(NotFoundError, match=r"no sample 's\.03'.*'s-03'\?"):
        dataset["s.03"]
    assert 3 not in dataset


def test_what_is_not_on_the_safe_list_is_refused(folder: Path, tmp_path: Path) -> None:
    """The error names shard and key; no code runs."""
    (folder / f"{NAMES[7]}.tensor.pyd").write_bytes(pickle.dumps(Evil()))
    build(folder, Place(str(tmp_path / "out")))
    with pytest.raises(RefusedError, match=r"wds-00000[01]\.tar.*'s-07'"):
        Dataset(tmp_path / "out", "wds")["s-07"]


def test_a_damaged_part_is_named(folder: Path, tmp_path: Path) -> None:
    """And not decoded."""
    build(folder, Place(str(tmp_path / "out")))
    tar = tmp_path / "out" / "wds-000000.tar"
    body = bytearray(tar.read_bytes())
    body[body.index(b"s-01.label.cls") + 512] ^= 1
    tar.chmod(0o644)
    tar.write_bytes(body)
    dataset = Dataset(tmp_path / "out", "wds")
    assert dataset["s-00"]["label.cls"] == 0
    with pytest.raises(DamagedError, match=r"wds-000000\.tar at offset \d+, key 's-01', suffix 'label\.cls'"):
        dataset["s-01"]


def test_numbers_are_positions_in_the_datasets_own_order(folder: Path, place: Place) -> None:
    """The order of a loader without shuffling, and of the keys, also after builds that moved samples."""
    build(folder, place, NAMES[5:20])
    build(folder, place, [*NAMES[:3], *NAMES[7:]])
    options = {"storage_options": place.storage_options}
    dataset = Dataset(place.url, "wds", **options)  # type: ignore[arg-type]
    loader = ShardLoader(place.url, prefix="wds", batch_size=1, with_keys=True, **options)  # type: ignore[arg-type]
    keys = [batch["__key__"][0] for batch in loader]
    assert list(dataset) == keys
    assert keys != sorted(keys)
    for number, key in enumerate(keys):
        label = int(key.removeprefix("s-"))
        for at in (key, number, number - len(keys), np.int64(number), torch.tensor(number)):
            assert dataset[at]["label.cls"] == label
    assert [sample["label.cls"] for sample in dataset.__getitems__([3, 3, -1, keys[0]])] == [
        int(keys[number].removeprefix("s-")) for number in (3, 3, -1, 0)
    ]
    assert dataset.__getitems__([]) == []


def test_what_is_neither_a_key_nor_a_number_is_refused(folder: Path, tmp_path: Path) -> None:
    """As for a list: IndexError beyond the ends, TypeError for anything else."""
    build(folder, Place(str(tmp_path / "out")))
    dataset = Dataset(tmp_path / "out", "wds")
    for number in (30, -31, 2**70):
        with pytest.raises(PositionError, match=rf"dataset\[{number}\]: .* has 30 samples"):
            dataset[number]
    assert issubclass(PositionError, IndexError)
    for key in (True, 1.0, None, b"s-01", slice(2), [1], (1, 2), np.True_):
        with pytest.raises(TypeError, match="expected a sample's key, a str, or its number, an int"):
            dataset[key]  # type: ignore[index]
    assert (0 in dataset, None in dataset, "s-00" in dataset) == (False, False, True)
    with pytest.raises(TypeError):
        reversed(dataset)  # type: ignore[call-overload]


def test_torch_takes_it_as_a_map_style_dataset(folder: Path, tmp_path: Path) -> None:
    """Shuffled, in forked workers, by keys and as a subset, before and after other look-ups."""
    build(folder, Place(str(tmp_path / "out")))
    dataset = Dataset(tmp_path / "out", "wds")

    def labels(dataset: Any = dataset, **options: Any) -> list[int]:
        batches = from_torch(dataset, 2, batch_size=4, **options)
        found = [(batch["tensor.pyd"][:, 0].tolist(), batch["label.cls"].tolist()) for batch in batches]
        assert all(ours == theirs for ours, theirs in found)
        return [label for _, row in found for label in row]

    keys: Any = [name.replace(".", "-") for name in NAMES[10:20]]
    assert labels(sampler=keys) == list(range(10, 20))
    assert sorted(labels(shuffle=True)) == labels() == list(range(30))
    assert labels(dataset=torch.utils.data.Subset(dataset, [7, 2, 29])) == [7, 2, 29]
    with pytest.raises(NotFoundError, match="no sample 's-99'"):
        labels(sampler=["s-99"])
    assert len(dataset) == len(labels(shuffle=True)) == 30


@pytest.mark.parametrize("make", [lambda dataset: pickle.loads(pickle.dumps(dataset)), copy.deepcopy, copy.copy])
def test_a_copy_reads_the_same(folder: Path, place: Place, make: Callable[[Dataset], Dataset]) -> None:
    """Also after look-ups, and with lambdas as decoders."""
    build(folder, place)
    dataset = Dataset(place.url, "wds", storage_options=place.storage_options, decoders={"cls": lambda data: data})
    assert dataset["s-07"]["label.cls"] == b"7"
    again = make(dataset)
    assert (again[7]["label.cls"], again["s-08"]["label.cls"], len(again)) == (b"7", b"8", 30)


def test_threads_share_one(folder: Path, place: Place) -> None:
    """Each gets the samples that it requested."""
    build(folder, place)
    dataset = Dataset(place.url, "wds", storage_options=place.storage_options)
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda number: dataset[number % 30]["label.cls"], range(120))
    assert list(found) == [number % 30 for number in range(120)]


def test_spawned_workers_of_torch_read_object_storage(folder: Path, s3: SeaweedServer) -> None:
    """Forked workers are refused, as connections do not survive a fork."""
    place = Place(s3.url("map-style"), s3.storage_options)
    build(folder, place)
    dataset = Dataset(place.url, "wds", storage_options=place.storage_options)
    assert dataset[1]["label.cls"] == 1
    batches = from_torch(dataset, 1, batch_size=10, multiprocessing_context="spawn")
    assert [label for batch in batches for label in batch["label.cls"].tolist()] == list(range(30))
    with pytest.raises(StoreError, match="this process was forked"):
        from_torch(dataset, 1, batch_size=10)
