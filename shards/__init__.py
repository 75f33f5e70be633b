"""What a dataset is on storage: store, tar, index, snapshot. No Ray, no torch."""

from dray.shards.errors import (
    CallError,
    ChangedError,
    ClusterError,
    ConflictError,
    DamagedError,
    DeniedError,
    DrayError,
    ExistsError,
    InputError,
    MissingInputError,
    NotFoundError,
    PositionError,
    RefusedError,
    StoreError,
)
from dray.shards.index import ShardIndex
from dray.shards.manifest import Manifest, Shard
from dray.shards.snapshot import Snapshot
from dray.shards.storage.store import Store

__all__ = [
    "CallError",
    "ChangedError",
    "ClusterError",
    "ConflictError",
    "DamagedError",
    "DeniedError",
    "DrayError",
    "ExistsError",
    "InputError",
    "Manifest",
    "MissingInputError",
    "NotFoundError",
    "PositionError",
    "RefusedError",
    "Shard",
    "ShardIndex",
    "Snapshot",
    "Store",
    "StoreError",
]
