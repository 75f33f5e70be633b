"""Planning as tables and properties: values in, values out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.pipelines.building.tables import source_table
from dray.pipelines.inputs.sources import Sources
from dray.pipelines.planning.plan import Last, Plan, PlannedShard, number_shards, plan, plan_digest
from dray.pipelines.planning.recipe import Recipe
from dray.shards.errors import CallError
from dray.shards.manifest import Shard
from dray.shards.tar import MAX_SHARD_BYTES, TarWriter

SUFFIX = "x.pyd"


def sources(sizes: list[int], *, stamp: int = 7) -> Sources:
    names = [f"n{number}" for number in range(len(sizes))]
    stamps = np.full((len(sizes), 1), stamp, np.int64)
    rows = np.array(sizes, np.int64).reshape(-1, 1)
    return Sources(url="file:///inputs", names=names, suffixes=(SUFFIX,), sizes=rows, stamps=stamps)


def counts(shards: tuple[PlannedShard, ...]) -> list[int]:
    return [len(shard.rows) for shard in shards]


def assert_cut_in_order(shards: tuple[PlannedShard, ...], num_samples: int) -> None:
    assert np.concatenate([shard.rows for shard in shards]).tolist() == list(range(num_samples))


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
    assert all(shard.num_bytes <= shard_bytes or len(shard.rows) == 1 for shard in planned)
    assert max(counts(planned)) <= shard_samples
    assert_cut_in_order(planned, len(sizes))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(85, 110), st.integers(0, 1100), st.sampled_from("aé")), min_size=1, max_size=9))
def test_a_planned_shard_is_never_smaller_than_its_tar(samples: list[tuple[int, int, str]]) -> None:
    """Names that need a longer header, because of their length or their letters, count with it."""
    names = [f"{number}{letter * (length - 1)}" for number, (length, _, letter) in enumerate(samples)]
    planned = plan(replace(sources([size for _, size, _ in samples]), names=names), Recipe(suffixes=(SUFFIX,))).shards
    tar = TarWriter()
    for name, (_, size, _) in zip(names, samples, strict=True):
        tar.add(f"{name}.{SUFFIX}".encode(), bytes(size))
    assert sum(shard.num_bytes for shard in planned) >= len(tar.finish())


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
    numbering = number_shards(planned.slots, known, first=10)
    assert numbering.numbers == (10, 3, 11, 12)
    assert numbering.count == 3


def named(fingerprints: dict[str, int]) -> Sources:
    """Sources of one byte each: name -> stamp."""
    names = list(fingerprints)
    stamps = np.array(list(fingerprints.values()), np.int64).reshape(-1, 1)
    sizes = np.ones((len(names), 1), np.int64)
    return Sources(url="file:///inputs", names=names, suffixes=(SUFFIX,), sizes=sizes, stamps=stamps)


RECIPE = Recipe(suffixes=(SUFFIX,), num_shards=3)


def committed(before: Sources, planned: Plan, recipe: Recipe = RECIPE, *, missing: set[int] | None = None) -> Last:
    """The snapshot that a plan makes, as the next plan sees it."""
    numbers = number_shards(planned.slots, {}, first=0).numbers
    shards, shard_of, row_of = [], np.zeros(len(before), np.int64), np.zeros(len(before), np.int64)
    for shard, number in zip(planned.shards, numbers, strict=True):
        shard_of[shard.rows], row_of[shard.rows] = number, np.arange(len(shard.rows))
        shards.append(Shard(number=number, num_bytes=shard.num_bytes, num_samples=len(shard.rows),
                            digest=shard.digest, index_digest=""))  # fmt: skip
    table = source_table(before, np.zeros(before.sizes.shape, np.uint64), (shard_of, row_of))
    whole = frozenset(numbers) - (missing or set())
    return Last(recipe=recipe.to_json(), source_url=before.url, shards=shards, whole=whole, table=table)


SAMPLES = st.dictionaries(st.sampled_from([f"k{number}" for number in range(12)]), st.integers(1, 3), min_size=1)


@settings(deadline=None)
@given(SAMPLES, SAMPLES, st.integers(1, 5))
def test_a_next_plan_holds_each_sample_once_and_keeps_what_did_not_change(
    then: dict[str, int], now: dict[str, int], num_shards: int
) -> None:
    """Reused shards hold just the samples that they held, unchanged; every other sample is packed."""
    recipe = Recipe(suffixes=(SUFFIX,), num_shards=num_shards)
    before, after = named(then), named(now)
    first = plan(before, recipe)
    second = plan(after, recipe, committed(before, first, recipe))
    rows = np.concatenate([shard.rows for shard in second.shards])
    assert sorted(rows.tolist()) == list(range(len(now)))
    assert second.has_work == (then != now)
    held = {number: [before.names[row] for row in shard.rows] for number, shard in enumerate(first.shards)}
    for shard in second.shards:
        names = [after.names[row] for row in shard.rows]
        if shard.fate == "reused":
            assert names == held[shard.number]  # type: ignore[index]
            assert all(then[name] == now[name] for name in names)
    kept = {shard.number for shard in second.shards if shard.fate == "reused"}
    assert kept == {number for number, names in held.items() if all(then[name] == now.get(name) for name in names)}


def test_a_changed_sample_rewrites_its_shard_in_its_old_order_and_place() -> None:
    """Its neighbours stay; removed samples leave; new ones come last."""
    before = named(dict.fromkeys("abcdef", 1))
    last = committed(before, plan(before, RECIPE))
    second = plan(named({"x": 1, "f": 1, "e": 1, "d": 2, "c": 1, "a": 1}), RECIPE, last)
    found = [(shard.fate, ["xfedca"[row] for row in shard.rows]) for shard in second.shards]
    assert found == [("rewritten", ["a"]), ("rewritten", ["c", "d"]), ("reused", ["e", "f"]), ("new", ["x"])]
    assert second.shards[0].reason == "of 000000: 0 changed, 1 removed"
    assert second.shards[1].reason == "of 000001: 1 changed, 0 removed"
    assert number_shards(second.slots, {}, first=3).numbers == (3, 4, 2, 5)


def test_a_shard_with_no_sample_left_is_dropped() -> None:
    """And the others stay."""
    before = named(dict.fromkeys("abcdef", 1))
    second = plan(named(dict.fromkeys("abef", 1)), RECIPE, committed(before, plan(before, RECIPE)))
    assert [shard.number for shard in second.shards] == [0, 2]
    assert [(shard.number, reason) for shard, reason in second.dropped] == [(1, "all 2 samples removed")]
    assert second.has_work


def test_a_missing_shard_is_packed_again_under_another_number() -> None:
    """With the reason."""
    before = named(dict.fromkeys("abcdef", 1))
    second = plan(before, RECIPE, committed(before, plan(before, RECIPE), missing={1}))
    assert [shard.fate for shard in second.shards] == ["reused", "rewritten", "reused"]
    assert "000001 or its index is missing or cut" in second.shards[1].reason


def test_a_touched_sample_of_the_same_content_packs_nothing_and_is_noted() -> None:
    """The next snapshot has its new fingerprint."""
    before = named(dict.fromkeys("abcdef", 1))
    touched = named({**dict.fromkeys("abcdef", 1), "b": 2})
    is_same = np.array([name == "b" for name in touched.names])
    second = plan(touched, RECIPE, committed(before, plan(before, RECIPE)), is_same)
    assert {shard.fate for shard in second.shards} == {"reused"}
    assert (second.num_refreshed, second.has_work) == (1, True)


def test_a_changed_recipe_rebuilds_and_says_why() -> None:
    """Each changed value, then and now."""
    before = named(dict.fromkeys("abcdef", 1))
    last = committed(before, plan(before, RECIPE))
    second = plan(before, Recipe(suffixes=(SUFFIX,), num_shards=2, transform="7"), last)
    assert [shard.fate for shard in second.shards] == ["new", "new"]
    assert second.shards[0].reason == "transform was None, is '7'; num_shards was 3, is 2"


def test_another_order_of_the_same_names_is_nothing_to_do() -> None:
    """The order given counts for new samples."""
    before = named(dict.fromkeys("abcdef", 1))
    assert not plan(named(dict.fromkeys("fedcba", 1)), RECIPE, committed(before, plan(before, RECIPE))).has_work


def test_a_plan_that_packs_a_shard_again_is_another_than_one_that_keeps_it() -> None:
    """Although the shard's digest is equal: one must not work under the other's intent and reuse the name."""
    before = named(dict.fromkeys("abcdef", 1))
    first = plan(before, RECIPE)
    keeps, repacks = (plan(before, RECIPE, committed(before, first, missing=missing)) for missing in (set(), {1}))
    assert [shard.digest for shard in keeps.shards] == [shard.digest for shard in repacks.shards]
    assert plan_digest(keeps.slots) != plan_digest(repacks.slots)
