"""Splitting samples into train, val and test by a hash of their names."""

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

from xxhash import xxh3_64_intdigest

from dray.shards.arguments import as_seed
from dray.shards.errors import CallError

Group = TypeVar("Group", bound=Hashable)


def split_by_hash(names: Iterable[str], fractions: Mapping[Group, float], seed: int = 0) -> dict[Group, list[str]]:
    """Returns names dealt to groups by xxh3_64 of each: a group depends only on the name, `fractions` and `seed`.

    Adding or removing names moves no other name to another group, so a test set stays a test set as data grow.

    Args:
        names: The samples; their order is kept within each group.
        fractions: Group -> share; the shares add up to 1. The order of the groups counts.
        seed: Another seed gives another split.

    Returns:
        Group -> names; a group may be empty.

    Raises:
        CallError: The shares are negative or do not add up to 1, or the seed is not an integer.
    """
    if any(share < 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise CallError(f"the shares of a split add up to 1, none below 0: {dict(fractions)!r}")
    seed = as_seed("seed", seed)
    groups: dict[Group, list[str]] = {group: [] for group in fractions}
    for name in names:
        groups[_group_at(xxh3_64_intdigest(name.encode(), seed) / 2**64, fractions)].append(name)
    return groups


def _group_at(point: float, fractions: Mapping[Group, float]) -> Group:
    """Returns the group whose part of [0, 1) holds the point; beyond the end by rounding: the last share above 0."""
    *others, last = [group for group, share in fractions.items() if share > 0]
    for group in others:
        if point < fractions[group]:
            return group
        point -= fractions[group]
    return last
