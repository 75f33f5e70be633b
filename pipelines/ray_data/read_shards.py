"""`read_shards`: a version of a dataset as a Ray Data dataset."""

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ray.data import Dataset

from dray.pipelines.ray_data.columns import PartDecoder
from dray.pipelines.ray_data.datasource import check_shared, read_datasource
from dray.pipelines.ray_data.shards_datasource import ShardsDatasource
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.suffixes import Missing, open_parts
from dray.shards.snapshot import DEFAULT_PREFIX, Snapshot
from dray.shards.storage.client import StorageOptions


def read_shards(
    url: str | os.PathLike[str],
    *,
    prefix: str = DEFAULT_PREFIX,
    version: int | str | None = None,
    parts: str | Iterable[str] | None = None,
    missing: str = Missing.ERROR,
    decode: bool = True,
    allow: Collection[str] = (),
    allow_pickle: bool = False,
    storage_options: StorageOptions | None = None,
    data_url: str | os.PathLike[str] | None = None,
    data_storage_options: StorageOptions | None = None,
    override_num_blocks: int | None = None,
    concurrency: int | None = None,
    ray_remote_args: Mapping[str, Any] | None = None,
) -> Dataset:
    """Returns the samples of one version: `__key__`, and one column for each part.

    The version is the last one at the time of the call, whatever is committed later. A read task takes consecutive
    samples, also of a part of a tar, and checks every part against its checksum. Only the parts of the columns that
    `select_columns` names are fetched, and only the samples that `limit` or `take` asks for; `count()` reads no shard.
    A request that fails is repeated from where it was. As in all of Ray Data, rows keep their order only with
    `ray.data.DataContext.get_current().execution_options.preserve_order = True`.

    Arrays and tensors of one dtype (bool, integer or float) and number of axes become a tensor column, of variable
    shapes if these differ. Numbers, text and bytes become Arrow's types. Other values, such as dicts, lists and values
    of several types, are Python objects, unchanged; so are arrays where `missing="none"` leaves gaps. Arrays of a batch
    are read-only: copy what you change. `iter_torch_batches` takes tensors and numbers alone: name these in
    `select_columns` first.

    Args:
        url: Directory of the dataset, a path or an object-storage URL; `?version=7` at its end names a version.
        prefix: Prefix of the dataset.
        version: Number of a version, or name of a hold; None: the last version.
        parts: Suffixes of the parts to read, as in `ShardLoader`; they name the columns. None: all parts, encoded ones
            under the suffix of their source.
        missing: What happens if a sample lacks one of the parts: "error" raises an error that names it; "none" makes
            the value null.
        decode: Whether parts become values. If not, the columns are the suffixes under which the parts are stored, and
            hold their bytes; a sample that stores a part under another suffix has null.
        allow: Full names (`pkg.module.Class`) that pickled parts may use in addition to the safe list.
        allow_pickle: Whether pickled parts may run any code that they name.
        storage_options: See `dray.shards.Store`.
        data_url: Where the tars of an indexed dataset are, if they are outside its folder: they are read there only if
            you say so.
        data_storage_options: Options for the store of `data_url`, which gets none of `storage_options`.
        override_num_blocks: Number of read tasks. None: two for each CPU of the cluster, or one for each 64 MiB if
            these are more.
        concurrency: Maximum number of read tasks that run at a time; None: as many as the cluster has room for.
        ray_remote_args: Resources and other options of the read tasks, such as `{"num_cpus": 0.5}`.

    Raises:
        CallError: An argument is invalid, no sample has one of the parts, or, with `parts=None`, some samples lack one.
        NotFoundError: The dataset or the version does not exist.

    While the dataset is read:

    Raises:
        DamagedError: A sample is damaged; names shard, key, suffix and offset.
        RefusedError: A pickle holds something that is not on the safe list; names shard, key, suffix and `allow`.
        StoreError: A shard cannot be read.
    """
    snapshot = Snapshot.open(
        url,
        prefix,
        version=version,
        storage_options=storage_options,
        data_url=data_url,
        data_storage_options=data_storage_options,
    )
    check_shared(snapshot.store)
    check_shared(snapshot.tars.store)
    wanted = open_parts(Catalog(snapshot), parts, missing)
    decoder = PartDecoder.of(allow=allow, allow_pickle=allow_pickle) if decode else None
    return read_datasource(
        ShardsDatasource(snapshot, wanted, decoder),
        override_num_blocks=override_num_blocks,
        concurrency=concurrency,
        ray_remote_args=ray_remote_args,
    )
