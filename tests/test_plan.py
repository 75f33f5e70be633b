"""Planning as tables and properties: values in, values out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.pipelines.plan import PlannedShard, Recipe, number_shards, plan, same_shards
from dray.pipelines.sources import Sources
from dray.shards.errors import CallError
from dray.shards.tar import MAX_SHARD_BYTES

SUFFIX = "x.pyd"


def sources(sizes: list[int], *, stamp: int = 7) -> Sources:
    names = [f"n{number}" for number in range(len(sizes))]
    stamps = np.full((len(sizes), 1), stamp, np.int64)
    rows = np.array(sizes, np.int64).reshape(-1, 1)
    return Sources(url="file:///inputs", names=names, suffixes=(SUFFIX,), sizes=rows, stamps=stamps)


def counts(shards: tuple[PlannedShard, ...]) -> list[int]:
    return [shard.stop - shard.start for shard in shards]


def assert_cut_in_order(shards: tuple[PlannedShard, ...], num_samples: int) -> None:
    assert [shard.start for shard in shards] == [0, *(shard.stop for shard in shards)][:-1]
    assert shards[-1].stop == num_samples


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 400))
def test_a_number_of_shards_is_met_exactly_and_evenly(num_samples: int, num_shards: int) -> None:
    """As many shards as asked for, or as samples if fewer; their counts differ by at most one."""
    planned = plan(sources([100] * num_samples), Recipe(suffixes=(SUFFIX,), num_shards=num_shards)).shards
    assert len(planned) == min(num_samples, num_shards)
    assert max(counts(planned)) - min(counts(planned)) <= 1
    assert_cut_in_order(planned, num_samples)


@settings(deadline=None)
@given(st.lists(st.integers(0, 9000), min_size=1, max_size=80), st.integers(2048, 20_000), st.integers(1, 9))
def test_shards_by_size_keep_both_limits(sizes: list[int], shard_bytes: int, shard_samples: int) -> None:
    """Only a sample that is larger than a shard makes a larger shard, alone."""
    recipe = Recipe(suffixes=(SUFFIX,), shard_bytes=shard_bytes, shard_samples=shard_samples)
    planned = plan(sources(sizes), recipe).shards
    assert all(shard.num_bytes <= shard_bytes or shard.stop - shard.start == 1 for shard in planned)
    assert max(counts(planned)) <= shard_samples
    assert_cut_in_order(planned, len(sizes))


def test_shards_over_4_gib_are_refused_with_the_number_that_fits() -> None:
    """The number in the message is enough, and one less is not."""
    large = sources([1 << 30] * 10)
    with pytest.raises(CallError, match="4 shards fit"):
        plan(large, Recipe(suffixes=(SUFFIX,), num_shards=2))
    with pytest.raises(CallError, match="4 GiB"):
        plan(large, Recipe(suffixes=(SUFFIX,), num_shards=3))
    fitting = plan(large, Recipe(suffixes=(SUFFIX,), num_shards=4)).shards
    assert max(shard.num_bytes for shard in fitting) <= MAX_SHARD_BYTES


def test_a_sample_over_4_gib_is_refused() -> None:
    """No number of shards helps."""
    with pytest.raises(CallError, match="one sample"):
        plan(sources([5 << 30]), Recipe(suffixes=(SUFFIX,)))


@pytest.mark.parametrize("num_shards", [0, -1])
def test_less_than_one_shard_is_a_value_error(num_shards: int) -> None:
    """The seed's rule."""
    with pytest.raises(ValueError, match="at least 1"):
        Recipe(suffixes=(SUFFIX,), num_shards=num_shards)


def test_a_shard_digest_follows_its_sources_and_its_recipe() -> None:
    """Another place, name, size, stamp, order or transform is another shard; other shards of the plan do not matter."""
    recipe = Recipe(suffixes=(SUFFIX,), num_shards=2)
    base = plan(sources([1, 2, 3, 4]), recipe).shards
    assert plan(sources([1, 2, 3, 9]), recipe).shards[0].digest == base[0].digest
    others = [
        plan(sources([1, 2, 3, 9]), recipe).shards[1],
        plan(sources([1, 2, 3, 4], stamp=8), recipe).shards[1],
        plan(sources([1, 2, 4, 3]), recipe).shards[1],
        plan(replace(sources([1, 2, 3, 4]), url="file:///others"), recipe).shards[1],
        plan(sources([1, 2, 3, 4]), Recipe(suffixes=(SUFFIX,), num_shards=2, transform="1")).shards[1],
    ]
    assert base[1].digest not in {shard.digest for shard in others}


def test_known_shards_keep_their_numbers_and_new_ones_follow_the_first_free() -> None:
    """Numbers of known digests are adopted, the others are reserved in order."""
    planned = plan(sources([1] * 4), Recipe(suffixes=(SUFFIX,), num_shards=4))
    known = {planned.shards[1].digest: 3}
    numbering = number_shards(planned, known, first=10)
    assert numbering.numbers == (10, 3, 11, 12)
    assert numbering.count == 3


def test_only_the_same_shards_in_the_same_order_are_nothing_to_do() -> None:
    """What a rerun compares with the last snapshot."""
    planned = plan(sources([1] * 3), Recipe(suffixes=(SUFFIX,), num_shards=3))
    digests = [shard.digest for shard in planned.shards]
    assert same_shards(planned, digests)
    assert not same_shards(planned, digests[::-1])
    assert not same_shards(planned, digests[:2])
