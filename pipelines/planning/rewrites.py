"""What the next version of a written dataset keeps, copies and makes again, sample by sample.

A source may give none or many samples, so a shard is kept or rewritten by the sources of its samples: it stays if none
of them changed, else its other samples are copied. Shards that a dead writer stored count as well, as far as they show
that all samples of a source are in them. All functions here are pure.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

COPIED = 0xC0B1ED5A3B1E0001  # changes the fingerprints of copies, which do not show that all samples of a source exist

UNKNOWN = 0  # the fingerprint of a source whose samples may be anywhere in what a writer stores


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Rewrites:
    """What happens to the shards of the last version.

    Attributes:
        kept: Numbers of the shards that stay, in order.
        survivors: The rows of the table of samples that are copied from the other shards, in the shards' order.
    """

    kept: tuple[int, ...]
    survivors: pa.Table


def plan_rewrites(samples: pa.Table, shards: Sequence[int], stale: Collection[str]) -> Rewrites:
    """Returns which shards stay, and which samples of the others are copied.

    Args:
        samples: Table of samples with the columns source, shard and row.
        shards: Numbers of the version's shards, in order.
        stale: Keys of the sources that are gone or changed.
    """
    keys = pc.SetLookupOptions(value_set=pa.array(list(stale), pa.string()))
    is_stale = pc.call_function("is_in", [samples["source"]], keys).to_numpy()
    numbers, rows = samples["shard"].to_numpy(), samples["row"].to_numpy()
    touched = np.unique(numbers[is_stale])
    copied = np.flatnonzero(~is_stale & np.isin(numbers, touched))
    places = {number: place for place, number in enumerate(shards)}
    place_of = np.array([places[number] for number in numbers[copied].tolist()], np.int64)
    order = np.lexsort((rows[copied], place_of))
    return Rewrites(
        kept=tuple(number for number in shards if number not in set(touched.tolist())),
        survivors=samples.take(pa.array(copied[order])),
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StoredRows:
    """The samples of a shard that a writer stored and did not commit.

    Attributes:
        number: Number of the shard.
        keys: n keys, in the shard's order.
        fingerprints: (n,) uint64, fingerprint of the source of each; XORed with `COPIED` for a copy.
    """

    number: int
    keys: Sequence[str]
    fingerprints: NDArray[np.uint64]


Stored = tuple[int, Sequence[StoredRows]]
"""The first number that a writer reserved, and its shards in ascending order."""

Place = tuple[int, int]
"""Number of a shard, and a row in it."""

Copied = tuple[str, int]
"""Key of a sample to copy, and the fingerprint of its source, XORed with `COPIED`."""


@dataclass(slots=True, eq=False, kw_only=True)
class Reuse:
    """What of stored shards the next version holds.

    Attributes:
        done: Fingerprints of the sources of which all samples are stored.
        adopted: Numbers of the stored shards that it holds as they are.
        copies: Key of each sample to copy and the fingerprint of its source, XORed with `COPIED` -> its place.
    """

    copies: dict[Copied, Place]
    done: set[int] = field(default_factory=set)
    adopted: list[int] = field(default_factory=list)


def plan_reuse(stored: Iterable[Stored], wanted: Collection[int], survivors: Mapping[Copied, Place]) -> Reuse:
    """Returns which sources are done, which stored shards are adopted, and which samples are left to copy.

    A stored shard is adopted if each of its samples is of a source that is done there, or is a copy that is needed.

    Args:
        stored: What each writer stored, the oldest first.
        wanted: Fingerprints of the sources whose samples are needed.
        survivors: See `Reuse.copies`: the samples of the last version to copy.
    """
    reuse = Reuse(copies=dict(survivors))
    for first, shards in stored:
        whole = whole_sources(first, shards, {source for source in wanted if source not in reuse.done})
        reuse.done |= whole
        for shard in shards:
            _take_shard(reuse, shard, whole)
    return reuse


def _take_shard(reuse: Reuse, shard: StoredRows, whole: Collection[int]) -> None:
    """Adopt a shard, or note the samples of it that are to be copied."""
    samples = list(zip(shard.keys, shard.fingerprints.tolist(), strict=True))
    copied = [sample for sample in samples if sample in reuse.copies]
    if len(copied) + sum(source in whole for _, source in samples) == len(samples):
        reuse.adopted.append(shard.number)
        for sample in copied:
            del reuse.copies[sample]
        return
    for row, (key, source) in enumerate(samples):
        if source in whole:
            reuse.copies[key, source ^ COPIED] = shard.number, row


def whole_sources(first: int, shards: Sequence[StoredRows], wanted: Collection[int]) -> set[int]:
    """Returns the fingerprints of the wanted sources of which all samples are in these shards.

    A writer fills its shards in order, and the samples of a source follow each other. So a source may lack samples only
    where the shard before or after is missing. If the samples of any source do not follow each other, or a source is
    UNKNOWN, none is known to be whole.

    Args:
        first: The first number that the writer reserved.
        shards: Its shards, in ascending order.
        wanted: Fingerprints of the sources.
    """
    if any((shard.fingerprints == UNKNOWN).any() for shard in shards):
        return set()
    seen: set[int] = set()
    inner: set[int] = set()
    for run in _runs(shards):
        in_a_row = groupby(source for shard in run for source in shard.fingerprints.tolist())
        sources = [source for source, _ in in_a_row]
        edges = {sources[-1], *(sources[:1] if run[0].number != first else ())}
        of_run = [source for source in sources if source in wanted]
        if len(set(of_run)) < len(of_run) or not inner.isdisjoint(of_run) or not seen.isdisjoint({*of_run} - edges):
            return set()
        seen |= {*of_run}
        inner |= {*of_run} - edges
    return inner


def _runs(shards: Sequence[StoredRows]) -> Iterator[list[StoredRows]]:
    """Yields the shards whose numbers follow each other, together."""
    for _, run in groupby(enumerate(shards), key=lambda item: item[1].number - item[0]):
        yield [shard for _, shard in run]
