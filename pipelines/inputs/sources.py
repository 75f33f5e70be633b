"""The input files of a build: their names, fingerprints and bytes.

A fingerprint is size and stamp: the modification time in ns on a disk, xxh3_64 of the ETag on object storage. Bytes
read while packing are checked against it, so a file that changes during a build raises an error.
"""

import os
import stat
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from dray.pipelines.running.node import node_name
from dray.shards.errors import CallError, ClusterError, DeniedError, InputError, MissingInputError, NotFoundError
from dray.shards.layout import check_names, key_of, some
from dray.shards.storage.objects import ObjectInfo
from dray.shards.storage.store import Store

STAT_PROBE = 256  # number of files that are timed to tell a disk from a network mount
FAST_STAT_S = 100e-6
STAT_THREADS = 16
STAT_CHUNK = 4096
MOST_LOOK_UPS = 2000  # maximum number of objects to look up one by one; for more, the folders are listed
FETCH_FILES = 128  # maximum number of concurrent fetches
FETCH_BYTES = 64 << 20
ABSENT, UNREADABLE = -1, -2  # stand for a file's size
Print = tuple[int, int]  # size and stamp of a file


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Sources:
    """The n input samples of a build, in the order given, of s files each.

    Attributes:
        url: The directory of the files.
        names: n names; sample i has the files `{name}.{suffix}`.
        suffixes: s suffixes.
        sizes: (n, s) int64, bytes; ABSENT for a file that does not exist, UNREADABLE for one that cannot be read.
        stamps: (n, s) int64.
        by_content: Whether the stamps are the contents' hashes.
    """

    url: str
    names: Sequence[str]
    suffixes: tuple[str, ...]
    sizes: NDArray[np.int64]
    stamps: NDArray[np.int64]
    by_content: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def keys(self) -> list[str]:
        """Returns the key of each sample."""
        return [key_of(name) for name in self.names]

    def take(self, rows: NDArray[np.int64]) -> "Sources":
        """Returns the samples of `rows`, in that order."""
        names = [self.names[row] for row in rows.tolist()]
        return replace(self, names=names, sizes=self.sizes[rows], stamps=self.stamps[rows])


EMPTY = "empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class BadInput:
    """An input that cannot be packed, or for which the user's function gave no sample."""

    name: str
    file: str  # the bad file; empty if the error is not about one file
    stage: str  # "find", "read", "transform", "encode", or "empty": the user's function returned None
    error: str

    @property
    def is_empty(self) -> bool:
        """Whether the user's function gave no sample for it, which is not an error."""
        return self.stage == EMPTY


def check_sample_names(names: Sequence[str]) -> None:
    """Check that names can become the keys of one dataset.

    Raises:
        CallError: There are none, one would leave the directory, one is given twice, or two become the same key.
    """
    if not names:
        raise CallError("no input samples: the list of names is empty")
    check_names(names)
    if len(set(map(key_of, names))) == len(names):
        return
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise CallError(f"names given more than once: {some(twice)}")
    keys = Counter(map(key_of, names))
    colliding = sorted(name for name in names if keys[key_of(name)] > 1)
    raise CallError(f"names that become one key, as dots are replaced by dashes: {some(colliding)}: rename the files")


def as_names(names: Iterable[str]) -> list[str]:
    """Returns names as a list: in the order given, or sorted if they are a set.

    Raises:
        TypeError: They are one string, or not all are strings.
    """
    listed = sorted(names) if isinstance(names, Set) else list(names)
    if isinstance(names, str) or not all(isinstance(name, str) for name in listed):
        raise TypeError(f"the names of the samples are a list of strings, found {names!r:.80}")
    return listed


def find_sources(
    store: Store, names: Sequence[str], suffixes: tuple[str, ...], prints: Mapping[str, Print] | None = None
) -> Sources:
    """Returns the fingerprint of every input file, looked up concurrently; no file is read.

    Args:
        store: The input directory.
        names: The samples, in order.
        suffixes: The suffixes of each sample's files.
        prints: File -> (size, stamp) from a listing of the whole directory; None: each file is looked up.

    Raises:
        CallError: See `check_sample_names`.
        MissingInputError: The directory cannot be opened.
    """
    check_sample_names(names)
    files = [f"{name}.{suffix}" for name in names for suffix in suffixes]
    if prints is not None:
        found_prints: Iterable[Print] = (prints.get(file, (ABSENT, 0)) for file in files)
    elif store.local_root is not None:
        found_prints = _stat_files(store.local_root, files)
    else:
        found_prints = _look_up_files(store, files)
    found = np.fromiter(chain.from_iterable(found_prints), np.int64, count=2 * len(files)).reshape(-1, 2)
    shape = (len(names), len(suffixes))
    return Sources(
        url=store.url,
        names=names,
        suffixes=suffixes,
        sizes=found[:, 0].reshape(shape),
        stamps=found[:, 1].reshape(shape),
    )


def find_missing(sources: Sources, optional: Collection[str] = ()) -> list[BadInput]:
    """Returns the samples with a file that is missing or cannot be read: the first such file of each.

    Files of the suffixes in `optional` may be missing.
    """
    is_missing = sources.sizes < 0
    for column, suffix in enumerate(sources.suffixes):
        if suffix in optional:
            is_missing[:, column] = sources.sizes[:, column] == UNREADABLE
    return [
        BadInput(name=name, file=(file := f"{name}.{suffix}"), stage="find", error=f"{file!r} is missing or unreadable")
        for name, suffix in (
            (sources.names[row], sources.suffixes[int(is_missing[row].argmax())])
            for row in np.flatnonzero(is_missing.any(axis=1)).tolist()
        )
    ]


def _stat_files(root: str, files: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yields (size, mtime in ns) of each file; (ABSENT or UNREADABLE, 0) if it is not a regular file that can be read.

    A disk answers in microseconds, where threads would only compete for the interpreter; a network mount takes a
    millisecond, and answers many requests at once. Which it is, the first files show.
    """
    try:
        folder = os.open(root, os.O_RDONLY)
    except OSError as exc:
        raise MissingInputError(f"cannot open the input directory {root}: {exc.strerror}") from exc
    try:
        started = time.perf_counter()
        yield from _stat_chunk(folder, files[:STAT_PROBE])
        is_fast = time.perf_counter() - started < STAT_PROBE * FAST_STAT_S
        with ThreadPoolExecutor(1 if is_fast else STAT_THREADS) as threads:
            for prints in threads.map(partial(_stat_chunk, folder), _chunks(files[STAT_PROBE:], STAT_CHUNK)):
                yield from prints
    finally:
        os.close(folder)


def _stat_chunk(folder: int, files: Sequence[str]) -> list[tuple[int, int]]:
    may_read: dict[tuple[int, int, int], bool] = {}  # (mode, owner, group) -> answer
    return [_stat_file(folder, file, may_read) for file in files]


def _stat_file(folder: int, file: str, may_read: dict[tuple[int, int, int], bool]) -> tuple[int, int]:
    try:
        info = os.stat(file, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError):
        return (UNREADABLE if _is_link(folder, file) else ABSENT), 0
    except OSError:
        return UNREADABLE, 0
    rights = (info.st_mode, info.st_uid, info.st_gid)
    if rights not in may_read:
        may_read[rights] = stat.S_ISREG(info.st_mode) and os.access(file, os.R_OK, dir_fd=folder)
    return (info.st_size, info.st_mtime_ns) if may_read[rights] else (UNREADABLE, 0)


def _is_link(folder: int, file: str) -> bool:
    """Whether a file that cannot be found is a symbolic link to a missing target."""
    try:
        return stat.S_ISLNK(os.lstat(file, dir_fd=folder).st_mode)
    except OSError:
        return False


def _look_up_files(store: Store, files: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yields (size, stamp) of each object; (ABSENT, 0) if it is missing. Few are looked up, many are listed."""
    if len(files) <= MOST_LOOK_UPS:
        with ThreadPoolExecutor(FETCH_FILES) as threads:
            found = {info.name: info for info in threads.map(store.head, files) if info is not None}
    else:
        folders = {os.path.dirname(file) for file in files}
        found = {info.name: info for folder in sorted(folders) for info in store.list_folder(folder)}
    for file in files:
        info = found.get(file)
        yield (info.size, etag_stamp(info)) if info is not None else (ABSENT, 0)


def etag_stamp(info: ObjectInfo) -> int:
    """Returns the stamp of an object: the bits of xxh3_64 of its ETag as a signed number."""
    return int.from_bytes(xxh3_64_digest(info.etag.encode()), signed=True)


def read_files(store: Store, sources: Sources) -> Iterator[bytes]:
    """Yields every file's bytes, sample by sample and suffix by suffix; object storage is read concurrently and ahead.

    Files that were absent when they were fingerprinted are skipped.

    Raises:
        InputError: A file is missing, cannot be read, or differs from its fingerprint; names the file.
    """
    for data in try_files(store, sources):
        if isinstance(data, InputError):
            raise data
        if data is not None:
            yield data


def try_files(store: Store, sources: Sources) -> Iterator[bytes | InputError | None]:
    """Like `read_files`, but yields the error of a file that cannot be read, and None for an absent one."""
    return _read_local(store.local_root, sources) if store.local_root is not None else _read_remote(store, sources)


def hash_files(store: Store, sources: Sources) -> NDArray[np.uint64]:
    """Returns (n, s) xxh3_64 of each file, read now; 0 if it is absent, unreadable or differs from its fingerprint."""
    found = try_files(store, sources)
    hashes = [xxh3_64_intdigest(data) if isinstance(data, bytes) else 0 for data in found]
    return np.array(hashes, np.uint64).reshape(sources.sizes.shape)


def _files(sources: Sources) -> Iterator[tuple[str, int, int]]:
    """Yields (file, size, stamp), sample by sample."""
    files = (f"{name}.{suffix}" for name in sources.names for suffix in sources.suffixes)
    return zip(files, sources.sizes.ravel().tolist(), sources.stamps.ravel().tolist(), strict=True)


def _read_local(root: str, sources: Sources) -> Iterator[bytes | InputError | None]:
    try:
        folder = os.open(root, os.O_RDONLY)  # files are opened relative to it, so its path is resolved once
    except OSError as exc:
        raise ClusterError(
            f"node {node_name()} cannot open the input directory {root}: {exc.strerror}; a local directory must be on "
            "a disk that all nodes share, under the same path: mount it there, or use object storage"
        ) from exc
    try:
        for file, size, stamp in _files(sources):
            yield None if size < 0 else _read_file(folder, file, size, stamp, by_content=sources.by_content)
    finally:
        os.close(folder)


def _read_file(folder: int, file: str, size: int, stamp: int, *, by_content: bool) -> bytes | InputError:
    try:
        descriptor = os.open(file, os.O_RDONLY, dir_fd=folder)
        try:
            info = os.fstat(descriptor)
            data = os.read(descriptor, size)
            while len(data) < size and (more := os.read(descriptor, size - len(data))):  # a read returns at most 2 GiB
                data += more
        finally:
            os.close(descriptor)
    except OSError as exc:
        return InputError(f"cannot read {file!r}: {exc.strerror}")
    found = content_stamp(data) if by_content else info.st_mtime_ns
    return data if info.st_size == len(data) == size and found == stamp else _changed(repr(file))


def _read_remote(store: Store, sources: Sources) -> Iterator[bytes | InputError | None]:
    """Keep a window of requests in flight: while a sample is packed the next ones are fetched."""
    files = _files(sources)
    window = _files_at_a_time(sources)
    fetch = partial(_fetch, store, sources.by_content)
    with ThreadPoolExecutor(window) as threads:
        coming = deque(threads.submit(fetch, *file) for file in islice(files, window))
        while coming:
            yield coming.popleft().result()
            coming.extend(threads.submit(fetch, *file) for file in islice(files, 1))


def _fetch(store: Store, by_content: bool, file: str, size: int, stamp: int) -> bytes | InputError | None:
    if size < 0:
        return None
    try:
        data, info = store.get_object(file, size)
    except (NotFoundError, DeniedError) as exc:  # other errors may be transient: a worker retries them
        return InputError(str(exc))
    found = content_stamp(data) if by_content else etag_stamp(info)
    return data if len(data) == size and found == stamp else _changed(store.url_of(file))


def content_stamp(data: bytes) -> int:
    """Returns the bits of a content's xxh3_64 as a signed number."""
    return int.from_bytes(xxh3_64_digest(data), signed=True)


def _changed(file: str) -> InputError:
    return InputError(f"{file} was changed after it was listed: let its writer finish, then run again")


def _files_at_a_time(sources: Sources) -> int:
    largest = int(sources.sizes.max(initial=1))
    return max(1, min(FETCH_FILES, FETCH_BYTES // max(largest, 1)))


def _chunks(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))
