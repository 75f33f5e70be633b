"""Manifests: the table of parts, and datasets that were written or indexed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dray.loaders import Dataset, ShardLoader
from dray.pipelines import pickles_to_tars
from dray.pipelines.building.tables import parquet_of
from dray.shards import CallError, Snapshot
from dray.shards.index import digest_of
from dray.shards.log import put_content
from dray.shards.manifest import Accounting, Kind, Manifest, Shard, TableChunk, part_table
from dray.shards.parsing.records import write_record
from dray.shards.parts import PartForms
from tests.conftest import Dray, Place
from tests.support.datasets import PARTS, overwrite, pack, store_at, tensor_of
from tests.support.foreign import NAMES, index_at, key_of, put_tars

DIGEST = "ab" * 16
SUFFIXES = st.sampled_from(["x.pyd", "X.pyd", "x.npy", "x.json", "x.safetensors", "y.pkl", "y.npy", "cls", "note.txt"])
COUNTS = st.dictionaries(SUFFIXES, st.integers(1, 3))
RECIPES = st.sampled_from([
    {}, {"suffixes": ["x.pyd", "cls"]}, {"suffixes": ["x.pyd", "y.pkl"], "encode": "auto"},
    {"suffixes": ["n"], "transform": "1", "encode": "auto"}, {"suffixes": ["x.pyd"], "encode": {"x.pyd": "npy"}},
    {"suffixes": ["n"], "transform": "1", "encode": {"x.pyd": "npy"}},
])  # fmt: skip


def shard_of(number: int, counts: dict[str, int]) -> Shard:
    return Shard(number=number, num_bytes=9999, num_samples=3, digest=DIGEST, index_digest=DIGEST, parts=counts)


@given(RECIPES, st.lists(COUNTS, max_size=4))
def test_parts_and_shards_give_every_count(recipe: dict[str, Any], counts: list[dict[str, int]]) -> None:
    """Each stored suffix is a form of one part, and counts omitted from the manifest are restored."""
    encode = recipe.get("encode")
    if isinstance(encode, dict):  # such a part is never stored under the suffix of its source
        counts = [{suffix: count for suffix, count in found.items() if suffix not in encode} for found in counts]
    counted = [shard_of(number, found) for number, found in enumerate(counts)]
    arrays = [{suffix: ("<f4", (2,)) for suffix in found if suffix.endswith("npy")} for found in counts]
    parts, shards = part_table(recipe, counted, arrays)
    num_samples = 3 * len(shards)
    manifest = Manifest(
        kind=Kind.WRITTEN, prefix="a", source_url="", recipe={}, intent=1, num_samples=num_samples,
        accounting=Accounting(inputs=0, packed=0), parts=parts, shards=shards,
        samples=(TableChunk(intent=1, digest=DIGEST, num_rows=num_samples),),
    )  # fmt: skip
    read = Manifest.from_bytes(manifest.to_bytes(), "x")
    assert read.counted_shards() == counted
    again, _ = part_table(recipe, read.counted_shards(), [read.arrays()] * len(shards))
    assert again == read.parts


def test_shards_with_the_same_parts_store_no_counts(tmp_path: Path) -> None:
    """The size of a manifest then does not depend on the number of parts."""
    url = pack(tmp_path, 6, encode="auto")
    manifest = Snapshot.open(url).manifest
    assert [shard.parts for shard in manifest.shards] == [None] * 3
    assert {part.name: +part.num_stored for part in manifest.parts} == dict.fromkeys(PARTS, 6)
    assert manifest.counts() == [{"x.npy": 2, "cls": 2, "txt": 2}] * 3


def test_a_part_has_a_dtype_and_a_shape_where_all_shards_agree(tmp_path: Path) -> None:
    """Kept shards count too; a shard with another shape removes dtype and shape."""
    url = pack(tmp_path, 4, encode="auto")
    (x,) = (part for part in Snapshot.open(url).manifest.parts if part.dtype)
    assert (x.name, x.dtype, x.shape) == ("x.pyd", "<f4", (2,))
    names = [f"s{number:04d}" for number in range(3)]

    def build() -> tuple[PartForms, ...]:
        pickles_to_tars(tmp_path / "inputs", names, [*PARTS], url, "wdshards", None, 3, encode="auto", progress=False)
        return Snapshot.open(url).manifest.parts

    assert [part.shape for part in build()] == [(2,), None, None]
    (tmp_path / "inputs" / "s0002.x.pyd").write_bytes(tensor_of(3)(2))
    assert [part.shape for part in build()] == [None, None, None]


def change(url: str, changed: Callable[[Snapshot], Manifest]) -> Snapshot:
    """Returns the last version of a dataset after replacing its manifest."""
    old = Snapshot.open(url)
    body = changed(old).to_bytes()
    put_content(old.store, old.layout.manifest(old.commit.intent, digest_of(body)), body)
    overwrite(old.store, old.layout.commit(1), write_record(replace(old.commit, manifest=digest_of(body))))
    return Snapshot.open(url)


def without_sources(snapshot: Snapshot, **values: Any) -> Manifest:
    """Returns a manifest of the same shards with a table of samples and without sources."""
    body = parquet_of(snapshot.samples())
    put_content(snapshot.store, snapshot.layout.table(1, digest_of(body)), body)
    samples = (TableChunk(intent=1, digest=digest_of(body), num_rows=snapshot.num_samples),)
    nothing = Accounting(inputs=0, packed=0)
    return replace(
        snapshot.manifest, source_url="", recipe={}, accounting=nothing, sources=None, samples=samples, **values
    )


@pytest.fixture
def written(tmp_path: Path) -> str:
    """The URL of a dataset of 6 samples in 3 shards with a table of samples and without sources."""
    url = pack(tmp_path, 6)
    change(url, lambda snapshot: without_sources(snapshot, kind=Kind.WRITTEN))
    return url


@pytest.fixture
def indexed(tmp_path: Path) -> str:
    """The URL of a dataset that indexes the tars of another program."""
    place = Place((tmp_path / "foreign").as_uri())
    put_tars(store_at(place))
    return index_at(place, prefix="wdshards").store.url


def test_a_dataset_that_a_program_wrote_is_read(written: str, dray: Dray) -> None:
    """It can be read by number, by key and in batches; `dray` lists, shows and verifies it."""
    assert Dataset(written)["s0004"]["cls"] == Dataset(written)[4]["cls"] == 4
    assert [batch["cls"].tolist() for batch in ShardLoader(written, batch_size=3)] == [[0, 1, 2], [3, 4, 5]]
    assert "parts   x.pyd, cls, txt\n" in dray("ls", written).out
    assert '"kind": "written"' in dray("ls", written, "--json").out
    assert Snapshot.open(written).urls()[1] in dray("show", written, "s0003").out
    assert "no damage found" in dray("verify", written, "--level", "full").out


def test_a_dataset_that_indexes_tars_is_read(indexed: str, dray: Dray) -> None:
    """Likewise, and the tars have their own names."""
    assert Dataset(indexed)[key_of(5)] == Dataset(indexed)[5] == {"cls": 5, "txt": "text 5"}
    assert [batch["cls"].tolist() for batch in ShardLoader(indexed, batch_size=6)] == [[*range(6)], [*range(6, 12)]]
    assert '"kind": "indexed"' in dray("ls", indexed, "--json").out
    assert Snapshot.open(indexed).urls() == [f"{indexed}/{name}" for name in NAMES]
    assert f"{indexed}/a/01.tar" in dray("show", indexed, key_of(5)).out
    for level in ("quick", "index", "full"):
        assert f"no damage found at level {level}" in dray("verify", indexed, "--level", level).out


def test_a_written_dataset_is_the_same_as_itself(written: str, dray: Dray) -> None:
    """Though it records no sources."""
    assert dray("diff", written, "1", "1").out.endswith("  the same\n")


def test_a_build_does_not_replace_a_written_dataset(written: str, tmp_path: Path) -> None:
    """The error asks for another place."""
    with pytest.raises(CallError, match=r"of kind 'written'; builds.*choose another prefix or directory"):
        pack(tmp_path / "more", 6, url=written)


def test_sources_may_have_many_samples(tmp_path: Path) -> None:
    """The table of sources then has no places, and the table of samples names the source of each sample."""
    url = pack(tmp_path, 4)

    def split(snapshot: Snapshot) -> Manifest:
        sources, samples = snapshot.sources(), snapshot.samples()
        samples = samples.add_column(1, "source", [["s0000"] * 4])
        bodies = parquet_of(sources.drop_columns(["shard", "row"]).slice(0, 1)), parquet_of(samples)
        chunks = []
        for body, num_rows in zip(bodies, (1, 4), strict=True):
            put_content(snapshot.store, snapshot.layout.table(1, digest_of(body)), body)
            chunks.append((TableChunk(intent=1, digest=digest_of(body), num_rows=num_rows),))
        counts = Accounting(inputs=1, packed=1)
        return replace(snapshot.manifest, sources=chunks[0], samples=chunks[1], accounting=counts)

    snapshot = change(url, split)
    assert snapshot.sources().column_names[:3] == ["key", "name", "x.pyd/size"]
    assert snapshot.samples()["source"].to_pylist() == ["s0000"] * 4
    assert snapshot.read("s0002")["cls"] == b"2"
