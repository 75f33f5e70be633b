"""`dataset[key]`: one sample, decoded."""

import pickle
from pathlib import Path

import pytest
import torch

from dray.loaders import Dataset
from dray.pipelines import pickles_to_tars
from dray.shards import DamagedError, NotFoundError, RefusedError
from tests.conftest import Place

NAMES = [f"s.{number:02d}" for number in range(30)]


class Evil:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tensors and labels; the samples know their number."""
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
    """Pinned."""
    build(folder, Place(str(tmp_path / "out")), NAMES[:20])
    build(folder, Place(str(tmp_path / "out")), NAMES[3:])
    for dataset in (Dataset(f"{tmp_path}/out?version=1", "wds"), Dataset(tmp_path / "out", "wds", version=1)):
        assert ("s-00" in dataset, "s-29" in dataset, len(dataset)) == (True, False, 20)


def test_an_unknown_key_is_named_with_its_neighbours(folder: Path, tmp_path: Path) -> None:
    """A name with dots is no key; the message says so."""
    build(folder, Place(str(tmp_path / "out")))
    dataset = Dataset(tmp_path / "out", "wds")
    with pytest.raises(NotFoundError, match=r"no sample 's\.03'.*'s-03'\?"):
        dataset["s.03"]
    assert 3 not in dataset


def test_what_is_not_on_the_safe_list_is_refused(folder: Path, tmp_path: Path) -> None:
    """With shard and key; nothing runs."""
    (folder / f"{NAMES[7]}.tensor.pyd").write_bytes(pickle.dumps(Evil()))
    build(folder, Place(str(tmp_path / "out")))
    with pytest.raises(RefusedError, match=r"wds-00000[01]\.tar.*'s-07'"):
        Dataset(tmp_path / "out", "wds")["s-07"]


def test_a_damaged_part_is_named(folder: Path, tmp_path: Path) -> None:
    """And never decoded."""
    build(folder, Place(str(tmp_path / "out")))
    tar = tmp_path / "out" / "wds-000000.tar"
    body = bytearray(tar.read_bytes())
    body[body.index(b"s-01.label.cls") + 512] ^= 1
    tar.chmod(0o644)
    tar.write_bytes(body)
    dataset = Dataset(tmp_path / "out", "wds")
    assert dataset["s-00"]["label.cls"] == 0
    with pytest.raises(DamagedError, match=r"wds-000000\.tar: part 'label\.cls' of key 's-01'"):
        dataset["s-01"]
