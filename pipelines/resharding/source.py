"""Opens what is copied: a version of a dataset, or tars that no build committed, which are indexed in memory."""

import os

from dray.pipelines.open_data import check_has_samples, find_data, index_on_disk
from dray.shards.errors import CallError
from dray.shards.layout import Location
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.foreign_tars import TarSnapshot, open_catalog
from dray.shards.reading.tar_files import DataUrl
from dray.shards.snapshot import Snapshot
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.urls import real_url


def open_source(
    url: DataUrl,
    prefix: str,
    version: int | str | None = None,
    *,
    storage_options: StorageOptions | None = None,
    data_url: str | os.PathLike[str] | None = None,
    data_storage_options: StorageOptions | None = None,
    show: bool = True,
) -> Catalog:
    """Returns the samples of a version of a dataset, or of tars on a disk.

    Args:
        url: See `find_data`, as for the others.
        prefix: Prefix of the dataset, or of the tars in a folder.
        version: Number of a version, or the name of a hold; None: the last one.
        storage_options: See `Store`.
        data_url: See `Snapshot.open`.
        data_storage_options: See `Snapshot.open`.
        show: Whether to show progress on standard error.

    Raises:
        NotFoundError: There is neither; or the tars are on object storage: says how to index them.
        CallError: There are no samples.
        DamagedError: A tar is incomplete, or the manifest is damaged.
    """
    found = find_data(
        url,
        prefix,
        version=version,
        storage_options=storage_options,
        data_url=data_url,
        data_storage_options=data_storage_options,
    )
    snapshot = found if isinstance(found, Snapshot) else index_on_disk(found, show=show)
    check_has_samples(snapshot)
    return open_catalog(snapshot)


def check_elsewhere(source: Snapshot, location: Location) -> None:
    """Check that a copy does not replace its source.

    Raises:
        CallError: It would; or it would be among tars that dray did not write.
    """
    store, other = source.store, location.store
    if store.endpoint != other.endpoint or real_url(store.url) != real_url(other.url):
        return
    if isinstance(source, TarSnapshot):
        raise CallError(f"the copy would be among the tars that it is made of, in {store.url}: choose another folder")
    if source.layout.prefix == location.prefix:
        raise CallError(f"{location} is the source itself: choose another folder or prefix for the copy")
