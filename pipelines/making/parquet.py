"""A dataset of the rows of Parquet files: each file is an input, so that a rerun reads only new and changed ones."""

import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dray.pipelines.inputs.arrow import arrow_samples
from dray.pipelines.inputs.sources import etag_stamp
from dray.shards.errors import MissingInputError
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.objects import ObjectInfo
from dray.shards.storage.store import Store

BATCH_ROWS = 1024
READ_BYTES = 1 << 20
ENDINGS = (".parquet", ".pq")
File = tuple[str, int, int]  # name, size and stamp


class ParquetRows:
    """Makes the samples of one Parquet file of a store; see `arrow_samples`."""

    def __init__(self, store: Store, key_column: str | None) -> None:
        self.store = store
        self.key_column = key_column

    def __call__(self, file: File) -> Iterator[dict[str, Any]]:
        """Yields the rows of a file, given as name, size and stamp."""
        name, size, _ = file
        with io.BufferedReader(_Reader(self.store, name, size), READ_BYTES) as opened:
            batches = pq.ParquetFile(pa.PythonFile(opened, "r")).iter_batches(BATCH_ROWS)
            yield from arrow_samples(batches, key_column=self.key_column)

    @property
    def version(self) -> str:
        """The version of what it makes."""
        return f"rows of parquet 1, key_column={self.key_column!r}"


def open_parquet(url: str, storage_options: StorageOptions | None) -> tuple[Store, list[File]]:
    """Returns the store of one Parquet file or of a folder, and name, size and stamp of each file, sorted by name.

    Raises:
        MissingInputError: There is none.
    """
    folder, _, file = url.rpartition("/") if url.lower().endswith(ENDINGS) else (url, "", "")
    store = Store(folder or ".", storage_options)
    if file:
        found = store.head(file)
        if found is None:
            raise MissingInputError(f"no file {url}")
        return store, [(file, found.size, _stamp(store, found))]
    infos = [info for info in store.list_tree() if info.name.lower().endswith(ENDINGS)]
    visible = [info for info in infos if not any(part.startswith((".", "_")) for part in info.name.split("/"))]
    if not visible:
        raise MissingInputError(f"no file {', '.join(f'*{ending}' for ending in ENDINGS)} in {store.url}")
    return store, sorted((info.name, info.size, _stamp(store, info)) for info in visible)


def key_of_file(file: File) -> str:
    """Returns the key of a file: its path without the extension."""
    return file[0].rpartition(".")[0]


def _stamp(store: Store, info: ObjectInfo) -> int:
    if store.local_root is None:
        return etag_stamp(info)
    return int(info.modified.timestamp() * 1e6)


class _Reader(io.RawIOBase):
    """An object as a file that can seek; each read is one ranged request."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        self._store, self._name, self._size = store, name, size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._place))
        [data] = self._store.get_ranges(self._name, [self._place], [length])
        buffer[:length] = data
        self._place += length
        return length
