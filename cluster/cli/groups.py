"""The datasets of a split beside each other: what must not share a folder, and what moves between groups.

A sample that is in two groups is trained on and tested on. The build of one group cannot see that, so all groups are
looked at here before any of them is written.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dray.cluster.cli.datasets import Found, datasets_below
from dray.pipelines.building.survey import BuildSpec, Work
from dray.pipelines.planning.plan import find_in
from dray.shards.layout import Layout, some
from dray.shards.log import numbers_in, read_head
from dray.shards.snapshot import Snapshot
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store


class Leak(NamedTuple):
    """A dataset beside the groups of a split that is none of them, and holds samples that they hold too."""

    dataset: Found
    num_samples: int
    num_shared: int


def layout_refusal(destination: Store, layout: Layout, options: StorageOptions, *, is_split: bool) -> str:
    """Returns why a split, or a dataset that is none, must not be built into a folder; empty where it may."""
    is_dataset = bool(numbers_in(destination, layout.commits))
    if is_split and is_dataset:
        return (
            f"{destination.url} is a dataset with the prefix {layout.prefix!r} itself, and the groups of --split would "
            "be folders in it, with the same samples: choose another DEST or --prefix"
        )
    below = (
        [] if is_split or is_dataset else [one.store.url for one in datasets_below(destination, layout.prefix, options)]
    )
    if below:
        return (
            f"{destination.url} is the folder of the datasets {some(below, 5)}: give --split to build those, or "
            "choose another DEST or --prefix for one dataset of all samples"
        )
    return ""


def moved_between(works: Mapping[str, Work]) -> str:
    """Returns how many samples move between the groups of a split, such as "12 from val to train"; empty for none.

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
    """Yields the datasets beside a split's groups that hold samples of the same input folder which the groups hold."""
    groups = {spec.job.output.url for spec in specs}
    origins = {spec.job.inputs.url for spec in specs} | {work.last.source_url for work in works if work.last}
    for found in datasets_below(destination, specs[0].job.layout.prefix, options):
        head = None if found.store.url in groups else read_head(found.store, found.layout)
        if head is None:
            continue
        snapshot = Snapshot.load(found.store, found.layout, head)
        if not snapshot.shards or snapshot.manifest.source_url not in origins:
            continue
        table = snapshot.sources()
        shared = sum(int((find_in(table, work.sources) >= 0).sum()) for work in works)
        if shared:
            yield Leak(found, len(table), shared)


def leak_refusal(leak: Leak) -> str:
    """Returns why a build that makes or keeps a leak is refused."""
    name = leak.dataset.store.url.rpartition("/")[2]
    return (
        f"{leak.dataset.store.url} is no group of this --split, and {leak.num_shared:,} of its {leak.num_samples:,} "
        f"samples are in the groups: who trains on those and tests on {name!r} tests on what was trained on. Name "
        f"{name!r} in --split, or give --missing-groups drop (its next version is empty; the older ones stay for a "
        "while, and dray rollback brings it back), or --missing-groups keep"
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
