"""What a build will do, worked out before it does it: which samples go to which shard, and which shards exist already.

Everything here takes values and returns values: no I/O, no clock, no global state.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dray.pipelines.sources import Sources
from dray.shards.errors import CallError
from dray.shards.index import digest_of
from dray.shards.tar import BLOCK, END, MAX_SHARD_BYTES, max_member_bytes

DEFAULT_SHARD_BYTES = 256 << 20
MAX_SHARD_SAMPLES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything but the sources that decides the bytes of a dataset."""

    suffixes: tuple[str, ...]
    transform: str | None = None  # None: a part is its file; else the declared version of the user's function
    num_shards: int | None = None  # exactly so many, or by size where None
    shard_bytes: int = DEFAULT_SHARD_BYTES  # by size: a shard ends before it would pass this
    shard_samples: int = MAX_SHARD_SAMPLES  # by size: nor does it hold more samples

    def __post_init__(self) -> None:
        if self.num_shards is not None and not isinstance(self.num_shards, int):
            raise TypeError(f"the number of shards is a whole number, not {self.num_shards!r}")
        if self.num_shards is not None and self.num_shards <= 0:
            raise CallError(f"the number of shards is {self.num_shards}: give at least 1, or None to go by size")

    def to_json(self) -> dict[str, Any]:
        """As the manifest records it."""
        return asdict(self)

    def content_digest(self) -> str:
        """Of what decides the bytes of one shard, given its samples: how they are dealt to shards does not."""
        return digest_of(json.dumps([self.suffixes, self.transform]).encode())


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """The samples start .. stop - 1 of the sources, packed in that order."""

    start: int
    stop: int
    num_bytes: int  # upper bound of the tar where parts are stored as they are
    digest: str  # of its sources and the recipe


@dataclass(frozen=True, slots=True)
class Plan:
    """The shards of the next snapshot, in order."""

    shards: tuple[PlannedShard, ...]

    @property
    def digest(self) -> str:
        """Of the whole plan: two builders with the same digest do the same."""
        return digest_of("".join(shard.digest for shard in self.shards).encode())


@dataclass(frozen=True, slots=True)
class Numbering:
    """The number of each planned shard: reserved anew, or of a shard with the same digest."""

    numbers: tuple[int, ...]
    count: int  # how many are reserved anew, from the first on


def plan(sources: Sources, recipe: Recipe) -> Plan:
    """Deal the sources to shards.

    Raises:
        CallError: A shard would pass 4 GiB; the message says how many shards fit.
    """
    sizes = _sample_bytes(sources)
    bounds = _even_bounds(len(sources), recipe.num_shards) if recipe.num_shards else _bounds_by_size(sizes, recipe)
    totals = np.add.reduceat(sizes, bounds[:-1]) + len(END)
    if totals.max() > MAX_SHARD_BYTES and recipe.transform is None:
        raise CallError(_too_large(sizes, len(totals)))
    content = recipe.content_digest()
    return Plan(
        tuple(
            PlannedShard(start, stop, total, _shard_digest(content, sources.part(start, stop)))
            for start, stop, total in zip(bounds[:-1].tolist(), bounds[1:].tolist(), totals.tolist(), strict=True)
        )
    )


def number_shards(planned: Plan, known: Mapping[str, int], first: int) -> Numbering:
    """Give each planned shard its number.

    Args:
        planned: The plan.
        known: Digest -> number of shards that exist.
        first: The first number that nobody has reserved.
    """
    numbers: list[int] = []
    free = first
    for shard in planned.shards:
        number = known.get(shard.digest)
        if number is None:
            number, free = free, free + 1
        numbers.append(number)
    return Numbering(tuple(numbers), free - first)


def _sample_bytes(sources: Sources) -> NDArray[np.int64]:
    """(n,) upper bound of what each sample takes in a tar."""
    padded = (sources.sizes + BLOCK - 1) // BLOCK * BLOCK
    data: NDArray[np.int64] = padded.sum(axis=1) + BLOCK * len(sources.suffixes)
    longest = 100 - 1 - max(map(len, sources.suffixes))
    for row, name in enumerate(sources.names):
        if len(name) > longest or not name.isascii():
            files = (f"{name}.{suffix}".encode() for suffix in sources.suffixes)
            parts = zip(files, sources.sizes[row].tolist(), strict=True)
            data[row] = sum(max_member_bytes(len(file), size) for file, size in parts)
    return data


def _even_bounds(num_samples: int, num_shards: int) -> NDArray[np.int64]:
    """Half-open bounds of contiguous shards whose sample counts differ by at most one."""
    num_shards = min(num_shards, num_samples)
    return np.arange(num_shards + 1, dtype=np.int64) * num_samples // num_shards


def _bounds_by_size(sizes: NDArray[np.int64], recipe: Recipe) -> NDArray[np.int64]:
    """Half-open bounds of shards filled one after another; a sample larger than a shard has one of its own."""
    ends = np.cumsum(sizes)
    bounds = [0]
    while bounds[-1] < len(sizes):
        start = bounds[-1]
        filled = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, filled + recipe.shard_bytes - len(END), side="right"))
        bounds.append(max(start + 1, min(stop, start + recipe.shard_samples)))
    return np.array(bounds, np.int64)


def _too_large(sizes: NDArray[np.int64], num_shards: int) -> str:
    if sizes.max() + len(END) > MAX_SHARD_BYTES:
        return f"one sample of {int(sizes.max())} bytes passes 4 GiB, the most that a shard may hold"
    fits = num_shards
    while (np.add.reduceat(sizes, _even_bounds(len(sizes), fits)[:-1]) + len(END)).max() > MAX_SHARD_BYTES:
        fits += 1
    return f"{num_shards} shards would pass 4 GiB each, the most that a shard may hold: {fits} shards fit"


def _shard_digest(content: str, sources: Sources) -> str:
    """Of the files, by where they lie, their names and their fingerprints.

    The place is part of it: two folders unpacked from archives may well hold other files of the same sizes and times.
    """
    names = "\0".join((content, sources.url, *sources.names)).encode()
    return digest_of(b"".join((names, sources.sizes.tobytes(), sources.stamps.tobytes())))


def same_shards(planned: Plan, digests: Sequence[str]) -> bool:
    """Whether a snapshot with these digests is what the plan would make: then there is nothing to do."""
    return [shard.digest for shard in planned.shards] == list(digests)
