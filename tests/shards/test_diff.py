"""The difference between two versions: compared with dicts, and on built datasets."""

import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.pipelines.building.tables import parquet_of, source_table
from dray.pipelines.inputs.sources import Sources
from dray.shards import Manifest, Shard, Snapshot, Store
from dray.shards.diff import Diff, compare_sources, diff
from dray.shards.index import digest_of
from dray.shards.layout import Layout, Location
from dray.shards.log import Commit, new_write_id, now, put_content
from dray.shards.manifest import Accounting, TableChunk
from tests.conftest import MakeInputs, Place
from tests.support.datasets import build, latest

LAYOUT = Layout("wds")
STORE = Store("memory://diff")
Samples = Mapping[str, int]  # key -> hash of its file


def table_of(samples: Samples, suffix: str = "pyd", shard: int = 0) -> pa.Table:
    """Returns a table of sources in one shard; the stamps always differ."""
    count, keys = len(samples), sorted(samples)
    stamps = np.random.default_rng().integers(2**62, size=(count, 1))
    sources = Sources(url="", names=keys, suffixes=(suffix,), sizes=np.zeros((count, 1), np.int64), stamps=stamps)
    hashes = np.array([samples[key] for key in keys], np.uint64).reshape(count, 1)
    return source_table(sources, hashes, (np.full(count, shard), np.arange(count)))


def snapshot_of(
    samples: Samples, *, suffix: str = "pyd", rows: int = 3, numbers: Sequence[int] = (0,), **fields: Any
) -> Snapshot:
    """Returns a version of these samples with `rows` rows in each chunk; `fields` replaces fields of the manifest."""
    table, chunks = table_of(samples, suffix, numbers[0]), []
    for start in range(0, max(1, len(table)), rows):
        body = parquet_of(table[start : start + rows])
        put_content(STORE, LAYOUT.table(1, digest_of(body)), body)
        chunks.append(TableChunk(intent=1, digest=digest_of(body), num_rows=len(table[start : start + rows])))
    shards = tuple(
        Shard(number=number, num_bytes=1, num_samples=len(samples), digest="", index_digest=str(number))
        for number in numbers
    )
    values = {"source_url": "file:///in", "recipe": {"suffixes": [suffix]}, **fields}
    accounting = Accounting(inputs=len(samples), packed=len(samples))
    manifest = Manifest(
        prefix="wds", intent=1, num_samples=len(samples), accounting=accounting, parts=(), shards=shards,
        sources=tuple(chunks), **values,
    )  # fmt: skip
    commit = Commit(
        number=1,
        operation="build",
        version=1,
        intent=1,
        manifest="",
        num_samples=len(samples),
        num_shards=0,
        num_bytes=0,
        write_id=new_write_id(),
        created=now(),
    )
    return Snapshot(Location(STORE, LAYOUT), commit, manifest)


SAMPLES = st.dictionaries(st.text("abü-/", min_size=1, max_size=3), st.sampled_from([0, 1, 2**64 - 1]), max_size=12)


@settings(deadline=None)
@given(SAMPLES, SAMPLES, st.integers(1, 5))
def test_added_removed_and_changed_are_those_of_two_dicts(a: Samples, b: Samples, rows: int) -> None:
    """Chunk sizes and stamps do not matter."""
    found = diff(snapshot_of(a, rows=rows), snapshot_of(b, rows=6 - rows))
    common = a.keys() & b.keys()
    assert set(found.added) == b.keys() - a.keys()
    assert set(found.removed) == a.keys() - b.keys()
    assert set(found.changed) == {key for key in common if a[key] != b[key]}
    assert found.num_same == sum(a[key] == b[key] for key in common)
    assert len(found.added) + len(found.removed) + len(found.changed) + found.num_same == len(a.keys() | b.keys())


@settings(deadline=None)
@given(SAMPLES, SAMPLES)
def test_the_other_way_round_added_and_removed_change_places(a: Samples, b: Samples) -> None:
    """Nothing else changes, and the keys are sorted."""
    there, back = diff(snapshot_of(a), snapshot_of(b)), diff(snapshot_of(b), snapshot_of(a))
    assert (there.added, there.removed) == (back.removed, back.added)
    assert (there.changed, there.num_same) == (back.changed, back.num_same)
    for keys in (there.added, there.removed, there.changed):
        assert list(keys) == sorted(keys, key=str.encode)


def test_with_other_suffixes_every_common_sample_changed() -> None:
    """Equal bytes under another suffix are another part."""
    found = diff(snapshot_of({"a": 1, "b": 2}), snapshot_of({"b": 2, "c": 3}, suffix="npy"))
    assert (found.added, found.removed, found.changed) == (("c",), ("a",), ("b",))
    assert found.num_same == 0


def test_a_sample_changed_where_one_of_its_files_did() -> None:
    """Every suffix is compared."""
    a = table_of({"a": 1, "b": 2}).append_column("cls/xxh3_64", pa.array([5, 6], pa.uint64()))
    b = table_of({"a": 1, "b": 2}).append_column("cls/xxh3_64", pa.array([5, 7], pa.uint64()))
    *_, changed, num_same = compare_sources(a, b, ("pyd", "cls"))
    assert (changed.to_pylist(), num_same) == (["b"], 1)


def test_shards_are_distinguished_by_their_numbers() -> None:
    """Numbers of shards are never reused."""
    found = diff(snapshot_of({"a": 1}, numbers=(4, 0, 2)), snapshot_of({"a": 1}, numbers=(9, 2, 3)))
    assert (found.shards_in_both, found.shards_in_a, found.shards_in_b) == ((2,), (0, 4), (3, 9))


def test_recipes_differ_by_their_values_and_by_what_one_lacks() -> None:
    """Equal values are not listed."""
    a = snapshot_of({"a": 1}, recipe={"suffixes": ["pyd"], "num_shards": 3, "transform": None})
    b = snapshot_of({"a": 1}, recipe={"suffixes": ["pyd"], "num_shards": None, "encode": "npy", "transform": None})
    assert diff(a, b).recipe == {"encode": (None, "npy"), "num_shards": (3, None)}


def test_the_directories_of_the_sources_are_compared() -> None:
    """The difference is None if they are equal."""
    a, b = snapshot_of({"a": 1}), snapshot_of({"a": 1}, source_url="file:///moved")
    assert diff(a, b).source_url == ("file:///in", "file:///moved")
    assert diff(a, a).source_url is None


def test_a_version_does_not_differ_from_itself() -> None:
    """It has no difference; any other pair has one."""
    same, other = snapshot_of({"a": 1}, numbers=(0,)), snapshot_of({"a": 2}, numbers=(0,))
    assert diff(same, same).is_empty
    assert diff(same, same).num_same == 1
    assert not diff(same, other).is_empty
    assert not diff(same, snapshot_of({"a": 1}, numbers=(1,))).is_empty
    assert not diff(same, snapshot_of({"a": 1}, numbers=(0,), source_url="file:///moved")).is_empty


def test_two_builds_differ_by_what_was_done_to_the_files_between(make_inputs: MakeInputs, place: Place) -> None:
    """Samples with only a new time, and unchanged samples of a rewritten shard, do not differ."""
    inputs = make_inputs(40, ("image.pyd", "label.cls"))
    build(inputs, place, names=inputs.names[:38])
    a = latest(place)
    inputs.path(inputs.names[5], "label.cls").write_bytes(pickle.dumps("changed"))
    os.utime(inputs.path(inputs.names[20], "image.pyd"), ns=(1, 1))
    build(inputs, place, names=[*inputs.names[:7], *inputs.names[8:]])
    found = diff(a, latest(place))
    assert found.added == ("sample-0038", "sample-0039")
    assert found.removed == ("sample-0007",)
    assert found.changed == ("sample-0005",)
    assert found.num_same == 36
    assert (found.shards_in_both, found.shards_in_a) == ((1, 2, 3), (0,))
    assert not found.recipe


@pytest.mark.parametrize(
    "field",
    [
        *({name: ("a",)} for name in ("added", "removed", "changed")),
        *({name: (1,)} for name in ("shards_in_a", "shards_in_b")),
        {"recipe": {"suffixes": (["a"], ["b"])}},
        {"source_url": ("file:///a", "file:///b")},
    ],
    ids=lambda field: next(iter(field)),
)
def test_any_difference_is_one(field: dict[str, Any]) -> None:
    """Each field alone makes a difference; the shared fields make none."""
    same: Any = dict.fromkeys(("added", "removed", "changed", "shards_in_a", "shards_in_b"), ())
    same |= {"num_same": 3, "shards_in_both": (0, 1), "recipe": {}, "source_url": None}
    assert Diff(**same).is_empty
    assert not Diff(**same | field).is_empty
