"""An encoded part is read under each of its names, and under the suffix of its source."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from dray.loaders import Dataset, PickledDataWDS, ShardLoader, Split
from dray.shards import CallError
from tests.shards.reading.test_suffixes import FLOAT, VALUES, build, encode, module, only
from tests.support import datasets


def values_in(column: Any) -> list[Any]:
    return [value if isinstance(value, dict) else torch.as_tensor(value).tolist() for value in column]


@pytest.mark.parametrize("name", ["image.pyd", "image.npy", "image.json", "image", "IMAGE.Npy"])
def test_every_name_of_an_encoded_part_gives_it(tmp_path: Path, name: str) -> None:
    """The loader, the DataModule and the Dataset return the part under the requested name, whatever its form."""
    url = encode(tmp_path, VALUES)
    for stack in (True, False):
        batch = only(url, 6, parts=name, stack=stack)
        assert list(batch) == [name]
        assert values_in(batch[name]) == values_in(VALUES)
    for wanted in (name, f"jpg;{name}", "npy"):
        found = [value for (value,) in module(url, wanted).val_dataloader()]
        assert values_in(found) == values_in(VALUES)
    dataset = Dataset(url)
    assert values_in([dataset[key][name] for key in dataset]) == values_in(VALUES)


def test_an_encoded_part_stands_under_the_suffix_of_its_source(tmp_path: Path) -> None:
    """With parts=None all forms have one name, so that samples of a Dataset can be collated."""
    url = encode(tmp_path, [FLOAT, FLOAT.bfloat16().float(), FLOAT, 2 * FLOAT])
    batch = only(url, 4)
    assert list(batch) == ["image.pyd"]
    assert batch["image.pyd"].tolist() == [[1, 1], [1, 1], [1, 1], [2, 2]]
    dataset = Dataset(url)
    assert default_collate([dataset[key] for key in dataset])["image.pyd"].shape == (4, 2)
    with pytest.raises(KeyError, match="image\\.jpg"):
        dataset["s0000"]["image.jpg"]


def test_mixed_forms_are_stacked_where_they_agree(tmp_path: Path) -> None:
    """Numbers stored as .json and .npy are stacked; a different dtype is an error that names both samples."""
    url = encode(tmp_path, [1, np.int64(2), 3, 0.5])
    (first, *_) = ShardLoader(url, batch_size=3)
    assert first["image.pyd"].tolist() == [1, 2, 3]
    with pytest.raises(CallError, match=r"int64 \(\) in .*'s0000', but float64 \(\) in .*'s0003'"):
        only(url, 4)


def test_only_what_the_build_recorded_is_one_part(tmp_path: Path) -> None:
    """meta.json and meta.pyd are two parts if meta.pyd was not encoded."""
    meta = {"meta.pyd": lambda number: pickle.dumps((number,)), "meta.json": b"%d".__mod__}
    plain = datasets.pack(tmp_path / "plain", 4, 2, parts=meta)
    assert list(only(plain, 4, stack=False)) == ["meta.pyd", "meta.json"]
    with pytest.raises(CallError, match="no sample has a part 'meta'"):
        ShardLoader(plain, batch_size=1, parts="meta")
    other = encode(tmp_path / "other", [FLOAT] * 4, {"image.pyd": "npy"}, **meta)
    assert list(only(other, 4)) == ["image.pyd", "meta.pyd", "meta.json"]
    assert only(other, 4, parts=["image.npy", "meta.pyd", "meta.json"])["meta.json"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("is_two", [True, False])
def test_the_parts_of_a_function_are_one_where_each_sample_has_one(tmp_path: Path, is_two: bool) -> None:
    """With encode="auto" the recipe does not name the parts of a function, so the recorded counts decide."""

    def make(number: int) -> dict[str, Any]:
        return {"meta.pyd": (number,) if number % 2 else FLOAT} | ({"meta.json": number} if is_two else {})

    url = build(tmp_path, make, encode="auto")
    if is_two:
        with pytest.raises(CallError, match=r"1 of the 2 samples of .* lack 'meta\.npy'"):
            ShardLoader(url, batch_size=2)
        assert only(url, 6, parts="meta.json")["meta.json"].tolist() == [0, 1, 2, 3, 4, 5]
    else:
        found = only(url, 6, stack=False)["meta.pyd"]
        assert values_in(found) == values_in([FLOAT, (1,), FLOAT, (3,), FLOAT, (5,)])


def test_the_pickled_data_module_reads_what_it_encoded(tmp_path: Path) -> None:
    """Parts are found by the names of their pickles, even if the suffix of another part ends the same."""
    (tmp_path / "in").mkdir()
    for number, value in enumerate(VALUES):
        (tmp_path / f"in/s{number}.image.pyd").write_bytes(pickle.dumps(value))
        (tmp_path / f"in/s{number}.other.image.pyd").write_bytes(pickle.dumps(number))
    names = {Split.val: [f"s{number}" for number in range(len(VALUES))]}
    data = PickledDataWDS(
        tmp_path / "in", names, ["image.pyd", "other.image.pyd"], {Split.val: str(tmp_path / "out")}, None,
        encode="auto", progress=False,
    )  # fmt: skip
    data.prepare_data()
    data.setup("validate")
    found = list(data.val_dataloader())
    assert values_in([value for value, _ in found]) == values_in(VALUES)
    assert [int(number) for _, number in found] == list(range(len(VALUES)))
