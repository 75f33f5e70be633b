"""`index_tars`: the one call that makes a dataset of tars that another program wrote, in place."""

from collections.abc import Sequence

from dray.pipelines.indexing.changes import KeyScope
from dray.pipelines.indexing.index import IndexSpec, index
from dray.pipelines.indexing.listing import find_tars
from dray.pipelines.indexing.places import Path, find_place
from dray.pipelines.indexing.report import IndexReport
from dray.pipelines.indexing.threads import Workers
from dray.pipelines.indexing.unpack import unpack
from dray.pipelines.planning.changes import Guard
from dray.pipelines.versions.retention import DAY_S, Retention
from dray.shards.arguments import as_int
from dray.shards.errors import CallError
from dray.shards.layout import Layout, Location
from dray.shards.snapshot import DEFAULT_PREFIX
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store
from dray.shards.storage.urls import normal_url

LOCAL_THREADS = 4  # parsing headers holds the interpreter; checksums and reads do not
REMOTE_THREADS = 16


def index_tars(
    url: Path | Sequence[Path],
    pattern: str | Sequence[str] | None = None,
    *,
    prefix: str = DEFAULT_PREFIX,
    into: Path | None = None,
    unpack_to: Path | None = None,
    keys: str | None = None,
    on_error: str = "fail",
    allow_removal: str | None = None,
    allow_changed_source: bool = False,
    storage_options: StorageOptions | None = None,
    into_storage_options: StorageOptions | None = None,
    address: str | None = None,
    num_threads: int | None = None,
    keep: int | None = 2,
    grace_s: float = DAY_S,
    progress: bool = True,
) -> IndexReport:
    """Make a dataset of the tars of an existing WebDataset, in place: no byte of a tar is moved, copied or changed.

    Every tar is read once, as a stream; its index and a version of the dataset are stored under `__dray__/{prefix}`.
    The version appears whole or not at all. A rerun reads only tars that are new, or whose size, time or ETag changed,
    and writes nothing if there are none. Samples are grouped as webdataset groups them: consecutive members whose names
    are the same up to the first dot after the last slash. Tars come in the natural order of their names: `2.tar` before
    `10.tar`.

    Args:
        url: Folder of the tars, whose sub-folders are searched too; or one tar, a pattern such as
            `s3://bucket/train-{000..099}.tar`, or a list of tars.
        pattern: Names relative to `url`, with braces as in webdataset, and globs: `*`, `?` and `[ab]` in one folder,
            `**/` for any folders. Names and braces name tars that must exist. None: as in the last version, and all
            tars in the first.
        prefix: Prefix of the dataset.
        into: Folder for the index, if the folder of the tars cannot be written to. Readers then need `data_url`. None:
            the folder of the tars.
        unpack_to: Folder into which compressed tars (`.tar.gz`, `.tgz`, `.bz2`, `.xz`, `.zst`, or `.tar` with such a
            content) are unpacked, as `.tar` under the same path; those are then indexed there. Each appears whole or
            not at all, and is not unpacked again.
        keys: "unique": the keys of all samples differ, else an error names those that do not. "per-tar": keys are
            unique in each tar only; the path of the tar, without `.tar`, and a slash are put before each. None: as in
            the last version, and "unique" in the first.
        on_error: How to treat tars that cannot be indexed: cut short, damaged, compressed, or with members of one
            sample that are not side by side. "fail" makes no version and names them; "skip" leaves them out until
            they change, and the report names them.
        allow_removal: Maximum number of samples of the last version whose tars may be gone, or a percentage such as
            "25%". None: 10 %, or 50 % of fewer than 20.
        allow_changed_source: Whether the tars may be in another place than those of the last version.
        storage_options: Options of `url`: see `dray.shards.Store`.
        into_storage_options: Options of `into` or `unpack_to`: `storage_options` are not used there, unless it is the
            folder of the tars.
        address: Address of a Ray cluster; "local" starts one; "none" scans in this process. None: the cluster that this
            process is connected to, if any, and never from inside a Ray task or actor.
        num_threads: Number of tars that this process scans at the same time. None: 4 on a disk, 16 on object storage.
        keep: Number of versions that stay readable. None: all.
        grace_s: Seconds for which a superseded version is kept.
        progress: Show a bar on a terminal, plain lines elsewhere.

    Returns:
        Version, tars, samples, bytes; what changed; and what webdataset would drop or merge.

    Raises:
        CallError: An argument is wrong, tars are compressed, the dataset is of another kind, or many samples would go:
            nothing was written.
        MissingInputError: There is no tar, or a tar that is named does not exist.
        InputError: Tars cannot be indexed, or samples of different tars have one key: names up to 20. No version was
            made; the next run reuses the indexes that were stored.
        DeniedError: The folder cannot be written to.
    """
    if keys not in (None, *KeyScope):
        raise CallError(f"keys={keys!r}: expected 'unique' or 'per-tar'")
    if on_error not in ("fail", "skip"):
        raise CallError(f"on_error={on_error!r}: expected 'fail' or 'skip'")
    if into is not None and unpack_to is not None:
        raise CallError(
            "into= and unpack_to=: the index of tars that are unpacked is stored beside them; give one of both"
        )
    if into is None and unpack_to is None and into_storage_options:
        raise CallError("into_storage_options without into: give the URL that they are for")
    folder, patterns = find_place(url, pattern)
    source = Store(folder, storage_options)
    target = source if into is None else _target(source, into, storage_options, into_storage_options)
    default_threads = LOCAL_THREADS if source.local_root is not None else REMOTE_THREADS
    threads = default_threads if num_threads is None else as_int("num_threads", num_threads, 1)
    workers = Workers(address=address, num_threads=threads, progress=progress)
    if unpack_to is not None:
        listing = find_tars(source, patterns, prefix, storage_options)
        source = target = _target(source, unpack_to, storage_options, into_storage_options)
        names = unpack(Store(folder, storage_options), listing, source, workers)
        patterns = None if patterns is None else names
    spec = IndexSpec(
        source=source,
        options=storage_options,
        location=Location(target, Layout(prefix)),
        patterns=patterns,
        keys=keys,
        skips_bad=on_error == "skip",
        guard=Guard(allow_removal=allow_removal, allow_changed_source=allow_changed_source),
        retention=None if keep is None else Retention(keep=keep, grace_s=grace_s),
        workers=workers,
    )
    return index(spec)


def _target(
    source: Store, url: Path, storage_options: StorageOptions | None, into_storage_options: StorageOptions | None
) -> Store:
    """Returns the store of what is written."""
    is_same = normal_url(url) == source.url and into_storage_options is None
    return Store(url, storage_options if is_same else into_storage_options)
