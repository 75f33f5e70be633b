"""`read_pickles`: input files as a Ray Data dataset."""

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ray.data import Dataset

from dray.pipelines.inputs.scan import scan
from dray.pipelines.inputs.sources import Sources, as_names, find_missing, find_sources
from dray.pipelines.inputs.tolerance import named
from dray.pipelines.ray_data.columns import PartDecoder
from dray.pipelines.ray_data.datasource import check_shared, read_datasource
from dray.pipelines.ray_data.pickles_datasource import PicklesDatasource
from dray.shards.errors import MissingInputError
from dray.shards.layout import check_suffixes
from dray.shards.messages import counted
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store


def read_pickles(
    url: str | os.PathLike[str],
    *,
    suffixes: str | Iterable[str],
    names: Iterable[str] | None = None,
    optional_suffixes: Iterable[str] = (),
    decode: bool = True,
    allow: Collection[str] = (),
    allow_pickle: bool = False,
    storage_options: StorageOptions | None = None,
    override_num_blocks: int | None = None,
    concurrency: int | None = None,
    ray_remote_args: Mapping[str, Any] | None = None,
) -> Dataset:
    """Returns the samples in a folder: `__key__`, and one column for each suffix. Files need not be pickles.

    The files are listed at the time of the call, and not read. While the dataset is read, a file that is missing or was
    changed since is an error that names it. Only files of the columns that `select_columns` names are read, and only
    those of the samples that `limit` or `take` asks for. From object storage a read task fetches up to 128 files at the
    same time. Pickles are read by dray's own unpickler, which executes no code. As in all of Ray Data, rows keep their
    order only with `ray.data.DataContext.get_current().execution_options.preserve_order = True`.

    Columns have the types of `read_shards`; a file without a known extension is bytes. Arrays of a batch are read-only:
    copy what you change.

    Args:
        url: Folder of the files: a path or an object-storage URL. Sample `a/b` has the files `a/b.{suffix}`.
        suffixes: Suffixes of the files that each sample has.
        names: Names of the samples, in order; a set is sorted. None: all in the folder and its sub-folders, sorted, as
            `dray build` finds them: without hidden files and folders, and folders of dray datasets.
        optional_suffixes: Suffixes of further files, which samples may lack; they are null then.
        decode: Whether files become values; if not, columns hold their bytes.
        allow: Full names (`pkg.module.Class`) that pickles may use in addition to the safe list.
        allow_pickle: Whether pickles may run any code that they name.
        storage_options: See `dray.shards.Store`.
        override_num_blocks: Number of read tasks. None: two for each CPU of the cluster, or one for each 64 MiB if
            these are more.
        concurrency: Maximum number of read tasks that run at a time; None: as many as the cluster has room for.
        ray_remote_args: Resources and other options of the read tasks, such as `{"num_cpus": 0.5}`.

    Raises:
        CallError: An argument is invalid, or two names become the same key, as their dots become dashes.
        MissingInputError: No file has any of the suffixes, or samples lack files; names up to 20.

    While the dataset is read:

    Raises:
        InputError: A file is missing, cannot be read or was changed; names it.
        RefusedError: A pickle holds something that is not on the safe list; names file, key, suffix and `allow`.
        DamagedError: A file is not what its suffix says.
    """
    required = check_suffixes(suffixes)
    optional = check_suffixes(optional_suffixes) if optional_suffixes else ()
    store = Store(url, storage_options)
    check_shared(store)
    sources = _find(store, check_suffixes((*required, *optional)), names, optional)
    decoder = PartDecoder.of(allow=allow, allow_pickle=allow_pickle) if decode else None
    return read_datasource(
        PicklesDatasource(store, sources, decoder),
        override_num_blocks=override_num_blocks,
        concurrency=concurrency,
        ray_remote_args=ray_remote_args,
    )


def _find(store: Store, suffixes: tuple[str, ...], names: Iterable[str] | None, optional: Collection[str]) -> Sources:
    """Returns the fingerprints of the samples' files.

    Raises:
        MissingInputError: Samples lack files, or their names cannot become keys.
    """
    if names is None:
        found = scan(store, suffixes)
        unusable, sources = found.unusable, find_sources(store, found.names, suffixes, found.prints)
    else:
        unusable, sources = (), find_sources(store, as_names(names), suffixes)
    bad = [*unusable, *find_missing(sources, optional)]
    if bad:
        total = counted(len(sources) + len(unusable), "sample")
        raise MissingInputError(f"{len(bad)} of {total} of {store.url} cannot be read: {named(bad)}")
    return sources
