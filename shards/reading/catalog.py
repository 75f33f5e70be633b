"""Locates samples: the shard and row of each, by the snapshot, and their parts, by the indexes."""

from collections import OrderedDict, defaultdict
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from dray.shards.errors import DamagedError, NotFoundError
from dray.shards.index import digest_of
from dray.shards.manifest import Shard
from dray.shards.parsing.columns import Columns
from dray.shards.reading.node_cache import BlockStore
from dray.shards.snapshot import Snapshot

INDEX_BYTES = 128 << 20  # maximum size of the indexes that a process keeps


class Catalog:
    """The samples of a snapshot by number, in the order of its shards.

    Args:
        snapshot: The version.
        limit: Maximum number of samples, counted from the first; None: all.
        index_bytes: Maximum size of the indexes that are kept; the least recently used are dropped.
        blocks: The block store of the node for indexes on object storage; None: each process reads its own.

    Attributes:
        requests: Number of requests for indexes to object storage.
        bytes_read: Number of bytes of these indexes.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        limit: int | None = None,
        index_bytes: int = INDEX_BYTES,
        blocks: BlockStore | None = None,
    ) -> None:
        self.requests = self.bytes_read = 0
        self.snapshot = snapshot
        counts = np.array([shard.num_samples for shard in snapshot.shards], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self.num_stored = int(self._starts[-1])  # samples of all shards, whatever the limit
        self.num_samples = self.num_stored if limit is None else min(limit, self.num_stored)
        self._most_bytes = index_bytes
        self._kept: OrderedDict[int, Columns] = OrderedDict()
        self._kept_bytes = 0
        self._lock = Lock()
        self._reading: defaultdict[int, Lock] = defaultdict(Lock)
        self._blocks = blocks

    def __len__(self) -> int:
        return self.num_samples

    @property
    def num_places(self) -> int:
        """The number of shards that hold samples within the limit."""
        return int(np.searchsorted(self._starts, self.num_samples))

    def locate(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns (m,) position of the shard of each sample in the list, and (m,) its row in that shard."""
        shards = np.searchsorted(self._starts, samples, side="right") - 1
        return shards, samples - self._starts[shards]

    def first_sample(self, place: int) -> int:
        """Returns the number of the first sample of a shard."""
        return int(self._starts[place])

    def shard(self, place: int) -> Shard:
        """Returns a shard by its position in the list."""
        return self.snapshot.shards[place]

    def shard_url(self, place: int) -> str:
        """Returns the URL of the tar of a shard, for messages."""
        return self.snapshot.shard_url(self.shard(place))

    def columns(self, place: int) -> Columns:
        """Returns the index of a shard, checked against the snapshot, and caches it.

        If several threads request it at the same time, one reads it.

        Raises:
            NotFoundError: The index is missing.
            DamagedError: It is not the index that the snapshot names.
        """
        found = self._at_hand(place)
        if found is None:
            with self._lock:
                reading = self._reading[place]
            with reading:
                found = self._at_hand(place) or self._keep(place, self._read(place))
        return found

    def _at_hand(self, place: int) -> Columns | None:
        with self._lock:
            if place not in self._kept:
                return None
            self._kept.move_to_end(place)
            return self._kept[place]

    def _keep(self, place: int, found: Columns) -> Columns:
        with self._lock:
            self._kept[place] = found
            self._kept_bytes += found.num_bytes
            while self._kept_bytes > self._most_bytes and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                self._kept_bytes -= oldest.num_bytes
        return found

    def _read(self, place: int) -> Columns:
        snapshot, shard = self.snapshot, self.shard(place)
        name = snapshot.layout.index(shard.number)
        url, root = snapshot.store.url_of(name), snapshot.store.local_root
        try:  # the client of the store does not survive a fork, so a file is read without it
            body = self._fetch(name, shard.index_digest) if root is None else Path(root, name).read_bytes()
        except FileNotFoundError as exc:
            raise NotFoundError(f"the index is missing: was version {snapshot.version} dropped?", url=url) from exc
        if digest_of(body) != shard.index_digest:
            raise DamagedError(f"not the index that version {snapshot.version} names: run dray verify", url=url)
        return Columns.read(body, url, (shard.num_samples, shard.num_bytes))

    def _fetch(self, name: str, digest: str) -> bytes:
        """Returns the bytes of an index, from the block store if the digest matches."""
        if self._blocks is None:
            return self._request(name)
        file = f"{digest}.index"
        with self._blocks.alone(file):
            body = self._blocks.get(file)
            if body is None or digest_of(body) != digest:
                body = self._request(name)
                self._blocks.put(file, body)
        return body

    def _request(self, name: str) -> bytes:
        body = self.snapshot.store.get(name)
        with self._lock:
            self.requests += 1
            self.bytes_read += len(body)
        return body
