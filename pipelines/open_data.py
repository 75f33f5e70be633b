"""Finds what loaders and copies read: a version of a dataset, or tars that no build committed, indexed in memory."""

import os
import time
from threading import Lock

from dray.pipelines.progress import say
from dray.shards.errors import CallError, NotFoundError
from dray.shards.layout import Layout, Location, some
from dray.shards.log import read_head
from dray.shards.messages import counted
from dray.shards.reading.foreign_tars import TarSnapshot, index_tars
from dray.shards.reading.tar_files import DataUrl, TarFiles, named_tars, names_tars, tars_in
from dray.shards.snapshot import Snapshot
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store
from dray.shards.storage.urls import split_version

SILENT_S = 3.0  # indexing tars in memory says nothing for so long, in seconds
LINE_EVERY_S = 10.0


def find_data(
    url: DataUrl,
    prefix: str,
    *,
    version: int | str | None = None,
    storage_options: StorageOptions | None = None,
    data_url: str | os.PathLike[str] | None = None,
    data_storage_options: StorageOptions | None = None,
) -> Snapshot | TarFiles:
    """Returns a version of a dataset; or tars, if the URL names them or its folder has no such dataset.

    Args:
        url: A dataset's directory, which may end in `?version=7`; a folder of tars; or tars: one, a pattern, or a list.
        prefix: Prefix of the dataset, or of the tars in a folder; "" for all of them.
        version: Number of a version, or name of a hold; None: the last version.
        storage_options: See `Store`.
        data_url: See `Snapshot.open`.
        data_storage_options: See `Snapshot.open`.

    Raises:
        CallError: See `Snapshot.open` and `named_tars`; or tars with a version.
        NotFoundError: There is no such version, and there are no such tars.
    """
    directory, pinned = split_version(url, version) if isinstance(url, str | os.PathLike) else (url, version)
    if not isinstance(directory, str) or names_tars(directory):
        if pinned is not None:
            raise CallError(f"version {pinned!r} of {url!r:.200}: tars have no versions; name the folder of a dataset")
        return named_tars(directory, storage_options)
    store = Store(directory, storage_options)
    if not prefix:
        return tars_in(store, prefix)
    try:
        return Snapshot.open(
            directory,
            prefix,
            version=pinned,
            storage_options=storage_options,
            data_url=data_url,
            data_storage_options=data_storage_options,
        )
    except NotFoundError:
        if pinned is not None or data_url is not None or read_head(Location(store, Layout(prefix))) is not None:
            raise
    return tars_in(store, prefix)


def index_on_disk(files: TarFiles, *, show: bool = True) -> TarSnapshot:
    """Returns tars on a local disk, indexed in memory.

    Args:
        files: The tars.
        show: Whether to say on standard error how many bytes are read, if that takes long.

    Raises:
        NotFoundError: They are on object storage.
        CallError: They have no samples.
        DamagedError: A tar is incomplete.
    """
    if files.store.local_root is None:
        url, tars = files.store.url, f"{counted(len(files.names), 'tar')} ({some(files.names, 1)})"
        raise NotFoundError(
            f"no dataset in {url}, but {tars} without an index: run `dray index {url}` once, which reads the tars and "
            "rewrites none, then open the folder"
        )
    return index_tars(files, _Progress(files).advance) if show else index_tars(files)


def check_has_samples(snapshot: Snapshot) -> None:
    """Check that a version has samples: a build empties a group that its split no longer names.

    Raises:
        CallError: It has none.
    """
    if not snapshot.shards:
        url = snapshot.store.url
        raise CallError(
            f"version {snapshot.version} of {snapshot.layout.prefix!r} under {url} has no samples: they were dropped. "
            f"`dray log {url}` lists the earlier versions; open one by version=, or restore it by `dray rollback`"
        )


class _Progress:
    """Says how many bytes of some tars were read, if that takes long; threads share it."""

    def __init__(self, files: TarFiles) -> None:
        self._files = files
        self._bytes = 0
        self._started = time.monotonic()
        self._next = self._started + SILENT_S
        self._lock = Lock()

    def advance(self, num_bytes: int) -> None:
        """Count the bytes of a member."""
        with self._lock:
            self._bytes += num_bytes
            if (now := time.monotonic()) < self._next:
                return
            self._next = now + LINE_EVERY_S
        self._say(now - self._started)

    def _say(self, seconds: float) -> None:
        url, tars = self._files.store.url, counted(len(self._files.names), "tar")
        done = f"{self._bytes / 1e9:,.1f} of {self._total() / 1e9:,.1f} GB after {seconds:.0f} s"
        say(f"indexing {tars} in {url} in memory: {done}; `dray index {url}` does this once for all runs")

    def _total(self) -> int:
        root = str(self._files.store.local_root)
        return sum(os.stat(os.path.join(root, name)).st_size for name in self._files.names)
