"""Which shards are merged, and the index of a merged shard: a pure plan."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.pipelines.building.merge import merge_indexes
from dray.pipelines.building.pack import read_index
from dray.pipelines.planning.merges import Group, num_small, plan_merges
from dray.pipelines.planning.recipe import Recipe
from dray.shards import Store
from dray.shards.log import new_write_id
from dray.shards.manifest import Shard
from dray.shards.tar import END, MAX_SHARD_BYTES, TarWriter
from tests.pipelines.building.test_build import SUFFIX
from tests.support.datasets import npy


def shard_of(number: int, num_bytes: int, num_samples: int = 1) -> Shard:
    return Shard(number=number, num_bytes=num_bytes, num_samples=num_samples, digest="", index_digest="")


def merged_of(group: Group) -> Shard:
    """What a group becomes; its number is its first shard's, so that groups stay comparable."""
    num_bytes = sum(shard.num_bytes - len(END) for shard in group) + len(END)
    return shard_of(group[0].number, num_bytes, sum(shard.num_samples for shard in group))


SIZES = st.lists(st.tuples(st.integers(2, 20).map(lambda blocks: 512 * blocks), st.integers(1, 12)), max_size=40)
TARGETS = st.integers(1, 40_000)
MOST_SAMPLES = st.none() | st.integers(1, 40)


def shards_of(sizes: Sequence[tuple[int, int]]) -> list[Shard]:
    return [shard_of(number, *size) for number, size in enumerate(sizes)]


@given(SIZES, TARGETS, MOST_SAMPLES)
def test_every_shard_is_in_one_group_in_its_order_and_groups_keep_the_limits(
    sizes: list[tuple[int, int]], target: int, most: int | None
) -> None:
    """A group takes the place of its first shard; only small shards are merged."""
    groups = plan_merges(shards_of(sizes), target, most)
    numbers = [[shard.number for shard in group] for group in groups]
    assert sorted(number for group in numbers for number in group) == list(range(len(sizes)))
    assert all(group == sorted(group) for group in numbers)
    assert [group[0] for group in numbers] == sorted(group[0] for group in numbers)
    for group in groups:
        if len(group) > 1:
            assert merged_of(group).num_bytes <= target
            assert all(2 * shard.num_bytes < target for shard in group)
            assert most is None or merged_of(group).num_samples <= most


@given(SIZES, TARGETS, MOST_SAMPLES)
def test_merging_again_changes_nothing(sizes: list[tuple[int, int]], target: int, most: int | None) -> None:
    """At most one small shard is left."""
    once = [merged_of(group) for group in plan_merges(shards_of(sizes), target, most)]
    assert plan_merges(once, target, most) == [(shard,) for shard in once]
    is_small = [2 * s.num_bytes < target and (most is None or 2 * s.num_samples < most) for s in once]
    assert sum(is_small) <= 1


@given(SIZES, st.integers(1, 12))
def test_merging_again_by_a_number_of_shards_changes_nothing(sizes: list[tuple[int, int]], num_shards: int) -> None:
    """Though merged tars are smaller by their ends, and so the target is too."""
    shards, recipe = shards_of(sizes), Recipe(suffixes=(SUFFIX,), num_shards=num_shards).to_json()
    target = -(-sum(shard.num_bytes for shard in shards) // num_shards)
    groups = plan_merges(shards, target)
    assert num_small(shards, recipe) == sum(len(group) for group in groups if len(group) > 1)
    assert num_small([merged_of(group) for group in groups], recipe) == 0


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([10], [[0]]),
        ([10, 10], [[0, 1]]),
        ([40, 90, 40, 90, 40, 9], [[0, 2], [1], [3], [4, 5]]),
        ([50, 50, 50], [[0], [1], [2]]),
        ([49, 49, 49], [[0, 1], [2]]),
    ],
)
def test_groups_by_size(sizes: list[int], expected: list[list[int]]) -> None:
    """In units of which a shard should have 100; less than half is small."""
    shards = [shard_of(number, len(END) + 1000 * size) for number, size in enumerate(sizes)]
    groups = plan_merges(shards, len(END) + 100_000)
    assert [[shard.number for shard in group] for group in groups] == expected


def test_exactly_half_of_the_target_is_not_small() -> None:
    """By size and by a number of shards, whose share of the bytes is rounded up."""
    assert len(plan_merges([shard_of(number, 2048) for number in range(3)], 4096)) == 3
    assert len(plan_merges([shard_of(number, 2048) for number in range(3)], 4097)) == 1
    recipe = Recipe(suffixes=(SUFFIX,), num_shards=3).to_json()
    assert num_small([shard_of(0, 1025), shard_of(1, 1025), shard_of(2, 4101)], recipe) == 2
    assert num_small([shard_of(0, 1025), shard_of(1, 1025), shard_of(2, 4100)], recipe) == 0


def test_no_shard_passes_4_gib_however_few_are_wanted() -> None:
    """A dataset that grew far beyond its number of shards."""
    shards = [shard_of(number, (1 << 30) + len(END)) for number in range(10)]
    groups = plan_merges(shards, 10 << 30)
    assert [len(group) for group in groups] == [3, 3, 3, 1]
    assert max(merged_of(group).num_bytes for group in groups) <= MAX_SHARD_BYTES


def test_a_shard_that_has_its_samples_is_not_small() -> None:
    """A million tiny samples make shards of the most samples, far below the size of a shard."""
    full, thin = shard_of(0, 60_000, 100_000), shard_of(1, 6000, 10_000)
    recipe = Recipe(suffixes=(SUFFIX,)).to_json()
    assert num_small([full, full, thin], recipe) == 0
    assert num_small([full, thin, full, thin, thin], recipe) == 3


def test_a_group_holds_no_more_samples_than_a_shard_may() -> None:
    """A group is closed by its samples as by its bytes."""
    shards = [shard_of(number, 2048, 4) for number in range(5)]
    assert [len(group) for group in plan_merges(shards, 1 << 20, 9)] == [2, 2, 1]
    assert [len(group) for group in plan_merges(shards, 1 << 20, 12)] == [3, 2]


NPY = st.sampled_from([npy(np.zeros(shape, dtype)) for shape in (2, 3) for dtype in ("<f4", "<i8")])
PARTS = st.dictionaries(st.sampled_from(["a", "b.npy", "dd"]), st.binary(max_size=600) | NPY, min_size=1)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_merged_index_is_what_reading_the_merged_tar_gives(shards: list[list[dict[str, bytes]]]) -> None:
    """For any suffixes of the samples, in any order."""
    store, whole, count = Store(f"memory://{new_write_id()}"), TarWriter(), 0
    for number, shard in enumerate(shards):
        tar = TarWriter()
        for parts in shard:
            count += 1
            for suffix, data in parts.items():
                name = f"{'long' * 40 if count == 3 else 'k'}{count}.{suffix}".encode()
                tar.add(name, data)
                whole.add(name, data)
        store.put_new(f"{number}.tar", tar.finish())
    store.put_new("whole.tar", whole.finish())
    merged = merge_indexes([read_index(store, f"{number}.tar") for number in range(len(shards))])
    assert merged.to_bytes() == read_index(store, "whole.tar").to_bytes()
