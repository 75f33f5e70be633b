"""What readers of other projects find in the folder of a dataset: the samples in its tars, and no record of dray's."""

import gc
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds

from tests.conftest import Dray

COUNT = 7


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Seven samples of two parts."""
    folder = tmp_path / "samples"
    folder.mkdir()
    for number in range(COUNT):
        write(folder, number, number)
    return folder


@pytest.fixture
def out(dray: Dray, source: Path, tmp_path: Path) -> Path:
    """A dataset in two shards."""
    build(dray, source, tmp_path / "out")
    return tmp_path / "out"


def write(folder: Path, number: int, value: int) -> None:
    (folder / f"s{number}.cls").write_text(str(value))
    (folder / f"s{number}.json").write_text(json.dumps({"value": value}))


def build(dray: Dray, source: Path, out: Path) -> None:
    dray("build", source, out, "--suffix", "cls", "--suffix", "json", "--shards", 2)


def urls_of(dray: Dray, out: Path) -> list[str]:
    return dray("ls", out, "--urls").out.splitlines()


def values_in(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Key -> the values of both parts; a key that is there twice fails."""
    found = [(row["__key__"], (int(row["cls"]), row["json"]["value"])) for row in rows]
    assert len(dict(found)) == len(found)
    return dict(found)


EXPECTED = {f"s{number}": (number, number) for number in range(COUNT)}
CHANGED = {**EXPECTED, "s3": (30, 30)}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
def test_webdataset_reads_the_urls_that_ls_prints(dray: Dray, source: Path, out: Path) -> None:
    """Of the last version, though the shard that was replaced is still there."""
    write(source, 3, 30)
    build(dray, source, out)
    assert len(list(out.glob("*.tar"))) == 3
    urls = urls_of(dray, out)
    found = values_in(wds.WebDataset(urls, shardshuffle=False).decode())
    gc.collect()
    assert found == CHANGED


@pytest.mark.heavy
@pytest.mark.parametrize("words", ["folder", "webdataset", "urls"])
def test_hugging_face_reads_the_tars_only(
    dray: Dray, source: Path, out: Path, tmp_path: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passes over `__dray__`, whose Arrow, JSON and Parquet files it would else take for the data."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    expected = EXPECTED
    if words == "urls":
        write(source, 3, 30)
        build(dray, source, out)
        expected = CHANGED
    arguments: dict[str, dict[str, Any]] = {
        "folder": {"path": str(out)},
        "webdataset": {"path": "webdataset", "data_dir": str(out)},
        "urls": {"path": "webdataset", "data_files": urls_of(dray, out)},
    }
    found = datasets.load_dataset(**arguments[words], split="train", cache_dir=str(tmp_path / "cache"))
    assert values_in(found) == expected
