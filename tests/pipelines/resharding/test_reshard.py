"""Copies of datasets: the same keys and contents in shards of any size, order, choice and encoding."""

import io
import pickle
import random
import tarfile
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from dray.pipelines import BuildReport, reshard, write_samples
from dray.shards import CallError, DamagedError, InputError, NotFoundError, Snapshot, Store
from tests.conftest import Place
from tests.support.datasets import pack, samples_at, stored
from tests.support.foreign import index_at, key_of, put_tars, tar_of

Parts = Mapping[str, bytes]
Content = dict[str, dict[str, bytes]]


def made_samples(num_samples: int, seed: int = 0) -> Content:
    """Samples of different sizes, a third of which lack a part."""
    chance = random.Random(seed)
    return {
        f"s{number:04d}": {
            "bin": chance.randbytes(chance.choice([0, 5, 700, 9000])),
            **({"txt": b"note %d" % number} if number % 3 else {}),
        }
        for number in range(num_samples)
    }


def write(samples: Mapping[str, Parts], url: object, **options: Any) -> None:
    given = ({"__key__": key, **parts} for key, parts in samples.items())
    write_samples(given, str(url), **{"samples_per_shard": 7, "progress": False, **options})


def copy(source: object, url: object, **options: Any) -> BuildReport:
    return reshard(str(source), str(url), progress=False, **options)


def tars_of(url: object, prefix: str = "wdshards", **options: Any) -> list[bytes]:
    version = Snapshot.open(str(url), prefix, **options)
    return [version.store.get(version.tars.name(shard)) for shard in version.shards]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Content]:
    """A dataset of 100 samples in 15 shards, and what it holds."""
    folder, samples = tmp_path_factory.mktemp("source"), made_samples(100)
    write(samples, folder)
    return folder, samples


def spoil(path: Path, offset: int) -> None:
    """Change one byte of a file."""
    body = bytearray(path.read_bytes())
    body[offset] ^= 1
    path.write_bytes(body)


_folders = count()


@settings(max_examples=25, deadline=None)
@given(
    size=st.one_of(
        st.fixed_dictionaries({"num_shards": st.integers(1, 120)}),
        st.fixed_dictionaries(
            {}, optional={"samples_per_shard": st.integers(1, 120), "shard_bytes": st.integers(1, 300_000)}
        ),
    ),
    seed=st.one_of(st.none(), st.integers()),
)
def test_a_copy_holds_the_same_samples_for_any_size_and_order(
    source: tuple[Path, Content],
    tmp_path_factory: pytest.TempPathFactory,
    size: dict[str, int],
    seed: int | None,
) -> None:
    """In the order of the source, or by the hash of the key under the seed; and a rerun writes nothing."""
    folder, samples = source
    out = tmp_path_factory.mktemp(f"copy{next(_folders)}")
    report = copy(folder, out, shuffle_seed=seed, **size)
    keys = list(samples)
    if seed is not None:
        keys.sort(key=lambda key: (xxh3_64_intdigest(key.encode(), seed & (1 << 64) - 1), key))
    assert samples_at(out) == [(key, samples[key]) for key in keys]
    counts = [shard.num_samples for shard in Snapshot.open(out).shards]
    if "num_shards" in size:
        assert len(counts) == min(100, size["num_shards"])
        assert max(counts) - min(counts) <= 1
    assert max(counts) <= size.get("samples_per_shard", 100)
    assert all(len(tar) <= size["shard_bytes"] or n == 1 for tar, n in zip(tars_of(out), counts, strict=True)
               if "shard_bytes" in size)  # fmt: skip
    assert report.is_new
    assert not copy(folder, out, shuffle_seed=seed, **size).is_new


def test_a_copy_is_the_same_on_every_store(place: Place, source: tuple[Path, Content], tmp_path: Path) -> None:
    """Its source as well; the bytes are those of a copy on a disk."""
    folder, samples = source
    options = place.storage_options
    copy(folder, place.url, storage_options=options, source_storage_options={}, num_shards=4)
    assert samples_at(place.url, storage_options=options) == list(samples.items())
    report = copy(place.url, place.url, prefix="two", storage_options=options, num_shards=3, shuffle_seed=1)
    assert (report.num_samples, report.num_shards) == (100, 3)
    copy(folder, tmp_path / "out", num_shards=3, shuffle_seed=1)
    assert tars_of(place.url, "two", storage_options=options) == tars_of(tmp_path / "out")
    secret = str(options.get("secret_access_key", "no secret")).encode()
    assert not [name for name, body in stored(place).items() if secret in body]


def test_only_the_chosen_samples_and_parts_are_copied(source: tuple[Path, Content], tmp_path: Path) -> None:
    """By keys, by a predicate over sizes, and by part; what nobody has is an error."""
    folder, samples = source
    wanted = ["s0093", "s0004", "s0005"]
    copy(folder, tmp_path / "keys", keys=iter(wanted))
    assert samples_at(tmp_path / "keys") == [(key, samples[key]) for key in sorted(wanted)]
    copy(folder, tmp_path / "where", where=lambda key, sizes: sizes["bin"] > 5 and "txt" in sizes, parts="txt")
    chosen = [
        (key, {"txt": parts["txt"]}) for key, parts in samples.items() if len(parts["bin"]) > 5 and "txt" in parts
    ]
    assert samples_at(tmp_path / "where") == chosen
    with pytest.raises(InputError, match=r"keys= names keys that no sample of the source has: 's0100', 't'"):
        copy(folder, tmp_path / "out", keys=["t", "s0100", "s0001"])
    with pytest.raises(InputError, match=r"34 samples have none of the parts txt: 's0000', 's0003'"):
        copy(folder, tmp_path / "out", parts=["txt"])
    with pytest.raises(CallError, match="no sample has a part 'jpg'; their parts are bin, txt"):
        copy(folder, tmp_path / "out", parts=["jpg"])
    with pytest.raises(CallError, match="no sample is left to copy"):
        copy(folder, tmp_path / "out", where=lambda key, _: key == "none")
    assert not (tmp_path / "out").exists()


def test_pickled_parts_are_encoded_if_asked(tmp_path: Path) -> None:
    """The names of the parts stay known, in a copy of the copy as well."""
    url = pack(tmp_path, 12)
    copy(url, tmp_path / "encoded", encode="auto", num_shards=2)
    found = dict(samples_at(tmp_path / "encoded"))
    assert set(found["s0003"]) == {"x.npy", "cls", "txt"}
    copy(tmp_path / "encoded", tmp_path / "again", num_shards=4)
    assert dict(samples_at(tmp_path / "again")) == found
    names = [part.name for part in Snapshot.open(tmp_path / "again").manifest.parts]
    assert (
        names == [part.name for part in Snapshot.open(tmp_path / "encoded").manifest.parts] == ["x.pyd", "cls", "txt"]
    )
    assert not copy(url, tmp_path / "encoded", encode="auto", num_shards=2).is_new


def test_a_part_that_cannot_be_encoded_is_named(tmp_path: Path) -> None:
    write({f"s{n}": {"x.pyd": pickle.dumps({"n": n} if n == 3 else np.zeros(2))} for n in range(5)}, tmp_path / "in")
    with pytest.raises(InputError, match=r"wdshards-000000.tar, key 's3': 'x.pyd' cannot become 'npy'"):
        copy(tmp_path / "in", tmp_path / "out", encode={"x.pyd": "npy"})


def test_a_copy_after_a_failure_makes_only_what_is_missing(source: tuple[Path, Content], tmp_path: Path) -> None:
    """Damage is named, and no version is made; what was stored is adopted once the source is whole."""
    folder, samples = source
    write(samples, tmp_path / "in")
    version = Snapshot.open(tmp_path / "in")
    shard, index, row = version.find("s0077")
    name, offset = version.tars.name(shard), int(index.offsets[row, 0])
    good = (tmp_path / "in" / name).read_bytes()
    assert index.sizes[row, 0]
    spoil(tmp_path / "in" / name, offset)
    with pytest.raises(DamagedError, match=r"wdshards-0000\d\d.tar.*'s0077'"):
        copy(tmp_path / "in", tmp_path / "out", samples_per_shard=10)
    with pytest.raises(NotFoundError):
        Snapshot.open(tmp_path / "out")
    (tmp_path / "in" / name).write_bytes(good)
    report = copy(tmp_path / "in", tmp_path / "out", samples_per_shard=10)
    assert (report.num_shards, report.num_reused) == (10, 7)
    copy(folder, tmp_path / "fresh", samples_per_shard=10)
    assert tars_of(tmp_path / "out") == tars_of(tmp_path / "fresh")
    assert samples_at(tmp_path / "out") == list(samples.items())


def test_shards_whose_samples_did_not_change_stay(tmp_path: Path) -> None:
    """Although the source packs them otherwise by now."""
    samples = made_samples(60)
    write(samples, tmp_path / "in")
    copy(tmp_path / "in", tmp_path / "out", samples_per_shard=10)
    before = Snapshot.open(tmp_path / "out").shards
    changed = samples | {"s0035": {"bin": b"other"}, "s0060": {"bin": b"new"}}
    write(changed, tmp_path / "in", samples_per_shard=13)
    report = copy(tmp_path / "in", tmp_path / "out", samples_per_shard=10)
    assert (report.num_reused, report.num_added, report.num_changed, report.num_removed) == (5, 1, 1, 0)
    after = Snapshot.open(tmp_path / "out").shards
    assert [shard in before for shard in after] == [True, True, True, False, True, True, False]
    assert samples_at(tmp_path / "out") == list(changed.items())
    assert not copy(tmp_path / "in", tmp_path / "out", samples_per_shard=10).is_new
    assert copy(tmp_path / "in", tmp_path / "out", samples_per_shard=10, version=1).num_changed == 1


def test_an_indexed_dataset_and_tars_without_an_index_are_copied(tmp_path: Path) -> None:
    """The tars of another program stay as they are."""
    place = Place(str(tmp_path / "tars"))
    put_tars(Store(place.url))
    index_at(place)
    expected = {key_of(n): {"cls": b"%d" % n, "txt": b"text %d" % n} for n in range(12)}
    copy(place.url, tmp_path / "out", source_prefix="wds", samples_per_shard=5)
    assert dict(samples_at(tmp_path / "out")) == expected
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "train-7.tar").write_bytes(tar_of(range(5)))
    of_tar = {key: expected[key] for key in map(key_of, range(5))}
    for place, (url, prefix) in enumerate({"plain": "train", "plain/*.tar": "", "plain/train-{7..7}.tar": "x"}.items()):
        copy(tmp_path / url, tmp_path / f"other{place}", source_prefix=prefix)
        assert dict(samples_at(tmp_path / f"other{place}")) == of_tar
    with pytest.raises(CallError, match="would be among the tars"):
        copy(tmp_path / "plain", tmp_path / "plain", source_prefix="train")


def test_samples_that_share_a_key_get_others_or_are_joined(tmp_path: Path) -> None:
    """Across tars and within one; nothing is lost silently."""
    write_tars(tmp_path / "a", {"t-0": [("0", "jpg"), ("1", "jpg")], "t-1": [("0", "jpg")]})
    with pytest.raises(InputError, match=r"1 sample has a key.*'0' in t-0.tar and t-1.tar.*unique_keys='prefix'"):
        copy(tmp_path / "a", tmp_path / "out", source_prefix="t")
    copy(tmp_path / "a", tmp_path / "out", source_prefix="t", unique_keys="prefix")
    assert [key for key, _ in samples_at(tmp_path / "out")] == ["t-0/0", "t-0/1", "t-1/0"]
    with pytest.raises(InputError, match="1 sample has the part 'jpg' twice, so they cannot be joined: '0' in t-0"):
        copy(tmp_path / "a", tmp_path / "out", source_prefix="t", unique_keys="join")
    write_tars(tmp_path / "b", {"t-0": [("0", "jpg"), ("1", "jpg"), ("0", "cls")], "t-1": [("1", "cls"), ("2", "cls")]})
    copy(tmp_path / "b", tmp_path / "joined", source_prefix="t", unique_keys="join", samples_per_shard=1)
    assert [(key, sorted(parts)) for key, parts in samples_at(tmp_path / "joined")] == [
        ("0", ["cls", "jpg"]),
        ("1", ["cls", "jpg"]),
        ("2", ["cls"]),
    ]
    assert dict(samples_at(tmp_path / "joined"))["1"] == {"jpg": b"t-0 1", "cls": b"t-1 1"}
    with pytest.raises(InputError, match="the keys repeat within one tar"):
        copy(tmp_path / "b", tmp_path / "out", source_prefix="t", unique_keys="prefix")


def write_tars(folder: Path, tars: Mapping[str, list[tuple[str, str]]]) -> None:
    """Tars whose members name their tar and key."""
    folder.mkdir()
    for name, members in tars.items():
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for key, suffix in members:
                data = f"{name} {key}".encode()
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_a_copy_replaces_neither_its_source_nor_what_others_made(source: tuple[Path, Content], tmp_path: Path) -> None:
    folder, samples = source
    with pytest.raises(CallError, match="is the source itself"):
        copy(folder, folder)
    write(samples, tmp_path / "mine")
    with pytest.raises(CallError, match="was not made by resharding, so it is not replaced"):
        copy(folder, tmp_path / "mine")
    with pytest.raises(CallError, match="num_shards=2 with samples_per_shard or shard_bytes"):
        copy(folder, tmp_path / "out", num_shards=2, shard_bytes=5)
    with pytest.raises(CallError, match="unique_keys='no': expected one of prefix, join"):
        copy(folder, tmp_path / "out", unique_keys="no")
    with pytest.raises(CallError, match="keys='s0001': expected several keys"):
        copy(folder, tmp_path / "out", keys="s0001")


def test_a_shard_of_another_program_is_not_adopted(source: tuple[Path, Content], tmp_path: Path) -> None:
    """Under a number that a dead run reserved."""
    _, samples = source
    write(samples, tmp_path / "in")
    version = Snapshot.open(tmp_path / "in")
    spoil(tmp_path / "in" / version.tars.name(version.shards[-1]), 600)
    with pytest.raises(DamagedError):
        copy(tmp_path / "in", tmp_path / "out", num_shards=2)
    (tmp_path / "out" / "wdshards-000001.tar").write_bytes(tar_of(range(3)))
    with pytest.raises(DamagedError, match=r"holds other samples.*Move .*wdshards-000001.tar away, then run it again"):
        copy(tmp_path / "in", tmp_path / "out", num_shards=2)
