"""`Snapshot.find`, `Snapshot.read` and `dray show` find one sample by its key."""

import datetime
import gzip
import json
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dray.cluster.cli.show import MAX_CHARS, describe, describe_part
from dray.pipelines import pickles_to_tars
from dray.shards import DamagedError, NotFoundError, Snapshot
from tests.conftest import Dray, Inputs, MakeInputs, Place
from tests.support import datasets
from tests.support.datasets import latest, overwrite

SUFFIXES = ("image.pyd", "label.cls")


class Evil:
    """Runs a command when unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch /tmp/dray-show-was-here",)


@pytest.fixture
def inputs(make_inputs: MakeInputs) -> Inputs:
    """30 samples of two parts."""
    inputs = make_inputs(30, SUFFIXES)
    for number, name in enumerate(inputs.names):
        inputs.path(name, "label.cls").write_bytes(b"%d" % number)
    return inputs


def build(inputs: Inputs, place: Place) -> Snapshot:
    """Makes three shards, not in the order of the keys."""
    options = {"min_num_shards": 3, "address": "none", "input_storage_options": {}}
    datasets.build(inputs, place, names=inputs.names[::-1], prefix="wdshards", **options)
    return latest(place, "wdshards")


def test_every_sample_is_found_and_read_by_its_key(inputs: Inputs, place: Place) -> None:
    """Its shard and row are correct, and its parts equal its files."""
    snapshot = build(inputs, place)
    for name in inputs.names:
        key = name.replace(".", "-")
        shard, index, row = snapshot.find(key)
        assert index.keys[row] == key
        assert shard in snapshot.shards
        assert snapshot.read(key) == {suffix: inputs.part(name, suffix) for suffix in SUFFIXES}


def test_an_unknown_key_is_an_error_with_its_neighbours(inputs: Inputs, place: Place) -> None:
    """For a name with dots the error suggests its key; at either end there is one neighbour."""
    snapshot = build(inputs, place)
    for key, hint in (
        ("sample-0004x", "its neighbours are 'sample-0004' and 'sample-0005'"),
        ("sample.0004", "dots of a name became dashes: 'sample-0004'?"),
        ("a", "its neighbours are 'sample-0000'"),
        ("z", "its neighbours are 'sample-0029'"),
        ("", "no sample '' in version 1 of"),
    ):
        with pytest.raises(NotFoundError, match=re.escape(hint)):
            snapshot.read(key)


def test_a_sample_is_read_without_the_parts_that_it_lacks(inputs: Inputs, tmp_path: Path) -> None:
    """A function may give samples different parts; an empty part is a part."""

    def parts(key: str, sample: Mapping[str, bytes]) -> dict[str, bytes]:
        return {"a": b"", "b": b"x"} if key.endswith("1") else {"b": b"y"}

    pickles_to_tars(inputs.folder, inputs.names, SUFFIXES, tmp_path / "out", "wdshards", parts, progress=False)
    snapshot = Snapshot.open(tmp_path / "out")
    assert snapshot.read("sample-0001") == {"a": b"", "b": b"x"}
    assert snapshot.read("sample-0002") == {"b": b"y"}


def test_a_damaged_part_is_never_read_as_intact(inputs: Inputs, place: Place) -> None:
    """Changed bytes and a truncated shard are errors that name shard, key and suffix."""
    snapshot = build(inputs, place)
    shard, index, row = snapshot.find("sample-0007")
    name = snapshot.layout.shard(shard.number)
    tar, offset = bytearray(snapshot.store.get(name)), int(index.offsets[row, 1])
    tar[offset] ^= 1
    overwrite(snapshot.store, snapshot.layout.shard(shard.number), bytes(tar))
    with pytest.raises(
        DamagedError, match=rf"{name} at offset {offset}, key 'sample-0007', suffix 'label.cls': not the bytes"
    ):
        snapshot.read("sample-0007")
    overwrite(snapshot.store, snapshot.layout.shard(shard.number), bytes(tar[: offset - 600]))
    with pytest.raises(DamagedError, match="the object was cut short"):
        snapshot.read("sample-0007")


@pytest.mark.parametrize(
    ("suffix", "data", "expected"),
    [
        ("image.pyd", pickle.dumps(torch.zeros(2, 3)), r"tensor float32 \(2, 3\)"),
        ("a.npy", b"", "not decoded: part 'a.npy' is not what its extension says"),
        ("pyd", pickle.dumps({"x": np.zeros((4,), np.int16)}), r"{'x': array int16 \(4,\)}"),
        ("pyd", pickle.dumps(OrderedDict(w=torch.ones(1))), r"{'w': tensor float32 \(1,\)}"),
        ("pyd", pickle.dumps(Evil()), "refused: pickle names .*system, which is not on the safe list; nothing of it"),
        ("pyd", pickle.dumps(1 << 40_000), "an integer of 40,001 bits"),
        ("txt", b"ab\n\x1b[31m", r"'ab\\n\\x1b\[31m'"),
        ("json.gz", gzip.compress(json.dumps([1, [2]]).encode(), mtime=0), r"\[1, \[2\]\]"),
        ("cls", b"7", "7"),
        ("bin", b"\0" * 50, r"50 bytes, b'(\\x00){16}'\.\.\."),
    ],
)
def test_a_part_is_described_in_a_line(suffix: str, data: bytes, expected: str) -> None:
    """It is decoded safely, by its suffix."""
    assert re.match(expected, describe_part(suffix, data))
    assert not Path("/tmp/dray-show-was-here").exists()


def test_a_description_is_short_whatever_the_value() -> None:
    """The values are long, wide, deep or unprintable."""
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    for value in ("x" * 9999, list(range(9999)), deep, dict.fromkeys(range(99), "y" * 99), datetime.date(2024, 1, 2)):
        assert 0 < len(describe(value)) <= MAX_CHARS
    assert describe("x" * 9999).count("x") > 100


def test_show_prints_location_and_value_of_each_part(dray: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """Offsets are those in the tar; a refused pickle is reported and does not hide the other part."""
    inputs.path("sample.0003", "image.pyd").write_bytes(pickle.dumps(Evil()))
    build(inputs, Place(str(tmp_path / "out")))
    code, out, err = dray("show", tmp_path / "out", "sample-0003")
    assert (code, err) == (0, "")
    tar = (tmp_path / "out" / "wdshards-000002.tar").read_bytes()
    assert f"{tmp_path}/out/wdshards-000002.tar" in out
    assert "sample  6 of 10, counted from 0" in out
    (offset,) = re.findall(r"label.cls: 1 byte at offset (\d+)\n    3\n", out)
    assert tar[int(offset) : int(offset) + 1] == b"3"
    assert "refused: pickle names" in out
    assert "safe list" in out


def test_show_opens_an_older_version(dray: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """It shows the sample as it was."""
    build(inputs, Place(str(tmp_path / "out")))
    inputs.path("sample.0003", "label.cls").write_bytes(b"1234567")
    build(inputs, Place(str(tmp_path / "out")))
    assert "    1234567\n" in dray("show", tmp_path / "out", "sample-0003").out
    assert "    3\n" in dray("show", tmp_path / "out", "sample-0003", "--version", 1).out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample-9999"], "no sample 'sample-9999' in version 1 of .*/out wdshards: its neighbours are 'sample-0029'"),
        (["sample-0001", "--version", "9"], "no version 9"),
        (["sample-0001", "--prefix", "a"], "no dataset with prefix 'a'"),
    ],
)
def test_what_is_not_there_is_one_line_and_exit_code_3(
    dray: Dray, inputs: Inputs, tmp_path: Path, words: list[str], message: str
) -> None:
    """Key, version or dataset may be missing."""
    build(inputs, Place(str(tmp_path / "out")))
    code, out, err = dray("show", tmp_path / "out", *words)
    assert (code, out) == (3, "")
    assert re.fullmatch(f"dray: error: .*{message}.*\n", err)


def test_a_sample_of_nothing_but_empty_parts_is_read(inputs: Inputs, place: Place) -> None:
    """There is no range to read."""
    for name in inputs.names[:2]:
        inputs.path(name, "label.cls").write_bytes(b"")
        inputs.path(name, "image.pyd").write_bytes(b"")
    snapshot = build(inputs, place)
    assert snapshot.read("sample-0001") == {"image.pyd": b"", "label.cls": b""}


def test_the_option_that_show_suggests_works(dray: Dray, inputs: Inputs, tmp_path: Path) -> None:
    """The error names a refused class with the option that allows it; so does `dray loadtest`."""
    for name in inputs.names:
        inputs.path(name, "image.pyd").write_bytes(pickle.dumps(datetime.date(2026, 1, 2)))
    build(inputs, Place(str(tmp_path / "out")))
    refused = dray("show", tmp_path / "out", "sample-0003").out
    (words,) = re.findall(r"(--allow \S+), or --allow-pickle", refused)
    assert "datetime.date(2026, 1, 2)" in dray("show", tmp_path / "out", "sample-0003", *words.split()).out
    refused = dray("loadtest", tmp_path / "out", "--batch-size", 5).err
    (words,) = re.findall(r"(--allow \S+), or --allow-pickle", refused)
    assert dray("loadtest", tmp_path / "out", "--batch-size", 5, *words.split()).code == 0
