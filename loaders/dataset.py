"""A dataset whose samples are read one by one, by key or by number, and safely decoded.

It serves looking, debugging, tests, and whatever takes a map-style dataset, such as torch's DataLoader with a sampler.
To train on all samples `ShardLoader` is several times faster.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from threading import Lock
from typing import Any, SupportsIndex

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dray.loaders.batching.batches import open_reader
from dray.loaders.lazy import lazy
from dray.shards.codecs.decode import Decoder, Decoders
from dray.shards.errors import PositionError
from dray.shards.parts import PartForms, part_of
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.samples import Reader
from dray.shards.reading.suffixes import EVERY_PART, several_error
from dray.shards.snapshot import DEFAULT_PREFIX, Snapshot, place_of
from dray.shards.storage.client import StorageOptions


class Sample(dict[str, Any]):
    """The values of a sample's parts. `sample[name]` takes any name of a part, without case, as a loader does."""

    def __init__(self, encoded: Sequence[PartForms]) -> None:
        super().__init__()
        self._encoded = encoded

    def __missing__(self, name: object) -> Any:
        if isinstance(name, str):
            for own in self:
                if name.lower() == own.lower() or any(
                    own == part.name and name.lower() in part.aliases for part in self._encoded
                ):
                    return self[own]
        raise KeyError(name)


class Dataset:
    """One version of a dataset: `dataset[key]` and `dataset[7]` give the values of a sample's parts by suffix.

    Numbers count from 0 in the dataset's own order, in which `ShardLoader(shuffle=False)` reads; negative ones count
    from the end. It iterates over the keys in this order, as a dict does, so `list(dataset)[7]` is the key of
    `dataset[7]`. Threads may share it. It pickles, and works in workers of torch's DataLoader: forked or spawned over
    a local disk, spawned (`multiprocessing_context="spawn"`) over object storage.

    The table of samples is read at the first look-up by key and stays in memory (some 60 bytes a sample); indexes are
    read as they are needed, parts each time.

    Args:
        url: The dataset's directory; one that ends in `?version=7` names the version as well.
        prefix: The dataset's prefix.
        version: Its number, or the name of a hold; None: the last.
        storage_options: See `dray.shards.Store`.
        allow: Full names (`pkg.module.Class`) that pickled parts may use besides the safe list.
        allow_pickle: Let pickled parts run any code that they name.
        decoders: Functions of your own by suffix, from a part's bytes to its value: `{"wav": read_wav}`.

    Raises:
        NotFoundError: There is no such dataset or version.
    """

    __reversed__ = None  # it would give samples, where iterating gives keys

    def __init__(
        self,
        url: str | os.PathLike[str],
        prefix: str = DEFAULT_PREFIX,
        *,
        version: int | str | None = None,
        storage_options: StorageOptions | None = None,
        allow: Collection[str] = (),
        allow_pickle: bool = False,
        decoders: Decoders | None = None,
    ) -> None:
        self.snapshot = Snapshot.open(url, prefix, version=version, storage_options=storage_options)
        self._decoder = Decoder(allow=allow, allow_pickle=allow_pickle, decoders=decoders or {})
        self._opened: _Tools | None = None

    def __repr__(self) -> str:
        return f"Dataset({self.snapshot.store.url!r}, {self.snapshot.layout.prefix!r}, version={self.snapshot.version})"

    def __getstate__(self) -> dict[str, Any]:
        """What is not read again at little cost: a copy opens files, or connections, of its own."""
        return {"snapshot": self.snapshot, "_decoder": self._decoder, "_opened": None}

    def __len__(self) -> int:
        return self.snapshot.num_samples

    def __iter__(self) -> Iterator[str]:
        """The keys, in the order of the samples' numbers."""
        for row in np.argsort(self._numbers):
            yield self._table["key"][int(row)].as_py()

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._row(key) is not None

    def __getitem__(self, key: str | SupportsIndex) -> dict[str, Any]:
        """The decoded parts of a sample, by suffix; an encoded part stands under the suffix of its source.

        Args:
            key: The sample's key, or its number.

        Raises:
            CallError: Suffixes of two parts differ only in upper and lower case; names both.
            TypeError: It is neither.
            NotFoundError: No sample has that key; names its neighbours, or why it was left out.
            PositionError: No sample has that number.
            DamagedError: A part is not what was packed; names shard, key and suffix.
            RefusedError: A part holds something that is not on the safe list.
        """
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[str | SupportsIndex]) -> list[dict[str, Any]]:
        """The same for several samples, which are fetched together: torch's DataLoader asks for a batch like this."""
        numbers = [self._number(key) for key in keys]
        return [self._decoded(*found) for found in self._tools.read(numbers)] if numbers else []

    def _number(self, key: str | SupportsIndex) -> int:
        """The number of a sample, from 0."""
        if isinstance(key, str):
            row = self._row(key)
            if row is None:
                self.snapshot.find(key)  # says why
                raise AssertionError("unreachable: find raises")
            return int(self._numbers[row])
        try:
            number = None if isinstance(key, bool) else index(key)
        except TypeError:
            number = None
        if number is None:
            raise TypeError(f"dataset[{key!r:.100}]: expected a sample's key, a str, or its number, an int")
        count = len(self)
        if not -count <= number < count:
            raise PositionError(f"dataset[{number}]: {self!r} has {count} samples, from 0 to {count - 1}")
        return number % count

    def _decoded(self, url: str, key: str, parts: Mapping[str, bytes]) -> dict[str, Any]:
        sample = self._decoder({"__key__": key, "__url__": url, **parts})
        found = Sample(self._encoded)
        for suffix in parts:
            part = part_of(suffix, self._encoded)
            if twice := [other for other in parts if other != suffix and other.lower() in part.suffixes]:
                raise several_error(f"shard {url!r}, key {key!r}", part.name, [suffix, *twice])
            found[part.name] = sample[suffix]
        return found

    @lazy
    def _encoded(self) -> tuple[PartForms, ...]:
        return tuple(part for part in self.snapshot.manifest.parts if part.is_encoded)

    @lazy
    def _table(self) -> pa.Table:
        """Key, shard and row of each sample, sorted by key."""
        return self.snapshot.samples().combine_chunks()

    @lazy
    def _numbers(self) -> NDArray[np.int64]:
        """(n,) the number of the sample in each row of the table."""
        counts = {shard.number: shard.num_samples for shard in self.snapshot.shards}
        starts = dict(zip(counts, np.cumsum([0, *counts.values()]).tolist(), strict=False))
        shards, places = np.unique(self._table["shard"].to_numpy(), return_inverse=True)
        firsts = np.array([starts[number] for number in shards.tolist()], np.int64)
        found: NDArray[np.int64] = firsts[places] + self._table["row"].to_numpy()
        return found

    def _row(self, key: str) -> int | None:
        keys = self._table["key"]
        place = place_of(keys, key)
        return place if place < len(keys) and keys[place].as_py() == key else None

    @property
    def _tools(self) -> "_Tools":
        """Of this process: a forked child opens its own."""
        if self._opened is None or self._opened.process != os.getpid():
            self._opened = _Tools(os.getpid(), open_reader(Catalog(self.snapshot), EVERY_PART))
        return self._opened


@dataclass(frozen=True, slots=True)
class _Tools:
    process: int
    reader: Reader
    lock: Lock = field(default_factory=Lock)  # a reader serves one thread at a time

    def read(self, numbers: Sequence[int]) -> list[tuple[str, str, dict[str, bytes]]]:
        """The URL of its shard, the key and the parts of each sample."""
        with self.lock:
            self.reader.expect(())
            found = self.reader.read(np.array(numbers, np.int64), [(number, 1) for number in numbers])
            return [
                (found.url(row), found.key(row), {name: bytes(part) for name, part in found.sample(row).items()})
                for row in range(len(numbers))
            ]
