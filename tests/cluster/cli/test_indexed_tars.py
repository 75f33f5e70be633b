"""Commands on a dataset that indexes tars of another program: they name the tars, and never advise to delete one."""

import json
import os
from pathlib import Path

import pytest

from dray.shards.snapshot import Snapshot
from dray.shards.verify import verify
from tests.conftest import Dray, Place
from tests.support.datasets import latest, store_at
from tests.support.foreign import NAMES, PER_TAR, index_at, key_of, put_tars, replace_tar, tar_of, write_tar

LEVELS = ("quick", "index", "full")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Tars of another program, of which one has the name of a shard of the dataset that indexes them."""
    found = Place(f"file://{tmp_path}")
    put_tars(store_at(found))
    index_at(found)
    return found


def path_of(snapshot: Snapshot, place: int) -> Path:
    return snapshot.tars.path(snapshot.shards[place])


def flip(path: Path, offset: int) -> None:
    """Change a byte, and keep the time of the file, as a damaged disk does."""
    found, data = path.stat(), bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def no_deletion(text: str) -> bool:
    """Whether a text advises to delete or move nothing."""
    return not any(word in text.lower() for word in ("delete", "move", "rm "))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("data", [tar_of(range(500, 500 + PER_TAR)), b"", None])
def test_verify_names_a_changed_tar_and_what_to_do(place: Place, level: str, data: bytes | None, dray: Dray) -> None:
    """Index it again, or put the right one back."""
    store = store_at(place)
    store.delete([NAMES[2]])
    if data is not None:
        replace_tar(store, NAMES[2], data)
    found = dray("verify", place.url, "--level", level)
    assert found.code == 1
    assert f"{place.url}/{NAMES[2]}: " in found.out
    assert "1 finding in 1 shard" in found.out
    assert f"  dray index {place.url} --prefix wds\n" in found.out
    assert "they may be your only copy" in found.out
    assert no_deletion(found.out)
    (facts,) = json.loads(dray("verify", place.url, "--level", level, "--json").out)
    assert (facts["delete"], facts["rebuild"]) == ([], f"dray index {place.url} --prefix wds")


def test_verify_finds_damage_that_size_and_time_do_not_show(place: Place, dray: Dray) -> None:
    """At the level that reads it; key and offset are named."""
    snapshot = latest(place)
    shard, index, row = snapshot.find(key_of(5))
    column = index.suffixes.index("txt")
    offset = int(index.offsets[row, column])
    flip(path_of(snapshot, 1), offset)
    assert [dray("verify", place.url, "--level", level).code for level in LEVELS] == [0, 0, 1]
    found = dray("verify", place.url, "--level", "full").out
    assert f"{place.url}/{shard.name} at offset {offset}, key {key_of(5)!r}: checksum" in found
    assert no_deletion(found)
    assert "not the bytes that were indexed: put the right tar back" in dray("show", place.url, key_of(5)).err


def test_verify_finds_a_damaged_header(place: Place, dray: Dray) -> None:
    """Also one that other readers would stop at."""
    snapshot = latest(place)
    index = snapshot.index(snapshot.shards[0])
    flip(path_of(snapshot, 0), int(index.offsets[2, 0]) - 512 + 3)
    assert [dray("verify", place.url, "--level", level).code for level in LEVELS] == [0, 1, 1]
    assert "not the header of a part" in dray("verify", place.url).out


@pytest.mark.parametrize("num_bytes", [1, 3 << 20])
def test_a_damaged_header_is_where_the_other_program_wrote_it(tmp_path: Path, num_bytes: int) -> None:
    """Not where dray would have: its header of so long a name has more blocks."""
    place = Place(f"file://{tmp_path}")
    write_tar(tmp_path / "a.tar", {"k" * 300: {"bin": bytes(num_bytes)}})
    snapshot = index_at(place, ("a.tar",))
    start = int(snapshot.index(snapshot.shards[0]).offsets[0, 0]) - 512
    flip(path_of(snapshot, 0), start)
    (finding,) = verify(snapshot, "index")
    assert (finding.key, finding.offset) == ("k" * 300, start)


def test_verify_reads_headers_of_large_parts_by_ranges(tmp_path: Path, dray: Dray) -> None:
    """A tar is not read whole for them."""
    place = Place(f"file://{tmp_path}")
    replace_tar(store_at(place), "big.tar", tar_of([0, 1], lambda number: {"bin": bytes([number]) * (3 << 20)}))
    snapshot = index_at(place, ("big.tar",))
    assert "no damage found" in dray("verify", place.url).out
    flip(path_of(snapshot, 0), int(snapshot.index(snapshot.shards[0]).offsets[1, 0]) - 512)
    assert "not the header of a part of 3145728 bytes" in dray("verify", place.url).out


def test_verify_of_a_damaged_index_or_record(place: Place, tmp_path: Path, dray: Dray) -> None:
    """The way out is named, and nothing is to be deleted."""
    snapshot = latest(place)
    index = tmp_path / snapshot.layout.index(snapshot.shards[0].number)
    index.write_bytes(b"")
    found = dray("verify", place.url).out
    assert f"delete these damaged indexes first, so that they are made again)\n  {index}\n" in found
    assert f"  dray index {place.url} --prefix wds\n" in found
    assert "was not packed from one source" in dray("verify", place.url, "--names", tmp_path / "names").err
    index.unlink()
    assert dray("index", place.url, "--prefix", "wds").code == 0
    assert "no damage found" in dray("verify", place.url, "--level", "full").out
    index_at(place, NAMES[1:])
    for table in (tmp_path / "__dray__/wds/manifests").glob("*.parquet"):
        table.write_bytes(b"")
    again = dray("verify", place.url).out
    assert f"dray index {place.url} --prefix repaired-wds\n" in again
    assert no_deletion(again)


def test_versions_are_held_and_rolled_back(place: Place, dray: Dray) -> None:
    """As long as their tars are the ones that were indexed."""
    index_at(place, NAMES[:1])
    assert dray("hold", place.url, "old", "--version", 1).code == 0
    assert "the same as version 1" in dray("rollback", place.url, "old").out
    assert "held as old" in dray("log", place.url).out
    replace_tar(store_at(place), NAMES[1], b"another")
    index_at(place, NAMES[:1])
    assert f"{NAMES[1]}: not the tar that was indexed" in dray("rollback", place.url, "old").err


def test_loadtest_reads_them(place: Place, dray: Dray) -> None:
    """All samples of an epoch."""
    facts = json.loads(dray("loadtest", place.url, "--batch-size", 4, "--json").out)
    assert (facts["steps"], facts["shards"]) == (3, 3)
