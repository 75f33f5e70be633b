"""Tars of other programs: dray's readers yield the samples that webdataset yields, or the report says which not."""

import gc
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from dray.loaders import Dataset
from dray.pipelines import index_tars
from dray.shards import InputError, Snapshot, Store
from tests.conftest import Place
from tests.support.datasets import npy
from tests.support.foreign import tar_of

Samples = dict[str, dict[str, bytes]]


def by_webdataset(folder: Path) -> Samples:
    """The samples that webdataset yields, undecoded; a key that comes twice fails."""
    urls = [str(path) for path in sorted(folder.rglob("*.tar")) if path.stat().st_size]
    found = [
        (sample["__key__"], {name: data for name, data in sample.items() if not name.startswith("__")})
        for sample in wds.WebDataset(urls, shardshuffle=False)
    ]
    gc.collect()
    assert len(dict(found)) == len(found)
    return dict(found)


def by_dray(url: str, **options: object) -> Samples:
    """The samples of an indexed dataset."""
    snapshot = Snapshot.open(url, **options)  # type: ignore[arg-type]
    return {
        key: {suffix.lower(): data for suffix, data in snapshot.read(key).items()}
        for key in snapshot.samples()["key"].to_pylist()
    }


def parts_of(number: int) -> dict[str, bytes]:
    return {"cls": b"%d" % number, "x.npy": npy([number] * 3), "json": json.dumps({"n": number}).encode()}


def by_shard_writer(folder: Path) -> None:
    with wds.ShardWriter(str(folder / "train-%06d.tar"), maxcount=4, verbose=0) as writer:
        for number in range(10):
            writer.write({"__key__": f"s{number:03}", **parts_of(number)})


def by_gnu_tar(kind: str) -> Callable[[Path], None]:
    """Files with long, dotted and unicode names, and a link, as `tar -C folder .` packs them."""

    def write(folder: Path) -> None:
        files = folder.parent / "files"
        for number in range(6):
            name = files / f"v1.2/ünï çode {'long' * (20 if kind == 'ustar' else 40)}/s{number}"
            name.parent.mkdir(parents=True, exist_ok=True)
            for suffix, data in parts_of(number).items():
                Path(f"{name}.{suffix}").write_bytes(data)
        (files / "link.txt").symlink_to("v1.2")
        (files / "README").write_text("no part of a sample")
        command = ["tar", f"--format={kind}", "--sort=name", "-C", files, "-cf", folder / "all.tar", "."]
        subprocess.run(command, check=True)

    return write


def by_tarfile(kind: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for place in range(3):
            (folder / f"{place}.tar").write_bytes(tar_of(range(place * 4, place * 4 + 4), parts_of, kind))

    return write


def by_img2dataset(folder: Path) -> None:
    """Its layout: `00000.tar` with jpg, txt and json, and a table and statistics beside each."""
    for shard in range(2):
        with wds.TarWriter(str(folder / f"{shard:05}.tar")) as writer:
            for number in range(5):
                writer.write(
                    {"__key__": f"{shard:05}{number:04}", "jpg": b"\xff\xd8jpeg", "txt": b"a cat", "json": b"{}"}
                )
        pq.write_table(pa.table({"key": ["0"]}), folder / f"{shard:05}.parquet")
        (folder / f"{shard:05}_stats.json").write_text("{}")


def with_oddities(folder: Path) -> None:
    """Folders, `__meta__` members, names without a suffix or with several dots, and suffixes in upper case."""
    with tarfile.open(folder / "odd.tar", "w") as tar:
        for name in ("__meta__/a.txt", "__info__", "noext", "a/b.c/d", "a.b/c.tar.gz", "K.JPG", "K.txt", "z..x", "y."):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
        folder_entry = tarfile.TarInfo("a.b")
        folder_entry.type = tarfile.DIRTYPE
        tar.addfile(folder_entry)


WRITERS: Mapping[str, Callable[[Path], None]] = {
    "ShardWriter": by_shard_writer,
    **{f"tar-{kind}": by_gnu_tar(kind) for kind in ("gnu", "pax", "ustar")},
    **{f"tarfile-{kind}": by_tarfile(kind) for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)},
    "img2dataset": by_img2dataset,
    "oddities": with_oddities,
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
@pytest.mark.parametrize("writer", WRITERS)
def test_dray_yields_the_samples_that_webdataset_yields(writer: str, tmp_path: Path) -> None:
    """By key and by number, and nothing but records is written."""
    folder = tmp_path / "tars"
    folder.mkdir()
    WRITERS[writer](folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    report = index_tars(folder, progress=False)
    expected = by_webdataset(folder)
    assert by_dray(str(folder)) == expected
    assert report.num_samples == len(expected) == len(Dataset(str(folder)))
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_the_same_on_object_storage(place: Place, tmp_path: Path) -> None:
    """Also in memory and on a disk by URL; the reader checks each tar's ETag."""
    (tmp_path / "tars").mkdir()
    by_shard_writer(tmp_path / "tars")
    store = Store(place.url, place.storage_options)
    for path in sorted((tmp_path / "tars").iterdir()):
        store.put_new(f"deep/er.v2/{path.name}", path.read_bytes())
    report = index_tars(place.url, storage_options=place.storage_options, progress=False)
    assert (report.num_tars, report.num_samples) == (3, 10)
    assert by_dray(place.url, storage_options=place.storage_options) == by_dray_of_files(tmp_path / "tars")
    assert not index_tars(place.url, storage_options=place.storage_options, progress=False).is_new


def by_dray_of_files(folder: Path) -> Samples:
    index_tars(folder, progress=False)
    return by_dray(str(folder))


def test_what_webdataset_drops_is_counted_and_named(tmp_path: Path) -> None:
    """By tar and member."""
    with_oddities(tmp_path)
    report = index_tars(tmp_path, progress=False)
    assert report.oddities == {"meta": 2, "without_suffix": 2, "folder": 1}
    assert report.examples["without_suffix"] == ["odd.tar: noext", "odd.tar: a/b.c/d"]
    assert "2 members without a dot in the name (left out, by webdataset too): 'odd.tar: noext'" in str(report)


def test_hidden_files_are_left_out_and_named(tmp_path: Path) -> None:
    """The library webdataset makes a sample of them, named after their folder, which parts those beside it."""
    put(tmp_path / "mac.tar", "d/._a.jpg", "d/a.jpg", "d/._a.txt", "d/a.txt")
    report = index_tars(tmp_path, progress=False)
    assert by_dray(str(tmp_path)) == {"d/a": {"jpg": b"d/a.jpg", "txt": b"d/a.txt"}}
    assert report.oddities == {"hidden": 2}


def put(path: Path, *names: str) -> None:
    """A tar of files that hold their own names."""
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name.encode())
            tar.addfile(info, io.BytesIO(name.encode()))


BAD: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "apart": (lambda path: put(path, "a.jpg", "b.jpg", "a.txt", "b.txt"), r"2 keys with members that are not side by "
              r"side.*'a', 'b'; write the tar again .*tar --sort=name"),
    "twice": (lambda path: put(path, "a.jpg", "a.txt", "a.jpg"), "key 'a' has 'jpg' twice"),
    "twice-by-case": (lambda path: put(path, "a.jpg", "a.JPG"), "key 'a' has 'JPG' twice"),
    "cut": (lambda path: path.write_bytes(tar_of(range(9))[:5000]), "cut short"),
    "without-end": (lambda path: path.write_bytes(tar_of(range(2)).rstrip(b"\0") + bytes(511)), "cut short"),
    "nothing": (lambda path: path.write_bytes(b""), "0 bytes"),
    "no-tar": (lambda path: path.write_bytes(b"hello " * 1000), "not a tar"),
    "gzip": (lambda path: tarfile.open(path, "w:gz").close(), r"compressed \(gz\).*unpack_to"),
    "xz": (lambda path: tarfile.open(path, "w:xz").close(), r"compressed \(xz\).*unpack_to"),
    "latin": (lambda path: latin(path), r"not UTF-8"),
    "many": (lambda path: put(path, *(f"img{number}.{number}.jpg" for number in range(1100))), "different suffixes"),
    "sparse": (lambda path: sparse(path), "sparse"),
}  # fmt: skip


def latin(path: Path) -> None:
    with tarfile.open(path, "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("fräulein.txt"))


def sparse(path: Path) -> None:
    hole = path.parent / "hole.bin"
    with hole.open("wb") as file:
        file.truncate(1 << 20)
    subprocess.run(["tar", "-C", path.parent, "-Scf", path, hole.name], check=True)


@pytest.mark.parametrize("fault", BAD)
def test_a_tar_that_cannot_be_indexed_is_named_with_the_way_out(fault: str, tmp_path: Path) -> None:
    """The others' indexes stay for the next run; it can be left out, and is not read again until it changes."""
    write, message = BAD[fault]
    (tmp_path / "good.tar").write_bytes(tar_of(range(4)))
    write(tmp_path / "bad.tar")
    with pytest.raises(InputError, match=f"1 tar of 2 .* bad.tar: .*{message}") as exc:
        index_tars(tmp_path, progress=False)
    assert "on_error='skip'" in str(exc.value)
    report = index_tars(tmp_path, on_error="skip", progress=False)
    assert (report.num_samples, report.num_adopted, list(report.left_out)) == (4, 1, ["bad.tar"])
    assert not index_tars(tmp_path, on_error="skip", progress=False).is_new
    (tmp_path / "bad.tar").write_bytes(tar_of(range(4, 8)))
    assert index_tars(tmp_path, progress=False).num_samples == 8


def test_an_empty_tar_is_left_out_and_said(tmp_path: Path) -> None:
    """img2dataset leaves such tars; a rerun writes nothing."""
    tarfile.open(tmp_path / "00001.tar", "w").close()
    (tmp_path / "00000.tar").write_bytes(tar_of(range(4)))
    assert index_tars(tmp_path, progress=False).left_out == {"00001.tar": "no sample"}
    objects = sorted(tmp_path.rglob("*"))
    assert not index_tars(tmp_path, progress=False).is_new
    assert sorted(tmp_path.rglob("*")) == objects


def test_keys_of_several_tars_are_named_and_may_have_their_tars_before_them(tmp_path: Path) -> None:
    """A sample that is split over two tars differs from tars that count from 0 each."""
    put(tmp_path / "0.tar", "a.jpg", "b.jpg")
    put(tmp_path / "1.tar", "b.txt", "c.jpg")
    put(tmp_path / "2.tar", "a.jpg", "d.jpg")
    with pytest.raises(InputError, match=r"2 keys in more than one tar, 1 of them .*'a' in 0.tar and 2.tar, 'b' in "
                                         r"0.tar and 1.tar \(split over both\)"):  # fmt: skip
        index_tars(tmp_path, progress=False)
    report = index_tars(tmp_path, keys="per-tar", progress=False)
    assert list(by_dray(str(tmp_path))) == ["0/a", "0/b", "1/b", "1/c", "2/a", "2/d"]
    assert report.num_samples == 6
    assert not index_tars(tmp_path, progress=False).is_new
