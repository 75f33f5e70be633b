"""Folders of images and labels: files of one stem become one sample, as they are."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dray.loaders import Dataset, ShardLoader
from dray.pipelines import pickles_to_tars
from tests.conftest import Dray


def image(number: int, kind: str = "JPEG") -> bytes:
    """A small picture of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 8), (20 * number, 0, 0)).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in a folder per class with equal stems, labels beside them, masks for some, and other files."""
    folder = tmp_path / "in"
    for name, number in {"cats/1": 0, "cats/2": 1, "dogs/1": 2, "dogs/deep/1": 3}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jpg").write_bytes(image(number))
        (folder / f"{name}.cls").write_text(str(number))
    (folder / "cats/1.seg.png").write_bytes(image(0, "PNG"))
    (folder / "README").write_text("not a sample")
    (folder / "dogs/.DS_Store").touch()
    return folder


SUFFIXES = ("--suffix", "jpg", "--suffix", "cls", "--optional-suffix", "seg.png")


def test_images_and_labels_of_one_stem_are_a_sample(dray: Dray, folder: Path, tmp_path: Path) -> None:
    """Keys keep the folders; bytes are stored as they are; a part that some lack may be None."""
    done = dray("build", folder, tmp_path / "out", *SUFFIXES, "--shards", 2)
    assert "4 samples in 2 shards" in done.out
    loader = ShardLoader(tmp_path / "out", batch_size=4, missing="none", with_keys=True)
    (batch,) = loader
    assert batch["__key__"] == ["cats/1", "cats/2", "dogs/1", "dogs/deep/1"]
    assert batch["cls"].tolist() == [0, 1, 2, 3]
    assert tuple(batch["jpg"].shape) == (4, 8, 16, 3)
    expected = [np.asarray(Image.open(io.BytesIO(image(number)))) for number in range(4)]
    assert np.array_equal(batch["jpg"].numpy(), np.stack(expected))
    assert [part is not None for part in batch["seg.png"]] == [True, False, False, False]
    assert Dataset(tmp_path / "out").snapshot.read("dogs/1")["jpg"] == image(2)
    assert "nothing to do" in dray("build", folder, tmp_path / "out", *SUFFIXES, "--shards", 2).out


def test_a_label_that_is_missing_is_named(dray: Dray, folder: Path, tmp_path: Path) -> None:
    """So is an image whose suffix is in another case, which is neither packed nor passed over silently."""
    (folder / "dogs/1.cls").unlink()
    (folder / "cats/2.jpg").rename(folder / "cats/2.JPG")
    failed = dray("build", folder, tmp_path / "out", *SUFFIXES)
    assert failed.code == 1
    assert "1 file of a suffix in another case such as 'cats/2.JPG', to be renamed" in failed.err
    assert "'dogs/1.cls' is missing" in failed.err
    assert "'cats/2.jpg' is missing" in failed.err


def test_upper_case_suffixes_are_read_as_any_other(folder: Path, tmp_path: Path) -> None:
    """As cameras write them: the part is found under both spellings."""
    for number in range(3):
        (folder / f"IMG_{number}.JPG").write_bytes(image(number))
    names = sorted(path.stem for path in folder.glob("*.JPG"))
    pickles_to_tars(folder, names, "JPG", tmp_path / "out", "wdshards", progress=False)
    (batch,) = ShardLoader(tmp_path / "out", batch_size=3, parts="jpg")
    assert batch["jpg"][:, 0, 0, 0].tolist() == pytest.approx([0, 20, 40], abs=3)


def test_several_kinds_of_images_become_one_part(folder: Path, tmp_path: Path) -> None:
    """By a function that names the part; the bytes say which kind it is."""
    (folder / "a.jpg").write_bytes(image(1))
    (folder / "b.jpeg").write_bytes(image(2))
    (folder / "c.png").write_bytes(image(3, "PNG"))
    for name in "abc":
        (folder / f"{name}.cls").write_text("7")

    def one_image(key: str, parts: dict[str, bytes]) -> dict[str, bytes]:
        label = parts.pop("cls")
        (picture,) = parts.values()
        return {"jpg": picture, "cls": label}

    pickles_to_tars(
        folder, ["a", "b", "c"], "cls", tmp_path / "out", "wdshards", one_image,
        optional_suffixes=["jpg", "jpeg", "png"], transform_version="1", progress=False,
    )  # fmt: skip
    (batch,) = ShardLoader(tmp_path / "out", batch_size=3)
    assert tuple(batch["jpg"].shape) == (3, 8, 16, 3)
