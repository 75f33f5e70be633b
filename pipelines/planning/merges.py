"""Which small shards to merge: a rule, and the list of shards that follows from it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dray.shards.manifest import Shard
from dray.shards.tar import END, MAX_SHARD_BYTES

Group = tuple[Shard, ...]


def num_small(shards: Sequence[Shard], recipe: Mapping[str, Any]) -> int:
    """How many shards a compaction would merge with others.

    Args:
        shards: Of a version.
        recipe: Its recipe, as its manifest records it.
    """
    return sum(len(group) for group in plan_for(shards, recipe) if len(group) > 1)


def plan_merges(shards: Sequence[Shard], target_bytes: int, max_samples: int | None = None) -> list[Group]:
    """The shards of the next version: each is one that stays, or several that are merged in this order.

    A shard is small when it has less than half of what a shard should have, in bytes and in samples. Small ones are
    joined to the small ones before them up to the target. So at most one small shard is left, and doing it again
    changes nothing.

    Args:
        shards: Of the last version.
        target_bytes: Of a tar; 4 GiB where it is more.
        max_samples: Of a shard; None: any number.
    """
    most_bytes, most_samples = min(target_bytes, MAX_SHARD_BYTES), math.inf if max_samples is None else max_samples
    groups: list[list[Shard]] = []
    last: list[Shard] = []  # the group that small ones join
    num_bytes = num_samples = 0
    for shard in shards:
        if 2 * shard.num_bytes >= most_bytes or 2 * shard.num_samples >= most_samples:
            groups.append([shard])
            continue
        num_bytes, num_samples = num_bytes + shard.num_bytes - len(END), num_samples + shard.num_samples
        if not last or num_bytes > most_bytes or num_samples > most_samples:
            last, num_bytes, num_samples = [], shard.num_bytes, shard.num_samples
            groups.append(last)
        last.append(shard)
    return [tuple(group) for group in groups]


def plan_for(shards: Sequence[Shard], recipe: Mapping[str, Any]) -> list[Group]:
    """Return the recipe's shard size, or the size at which its number of shards holds the version."""
    if recipe["num_shards"] is None:
        return plan_merges(shards, recipe["shard_bytes"], recipe["shard_samples"])
    return plan_merges(shards, -(-sum(shard.num_bytes for shard in shards) // recipe["num_shards"]))
