"""Which tars a name, a pattern, a list or a folder stands for."""

import os
from pathlib import Path
from typing import Any

import pytest
from braceexpand import braceexpand
from hypothesis import given
from hypothesis import strategies as st

from dray.shards import Store
from dray.shards.errors import CallError, NotFoundError
from dray.shards.reading.tar_files import named_tars, names_tars, tars_in
from tests.conftest import Place
from tests.support.datasets import store_at

TARS = ("a/t-00.tar", "a/t-01.tar", "a/x.tar", "b/t-00.tar", "t-00.tar", "t-01.tar", "t-02.tar", "u{1}.tar", "v[1].tar")
OTHERS = ("a/notes.txt", "t-03.tar.gz", "t-00.json")


@pytest.fixture
def tars(place: Place) -> Place:
    """A folder of tars, which are not opened."""
    store = store_at(place)
    for name in (*TARS, *OTHERS):
        store.put_new(name, b"")
    return place


def names_of(place: Place, *patterns: str, as_list: bool = False) -> list[str]:
    """The tars as paths below the place."""
    urls = [f"{place.url}/{pattern}" for pattern in patterns]
    found = named_tars(urls if as_list or len(urls) > 1 else urls[0], place.storage_options)
    below = found.store.url[len(place.url) :].lstrip("/")
    return [f"{below}/{name}".lstrip("/") for name in found.names]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["t-00.tar"], ["t-00.tar"]),
        (["t-{00..02}.tar"], ["t-00.tar", "t-01.tar", "t-02.tar"]),
        (["t-{02,00}.tar"], ["t-02.tar", "t-00.tar"]),
        (["{a,b}/t-00.tar"], ["a/t-00.tar", "b/t-00.tar"]),
        (["t-*.tar"], ["t-00.tar", "t-01.tar", "t-02.tar"]),
        (["t-0[12].tar"], ["t-01.tar", "t-02.tar"]),
        (["t-0?.tar"], ["t-00.tar", "t-01.tar", "t-02.tar"]),
        (["*/t-*.tar"], ["a/t-00.tar", "a/t-01.tar", "b/t-00.tar"]),
        (["**/t-00.tar"], ["a/t-00.tar", "b/t-00.tar", "t-00.tar"]),
        (["{a,b}/t-*.tar"], ["a/t-00.tar", "a/t-01.tar", "b/t-00.tar"]),
        (["t-01.tar", "a/x.tar"], ["t-01.tar", "a/x.tar"]),
        (["a/t-*.tar", "b/t-{00..00}.tar"], ["a/t-00.tar", "a/t-01.tar", "b/t-00.tar"]),
        (["u{1}.tar"], ["u{1}.tar"]),
        (["v[1].tar"], ["v[1].tar"]),
    ],
    ids=lambda value: value[0] if len(value) == 1 else None,
)
def test_patterns_stand_for_tars_in_their_order(tars: Place, patterns: list[str], expected: list[str]) -> None:
    """Braces and lists in the order given, globs sorted; the same on every kind of store."""
    assert names_of(tars, *patterns) == expected


@pytest.mark.parametrize("place", ["disk"], indirect=True)
def test_the_spellings_of_webdataset_are_known(tars: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """`::` joins patterns; relative paths, `~` and file:// URLs name the same tars; so do Path objects."""
    folder = tars.url.removeprefix("file://")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", folder)
    expected = named_tars(f"{tars.url}/t-00.tar::{tars.url}/t-{{01..02}}.tar")
    assert expected.names == ("t-00.tar", "t-01.tar", "t-02.tar")
    for url in (f"{folder}/t-*.tar", "t-*.tar", "~/t-*.tar", "./t-*.tar", Path(folder, "t-*.tar")):
        found = named_tars(url)
        assert (found.store.url, found.names) == (expected.store.url, expected.names)


@given(
    first=st.integers(0, 99),
    count=st.integers(1, 30),
    width=st.integers(1, 6),
    words=st.lists(st.text("abc", min_size=1, max_size=3), min_size=2, max_size=3, unique=True),
)
def test_braces_are_those_of_webdataset(first: int, count: int, width: int, words: list[str]) -> None:
    """Whatever the padding; in the folder as well."""
    store = Store("memory://braces")
    pattern = f"{{{','.join(words)}}}/t-{{{first:0{width}d}..{first + count:0{width}d}}}.tar"
    names = list(braceexpand(pattern))
    known = {info.name for info in store.list_tree()}
    for name in {*names} - known:
        store.put_new(name, b"")
    found = named_tars(f"memory://braces/{pattern}")
    assert [f"{found.store.url}/{name}" for name in found.names] == [f"memory://braces/{name}" for name in names]


@pytest.mark.parametrize(
    ("patterns", "error", "message"),
    [
        (["t-{00..04}.tar"], NotFoundError, r"no tar 't-03\.tar' in .*it has 5 tars"),
        (
            ["w-*.tar"],
            NotFoundError,
            r"no tar 'w-\*\.tar' in .*it has 5 tars \('t-00\.tar', 't-01\.tar', 't-02\.tar' and",
        ),
        (["c/t-00.tar"], NotFoundError, "no tar .*t-00.tar.*does not exist"),
        (["t-03.tar.gz"], CallError, "compressed.*--unpack-to"),
        (["t-00.tar", "t-0*.tar"], CallError, "named twice: 't-00.tar'"),
        (["t-{00..02.tar"], NotFoundError, "no tar"),
        (["t-{00,{01..02}.tar"], CallError, "balanced braces"),
        (["t-{0..9999999}.tar"], CallError, "more than 1,000,000 names"),
    ],
)
def test_what_is_not_there_is_an_error(tars: Place, patterns: list[str], error: type[Exception], message: str) -> None:
    """A pattern never stands for fewer tars than it says."""
    with pytest.raises(error, match=message):
        names_of(tars, *patterns)


def test_tars_of_two_buckets_are_no_dataset() -> None:
    """They have no folder in common. An empty list has no tar, and a list of something else no URL."""
    with pytest.raises(CallError, match="one bucket"):
        named_tars(["s3://a/x.tar", "s3://b/x.tar"])
    with pytest.raises(CallError, match="empty list"):
        named_tars([])
    wrong: Any = [3]
    with pytest.raises(TypeError):
        named_tars(wrong)


def test_tars_anywhere_on_a_disk_have_a_folder_in_common(tmp_path: Path) -> None:
    """At the latest the root."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.tar").touch()
    (tmp_path / "x.tar").touch()
    os.symlink(tmp_path / "a/x.tar", tmp_path / "link.tar")
    found = named_tars([tmp_path / "a/x.tar", tmp_path / "x.tar", tmp_path / "link.tar"])
    assert found.names == ("a/x.tar", "x.tar", "link.tar")
    assert named_tars(tmp_path / "*.tar").names == ("link.tar", "x.tar")


def test_a_folder_is_not_a_pattern(tmp_path: Path) -> None:
    """Whatever its name; a version is no glob."""
    for name in ("data.tar", "a*b", "{a,b}"):
        (tmp_path / name).mkdir()
        assert not names_tars(tmp_path / name)
    for url in (tmp_path, "s3://bucket/train", "s3://bucket/train?version=7", "data[1]", "s3://bucket/{a}"):
        assert not names_tars(url)
    for url in ("s3://bucket/x.tar", "s3://bucket/x-{0..3}", "s3://bucket/*", "x.tgz", [tmp_path], ("a.tar",)):
        assert names_tars(url)


def test_a_prefix_selects_tars_of_a_folder(tars: Place) -> None:
    """No prefix, or the default one if no tar has it, stands for all; never for tars in folders below."""
    store = store_at(tars)
    every = tuple(name for name in TARS if "/" not in name)
    assert tars_in(store, "").names == tars_in(store, "wdshards").names == every
    assert tars_in(store, "t").names == every[:3]
    store.put_new("wdshards-x.tar", b"")
    assert tars_in(store, "wdshards").names == ("wdshards-x.tar",)
    assert len(tars_in(store, "").names) == 6
    for name in ("wdshards-10.tar", "wdshards-9.tar", "._wdshards-9.tar"):
        store.put_new(name, b"")
    assert tars_in(store, "wdshards").names == ("wdshards-9.tar", "wdshards-10.tar", "wdshards-x.tar")
    assert names_of(tars, "*-*9.tar") == ["wdshards-9.tar"]
    with pytest.raises(NotFoundError) as caught:
        tars_in(store, "train")
    for words in ("'train'", "train-*.tar", "8 tars ('t-00.tar', ", "1 compressed tar ('t-03.tar.gz')", "prefix ''"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "does not exist.*build"),
        (["a.tar.gz", "b.tgz"], "2 compressed tars .*unpack"),
        (["train/a.tar", "val/a.tar"], r"2 folders \('train', 'val'\); name one of its folders"),
        (["a.jpg", "a.cls"], r"2 files \('a\.cls', 'a\.jpg'\).*`dray build`"),
        (["__dray__/x/intents/0000000001.json", "x-000000.tar"], "1 tar"),
        (["__dray__/wdshards/intents/0000000001.json", "wdshards-000000.tar"], "a build of 'wdshards' started there"),
        (["__dray__/wdshards/intents/0000000001.json", "wdshards-a.tar"], "a build of 'wdshards' started there"),
        (["__dray__/x/commits/0000000001.json", "x-000000.tar"], "dataset of dray with the prefix 'x', not 'wdshards'"),
        (["__dray__/x/commits/0000000001.json", "x-000000.tar", "a.tar"], "name other tars there, as a list"),
    ],
)
def test_the_error_says_what_is_there(place: Place, files: list[str], message: str) -> None:
    """Counts, first names, prefixes of datasets, and what to do."""
    for name in files:
        store_at(place).put_new(name, b"")
    with pytest.raises(NotFoundError, match=message):
        tars_in(store_at(place), "wdshards")


@pytest.mark.parametrize("place", ["disk", "s3"], indirect=True)  # a folder in memory is a store of its own
def test_globs_refuse_shards_of_a_dataset(place: Place) -> None:
    """Those of older versions would come as well; single shards may be named, and other tars beside them."""
    store = store_at(place)
    for name in ("in/__dray__/x/intents/0000000001.json", "in/x-000000.tar", "in/x-a.tar"):
        store.put_new(name, b"")
    for pattern in ("in/*.tar", "*/x-0*.tar"):
        with pytest.raises(CallError, match=r"older versions \('x-000000\.tar'\): open the folder"):
            names_of(place, pattern)
    assert names_of(place, "in/x-000000.tar") == ["in/x-000000.tar"]
    assert names_of(place, "in/x-a*.tar") == ["in/x-a.tar"]
