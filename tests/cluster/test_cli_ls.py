"""`dray ls`: the datasets in a folder, their shards, and the URLs of their tars."""

import json
import os
import re
from pathlib import Path

import pytest
from webdataset.gopen import gopen
from webdataset.shardlists import expand_urls

from tests.conftest import Dray, Inputs


def test_ls_shows_what_a_folder_holds(dray: Dray, build: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """It shows version, time, size, parts, source, tars, and one line per shard."""
    build("--shards", 3)
    out = dray("ls", tmp_path / "out").out
    assert re.search(r"/out wdshards version 1, made \d{4}-\d\d-\d\dT", out)
    for words in (
        "60 samples in 3 shards",
        "image.pyd, label.cls",
        str(inputs.folder),
        "wdshards-{000000..000002}.tar",
    ):
        assert words in out
    assert re.search(r"^ *shard +samples +bytes *\n *000000 +20 +[\d,]+ *$", out, re.MULTILINE)
    assert re.search(r"^ *000002 +20 +[\d,]+ *$", out, re.MULTILINE)


def test_ls_finds_every_prefix_and_the_groups_of_a_split(dray: Dray, build: Dray, tmp_path: Path) -> None:
    """It finds datasets in the folder, else those one folder below."""
    build("--split", "train=0.5,val=0.5")
    assert [found["url"].rpartition("/")[2] for found in json.loads(dray("ls", tmp_path / "out", "--json").out)] == [
        "train",
        "val",
    ]
    build("--prefix", "a")
    build("--prefix", "b")
    assert [found["prefix"] for found in json.loads(dray("ls", tmp_path / "out", "--json").out)] == ["a", "b"]
    assert " b version 1" not in dray("ls", tmp_path / "out", "--prefix", "a").out


def test_ls_shows_twenty_shards_unless_asked_for_all(dray: Dray, build: Dray, tmp_path: Path) -> None:
    """It says how many are not shown."""
    build("--shards", 30)
    short, long = dray("ls", tmp_path / "out").out, dray("ls", tmp_path / "out", "--all").out
    assert "10 more" in short
    assert " 000029 " not in short
    assert " 000029 " in long


def test_ls_urls_and_their_pattern_are_the_same_tars(dray: Dray, build: Dray, tmp_path: Path) -> None:
    """Standard output has only URLs; webdataset expands the pattern on standard error to the same."""
    build("--shards", 12)
    listed = dray("ls", tmp_path / "out", "--urls")
    urls = listed.out.splitlines()
    assert [os.path.exists(url.removeprefix("file://")) for url in urls] == [True] * 12
    assert expand_urls(listed.err.removeprefix("as one pattern: ").strip()) == urls


@pytest.mark.parametrize("name", ["a%20b", "a b#c?d", "100% {0..1}", ":cat: [red]ü"])
def test_a_dataset_in_a_folder_of_any_name_is_found(dray: Dray, inputs: Inputs, tmp_path: Path, name: str) -> None:
    """It is found by path, by its printed URL, and below its parent; webdataset opens its tars."""
    words = ("--suffix", "image.pyd", "--split", "train=1.0", "--shards", 1)
    assert dray("build", inputs.folder, tmp_path / name, *words).code == 0
    (url,) = (found["url"] for found in json.loads(dray("ls", tmp_path / name, "--json").out))
    listed = dray("ls", url, "--urls")
    (tar,) = listed.out.splitlines()
    with gopen(tar) as file:
        assert file.read() == (tmp_path / name / "train/wdshards-000000.tar").read_bytes()
    assert all(expand_urls(line.removeprefix("as one pattern: ")) == [tar] for line in listed.err.splitlines())
    assert dray("verify", f"{url}?version=1").code == 0


def test_ls_shows_an_older_version(dray: Dray, build: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """After a rebuild with one changed file, version 1 still lists its own shards."""
    build("--shards", 3)
    inputs.path(inputs.names[0], "image.pyd").write_bytes(b"changed")
    build("--shards", 3)
    old, new = (dray("ls", tmp_path / "out", "--urls", "--version", version) for version in (1, 2))
    assert old.out.splitlines()[1:] == new.out.splitlines()[1:]
    assert old.out.splitlines()[0] != new.out.splitlines()[0]
    assert "as one pattern" not in new.err
    assert "no version 3 of prefix" in dray("ls", tmp_path / "out", "--version", 3).err
