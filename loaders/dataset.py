"""A dataset as a mapping: one sample by its key, safely decoded. For looking, debugging and tests, not for training."""

import os
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

import pyarrow as pa

from dray.loaders.decode import Decoder, Decoders
from dray.loaders.parts import part_of, several_error
from dray.shards.client import StorageOptions
from dray.shards.index import ShardIndex
from dray.shards.parts import PartForms, encoded_parts
from dray.shards.snapshot import DEFAULT_PREFIX, Snapshot, place_of

INDEXES_AT_HAND = 64


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
    """One version of a dataset: `dataset[key]` gives the values of a sample's parts by suffix.

    The table of sources is read at the first look-up and stays in memory (some 60 bytes a sample); indexes are read as
    they are needed, parts each time.

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
        self._shards = {shard.number: shard for shard in self.snapshot.shards}
        self._index = lru_cache(INDEXES_AT_HAND)(self._read_index)

    def __repr__(self) -> str:
        return f"Dataset({self.snapshot.store.url!r}, {self.snapshot.layout.prefix!r}, version={self.snapshot.version})"

    def __len__(self) -> int:
        return self.snapshot.num_samples

    def __iter__(self) -> Iterator[str]:
        """The keys, sorted."""
        return iter(self._table["key"].to_pylist())

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._row(key) is not None

    def __getitem__(self, key: str) -> dict[str, Any]:
        """The decoded parts of a sample, by suffix; an encoded part stands under the suffix of its source.

        Raises:
            CallError: Suffixes of two parts differ only in upper and lower case; names both.
            NotFoundError: No sample has that key; names its neighbours, or why it was left out.
            DamagedError: A part is not what was packed; names shard, key and suffix.
            RefusedError: A part holds something that is not on the safe list.
        """
        place = self._row(key)
        if place is None:
            self.snapshot.find(key)  # says why
        entry = self._table.slice(place, 1)
        shard = self._shards[entry["shard"][0].as_py()]
        parts = self.snapshot.read_row(shard, self._index(shard.number), entry["row"][0].as_py())
        url = self.snapshot.store.url_of(self.snapshot.layout.shard(shard.number))
        sample = self._decoder({"__key__": key, "__url__": url, **parts})
        found = Sample(self._encoded)
        for suffix in parts:
            part = part_of(suffix, self._encoded)
            if twice := [other for other in parts if other != suffix and other.lower() in part.forms]:
                raise several_error(f"shard {url!r}, key {key!r}", part.name, [suffix, *twice])
            found[part.name] = sample[suffix]
        return found

    @cached_property
    def _encoded(self) -> tuple[PartForms, ...]:
        return encoded_parts(self.snapshot.manifest)

    @cached_property
    def _table(self) -> pa.Table:
        """Key, shard and row of each sample, sorted by key."""
        return self.snapshot.sources().select(["key", "shard", "row"]).combine_chunks()

    def _row(self, key: str) -> int | None:
        keys = self._table["key"]
        place = place_of(keys, key)
        return place if place < len(keys) and keys[place].as_py() == key else None

    def _read_index(self, number: int) -> ShardIndex:
        return self.snapshot.index(self._shards[number])
