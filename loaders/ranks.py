"""The rank of this process, and the version of a dataset that all ranks read."""

import os
from typing import Any

import torch

from dray.shards.errors import CallError, DrayError
from dray.shards.snapshot import Snapshot
from dray.shards.storage.urls import split_version


def own_rank() -> tuple[int, int]:
    """Returns (rank, number of ranks): from torch.distributed, else from RANK and WORLD_SIZE, else (0, 1)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return _from_environment("RANK", 0), _from_environment("WORLD_SIZE", 1)


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.strip().isdecimal():
        raise CallError(f"environment variable {name}={text!r}: expected an integer >= 0")
    return int(text)


def open_agreed(
    url: str | os.PathLike[str], prefix: str, *, version: int | str | None = None, **access: Any
) -> Snapshot:
    """Returns the version of a dataset that rank 0 chooses; every rank of torch.distributed must call this.

    Args:
        url: As for `Snapshot.open`, as the others.
        prefix: Prefix of the dataset.
        version: Number of a version, or name of a hold.
        **access: `storage_options`, `data_url` and `data_storage_options`.

    Raises:
        DrayError: Rank 0 could not open the dataset; every rank raises its error, or one with the same message.
    """
    is_group = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not is_group or torch.distributed.get_world_size() == 1:
        return Snapshot.open(url, prefix, version=version, **access)
    if torch.distributed.get_rank() == 0:
        try:
            snapshot = Snapshot.open(url, prefix, version=version, **access)
        except Exception as exc:
            error = exc if isinstance(exc, DrayError) else DrayError(f"rank 0: {type(exc).__name__}: {exc}")
            torch.distributed.broadcast_object_list([error], src=0)
            raise
        torch.distributed.broadcast_object_list([snapshot.version], src=0)
        return snapshot
    found: list[int | DrayError | None] = [None]
    torch.distributed.broadcast_object_list(found, src=0)
    if isinstance(found[0], DrayError):
        raise found[0]
    return Snapshot.open(split_version(url)[0], prefix, version=found[0], **access)


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
