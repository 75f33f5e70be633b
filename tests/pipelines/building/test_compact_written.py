"""Compacting and dropping datasets that programs wrote: samples with places of their own, with and without sources."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from dray.pipelines.building.compact import compact
from dray.pipelines.building.drop import drop_samples
from dray.pipelines.building.tables import LeftOut
from dray.pipelines.inputs.sources import EMPTY, BadInput
from dray.pipelines.versions.holds import rollback
from dray.pipelines.writing.announce import announce_writing, open_written
from dray.pipelines.writing.shard import Sample, ShardSize, store_in_order
from dray.pipelines.writing.version import Contents
from dray.shards import Snapshot
from dray.shards.layout import Layout, Location
from dray.shards.parsing.parquet import source_schema
from dray.shards.verify import verify
from tests.conftest import Dray, Place
from tests.support.datasets import latest, store_at

RECIPE = {"suffixes": ["txt"], "shard_bytes": 1 << 20, "shard_samples": 6}


@dataclass(frozen=True)
class Source:
    """A source that gave some samples."""

    key: str
    num_samples: int

    def samples(self, number: int) -> Iterator[Sample]:
        for each in range(self.num_samples):
            yield Sample(f"{self.key}/{each}", {"txt": f"{self.key} {each}".encode()}, (number, 1))


SOURCES = [Source("a", 3), Source("b", 1), Source("c", 4), Source("none", 0), Source("d", 2)]


def write(place: Place, sources: list[Source], *, with_sources: bool = True, per_shard: int = 2) -> Snapshot:
    """The next version: the samples of the sources that gave some; the others are remembered."""
    location = Location(store_at(place), Layout("wds"))
    writing = announce_writing(location, RECIPE, open_written(location), progress=False)
    there = [source for source in sources if source.num_samples]
    samples = [sample for number, source in enumerate(there) for sample in source.samples(number)]
    if not with_sources:
        samples = [Sample(sample.key, sample.parts) for sample in samples]
    stored = list(store_in_order(location, samples, writing.intent.numbers, ShardSize(per_shard), "the test"))
    keys = [source.key for source in there]
    left_out = [
        LeftOut(
            bad=BadInput(name=source.key, file="", stage=EMPTY, error="the function gave no sample"),
            fate=EMPTY,
            stamp=0,
        )
        for source in sources
        if not source.num_samples
    ]
    writing.commit(
        Contents(
            recipe=RECIPE,
            written=stored,
            source_keys=keys if with_sources else None,
            sources=table_of(keys) if with_sources else None,
            left_out=left_out if with_sources else (),
        )
    )
    return latest(place)


def table_of(keys: list[str]) -> pa.Table:
    schema = source_schema(("txt",), has_places=False)
    ones = np.ones(len(keys), np.int64)
    columns = {field.name: pa.array(ones).cast(field.type) for field in schema} | {"key": keys, "name": keys}
    return pa.table(columns, schema=schema).sort_by("key")


@pytest.mark.parametrize("with_sources", [False, True])
def test_a_written_dataset_is_compacted(place: Place, with_sources: bool) -> None:
    """Each sample has its new place, and sources and what they gave stay as they are."""
    before = write(place, SOURCES, with_sources=with_sources)
    report = compact(before.location, retention=None, address="none", progress=False)
    after = latest(place)
    assert (report.num_merged, report.num_made, report.num_samples) == (5, 2, 10)
    assert [shard.num_samples for shard in after.shards] == [6, 4]
    assert not list(verify(after, "full"))
    for key in before.samples()["key"].to_pylist():
        assert after.read(key) == before.read(key)
    assert after.manifest.kind == "written"
    if with_sources:
        assert after.sources() == before.sources()
        assert after.samples().select(["key", "source"]) == before.samples().select(["key", "source"])
        assert (after.left_out(), after.manifest.accounting) == (before.left_out(), before.manifest.accounting)
    assert compact(before.location, retention=None, address="none", progress=False).num_merged == 0


@pytest.mark.parametrize("with_sources", [False, True])
def test_a_written_dataset_is_emptied_and_restored(place: Place, with_sources: bool) -> None:
    """By one commit each."""
    before = write(place, SOURCES, with_sources=with_sources)
    report = drop_samples(before.location, retention=None, progress=False)
    assert (report.num_samples, report.num_removed, latest(place).num_samples) == (0, 10, 0)
    assert not list(verify(latest(place), "full"))
    rollback(before.location, 1)
    assert latest(place).manifest == before.manifest


def test_the_command_compacts_a_written_dataset(tmp_path: object, dray: Dray) -> None:
    """And `show` says of which source a sample was made, or what a source gave."""
    place = Place(f"file://{tmp_path}/out")
    write(place, SOURCES)
    assert "5 small ones merged into 2" in dray("compact", place.url).out
    assert "  source  c\n" in dray("show", place.url, "c/2").out
    assert "'a' is a source in version 2 of" in (found := dray("show", place.url, "a")).err
    assert "of which 3 samples were made: 'a/0', 'a/1', 'a/2'" in found.err
    assert "sample 'none' gave no sample in version 2" in dray("show", place.url, "none").err
    assert "10 samples of 4 sources in 2 shards" in dray("ls", place.url).out
