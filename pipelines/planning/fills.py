"""How the inputs of `write_samples` are dealt to tasks, and what of a task earlier attempts stored. Pure functions.

A task makes the samples of a run of inputs and cuts them into shards. So shards do not depend on the number of workers.
The first shard of task p of n has the number p, its further ones n + p, 2n + p and so on.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

FEW_TASKS = 16  # minimum number of tasks by default, for that many workers,
FEW_INPUTS = 16  # unless they would have fewer inputs than this
LAST = 1  # the bit of a stored fingerprint that marks the last sample of a source


@dataclass(frozen=True, slots=True)
class Item:
    """A source of a task.

    Attributes:
        position: Its position among the inputs.
        rows: The rows of the old shard to copy; None: its samples are made.
    """

    position: int
    rows: range | None = None


@dataclass(frozen=True, slots=True)
class Fill:
    """The sources of a task, in the order of its samples.

    Attributes:
        items: The sources.
        shard: Number of the shard of the last version that it replaces; None if it holds new inputs.
    """

    items: tuple[Item, ...]
    shard: int | None = None


def plan_fills(
    samples: pa.Table,
    touched: Sequence[int],
    stale: Collection[str],
    positions: Mapping[str, int],
    calls: Sequence[int],
) -> tuple[list[Fill], list[int]]:
    """Returns a task for each shard to rewrite, in its old order, and the positions of the inputs that it has not.

    Args:
        samples: The last version's table of samples.
        touched: Numbers of its shards that are rewritten, in order.
        stale: Keys of the sources that are gone or changed; samples of others are copied.
        positions: Key -> position of each input.
        calls: Positions of the inputs whose samples are made, ascending.
    """
    fills: list[Fill] = []
    left = dict.fromkeys(calls)
    for number, sources in _sources_of(samples, touched).items():
        items: list[Item] = []
        for key, group in groupby(enumerate(sources), key=lambda entry: entry[1]):
            rows = [row for row, _ in group]
            if key not in stale:
                items.append(Item(positions[key], range(rows[0], rows[-1] + 1)))
            elif key in positions and positions[key] in left:
                del left[positions[key]]
                items.append(Item(positions[key]))
        if items:
            fills.append(Fill(tuple(items), number))
    return fills, list(left)


def _sources_of(samples: pa.Table, numbers: Collection[int]) -> dict[int, list[str]]:
    """Returns number -> key of the source of each row, for some shards."""
    is_of = pc.call_function(
        "is_in", [samples["shard"]], pc.SetLookupOptions(value_set=pa.array(list(numbers), pa.int64()))
    )
    table = samples.filter(is_of).sort_by([("shard", "ascending"), ("row", "ascending")])
    sources: dict[int, list[str]] = {number: [] for number in numbers}
    for number, source in zip(table["shard"].to_pylist(), table["source"].to_pylist(), strict=True):
        sources[number].append(source)
    return sources


def deal(positions: Sequence[int], bounds: NDArray[np.int64]) -> list[Fill]:
    """Returns tasks of runs of inputs, between half-open bounds."""
    pairs = zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    return [Fill(tuple(map(Item, positions[start:stop]))) for start, stop in pairs]


def num_tasks_for(num_inputs: int, bytes_per_input: float, shard_bytes: int, *, is_default: bool) -> int:
    """Returns the number of tasks with about a shard each.

    Args:
        num_inputs: Number of inputs.
        bytes_per_input: Bytes of an input's samples, on average of the first.
        shard_bytes: Maximum size of a shard.
        is_default: Whether the caller left the size to dray; then small datasets have several tasks as well.
    """
    by_size = -(-num_inputs * bytes_per_input // shard_bytes)
    fewest = min(FEW_TASKS, num_inputs // FEW_INPUTS) if is_default else 1
    return int(min(num_inputs, max(by_size, fewest, 1)))


def numbers_of(first: int, stop: int, position: int, num_tasks: int) -> range:
    """Returns the shard numbers of a task, in the order in which it uses them."""
    return range(first + position, stop, num_tasks)


@dataclass(slots=True)
class Progress:
    """How far the shards that earlier attempts of a task stored have come.

    Attributes:
        place: The item of the last stored sample.
        counts: Number of stored samples by item.
        is_whole: Whether that item has no further sample.
    """

    place: int = 0
    counts: dict[int, int] = field(default_factory=dict)
    is_whole: bool = False

    def is_done(self, item: int) -> bool:
        """Whether all samples of an item that has some are stored."""
        return item in self.counts and (item < self.place or self.is_whole)


def advance(
    progress: Progress,
    items: Sequence[Item],
    marks: Mapping[int, int],
    sources: NDArray[np.uint64],
    fingerprints: NDArray[np.uint64],
) -> Progress | None:
    """Returns the progress after one more stored shard; None if the shard is not the task's next.

    Args:
        progress: The progress before it.
        items: The sources of the task.
        marks: Position -> fingerprint of its source.
        sources: (n,) position of each sample's source.
        fingerprints: (n,) stored fingerprint of each sample's source.
    """
    place, counts, is_whole = progress.place, dict(progress.counts), progress.is_whole
    rows = zip(sources.tolist(), fingerprints.tolist(), strict=True)
    for position, group in groupby(rows, key=lambda row: row[0]):
        found = [row[1] for row in group]
        place = _place_of(position, items, place, is_open=place in counts and not is_whole, is_whole=is_whole)
        if place < 0 or any((mark | LAST) != (marks[position] | LAST) for mark in found):
            return None
        counts[place] = counts.get(place, 0) + len(found)
        rows_to_copy = items[place].rows
        is_whole = counts[place] == len(rows_to_copy) if rows_to_copy is not None else bool(found[-1] & LAST)
    return Progress(place, counts, is_whole)


def _place_of(position: int, items: Sequence[Item], place: int, *, is_open: bool, is_whole: bool) -> int:
    """Returns the item of the next stored sample; -1 if samples before it are missing."""
    for number in range(place + is_whole, len(items)):
        if items[number].position == position:
            return number
        if is_open or items[number].rows is not None:
            return -1
    return -1
