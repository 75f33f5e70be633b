"""Opens the same data on all ranks of torch.distributed: rank 0 chooses the version, or the tars."""

import os
from typing import Any

import torch

from dray.loaders.ranks import own_rank
from dray.pipelines.open_data import check_has_samples, find_data, index_on_disk
from dray.shards.errors import CallError, DrayError
from dray.shards.reading.foreign_tars import TarSnapshot
from dray.shards.reading.tar_files import DataUrl, TarFiles
from dray.shards.snapshot import Snapshot
from dray.shards.storage.store import Store
from dray.shards.storage.urls import split_version


def open_snapshot(
    url: DataUrl,
    prefix: str,
    *,
    agreed: bool = True,
    version: int | str | None = None,
    **access: Any,
) -> Snapshot:
    """Returns a version of a dataset with samples, or tars on a local disk, indexed in memory.

    Args:
        url: See `find_data`.
        prefix: See `find_data`.
        agreed: Whether rank 0 chooses for all ranks of torch.distributed; then every rank must call this.
        version: See `find_data`.
        **access: `storage_options`, `data_url` and `data_storage_options`.

    Raises:
        CallError: The dataset or the tars have no samples, or the ranks found different tars.
        NotFoundError: See `find_data`; or the tars are on object storage.
        DamagedError: A tar is incomplete.
    """
    find = find_agreed if agreed else find_data
    return to_snapshot(find(url, prefix, version=version, **access), agreed=agreed)


def to_snapshot(found: Snapshot | TarFiles, *, agreed: bool = True) -> Snapshot:
    """Returns what `find_agreed` found as a snapshot with samples; tars are indexed in memory.

    Raises:
        DrayError: See `open_snapshot`.
    """
    if isinstance(found, TarFiles):
        return _index_agreed(found) if agreed and _is_group() else index_on_disk(found)
    check_has_samples(found)
    return found


def find_agreed(url: DataUrl, prefix: str, *, version: int | str | None = None, **access: Any) -> Snapshot | TarFiles:
    """Returns what rank 0 finds; every rank of torch.distributed must call this.

    See `find_data` for the arguments.

    Raises:
        DrayError: Rank 0 could not open the data; every rank raises its error, or one with the same message.
    """
    if not _is_group():
        return find_data(url, prefix, version=version, **access)
    if torch.distributed.get_rank() == 0:
        try:
            found = find_data(url, prefix, version=version, **access)
        except Exception as exc:
            _broadcast(_as_dray_error(exc))
            raise
        _broadcast(found.version if isinstance(found, Snapshot) else (found.store.url, found.names))
        return found
    chosen = _broadcast(None)
    if isinstance(chosen, DrayError):
        raise chosen
    if isinstance(chosen, tuple) or not isinstance(url, str | os.PathLike):
        return TarFiles(Store(chosen[0], access.get("storage_options")), chosen[1])
    return Snapshot.open(split_version(url)[0], prefix, version=chosen, **access)


def _index_agreed(files: TarFiles) -> TarSnapshot:
    """Returns tars indexed in memory, if all ranks have the same; the ranks wait for one another.

    Raises:
        DrayError: A rank failed; each failed rank raises its own error.
        CallError: The ranks found different bytes.
    """
    rank = torch.distributed.get_rank()
    try:
        found = index_on_disk(files, show=rank == 0)
    except Exception as exc:
        _gather(_as_dray_error(exc))
        raise
    for number, other in enumerate(_gather(found.commit.manifest)):
        if isinstance(other, DrayError):
            raise other
        if other != found.commit.manifest:
            raise CallError(
                f"{files.store.url}: rank {number} found other bytes in the tars than rank {rank}: each node needs the "
                "same tars under the same path"
            )
    return found


def _is_group() -> bool:
    """Whether torch.distributed has several ranks."""
    is_group = torch.distributed.is_available() and torch.distributed.is_initialized()
    return is_group and torch.distributed.get_world_size() > 1


def _gather(value: object) -> list[Any]:
    """Returns the values of all ranks."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _broadcast(value: Any) -> Any:
    """Returns the value of rank 0."""
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def _as_dray_error(exc: Exception) -> DrayError:
    return exc if isinstance(exc, DrayError) else DrayError(f"rank {own_rank()[0]}: {type(exc).__name__}: {exc}")
