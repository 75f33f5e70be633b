"""Scanning follows the same rules on every store, with any part missing and any other files in the folder."""

import os
import uuid
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.cluster.cli.ls import parts_of
from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.pipelines import pickles_to_tars
from dray.pipelines.building.compact import compact
from dray.pipelines.inputs.scan import Scan, scan
from dray.pipelines.inputs.sources import find_missing, find_sources
from dray.shards import CallError, MissingInputError, Snapshot, Store
from dray.shards.layout import Layout, Location
from dray.shards.verify import verify
from tests.conftest import Dray, Place
from tests.support.datasets import latest, store_at, stored

SUFFIXES = ("image.pyd", "label.cls")


def fill(folder: Path, *files: str) -> Store:
    """A folder of files, each of which holds its own path."""
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file)
    return Store(folder)


def test_a_sample_counts_whichever_of_its_files_is_missing(tmp_path: Path) -> None:
    """The first suffix is like the second: the build then names the file that is not there."""
    store = fill(tmp_path, "a.image.pyd", "a.label.cls", "b.image.pyd", "c.label.cls")
    found = scan(store, SUFFIXES)
    assert found.names == ["a", "b", "c"]
    missing = find_missing(find_sources(store, found.names, SUFFIXES))
    assert [bad.file for bad in missing] == ["b.label.cls", "c.image.pyd"]


def test_a_file_belongs_to_the_longest_suffix(tmp_path: Path) -> None:
    """`image.pyd` beside `pyd`: both are parts of one sample."""
    store = fill(tmp_path, "a.image.pyd", "a.pyd")
    assert scan(store, ("pyd", "image.pyd")).names == ["a"]


def test_sub_folders_are_scanned_and_hidden_files_and_datasets_counted(tmp_path: Path) -> None:
    """Dots of folder names stay; what is left out is counted by reason, and not looked into."""
    store = fill(
        tmp_path / "inputs",
        "a.x.pyd",
        "v1.2/b.x.pyd",
        "v1.2/deep/c.d.1.x.pyd",
        ".hidden.x.pyd",
        "v1.2/._b.x.pyd",
        ".git/d.x.pyd",
        ".git/.e.x.pyd",
        "shards/train/__dray__/wdshards/commits/0000000001.json",
        "shards/train/f.x.pyd",
        "__dray__/wdshards/commits/0000000001.json",
        "other.txt",
    )
    found = scan(store, ["x.pyd"])
    assert found.names == ["a", "v1.2/b", "v1.2/deep/c.d.1"]
    assert find_sources(store, found.names, ("x.pyd",)).keys() == ["a", "v1.2/b", "v1.2/deep/c-d-1"]
    assert str(found.unscanned) == "2 hidden files, 1 hidden folder, 2 folders of a dray dataset"


def test_links_to_folders_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    """A folder is scanned under its own path if it is in the input folder; one outside under the link's."""
    store = fill(tmp_path / "inputs", "a/s.pyd", "b/t.pyd")
    fill(tmp_path / "outside", "u.pyd")
    (tmp_path / "inputs/a/up").symlink_to("..")
    (tmp_path / "inputs/a/b").symlink_to("../b")
    (tmp_path / "inputs/b/a").symlink_to("../a")
    (tmp_path / "inputs/0").symlink_to(tmp_path / "outside")
    (tmp_path / "outside/back").symlink_to(tmp_path / "inputs")
    (tmp_path / "inputs/file.pyd").symlink_to("a/s.pyd")
    found = scan(store, ["pyd"])
    assert found.names == ["0/u", "a/s", "b/t", "file"]
    assert str(found.unscanned) == "4 links to a folder that is scanned elsewhere"


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its samples would be missing without a word. Here the path is too long for the system."""
    store = fill(tmp_path, "s.pyd")
    monkeypatch.chdir(tmp_path)
    for _ in range(17):
        os.mkdir("x" * 250)
        os.chdir("x" * 250)
    with pytest.raises(MissingInputError, match=f"cannot list the input folder {tmp_path}/xx.*: File name too long"):
        scan(store, ["pyd"])


def test_a_suffix_that_is_cut_short_is_refused_with_the_whole_one(tmp_path: Path) -> None:
    """`--suffix pyd` would make samples `a-image` and `a-mask`; numbers in names are no suffixes."""
    store = fill(tmp_path / "cut", "a.image.pyd", "a.mask.pyd", "b/c.image.pyd", "d.pyd")
    with pytest.raises(CallError, match=r"'a\.(image|mask)\.pyd'.* give 'image\.pyd' and 'mask\.pyd' "):
        scan(store, ["pyd"])
    assert scan(fill(tmp_path / "numbered", "s.0001.pyd", "s.0002.pyd"), ["pyd"]).names == ["s.0001", "s.0002"]
    proteins = [f"p.{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[number]}BC.pyd" for number in range(20)]
    assert len(scan(fill(tmp_path / "proteins", *proteins), ["pyd"]).names) == 20


def test_names_that_no_key_can_be_made_of_are_bad_inputs(tmp_path: Path) -> None:
    """A name that is not UTF-8, one with a line break, one that WebDataset passes over: one entry each."""
    store = fill(tmp_path, "a.pyd", "b\nc.pyd", "__meta__.pyd")
    (tmp_path / os.fsdecode(b"d\xff.pyd")).write_bytes(b"x")
    found = scan(store, ["pyd"])
    assert found.names == ["a"]
    assert [(bad.name, bad.stage) for bad in found.unusable] == [
        ("__meta__", "find"), ("b\\nc", "find"), ("d\\xff", "find")]  # fmt: skip
    assert "not UTF-8" in found.unusable[2].error


def test_a_name_that_is_not_utf_8_goes_through_on_error(dray: Dray, tmp_path: Path) -> None:
    """It ends a build that fails on bad inputs, and is listed by one that does not."""
    fill(tmp_path / "in", *(f"s{number}.pyd" for number in range(5)))
    (tmp_path / "in" / os.fsdecode(b"d\xff.pyd")).write_bytes(b"x")
    words = ["build", tmp_path / "in", tmp_path / "out", "--suffix", "pyd"]
    failed = dray(*words)
    assert failed.code == 1
    assert r"sample 'd\\xff' of" in failed.err
    assert "not UTF-8" in failed.err
    assert "5 samples" in (done := dray(*words, "--on-error", "skip")).out
    assert "1 skipped" in done.out
    assert "nothing to do" in dray(*words, "--on-error", "skip").out


def test_files_of_a_suffix_in_another_case_are_counted(tmp_path: Path) -> None:
    """They are no samples, and not passed over without a word either."""
    found = scan(fill(tmp_path, "a.jpg", "b.JPG", "c/d.Jpg", "e.png"), ["jpg"])
    assert found.names == ["a"]
    assert str(found.unscanned) == "2 files of a suffix in another case such as 'b.JPG', to be renamed"


def test_suffixes_that_no_file_has_are_answered_by_those_that_are_there(tmp_path: Path) -> None:
    """The whole suffixes with their counts; only the last words where names hold dots."""
    store = fill(tmp_path / "a", "1.png", "x/2.png", "x/2.seg.png", "2.cls", "README")
    with pytest.raises(MissingInputError, match=r"no file \*\.jpg, \*\.txt .* 'png' \(2 files\), 'cls' \(1 files?\)"):
        scan(store, ["jpg", "txt"])
    dotted = fill(tmp_path / "b", *(f"s.{number}.png" for number in range(30)))
    with pytest.raises(MissingInputError, match=r"the suffixes 'png' \(30 files\)$"):
        scan(dotted, ["jpg"])
    with pytest.raises(MissingInputError, match=r"another case such as 'a/1\.JPG', to be renamed"):
        scan(fill(tmp_path / "c", "a/1.JPG"), ["jpg"])
    with pytest.raises(MissingInputError, match=r"no file \*\.jpg in file://[^;]*$"):
        scan(Store(tmp_path / "nothing"), ["jpg"])


@pytest.mark.parametrize("suffixes", [["x.pyd"], ["x.pyd", "y.cls"]])
def test_no_sample_at_all_is_an_error_that_says_what_was_left_out(tmp_path: Path, suffixes: list[str]) -> None:
    """The suffixes, the folder, and the counts."""
    store = fill(tmp_path, ".a.x.pyd", "b.txt")
    with pytest.raises(MissingInputError, match=r"no file \*\.x\.pyd.* in file://.*; left out: 1 hidden file$"):
        scan(store, suffixes)
    with pytest.raises(MissingInputError, match="no file"):
        scan(Store(tmp_path / "nowhere"), suffixes)


FOLDERS = st.sampled_from(["a", "b.c", ".h", "__dray__", "d"])
FILES = st.sampled_from(
    ["s.x.pyd", "t.y.cls", ".u.x.pyd", "._t.y.cls", "v.1.x.pyd", "w.X.pyd", "s.y.cls", "__z__.x.pyd"]
)
TREES = st.sets(st.tuples(st.lists(FOLDERS, max_size=3).map("/".join), FILES).map("/".join), min_size=1, max_size=12)


def summary(store: Store) -> tuple[object, ...]:
    """Returns what a scan found, with sizes; the error if there is no sample."""
    try:
        found: Scan = scan(store, ("x.pyd", "y.cls"))
    except MissingInputError as exc:
        return (str(exc).replace(store.url, ""),)
    sizes = find_sources(store, found.names, ("x.pyd", "y.cls"), found.prints).sizes.tolist() if found.names else []
    return found.names, sizes, [bad.name for bad in found.unusable], str(found.unscanned)


@settings(max_examples=40, deadline=None)
@given(tree=TREES)
def test_every_store_is_scanned_alike(
    tree: set[str], s3: SeaweedServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Disk, memory and S3 agree on random trees: names, sizes, bad names, and the counts of what is left out."""
    name = uuid.uuid4().hex
    files = [file.lstrip("/") for file in tree]
    disk = fill(tmp_path_factory.mktemp("tree"), *files)
    memory, remote = Store(f"memory://{name}"), Store(s3.url(name), s3.storage_options)
    for store in (memory, remote):
        for file in files:
            store.put_new(file, file.encode())
    assert summary(disk) == summary(memory) == summary(remote)


def test_optional_files_come_and_go(dray: Dray, tmp_path: Path) -> None:
    """A sample may lack a part of an optional suffix, and no other; one that appears or goes is a change."""
    source, out = tmp_path / "in", tmp_path / "out"
    fill(source, *(f"s{number}.x.pyd" for number in range(6)), "s1.mask.png", "s2.mask.png")
    words = ["build", source, out, "--suffix", "x.pyd", "--optional-suffix", "mask.png", "--shards", 3]
    assert dray(*words).code == 0
    snapshot = Snapshot.open(out)
    assert snapshot.read("s0") == {"x.pyd": b"s0.x.pyd"}
    assert snapshot.read("s1") == {"x.pyd": b"s1.x.pyd", "mask.png": b"s1.mask.png"}
    assert snapshot.sources()["mask.png/size"].to_pylist() == [-1, 11, 11, -1, -1, -1]
    assert list(verify(snapshot, "full")) == []
    assert "parts   x.pyd, mask.png (2 of 6 samples)" in dray("ls", out).out
    assert "nothing to do" in dray(*words).out
    (source / "s2.mask.png").unlink()
    fill(source, "s5.mask.png")
    assert "2 packed, 1 reused" in dray(*words).out
    assert Snapshot.open(out).read("s2") == {"x.pyd": b"s2.x.pyd"}
    assert Snapshot.open(out).read("s5")["mask.png"] == b"s5.mask.png"
    fill(source, "t.mask.png")
    assert "'t.x.pyd' is missing" in dray(*words).err


def test_an_optional_file_that_cannot_be_read_is_not_an_absent_one(tmp_path: Path) -> None:
    """A folder, or a link whose target is gone, is a bad input: leaving the part out would be silent."""
    store = fill(tmp_path, *(f"{name}.x" for name in "abc"), "c.y")
    (tmp_path / "a.y").mkdir()
    (tmp_path / "b.y").symlink_to("gone")
    missing = find_missing(find_sources(store, ["a", "b", "c"], ("x", "y")), optional=("y",))
    assert [bad.file for bad in missing] == ["a.y", "b.y"]


PARTS = st.sampled_from([b"", b"x", b"y" * 700])
SAMPLES = st.lists(st.tuples(PARTS, st.none() | PARTS, st.none() | PARTS), min_size=1, max_size=7)


@settings(max_examples=25, deadline=None)
@given(samples=SAMPLES, encode=st.booleans(), number_shards=st.integers(1, 3))
def test_what_samples_lack_is_packed_adopted_and_merged_alike(
    samples: list[tuple[bytes, bytes | None, bytes | None]],
    encode: bool,
    number_shards: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A sample has a part exactly if it has the file: after a build, one that adopts all shards, and a compaction."""
    folder = tmp_path_factory.mktemp("samples")
    expected: dict[str, dict[str, bytes]] = {}
    for number, parts in enumerate(samples):
        expected[f"s{number}"] = {name: data for name, data in zip("abc", parts, strict=True) if data is not None}
        for name, data in expected[f"s{number}"].items():
            (folder / f"s{number}.{name}").write_bytes(data)
    place = Place(f"memory://{uuid.uuid4().hex}")
    options = {
        "optional_suffixes": ("b", "c"),
        "encode": "auto" if encode else None,
        "min_num_shards": number_shards,
        "progress": False,
    }
    report = pickles_to_tars(folder, list(expected), "a", place.url, "wds", **options)
    contents = {key: latest(place).read(key) for key in expected}
    assert contents == expected
    assert list(verify(latest(place), "full")) == []
    for name in stored(place):
        if "/commits/" in name or "/index/" in name:
            store_at(place).delete([name])
    again = pickles_to_tars(folder, list(expected), "a", place.url, "wds", **options)
    assert (again.num_reused, again.num_shards) == (report.num_shards, report.num_shards)
    assert {key: latest(place).read(key) for key in expected} == expected
    compact(Location(store_at(place), Layout("wds")), retention=None, progress=False)
    assert {key: latest(place).read(key) for key in expected} == expected
    counts = parts_of(latest(place))
    assert counts is not None
    assert {name: count for name, count in counts.items() if count} == Counter(
        name for parts in expected.values() for name in parts
    )


@pytest.mark.parametrize("text", ["\ufeffs1\ns2\n", "s1\r\n\r\ns2\r\n", "s1\n  \ns2"])
@pytest.mark.parametrize("is_file", [True, False])
def test_a_list_of_names_may_have_a_byte_order_mark_and_windows_line_ends(
    dray: Dray, tmp_path: Path, text: str, is_file: bool
) -> None:
    """As other programs write it, in a file or on standard input; names may have directories."""
    fill(tmp_path / "in", "s1.pyd", "s2.pyd", "s3.pyd")
    (tmp_path / "names.txt").write_bytes(text.encode())
    names = ["--names", tmp_path / "names.txt" if is_file else "-"]
    done = dray("build", tmp_path / "in", tmp_path / "out", "--suffix", "pyd", *names, stdin=text)
    assert "2 samples" in done.out, done.err


def test_a_list_of_names_in_another_encoding_is_named(dray: Dray, tmp_path: Path) -> None:
    """Windows' UTF-16, say."""
    (tmp_path / "names.txt").write_text("s1", encoding="utf-16")
    done = dray("build", tmp_path / "in", tmp_path / "out", "--suffix", "pyd", "--names", tmp_path / "names.txt")
    assert "names.txt: expected UTF-8 text, one name per line" in done.err
