"""`Dataset`: the samples of a dataset by key or by number, safely decoded.

Meant for inspection, debugging, tests, and whatever takes a map-style dataset, such as torch's DataLoader with a
sampler. For training on all samples `ShardLoader` is several times faster.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from threading import Lock
from typing import Any, SupportsIndex

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dray.loaders.lazy import lazy
from dray.pipelines.open_data import find_data, index_on_disk
from dray.shards.codecs.decode import Decoder, Decoders
from dray.shards.errors import CallError, PositionError
from dray.shards.layout import some
from dray.shards.parsing.parquet import place_of
from dray.shards.parts import PartForms, part_of
from dray.shards.reading.foreign_tars import open_catalog
from dray.shards.reading.readers import open_reader
from dray.shards.reading.samples import Reader
from dray.shards.reading.suffixes import EVERY_PART, several_error
from dray.shards.reading.tar_files import DataUrl, TarFiles
from dray.shards.snapshot import DEFAULT_PREFIX, Snapshot
from dray.shards.storage.client import StorageOptions


class Sample(dict[str, Any]):
    """Values of the parts of a sample. `sample[name]` accepts any name of a part, without case, as loaders do."""

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
    """One version of a dataset: `dataset[key]` and `dataset[7]` return the decoded parts of a sample by suffix.

    Numbers count from 0 in the dataset's own order, which is that of `ShardLoader(shuffle=False)`; negative numbers
    count from the end. Iteration yields the keys in this order, as for a dict, so `list(dataset)[7]` is the key of
    `dataset[7]`. Threads may share a `Dataset`. It can be pickled and used in workers of torch's DataLoader: forked or
    spawned for local disks, spawned (`multiprocessing_context="spawn"`) for object storage.

    The table of samples is read at the first look-up by key and stays in memory, about 60 bytes per sample. Indexes are
    read when they are needed, parts at every look-up.

    Args:
        url: Directory of the dataset, or tars, as for `ShardLoader`; `?version=7` at its end names a version.
        prefix: Prefix of the dataset, or of the names of tars without a dataset; "" for all tars.
        version: Number of a version, or name of a hold; None: the latest version.
        storage_options: See `dray.shards.Store`.
        data_url: Where the tars of an indexed dataset are, if they are outside its folder: they are read there only if
            you say so.
        data_storage_options: Options for the store of `data_url`, which gets none of `storage_options`.
        allow: Full names (`pkg.module.Class`) that pickled parts may use in addition to the safe list.
        allow_pickle: Whether pickled parts may run any code that they name.
        decoders: Functions by suffix, from the bytes of a part to its value, such as `{"wav": read_wav}`.

    Raises:
        NotFoundError: The dataset or the version does not exist, and there are no tars; says what is there.
    """

    __reversed__ = None  # the default would yield samples, while iteration yields keys

    def __init__(
        self,
        url: DataUrl,
        prefix: str = DEFAULT_PREFIX,
        *,
        version: int | str | None = None,
        storage_options: StorageOptions | None = None,
        data_url: str | os.PathLike[str] | None = None,
        data_storage_options: StorageOptions | None = None,
        allow: Collection[str] = (),
        allow_pickle: bool = False,
        decoders: Decoders | None = None,
    ) -> None:
        found = find_data(
            url,
            prefix,
            version=version,
            storage_options=storage_options,
            data_url=data_url,
            data_storage_options=data_storage_options,
        )
        self.snapshot: Snapshot = index_on_disk(found) if isinstance(found, TarFiles) else found
        self._decoder = Decoder(allow=allow, allow_pickle=allow_pickle, decoders=decoders or {})
        self._opened: _OpenDataset | None = None

    def __repr__(self) -> str:
        if not self.snapshot.version:
            return f"Dataset of {self.snapshot.name}"
        return f"Dataset({self.snapshot.store.url!r}, {self.snapshot.layout.prefix!r}, version={self.snapshot.version})"

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state of a copy, which opens files or connections of its own."""
        return {"snapshot": self.snapshot, "_decoder": self._decoder, "_opened": None}

    def __len__(self) -> int:
        return self.snapshot.num_samples

    def __iter__(self) -> Iterator[str]:
        """Yields the keys, in the order of the samples' numbers."""
        for row in np.argsort(self._numbers):
            yield self._table["key"][int(row)].as_py()

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._row(key) is not None

    def __getitem__(self, key: str | SupportsIndex) -> dict[str, Any]:
        """Returns the decoded parts of a sample by suffix; an encoded part has the suffix of its source.

        Args:
            key: Key of the sample, or its number.

        Raises:
            CallError: The suffixes of two parts differ only in case; names both. Or several samples, of tars that dray
                did not build, have the key.
            TypeError: `key` is neither a key nor a number.
            NotFoundError: No sample has the key; names its neighbours, or why it was left out.
            PositionError: No sample has the number.
            DamagedError: A part is damaged; names shard, key and suffix.
            RefusedError: A part holds something that is not on the safe list.
        """
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[str | SupportsIndex]) -> list[dict[str, Any]]:
        """Returns several samples, which are fetched together; torch's DataLoader calls this for a batch."""
        numbers = [self._number(key) for key in keys]
        return [self._decoded(*found) for found in self._tools.read(numbers)] if numbers else []

    def _number(self, key: str | SupportsIndex) -> int:
        """Returns the number of a sample, from 0."""
        if isinstance(key, str):
            row = self._row(key)
            if row is None:
                self.snapshot.find(key)  # raises the error that explains why
                raise AssertionError("unreachable: find raises")
            self._check_unique(row)
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
        """Table of key, shard and row of each sample, sorted by key."""
        return self.snapshot.samples().combine_chunks()

    @lazy
    def _numbers(self) -> NDArray[np.int64]:
        """(n,) int64 number of the sample in each row of the table."""
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

    def _check_unique(self, row: int) -> None:
        """Refuses a key of several samples, which only tars that dray did not build can have."""
        keys = self._table["key"]
        if row + 1 < len(keys) and keys[row] == keys[row + 1]:
            key, numbers = (
                keys[row].as_py(),
                self._numbers[pc.call_function("equal", [keys, keys[row]]).to_numpy()].tolist(),
            )
            raise CallError(
                f"{len(numbers)} samples have the key {key!r}: ask for one by its number: {some(numbers, 5)}"
            )

    @property
    def _tools(self) -> "_OpenDataset":
        """Reader of this process; a forked child opens its own."""
        if self._opened is None or self._opened.process != os.getpid():
            self._opened = _OpenDataset(os.getpid(), open_reader(open_catalog(self.snapshot), EVERY_PART))
        return self._opened


@dataclass(frozen=True, slots=True)
class _OpenDataset:
    process: int
    reader: Reader
    lock: Lock = field(default_factory=Lock)  # a reader serves one thread at a time

    def read(self, numbers: Sequence[int]) -> list[tuple[str, str, dict[str, bytes]]]:
        """Returns the shard's URL, the key and the parts of each sample."""
        with self.lock:
            self.reader.expect(())
            found = self.reader.read(np.array(numbers, np.int64), [(number, 1) for number in numbers])
            return [
                (found.url(row), found.key(row), {name: bytes(part) for name, part in found.sample(row).items()})
                for row in range(len(numbers))
            ]
