"""The datasets of a split side by side: which must not share a folder, and which samples move between groups.

A sample that is in two groups is both trained and tested on. The build of one group cannot detect that, so all groups
are compared before any of them is written.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dray.cluster.cli.datasets import datasets_below
from dray.pipelines import split_by_hash
from dray.pipelines.building.survey import BuildSpec, Work
from dray.pipelines.planning.plan import find_in
from dray.pipelines.progress import say
from dray.shards.layout import Layout, Location, some
from dray.shards.log import numbers_in, read_head
from dray.shards.snapshot import Snapshot
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store


class Leak(NamedTuple):
    """A dataset beside the groups of a split that shares samples with them."""

    dataset: Location
    num_samples: int
    num_shared: int


def group_folders(
    destination: str, names: list[str], fractions: Mapping[str, float] | None, seed: int
) -> dict[str, list[str]]:
    """Returns folder -> names of its samples, without the groups that get none, which a message names."""
    if fractions is None:
        return {destination: names}
    groups = split_by_hash(names, fractions, seed)
    for group in (group for group, members in groups.items() if not members):
        say(f"group {group!r} of the split got none of the {len(names):,} samples: no dataset is made of it")
    return {f"{destination.rstrip('/')}/{group}": members for group, members in groups.items() if members}


def layout_refusal(destination: Store, layout: Layout, options: StorageOptions, *, is_split: bool) -> str:
    """Returns why a split, or a dataset without one, must not be built into a folder; empty if it may."""
    is_dataset = bool(numbers_in(destination, layout.commits))
    if is_split and is_dataset:
        return (
            f"{destination.url} is itself a dataset with the prefix {layout.prefix!r}, and the groups of --split would "
            "be folders in it, with the same samples: choose another DEST or --prefix"
        )
    below = (
        [] if is_split or is_dataset else [one.store.url for one in datasets_below(destination, layout.prefix, options)]
    )
    if below:
        return (
            f"{destination.url} is the parent folder of the datasets {some(below, 5)}: give --split to build those, or "
            "choose another DEST or --prefix for one dataset of all samples"
        )
    return ""


def moved_between(works: Mapping[str, Work]) -> str:
    """Returns how many samples move between the groups of a split, such as "12 from val to train"; empty if none do.

    Args:
        works: Group -> what a build of it would do.
    """
    changed = {group: work for group, work in works.items() if work.last and work.planned.changes.num_removed}
    home = {key: group for group, work in changed.items() for key in _removed(work)}
    moves = Counter(
        (home[key], group)
        for group, work in works.items()
        if home and work.planned.changes.num_added
        for key in _added(work)
        if key in home
    )
    return ", ".join(f"{count:,} from {old} to {new}" for (old, new), count in sorted(moves.items()))


def leaks(
    destination: Store, options: StorageOptions, specs: Sequence[BuildSpec], works: Sequence[Work]
) -> Iterator[Leak]:
    """Yields the datasets beside a split's groups that hold samples of the groups, from the same input folder."""
    groups = {spec.job.location.url for spec in specs}
    origins = {spec.job.inputs.url for spec in specs} | {work.last.source_url for work in works if work.last}
    for found in datasets_below(destination, specs[0].job.location.prefix, options):
        head = None if found.store.url in groups else read_head(found)
        if head is None:
            continue
        snapshot = Snapshot.load(found, head)
        manifest = snapshot.manifest
        if not manifest.shards or manifest.sources is None or manifest.source_url not in origins:
            continue
        table = snapshot.sources()
        shared = sum(int((find_in(table, work.sources) >= 0).sum()) for work in works)
        if shared:
            yield Leak(found, len(table), shared)


def leak_refusal(leak: Leak) -> str:
    """Returns why a build beside a leak is refused."""
    name = leak.dataset.store.url.rpartition("/")[2]
    return (
        f"{leak.dataset.store.url} is not a group of this --split, and {leak.num_shared:,} of its {leak.num_samples:,} "
        f"samples are in the groups: a model trained on the groups would be tested on training data by {name!r}. Name "
        f"{name!r} in --split, or give --missing-groups drop (its next version is empty; dray rollback restores it as "
        "long as its older versions are kept), or --missing-groups keep"
    )


def _added(work: Work) -> list[str]:
    keys = work.sources.keys()
    if work.last is None:
        return keys
    return [keys[row] for row in np.flatnonzero(find_in(work.last.table, work.sources) < 0).tolist()]


def _removed(work: Work) -> list[str]:
    table = work.last.table if work.last else pa.table({"key": pa.array([], pa.string())})
    is_kept = np.zeros(len(table), bool)
    rows = find_in(table, work.sources)
    is_kept[rows[rows >= 0]] = True
    found: list[str] = table["key"].filter(pa.array(~is_kept)).to_pylist()
    return found
