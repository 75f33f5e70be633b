"""What a reader of samples gives: their bytes. `dray.loaders.mapped` and `dray.loaders.ranges` have the two readers.

Every part is checked against its index before anyone sees it. Of a tar only the parts that are wanted are read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dray.loaders.catalog import Catalog
from dray.shards.errors import DamagedError

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
        sizes: (m,) of each, in bytes; 0 where a sample lacks it.
        hashes: (m,) xxh3_64 of each.
        read: Those of a range, checked; it holds the memory.
    """

    def __init__(
        self,
        addresses: NDArray[np.uint64],
        sizes: NDArray[np.int64],
        hashes: NDArray[np.uint64],
        read: Callable[[range], list[memoryview | None]],
    ) -> None:
        self.addresses, self.sizes, self.hashes = addresses, sizes, hashes
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

    def sample(self, number: int) -> dict[str, memoryview]:
        """The parts that one of them has."""
        found = ((suffix, parts[number]) for suffix, parts in self.parts.items())
        return {suffix: data for suffix, data in found if data is not None}


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


def check_part(catalog: Catalog, place: int, row: int, suffix: str, data: memoryview, expected: int) -> None:
    """Hold a part against the checksum that its index has.

    Raises:
        DamagedError: It is another one; names shard, key, suffix and offset.
    """
    if xxh3_64_intdigest(data) != expected:
        columns = catalog.columns(place)
        raise DamagedError(
            f"{catalog.shard_url(place)}: part {suffix!r} of key {columns.keys[row].as_py()!r} at offset "
            f"{int(columns.offsets[suffix][row])} is not what was packed: dray verify tells how to mend it"
        )
