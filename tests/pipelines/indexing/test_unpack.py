"""Compressed tars: unpacked as a stream, whole or not at all, and indexed where they are then."""

import bz2
import gzip
import lzma
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from dray.pipelines import index_tars
from dray.shards import CallError, ExistsError, InputError, Store
from dray.shards.storage import pieces
from dray.shards.storage.pieces import put_pieces
from tests.conftest import Place
from tests.support.datasets import latest, store_at, stored
from tests.support.foreign import put_tars, tar_of

PACKERS: Mapping[str, Callable[[bytes], bytes]] = {
    "tar.gz": gzip.compress,
    "tgz": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
    "tar.bz2": bz2.compress,
    "txz": lzma.compress,
    "tar.zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    "tar": gzip.compress,  # by its content alone
}


def put_packed(store: Store) -> None:
    """One tar a packer, of four samples each."""
    for place, (ending, packer) in enumerate(PACKERS.items()):
        store.put_new(f"a.b/{place}.{ending}", packer(tar_of(range(place * 4, place * 4 + 4))))


def test_compressed_tars_are_unpacked_and_indexed_there(place: Place, tmp_path: Path) -> None:
    """By their names or contents; a rerun writes nothing, and the sources stay as they are."""
    source, target = store_at(Place(f"file://{tmp_path}/in")), Place(f"{place.url}/out", place.storage_options)
    put_packed(source)
    before = stored(source)
    options = {"prefix": "wds", "into_storage_options": target.storage_options, "progress": False}
    report = index_tars(source.url, unpack_to=target.url, **options)  # type: ignore[arg-type]
    assert (report.url, report.num_tars, report.num_samples) == (target.url, 6, 24)
    assert stored(source) == before
    assert [shard.name for shard in latest(target).shards] == [f"a.b/{number}.tar" for number in range(6)]
    assert latest(target).read("b/s0017")["cls"] == b"17"
    after = stored(target)
    assert not index_tars(source.url, unpack_to=target.url, **options).is_new  # type: ignore[arg-type]
    assert stored(target) == after


def test_without_unpacking_the_error_says_how(tmp_path: Path) -> None:
    """Nothing is written."""
    store = Store(tmp_path)
    put_packed(store)
    before = stored(store)
    with pytest.raises(CallError, match=r"5 tars are compressed in .*'a.b/0.tar.gz', .*unpack_to='URL'"):
        index_tars(tmp_path, progress=False)
    assert stored(store) == before


def test_they_may_be_unpacked_beside_tars_that_are_not_compressed(tmp_path: Path) -> None:
    """Then all are one dataset; into another folder they would be torn apart."""
    put_tars(Store(tmp_path), ["0.tar", "1.tar"])
    (tmp_path / "2.tar.gz").write_bytes(gzip.compress(tar_of(range(8, 12))))
    with pytest.raises(CallError, match=r"2 tars are not compressed .*unpack beside them by unpack_to="):
        index_tars(tmp_path, unpack_to=tmp_path / "out", progress=False)
    assert index_tars(tmp_path, unpack_to=tmp_path, progress=False).num_samples == 12
    assert not index_tars(tmp_path, progress=False).is_new
    os.utime(tmp_path / "2.tar.gz", (4e9, 4e9))
    with pytest.raises(InputError, match=r"2.tar.gz: it is newer than .*2.tar, to which it was unpacked"):
        index_tars(tmp_path, unpack_to=tmp_path, progress=False)


@pytest.mark.parametrize("ending", PACKERS)
def test_a_tar_that_is_cut_short_is_not_unpacked(ending: str, tmp_path: Path) -> None:
    """It is named, and nothing of it is visible."""
    (tmp_path / "in").mkdir()
    packed = PACKERS[ending](os.urandom(100_000))
    (tmp_path / f"in/0.{ending}").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match=rf"in/0.{ending}: cut short or damaged"):
        index_tars(tmp_path / "in", unpack_to=tmp_path / "out", progress=False)
    assert not stored(Store(tmp_path / "out"))
    assert [*(tmp_path / "out").rglob("*.tar*")] == []


def test_large_objects_are_created_whole_or_not_at_all(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in parts, and never over another one."""
    monkeypatch.setattr(pieces, "WHOLE_BYTES", 5 << 20)
    store, data = store_at(place), os.urandom(3 << 20)
    put_pieces(store, "a", iter([data] * 4))
    assert store.get("a") == data * 4
    with pytest.raises(ExistsError):
        put_pieces(store, "a", iter([data] * 3))
    with pytest.raises(ZeroDivisionError):
        put_pieces(store, "b", (data[1 // (3 - number) :] for number in range(4)))
    assert list(stored(store)) == ["a"]
