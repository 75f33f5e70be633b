"""A version of the samples that a program gives one after another."""

from collections.abc import Iterable
from contextlib import closing
from typing import Any

from dray.pipelines.building.report import BuildReport
from dray.pipelines.progress import sample_progress
from dray.pipelines.versions.retention import Retention
from dray.pipelines.writing.announce import announce_writing, open_written
from dray.pipelines.writing.samples import numbered
from dray.pipelines.writing.shard import ShardSize, WrittenShard, store_in_order
from dray.pipelines.writing.version import Contents, Writing
from dray.shards.layout import Location

STEP = "the iterable of samples"


def write_stream(
    samples: Iterable[Any],
    location: Location,
    size: ShardSize,
    *,
    keep_pickles: bool,
    build_id: str | None,
    retention: Retention | None,
    progress: bool,
) -> BuildReport:
    """Make a version of just these samples, in their order. Atomic; see `write_samples` for arguments and errors."""
    recipe = {
        "writer": "write_samples",
        "shard_samples": size.samples,
        "shard_bytes": size.num_bytes,
        "keep_pickles": keep_pickles,
    }
    base = open_written(location)
    writing = announce_writing(location, recipe, base, build_id=build_id, retention=retention, progress=progress)
    if writing.is_committed:
        return writing.report()
    renamed: dict[str, str] = {}
    with writing.storing():
        written = _store(writing, samples, size, keep_pickles=keep_pickles, renamed=renamed)
    return writing.commit_or_abandon(Contents(recipe=recipe, written=written, renamed=renamed))


def _store(
    writing: Writing, samples: Iterable[Any], size: ShardSize, *, keep_pickles: bool, renamed: dict[str, str]
) -> list[WrittenShard]:
    written: list[WrittenShard] = []
    title = f"writing {writing.location.prefix}"
    with (
        closing(numbered(samples, keep_pickles=keep_pickles, renamed=renamed)) as given,
        closing(store_in_order(writing.location, given, writing.intent.numbers, size, STEP)) as stored,
        sample_progress(title, total=None, unit="samples", show=writing.progress) as advance,
    ):
        for shard in stored:
            written.append(shard)
            advance(len(shard.keys), shard.num_bytes)
    return written
