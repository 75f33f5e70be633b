"""Splits by hash."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dray.loaders import Split
from dray.pipelines import split_by_hash

SHARES = {Split.train: 0.9, Split.val: 0.05, Split.test: 0.05}
NAMES = [f"name-{number}" for number in range(20_000)]


@given(st.sets(st.text(min_size=1), min_size=1), st.sets(st.text(min_size=1)), st.integers(0, 2**64 - 1))
def test_names_that_come_or_go_move_no_other(names: set[str], more: set[str], seed: int) -> None:
    """A name's group does not depend on the other names."""
    before = split_by_hash(sorted(names), SHARES, seed)
    after = split_by_hash(sorted(names | more), SHARES, seed)
    for group in SHARES:
        assert set(before[group]) == set(after[group]) & names


def test_every_name_is_in_one_group_and_keeps_its_order() -> None:
    """Nothing is lost, nothing doubled."""
    groups = split_by_hash(NAMES, SHARES)
    assert sorted(name for names in groups.values() for name in names) == sorted(NAMES)
    places = {name: place for place, name in enumerate(NAMES)}
    assert all(names == sorted(names, key=places.get) for names in groups.values())  # type: ignore[arg-type]


def test_shares_are_met_closely_and_a_seed_gives_another_split() -> None:
    """The hash is even: 20,000 names give a share of 5 % to within half a per cent."""
    groups = split_by_hash(NAMES, SHARES)
    assert len(groups[Split.val]) / len(NAMES) == pytest.approx(0.05, abs=0.005)
    assert split_by_hash(NAMES, SHARES, seed=1)[Split.val] != groups[Split.val]


def test_a_share_of_nothing_gets_nothing() -> None:
    """Also if it is the last one."""
    groups = split_by_hash(NAMES, {"all": 1.0, "none": 0.0})
    assert groups == {"all": NAMES, "none": []}


@pytest.mark.parametrize("shares", [{"a": 0.5}, {"a": 1.5, "b": -0.5}, {}])
def test_shares_that_do_not_add_up_to_one_are_refused(shares: dict[str, float]) -> None:
    """A split that would lose or double names."""
    with pytest.raises(ValueError, match="add up to 1"):
        split_by_hash(NAMES, shares)


def test_the_split_is_the_same_in_every_release() -> None:
    """A golden value: a test set must stay a test set."""
    groups = split_by_hash([f"n{number}" for number in range(12)], {"train": 0.5, "test": 0.5}, seed=3)
    assert groups["test"] == ["n1", "n5", "n6", "n7", "n10"]
