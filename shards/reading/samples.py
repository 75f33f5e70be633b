"""What a reader of samples gives: their bytes. `reading.mapped` and `reading.ranged` have the two readers.

Every part is checked against its index before anyone sees it. Of a tar only the parts that are wanted are read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dray.shards.errors import DamagedError
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.suffixes import Missing, Part, WantedParts, lacking_error, several_error

Run = tuple[int, int]  # first sample and number of samples that are read together
Parts = Sequence[memoryview | None]  # one part of some samples; None where a sample lacks it


@dataclass(slots=True)
class Stats:
    """What a reader did, counted from its start."""

    samples: int = 0
    bytes: int = 0  # of parts handed on
    bytes_read: int = 0  # of parts, headers between them and indexes asked of object storage
    requests: int = 0  # to object storage, not counting those that its client tries again
    retries: int = 0  # of these, after a failure
    cache_hits: int = 0  # samples that came from the node's block store
    skipped: int = 0  # samples that could not be read and were replaced


class MappedParts(Parts):
    """One part of m samples that lies in memory: looked at, and so checked, when it is first asked for.

    Whoever copies them from there checks them as well, and keeps this object until that is done.

    Args:
        addresses: (m,) where each part begins.
        starts: (m,) offset of each in its tar; 0 where a sample lacks it.
        sizes: (m,) of each, in bytes; 0 where a sample lacks it.
        hashes: (m,) xxh3_64 of each.
        read: Those of a range, checked; it holds the memory.
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
        """All of them.

        Raises:
            DamagedError: See `Reader.read`.
        """
        if self._found is None:
            self._found = self._read(range(len(self)))
        return self._found

    def one(self, number: int) -> memoryview | None:
        """One of them, without a look at the others.

        Raises:
            DamagedError: See `Reader.read`.
        """
        return self._read(range(number, number + 1))[0]


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One wanted part of m samples.

    Attributes:
        parts: m parts.
        suffix: The stored suffix of all m; None where they differ or a sample lacks the part.
        suffixes: (m,) the stored suffix of each if they differ; None where a sample lacks the part.
    """

    parts: Parts
    suffix: str | None
    suffixes: Sequence[str | None] = ()

    def suffix_of(self, number: int) -> str | None:
        """The suffix under which a sample has it stored; None if it lacks it."""
        return self.suffix or self.suffixes[number]

    @property
    def stored(self) -> Sequence[str]:
        """The distinct suffixes under which it is stored."""
        return [self.suffix] if self.suffix else [suffix for suffix in dict.fromkeys(self.suffixes) if suffix]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """The bytes of m samples, in the order in which they were asked for.

    Attributes:
        catalog: Where they are listed.
        places: (m,) shards, each by its place in the catalog's list.
        rows: (m,) rows in these shards.
        parts: Suffix -> m parts. Where they are `MappedParts`, to look at one raises what `Reader.read` does.
    """

    catalog: Catalog
    places: NDArray[np.int64]
    rows: NDArray[np.int64]
    parts: Mapping[str, Parts]

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, number: int) -> str:
        """The key of one of them."""
        key: str = self.catalog.columns(int(self.places[number])).keys[int(self.rows[number])].as_py()
        return key

    def url(self, number: int) -> str:
        """The URL of the shard of one of them."""
        return self.catalog.shard_url(int(self.places[number]))

    def where(self, number: int) -> str:
        """Shard and key of one of them, for messages."""
        return f"shard {self.url(number)!r}, key {self.key(number)!r}"

    def sample(self, number: int) -> dict[str, memoryview]:
        """The parts that one of them has, by stored suffix."""
        parts = ((suffix, of_suffix.one(number) if isinstance(of_suffix, MappedParts) else of_suffix[number])
                 for suffix, of_suffix in self.parts.items())  # fmt: skip
        return {suffix: data for suffix, data in parts if data is not None}

    def check(self) -> None:
        """Look at all parts, sample by sample.

        Raises:
            DamagedError: See `Reader.read`; of the first damaged sample.
        """
        for number in range(len(self)):
            self.sample(number)

    def column(self, part: Part) -> Column:
        """A wanted part of each sample.

        Raises:
            CallError: A sample has several parts that it may mean; names them.
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
        """The stored suffix of a sample's part; None where it lacks it."""
        found = part.among([suffix for suffix, is_there in there.items() if is_there[number]])
        if len(found) > 1:
            raise several_error(self.where(number), part.name, found)
        return found[0] if found else None


class Reader(Protocol):
    """Where samples come from."""

    stats: Stats

    def expect(self, runs: Iterable[Run]) -> None:
        """What will be asked for next, in order; it may be fetched meanwhile."""
        ...

    def read(self, samples: NDArray[np.int64], runs: Sequence[Run]) -> Samples:
        """The samples, each with the run that it belongs to.

        Raises:
            NotFoundError: A shard or an index is missing.
            DamagedError: A part of one of the samples asked for is not what its index says; names shard, key, suffix
                and offset. Other samples can still be read, but for those of a local shard that was cut.
        """
        ...


def wanted_columns(samples: Samples, wanted: WantedParts) -> dict[str, Column]:
    """The wanted parts of some samples, by name.

    Raises:
        CallError: A sample lacks a part that may not be missing; names shard, key and suffix.
    """
    columns = {part.name: samples.column(part) for part in wanted.parts}
    if wanted.missing == Missing.ERROR:
        for part in wanted.parts:
            if None in (suffixes := columns[part.name].suffixes):
                number = suffixes.index(None)
                raise lacking_error(samples.where(number), part.name, stored_suffixes(samples, number))
    return columns


def stored_suffixes(samples: Samples, number: int) -> list[str]:
    """The suffixes of all parts that one of some samples has, whether they are read or not."""
    columns = samples.catalog.columns(int(samples.places[number]))
    return [suffix for suffix, offsets in columns.offsets.items() if offsets[samples.rows[number]]]


def _is_there(parts: Parts) -> NDArray[np.bool_]:
    """(m,) which samples have the part."""
    if isinstance(parts, MappedParts):
        return parts.starts > 0
    return np.array([part is not None for part in parts], bool)


def _num_there(parts: Parts) -> int:
    """The number of samples that have the part."""
    if isinstance(parts, MappedParts):
        return int(np.count_nonzero(parts.starts))
    return len(parts) - parts.count(None)


def check_part(catalog: Catalog, place: int, row: int, suffix: str, data: memoryview, expected: int) -> None:
    """Hold a part against the checksum that its index has.

    Raises:
        DamagedError: It is another one; names shard, key, suffix and offset.
    """
    if xxh3_64_intdigest(data) != expected:
        columns = catalog.columns(place)
        raise DamagedError(
            "not the bytes that were packed: run dray verify to see how to repair it",
            url=catalog.shard_url(place),
            key=columns.keys[row].as_py(),
            suffix=suffix,
            offset=int(columns.offsets[suffix][row]),
        )
