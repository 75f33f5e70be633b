"""Which small shards a compaction merges."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dray.pipelines.planning.recipe import DEFAULT_SHARD_BYTES, MAX_SHARD_SAMPLES
from dray.shards.manifest import Shard
from dray.shards.tar import END, MAX_SHARD_BYTES

Group = tuple[Shard, ...]


def num_small(shards: Sequence[Shard], recipe: Mapping[str, Any]) -> int:
    """Returns the number of shards that a compaction would merge with others.

    Args:
        shards: The shards of a version.
        recipe: The version's recipe, as its manifest records it.
    """
    return sum(len(group) for group in plan_for(shards, recipe) if len(group) > 1)


def plan_merges(shards: Sequence[Shard], target_bytes: int, max_samples: int | None = None) -> list[Group]:
    """Returns the shards of the next version: each is one that stays, or several to merge in this order.

    A shard is small if it has less than half of the target, in bytes and in samples. Small ones are joined to the small
    ones before them up to the target. So at most one small shard is left, and a second compaction changes nothing.

    Args:
        shards: The shards of the last version.
        target_bytes: Target size of a tar; at most 4 GiB are used.
        max_samples: Maximum number of samples in a shard; None: no limit.
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
    """Returns `plan_merges` for a recipe's shard size, or the size at which its number of shards holds the version."""
    if recipe.get("num_shards") is not None:
        return plan_merges(shards, -(-sum(shard.num_bytes for shard in shards) // recipe["num_shards"]))
    num_samples = recipe.get("shard_samples") or recipe.get("samples_per_shard")  # programs may record neither
    return plan_merges(shards, recipe.get("shard_bytes") or DEFAULT_SHARD_BYTES, num_samples or MAX_SHARD_SAMPLES)
