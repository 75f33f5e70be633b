"""The samples of a version as its indexes list them: what a plan needs, and what a task needs to copy them."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dray.shards.index import digest_of
from dray.shards.parsing.columns import Columns
from dray.shards.reading.catalog import Catalog
from dray.shards.tar import BLOCK, max_member_bytes

READS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Rows:
    """n samples of a version, in any order, with s stored suffixes: 24 bytes a suffix beside the keys.

    Attributes:
        keys: (n,) string, the key under which each is stored again. Rows that follow each other with one key are joined
            into one sample.
        places: (n,) int64, position of its shard in the version.
        suffixes: The s suffixes, in the order in which they first appear in the version.
        offsets: (n, s) uint64, start of a part in its tar; 0 where the sample lacks the part.
        sizes: (n, s) uint64, bytes; 0 where the sample lacks the part.
        hashes: (n, s) uint64, xxh3_64 of the part; 0 where the sample lacks the part.
    """

    keys: pa.Array
    places: NDArray[np.int64]
    suffixes: tuple[str, ...]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    hashes: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.places)

    def take(self, numbers: NDArray[np.int64]) -> "Rows":
        """Returns some of the rows, in the order given."""
        return replace(
            self,
            keys=self.keys.take(pa.array(numbers)),
            places=self.places[numbers],
            offsets=self.offsets[numbers],
            sizes=self.sizes[numbers],
            hashes=self.hashes[numbers],
        )

    def with_suffixes(self, suffixes: Collection[str]) -> "Rows":
        """Returns the rows without the parts of other suffixes."""
        columns = [column for column, suffix in enumerate(self.suffixes) if suffix in suffixes]
        return replace(
            self,
            suffixes=tuple(self.suffixes[column] for column in columns),
            offsets=self.offsets[:, columns],
            sizes=self.sizes[:, columns],
            hashes=self.hashes[:, columns],
        )

    def stored(self) -> list[str]:
        """Returns the suffixes of which a row has a part."""
        return [suffix for column, suffix in enumerate(self.suffixes) if self.offsets[:, column].any()]

    def tar_bytes(self) -> NDArray[np.int64]:
        """Returns (n,) the maximum number of bytes that each takes in a tar."""
        key_bytes = pc.call_function("binary_length", [self.keys]).to_numpy()
        lengths, place = np.unique(key_bytes, return_inverse=True)
        total = np.zeros(len(self), np.int64)
        for column, suffix in enumerate(self.suffixes):
            ending = 1 + len(suffix.encode())
            headers = np.array([max_member_bytes(length + ending, 0) for length in lengths.tolist()], np.int64)[place]
            data = (self.sizes[:, column].astype(np.int64) + BLOCK - 1) // BLOCK * BLOCK
            total += np.where(self.offsets[:, column] > 0, headers + data, 0)
        return total

    def digest(self, how: str) -> str:
        """Returns the digest of keys, suffixes and contents in their order, and of how they are stored.

        It does not depend on where the samples are, so a shard is found again after its source was packed otherwise.
        """
        columns = np.flatnonzero((self.offsets > 0).any(axis=0))
        names = "\0".join((how, *(self.suffixes[column] for column in columns), "", *self.keys.to_pylist())).encode()
        is_there = self.offsets[:, columns] > 0
        return digest_of(b"".join((names, is_there.tobytes(), *_contents(self, columns))))


def _contents(rows: Rows, columns: NDArray[np.int64]) -> tuple[bytes, bytes]:
    return rows.sizes[:, columns].tobytes(), rows.hashes[:, columns].tobytes()


def read_rows(catalog: Catalog) -> Rows:
    """Returns all samples of a version, in its order; its indexes are read concurrently.

    Raises:
        NotFoundError: An index is missing.
        DamagedError: An index is damaged.
    """
    with ThreadPoolExecutor(READS_AT_ONCE) as threads:
        found = list(threads.map(catalog.columns, range(catalog.num_places)))
    suffixes = tuple(dict.fromkeys(suffix for columns in found for suffix in columns.offsets))
    shape = sum(len(columns.keys) for columns in found), len(suffixes)
    rows = Rows(
        keys=pa.concat_arrays([columns.keys for columns in found]),
        places=np.repeat(np.arange(len(found)), [len(columns.keys) for columns in found]),
        suffixes=suffixes,
        offsets=np.zeros(shape, np.uint64),
        sizes=np.zeros(shape, np.uint64),
        hashes=np.zeros(shape, np.uint64),
    )
    _fill(rows, found)
    return rows


def _fill(rows: Rows, found: Sequence[Columns]) -> None:
    start = 0
    for columns in found:
        of_shard = slice(start, start + len(columns.keys))
        for suffix in columns.offsets:
            column = rows.suffixes.index(suffix)
            rows.offsets[of_shard, column] = columns.offsets[suffix]
            rows.sizes[of_shard, column] = columns.sizes[suffix]
            rows.hashes[of_shard, column] = columns.hashes[suffix]
        start = of_shard.stop
