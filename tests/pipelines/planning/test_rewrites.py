"""What a written dataset's next version keeps, copies and makes again."""

from itertools import count

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.pipelines.planning.rewrites import COPIED, UNKNOWN, StoredRows, plan_reuse, plan_rewrites, whole_sources
from dray.shards.parsing.parquet import sample_schema

# The number of samples of each source, and the samples of a shard.
SAMPLES = st.lists(st.integers(0, 5), max_size=12)
PER_SHARD = st.integers(1, 6)


def stream(counts: list[int]) -> list[tuple[str, int]]:
    """(key, source) of each sample, in order; sources are numbered from 1."""
    return [(f"{source}-{copy}", source) for source, num in enumerate(counts, 1) for copy in range(num)]


def cut(samples: list[tuple[str, int]], per_shard: int, first: int = 0) -> list[StoredRows]:
    """The shards of a stream."""
    return [
        StoredRows(
            number=first + number,
            keys=[key for key, _ in samples[start : start + per_shard]],
            fingerprints=np.array([source for _, source in samples[start : start + per_shard]], np.uint64),
        )
        for number, start in enumerate(range(0, len(samples), per_shard))
    ]


def table(shards: list[StoredRows]) -> pa.Table:
    """The table of samples of a version with these shards."""
    rows = [
        {"key": key, "source": str(source), "shard": shard.number, "row": row}
        for shard in shards
        for row, (key, source) in enumerate(zip(shard.keys, shard.fingerprints.tolist(), strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=sample_schema(has_sources=True)).sort_by("key")


def held(shards: list[StoredRows]) -> dict[str, int]:
    """Key -> fingerprint of each sample; a key that is there twice fails."""
    pairs = [pair for shard in shards for pair in zip(shard.keys, shard.fingerprints.tolist(), strict=True)]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@settings(deadline=None)
@given(SAMPLES, PER_SHARD, st.data())
def test_each_sample_of_an_unchanged_source_is_kept_or_copied_once(
    counts: list[int], per_shard: int, data: st.DataObject
) -> None:
    """Shards without a stale sample stay, in order; the rows of the others are those that are not stale."""
    shards = cut(stream(counts), per_shard)
    stale = data.draw(st.sets(st.integers(1, len(counts) + 1)))
    plan = plan_rewrites(table(shards), [shard.number for shard in shards], {str(source) for source in stale})
    by_number = {shard.number: shard.fingerprints.tolist() for shard in shards}
    assert plan.kept == tuple(number for number, sources in by_number.items() if not stale.intersection(sources))
    assert plan.survivors.select(["shard", "row"]).to_pylist() == [
        {"shard": number, "row": row}
        for number, sources in by_number.items()
        for row, source in enumerate(sources)
        if number not in plan.kept and source not in stale
    ]


@settings(deadline=None)
@given(SAMPLES, PER_SHARD, st.data())
def test_a_source_counts_as_whole_only_if_all_its_samples_are_stored(
    counts: list[int], per_shard: int, data: st.DataObject
) -> None:
    """Whichever shards are missing; all but those at an edge count."""
    shards = cut(stream(counts), per_shard, 7)
    stored = [shard for shard in shards if data.draw(st.booleans())]
    numbers = {shard.number for shard in stored}
    whole = whole_sources(7, stored, set(range(1, len(counts) + 1)))
    for source in range(1, len(counts) + 1):
        of_source = [shard for shard in shards if source in shard.fingerprints]
        around = {number for shard in of_source for number in (shard.number, *_beside(shard, source))}
        assert (source in whole) == (bool(of_source) and around <= numbers | {6})


def _beside(shard: StoredRows, source: int) -> list[int]:
    """The shards that may hold more samples of a source, by what this one holds."""
    before = [shard.number - 1] if shard.fingerprints[0] == source else []
    return before + ([shard.number + 1] if shard.fingerprints[-1] == source else [])


def test_samples_that_do_not_follow_each_other_make_no_source_whole() -> None:
    """A pipeline that shuffles may leave the rest of any source in a shard that is missing."""
    shards = cut([("a", 1), ("b", 2), ("c", 3), ("d", 2), ("e", 4), ("f", 5)], 3)
    assert whole_sources(0, shards, {1, 2, 3, 4, 5}) == set()
    assert whole_sources(0, shards, {1, 3, 4, 5}) == {1, 3, 4}  # 2 is of another run's
    assert whole_sources(0, [*shards, *cut([("g", UNKNOWN)], 1, 2)], {1, 3, 4, 5}) == set()


@settings(deadline=None)
@given(SAMPLES, PER_SHARD, st.integers(1, 4), st.data())
def test_runs_that_die_again_and_again_end_in_one_of_each_sample(
    counts: list[int], per_shard: int, deaths: int, data: st.DataObject
) -> None:
    """Each run stores some shards of its stream; what the last one adopts, copies and makes is the whole."""
    survivors = {(f"old-{row}", 99 ^ COPIED): (0, row) for row in range(data.draw(st.integers(0, 4)))}
    expected = {key: 99 for key, _ in survivors} | dict(stream(counts))
    stored: list[tuple[int, list[StoredRows]]] = []
    numbers = count(1)
    for death in range(deaths):
        wanted = set(range(1, len(counts) + 1))
        reuse = plan_reuse(stored, wanted, survivors)
        made = [(key, source) for key, source in stream(counts) if source not in reuse.done]
        copied = [(key, source) for key, source in reuse.copies]
        first = 100 * next(numbers)
        new = cut(made + copied, per_shard, first)
        adopted = [shard for _, shards in stored for shard in shards if shard.number in reuse.adopted]
        found = held([*adopted, *new])
        assert {
            key: source ^ COPIED if source ^ COPIED < 2**32 else source for key, source in found.items()
        } == expected
        stored.append((first, [shard for shard in new if death == 0 or data.draw(st.booleans())]))
