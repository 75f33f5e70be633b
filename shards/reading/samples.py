"""The samples that a reader returns, and the protocol of readers; `mapped` and `ranged` implement it.

Every part is checked against its index before it is returned. Only the wanted parts of a tar are read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dray.shards.reading.catalog import Catalog
from dray.shards.reading.suffixes import Missing, Part, WantedParts, lacking_error, several_error

Run = tuple[int, int]  # first sample, number of samples read together
Parts = Sequence[memoryview | None]  # one part of each sample; None where a sample lacks it


@dataclass(slots=True)
class Stats:
    """Counters of a reader since its start."""

    samples: int = 0
    bytes: int = 0  # bytes of the returned parts
    bytes_read: int = 0  # bytes requested from object storage, headers and indexes included
    requests: int = 0  # requests to object storage, without the retries of its client
    retries: int = 0  # requests that were repeated after a failure
    cache_hits: int = 0  # samples served by the block store of the node
    skipped: int = 0  # unreadable samples that were replaced


class MappedParts(Parts):
    """One part of m samples in mapped memory, checked on first access.

    Code that copies from the addresses must check the hashes, and keep this object alive meanwhile.

    Args:
        addresses: (m,) address of each part.
        starts: (m,) offset of each part in its tar; 0 where a sample lacks it.
        sizes: (m,) size of each part in bytes; 0 where a sample lacks it.
        hashes: (m,) xxh3_64 of each part.
        read: Returns the checked parts of a range of samples; it keeps the memory alive.
    """

    def __init__(
        self,
        addresses: NDArray[np.uint64],
        starts: NDArray[np.int64],
        sizes: NDArray[np.int64],
        hashes: NDArray[np.uint64],
        read: Callable[[range], list[memoryview | None]],
    ) -> None:
        self.addresses, self.starts, self.sizes, self.hashes = addresses, starts, sizes, hashes
        self._read = read
        self._found: list[memoryview | None] | None = None

    def __len__(self) -> int:
        return len(self.addresses)

    @overload
    def __getitem__(self, number: int) -> memoryview | None: ...
    @overload
    def __getitem__(self, number: slice) -> list[memoryview | None]: ...
    def __getitem__(self, number: int | slice) -> memoryview | list[memoryview | None] | None:
        return self.read()[number]

    def __iter__(self) -> Iterator[memoryview | None]:
        return iter(self.read())

    def read(self) -> list[memoryview | None]:
        """Returns all parts.

        Raises:
            DamagedError: See `Reader.read`.
        """
        if self._found is None:
            self._found = self._read(range(len(self)))
        return self._found

    def one(self, number: int) -> memoryview | None:
        """Returns one part without checking the others.

        Raises:
            DamagedError: See `Reader.read`.
        """
        return self._read(range(number, number + 1))[0]


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One wanted part of m samples.

    Attributes:
        parts: The m parts.
        suffix: The stored suffix of all m parts; None if they differ or a sample lacks the part.
        suffixes: (m,) stored suffixes if they differ; None where a sample lacks the part.
    """

    parts: Parts
    suffix: str | None
    suffixes: Sequence[str | None] = ()

    def suffix_of(self, number: int) -> str | None:
        """Returns the suffix under which a sample stores the part; None if it lacks the part."""
        return self.suffix or self.suffixes[number]

    @property
    def stored(self) -> Sequence[str]:
        """The distinct suffixes under which the part is stored."""
        return [self.suffix] if self.suffix else [suffix for suffix in dict.fromkeys(self.suffixes) if suffix]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """The bytes of m samples, in the requested order.

    Attributes:
        catalog: The catalog that lists the samples.
        places: (m,) position of each shard in the list of the catalog.
        rows: (m,) row of each sample in its shard.
        parts: Suffix -> m parts. Access to one in `MappedParts` raises what `Reader.read` raises.
    """

    catalog: Catalog
    places: NDArray[np.int64]
    rows: NDArray[np.int64]
    parts: Mapping[str, Parts]

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, number: int) -> str:
        """Returns the key of one sample."""
        key: str = self.catalog.columns(int(self.places[number])).keys[int(self.rows[number])].as_py()
        return key

    def url(self, number: int) -> str:
        """Returns the URL of the shard of one sample."""
        return self.catalog.shard_url(int(self.places[number]))

    def where(self, number: int) -> str:
        """Returns shard and key of one sample, for messages."""
        return f"shard {self.url(number)!r}, key {self.key(number)!r}"

    def sample(self, number: int) -> dict[str, memoryview]:
        """Returns the parts of one sample, by stored suffix."""
        parts = ((suffix, of_suffix.one(number) if isinstance(of_suffix, MappedParts) else of_suffix[number])
                 for suffix, of_suffix in self.parts.items())  # fmt: skip
        return {suffix: data for suffix, data in parts if data is not None}

    def check(self) -> None:
        """Check all parts, sample by sample.

        Raises:
            DamagedError: A part is damaged; names the first damaged sample as `Reader.read` does.
        """
        for number in range(len(self)):
            self.sample(number)

    def column(self, part: Part) -> Column:
        """Returns a wanted part of each sample.

        Raises:
            CallError: Several parts of a sample match; names them.
        """
        counts = {suffix: count for suffix, parts in self.parts.items() if (count := _num_there(parts))}
        candidates = part.among(counts)
        if len(candidates) == 1 and counts[candidates[0]] == len(self):
            return Column(self.parts[candidates[0]], candidates[0])
        there = {suffix: _is_there(self.parts[suffix]) for suffix in counts}
        suffixes = [self._stored(part, number, there) for number in range(len(self))]
        found = [None if suffix is None else self.parts[suffix][row] for row, suffix in enumerate(suffixes)]
        return Column(found, None, suffixes)

    def _stored(self, part: Part, number: int, there: Mapping[str, NDArray[np.bool_]]) -> str | None:
        """Returns the stored suffix of a part of a sample; None if the sample lacks it."""
        found = part.among([suffix for suffix, is_there in there.items() if is_there[number]])
        if len(found) > 1:
            raise several_error(self.where(number), part.name, found)
        return found[0] if found else None


class Reader(Protocol):
    """Reads samples by number."""

    stats: Stats

    def expect(self, runs: Iterable[Run]) -> None:
        """Announce the next runs in order, so that they can be prefetched."""
        ...

    def read(self, samples: NDArray[np.int64], runs: Sequence[Run]) -> Samples:
        """Returns the samples; `runs` gives the run of each.

        Raises:
            NotFoundError: A shard or an index is missing.
            DamagedError: A part of a requested sample does not match its index; names shard, key, suffix and offset.
                Other samples remain readable, except those of a truncated local shard.
        """
        ...


def wanted_columns(samples: Samples, wanted: WantedParts) -> dict[str, Column]:
    """Returns the wanted parts of samples, by name.

    Raises:
        CallError: A sample lacks a required part; names shard, key and suffix.
    """
    columns = {part.name: samples.column(part) for part in wanted.parts}
    if wanted.missing == Missing.ERROR:
        for part in wanted.parts:
            if None in (suffixes := columns[part.name].suffixes):
                number = suffixes.index(None)
                raise lacking_error(samples.where(number), part.name, stored_suffixes(samples, number))
    return columns


def stored_suffixes(samples: Samples, number: int) -> list[str]:
    """Returns the suffixes of all parts of one sample, whether they are read or not."""
    columns = samples.catalog.columns(int(samples.places[number]))
    return [suffix for suffix, offsets in columns.offsets.items() if offsets[samples.rows[number]]]


def _is_there(parts: Parts) -> NDArray[np.bool_]:
    """Returns (m,) bool: which samples have the part."""
    if isinstance(parts, MappedParts):
        return parts.starts > 0
    return np.array([part is not None for part in parts], bool)


def _num_there(parts: Parts) -> int:
    """Returns the number of samples that have the part."""
    if isinstance(parts, MappedParts):
        return int(np.count_nonzero(parts.starts))
    return len(parts) - parts.count(None)


def check_part(catalog: Catalog, place: int, row: int, suffix: str, data: memoryview, expected: int) -> None:
    """Check a part against the checksum in its index.

    Raises:
        DamagedError: They differ; names shard, key, suffix and offset.
    """
    if xxh3_64_intdigest(data) != expected:
        columns = catalog.columns(place)
        raise catalog.snapshot.tars.bad_part(catalog.shard(place)).at(
            key=columns.keys[row].as_py(), suffix=suffix, offset=int(columns.offsets[suffix][row])
        )
