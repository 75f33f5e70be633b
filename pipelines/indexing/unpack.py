"""Unpacking compressed tars, whose samples cannot be read one by one."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import BinaryIO, cast

import pyarrow as pa

from dray.pipelines.building.job import TASK_BYTES
from dray.pipelines.indexing.listing import Listing, Tar
from dray.pipelines.indexing.threads import CountedStream, OnRead, Workers, run_each
from dray.pipelines.indexing.untouched import open_unchanged
from dray.shards.errors import CallError, DrayError, ExistsError, InputError
from dray.shards.layout import some
from dray.shards.messages import counted
from dray.shards.reading.tar_files import compression_of, natural_key, unpacked_name
from dray.shards.storage.pieces import WHOLE_BYTES, put_pieces
from dray.shards.storage.store import Store

PIECE_BYTES = 4 << 20
CLOCKS_DIFFER = timedelta(minutes=1)  # of two stores, at most
_MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zst"}
_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowException)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackJob:
    """Where compressed tars are, and where they are unpacked."""

    source: Store
    target: Store


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackTask:
    """A tar to unpack, and the name that it gets."""

    tar: Tar
    kind: str
    name: str

    @property
    def num_bytes(self) -> int:
        """Size of the compressed tar."""
        return self.tar.num_bytes

    @property
    def memory_bytes(self) -> int:
        """Maximum number of bytes of memory that the task needs."""
        return TASK_BYTES + 4 * WHOLE_BYTES

    def again(self) -> "UnpackTask":
        """Returns the same task: it looks for what an earlier attempt has stored."""
        return self

    def __str__(self) -> str:
        return f"unpacking {self.tar.name!r}"


def compression_in(head: bytes) -> str:
    """Returns the compression of a file by its first bytes: "gz", "bz2", "xz" or "zst"; empty if it is none of them."""
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")


def unpack(source: Store, listing: Listing, target: Store, workers: Workers) -> list[str]:
    """Unpack the compressed tars of a listing into a folder; returns the names of all its tars there.

    Raises:
        CallError: See `unpack_tasks`.
        InputError: See `unpack_tar`. Those that were unpacked are kept for the next run.
        StoreError: A store failed.
    """
    tasks = unpack_tasks(source, [*listing.tars, *listing.compressed], target)
    names = [tar.name for tar in listing.tars if source.url == target.url]
    job = UnpackJob(source=source, target=target)
    done = run_each(unpack_tar, unpack_tars, job, tasks, workers, title="unpacking", witness=None)
    names += [task.name for task in done]
    return sorted(set(names), key=natural_key)


def unpack_tasks(source: Store, tars: Sequence[Tar], target: Store) -> list[UnpackTask]:
    """Returns a task for each compressed tar.

    Raises:
        CallError: No tar is compressed; some are not, and would not be in the folder of the others; or a tar would get
            its own name.
    """
    kinds = {tar.name: compression_of(tar.name) or _kind_of(source, tar) for tar in tars}
    tasks = [UnpackTask(tar=tar, kind=kinds[tar.name], name=unpacked_name(tar.name)) for tar in tars if kinds[tar.name]]
    plain = [name for name, kind in kinds.items() if not kind]
    is_same = source.url == target.url
    if plain and not is_same:
        raise CallError(
            f"{counted(len(plain), 'tar is', 'tars are')} not compressed ({some(plain, 3)}), and would not be in "
            f"{target.url}: give a pattern of the compressed ones, or unpack beside them by unpack_to={source.url!r}"
        )
    if own := [task.name for task in tasks if is_same and task.name == task.tar.name]:
        raise CallError(f"{some(own, 3)} would be unpacked under the same name: give another folder by unpack_to=")
    return tasks


def _kind_of(source: Store, tar: Tar) -> str:
    return compression_in(bytes(source.get_ranges(tar.name, [0], [min(8, tar.num_bytes)])[0]))


def unpack_tars(job: UnpackJob, tasks: Sequence[UnpackTask]) -> Iterator[UnpackTask]:
    """Unpack tars one after another; yields the task of each: see `unpack_tar`."""
    for task in tasks:
        yield unpack_tar(job, task)


def unpack_tar(job: UnpackJob, task: UnpackTask, on_read: OnRead | None = None) -> UnpackTask:
    """Unpack a tar, as a stream; it appears whole or not at all, and one that exists is kept. Idempotent.

    Raises:
        InputError: It is cut short or damaged, or changes while it is read; or the unpacked one is older.
        StoreError: A store failed.
    """
    if _is_unpacked(job, task):
        return task
    with suppress(ExistsError):  # of a parallel attempt
        put_pieces(job.target, task.name, _pieces(job.source, task, on_read))
    job.target.sync([task.name])
    return task


def _is_unpacked(job: UnpackJob, task: UnpackTask) -> bool:
    """Whether a tar was unpacked before.

    Raises:
        InputError: It was changed since.
    """
    done, packed = job.target.head(task.name), job.source.head(task.tar.name)
    if done is None or packed is None:
        return False
    if packed.modified > done.modified + CLOCKS_DIFFER:
        raise InputError(
            f"it is newer than {job.target.url_of(task.name)}, to which it was unpacked: move that away, then run it "
            "again",
            url=job.source.url_of(task.tar.name),
        )
    return True


def _pieces(source: Store, task: UnpackTask, on_read: OnRead | None) -> Iterator[bytes]:
    """Yields the unpacked bytes of a tar that is the same before and after it was read."""
    with open_unchanged(source, task.tar) as stream:
        unpacked = _opened(cast(BinaryIO, CountedStream(stream, on_read)), task.kind)
        while True:
            try:
                piece = unpacked.read(PIECE_BYTES)
            except (DrayError, InterruptedError):
                raise
            except _ERRORS as exc:
                raise InputError(
                    f"cut short or damaged ({exc!s:.200}), so that it cannot be unpacked: write it again, or leave it "
                    "out by a pattern",
                    url=source.url_of(task.tar.name),
                ) from exc
            if not piece:
                return
            yield piece


def _opened(stream: BinaryIO, kind: str) -> BinaryIO:
    if kind == "zst":
        return cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd"))
    openers = {"gz": gzip.GzipFile, "bz2": bz2.BZ2File, "xz": lzma.LZMAFile}
    opened = gzip.GzipFile(fileobj=stream) if kind == "gz" else openers[kind](stream)
    return cast(BinaryIO, opened)
