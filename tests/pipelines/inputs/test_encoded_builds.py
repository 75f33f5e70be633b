"""A build that encodes pickled parts keeps the laws of a build."""

import json
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dray.loaders import Dataset
from dray.pipelines.building.compact import compact
from dray.pipelines.planning.plan import Last, changes_of
from dray.pipelines.planning.recipe import Recipe
from dray.shards import DamagedError, InputError, Snapshot, Store
from dray.shards.layout import Layout, Location
from tests.conftest import Inputs, Place
from tests.pipelines.inputs.test_encoder import FLOAT32, SUFFIX, build, read, write
from tests.support.datasets import stored

MIXED = [torch.full((n % 3,), float(n)) if n % 4 else (n,) for n in range(24)]  # a quarter stay pickles


def everything(folder: Path) -> dict[str, bytes]:
    """Returns all objects of a build except the records with a time and a write id."""
    records = ("/commits/", "/intents/")
    return {name: data for name, data in stored(Place(str(folder))).items() if not any(map(name.__contains__, records))}


def test_a_rerun_writes_nothing_and_one_changed_input_rewrites_one_shard(tmp_path: Path) -> None:
    """Law 4."""
    inputs = write(tmp_path / "in", MIXED)
    build(inputs, tmp_path / "out")
    before = stored(Place(str(tmp_path / "out")))
    assert build(inputs, tmp_path / "out").is_new is False
    assert stored(Place(str(tmp_path / "out"))) == before
    inputs.path(inputs.names[7], SUFFIX).write_bytes(pickle.dumps({"now": "a dict"}))
    report = build(inputs, tmp_path / "out")
    assert (report.version, report.num_reused) == (2, 3)
    assert read(tmp_path / "out")["s0007"] == ("value.json", {"now": "a dict"})


def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    """Law 1: tars, indexes, manifests."""
    inputs = write(tmp_path / "in", MIXED)
    for folder in ("a", "b"):
        build(inputs, tmp_path / folder)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")


def test_shards_of_a_build_that_was_never_committed_are_adopted(tmp_path: Path) -> None:
    """Law 3: they are read and indexed as they are, though their parts have other suffixes and sizes than the files."""
    inputs, out = write(tmp_path / "in", MIXED), tmp_path / "out"
    build(inputs, out)
    before = everything(out)
    for record in (out / "__dray__/wds/commits").iterdir():
        record.unlink()
    for index in list((out / "__dray__/wds/index").iterdir())[:2]:
        index.unlink()
    assert build(inputs, out).num_reused == 4
    assert everything(out) == before


@pytest.mark.parametrize(
    ("encode", "theirs"),
    [({SUFFIX: "json"}, {"encode": None}), ("auto", {"encode": "auto", "values": [(1,)] * 4})],
    ids=["another suffix", "a pickle of another size"],
)
def test_a_tar_with_other_parts_is_not_adopted(encode: Any, theirs: dict[str, Any], tmp_path: Path) -> None:
    """Though its keys are the plan's."""
    inputs, out = write(tmp_path / "in", [[1.5]] * 4), tmp_path / "out"
    build(inputs, out, encode=encode, min_num_shards=1)
    for record in (out / "__dray__/wds/commits").iterdir():
        record.unlink()
    others = write(tmp_path / "others", theirs.get("values", [[1.5]] * 4))
    build(others, tmp_path / "theirs", encode=theirs["encode"], min_num_shards=1)
    (out / "wds-000000.tar").write_bytes((tmp_path / "theirs/wds-000000.tar").read_bytes())
    with pytest.raises(DamagedError, match="holds other samples than this build reserved it for"):
        build(inputs, out, encode=encode, min_num_shards=1)


def test_a_changed_encoding_rebuilds_and_says_so(tmp_path: Path) -> None:
    """There and back: what was packed under the first one is another version."""
    inputs = write(tmp_path / "in", [FLOAT32] * 8)
    reports = [build(inputs, tmp_path / "out", encode=encode) for encode in ("auto", {SUFFIX: "npy"}, None)]
    assert [(report.version, report.num_reused) for report in reports] == [(1, 0), (2, 0), (3, 0)]
    then = Snapshot.open(tmp_path / "out", "wds", version=2).manifest.recipe
    last = Last(recipe=then, source_url="x", shards=(), whole=frozenset(), table=None)
    reason = changes_of(Recipe(suffixes=(SUFFIX,), num_shards=4), "x", last)
    assert reason == "encode was {'value.pyd': 'npy'}, is None"


def test_without_encode_nothing_of_it_is_recorded(tmp_path: Path) -> None:
    """Manifests and digests of shards are those of earlier versions of dray: their datasets stay as they are."""
    build(write(tmp_path / "in", [1]), tmp_path / "out", encode=None)
    (path,) = (tmp_path / "out/__dray__/wds/manifests").glob("*.json")
    manifest = json.loads(path.read_text())
    assert not {"encode", "allow", "allow_pickle", "encoder"} & manifest["recipe"].keys()
    assert "parts" not in manifest["shards"][0]
    assert Recipe(suffixes=("a.pyd",)).content_digest() == "d5a7881c7c76b33d3333f138d57d79d0"
    digest = Recipe(suffixes=("a.pyd",), transform="v1", leaves_out_bad=True).content_digest()
    assert digest == "5a4ab57b36db8163195a68f3ec941704"


def test_a_bad_value_fails_the_build_and_repairing_it_packs_only_its_shard(tmp_path: Path) -> None:
    """The others are adopted."""
    inputs = write(tmp_path / "in", [FLOAT32 * n for n in range(20)])
    good = inputs.path(inputs.names[7], SUFFIX).read_bytes()
    inputs.path(inputs.names[7], SUFFIX).write_bytes(pickle.dumps("text"))
    with pytest.raises(InputError, match=r"'s0007'.*cannot become 'npy': str is neither a tensor"):
        build(inputs, tmp_path / "out", encode={SUFFIX: "npy"})
    inputs.path(inputs.names[7], SUFFIX).write_bytes(good)
    assert build(inputs, tmp_path / "out", encode={SUFFIX: "npy"}).num_reused == 3


def test_a_bad_value_may_be_left_out_and_is_listed(tmp_path: Path) -> None:
    """With its stage; a rerun does not look at it again."""
    inputs = write(tmp_path / "in", [FLOAT32] * 9 + ["text"])
    options: Any = {"encode": {SUFFIX: "npy"}, "on_error": "skip"}
    assert build(inputs, tmp_path / "out", **options).num_skipped == 1
    table = Snapshot.open(tmp_path / "out", "wds").left_out()
    assert table is not None
    assert table.select(["name", "stage"]).to_pylist() == [{"name": "s0009", "stage": "encode"}]
    assert build(inputs, tmp_path / "out", **options).is_new is False


def test_what_a_function_makes_is_encoded(tmp_path: Path) -> None:
    """Its pickled parts of any suffix; the others stay."""

    def make(key: str, parts: dict[str, bytes]) -> dict[str, Any]:
        value = pickle.loads(parts[SUFFIX])
        return {"double.pyd": pickle.dumps(2 * value), "label.cls": b"7", "half.pyd": value / 2}

    inputs = write(tmp_path / "in", [FLOAT32] * 3)
    build(inputs, tmp_path / "out", func_output_data=make, transform_version="1")
    found = Dataset(tmp_path / "out", "wds")["s0000"]
    assert list(found) == ["double.npy", "label.cls", "half.npy"]
    assert np.array_equal(found["double.npy"], 2 * FLOAT32.numpy())


def test_two_parts_of_a_function_that_become_one_are_a_bad_sample(tmp_path: Path) -> None:
    """Nothing is dropped in silence."""

    def make(key: str, parts: dict[str, bytes]) -> dict[str, Any]:
        return dict.fromkeys(("x.pyd", "x.pkl"), parts[SUFFIX])

    with pytest.raises(InputError, match=r"two of its parts x\.pyd, x\.pkl became the same"):
        build(write(tmp_path / "in", [1]), tmp_path / "out", func_output_data=make)


def test_the_report_says_how_many_parts_stayed_pickles_and_why(tmp_path: Path) -> None:
    """The count is of the whole version; the reason is the most frequent one among parts that this build packed."""
    values = [*MIXED, {1, 2}, Fraction(1, 2)]
    inputs, out = write(tmp_path / "in", values), tmp_path / "out"
    report = build(inputs, out)
    assert report.num_pickles == 8
    assert report.pickle_reason == "tuple would come back as something else, or not at all"
    assert str(report).endswith(f"; 8 parts stayed pickles, most often because {report.pickle_reason}")
    again = build(inputs, out)
    assert (again.num_pickles, again.pickle_reason) == (8, None)
    assert str(again).endswith("; 8 parts stayed pickles")
    inputs.path("s0001", SUFFIX).write_bytes(pickle.dumps(Fraction(1, 3)))
    changed = build(inputs, out)
    assert changed.num_pickles == 9
    assert "fractions.Fraction" in str(changed.pickle_reason) or "tuple" in str(changed.pickle_reason)


def test_what_nobody_asked_to_encode_did_not_stay_a_pickle(tmp_path: Path) -> None:
    """A part that encode does not name, or that has to become something else, is not counted."""
    inputs = write(tmp_path / "in", [FLOAT32])
    inputs = Inputs(inputs.folder, inputs.names, (SUFFIX, "other.pyd"))
    inputs.path("s0000", "other.pyd").write_bytes(pickle.dumps((1,)))
    for encode in (None, {SUFFIX: "npy"}):
        report = build(inputs, tmp_path / str(encode is None), encode=encode)
        assert (report.num_pickles, report.pickle_reason) == (0, None)
    report = build(inputs, tmp_path / "auto")
    assert str(report).endswith("; 1 part stayed a pickle, most often because tuple would come back as something "
                                "else, or not at all")  # fmt: skip


def test_a_merged_shard_counts_its_parts(tmp_path: Path) -> None:
    """What `dray ls` tells stays true after a compaction."""
    inputs = write(tmp_path / "in", MIXED)
    build(inputs, tmp_path / "out", min_num_shards=None)
    for number in range(8, 25, 8):
        names = inputs.names[:number]
        build(Inputs(inputs.folder, names, inputs.suffixes), tmp_path / "out", min_num_shards=None)
    compact(Location(Store(str(tmp_path / "out")), Layout("wds")), retention=None, progress=False)
    (counts,) = Snapshot.open(tmp_path / "out", "wds").manifest.counts()
    assert counts == {"value.npy": 18, "value.pyd": 6}
