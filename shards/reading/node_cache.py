"""The block store of a node: caches bytes of object storage on a local disk, so that its processes fetch them once.

The bytes of an object are in sparse files of `CELL_BYTES`, each at its own offset; the files are named by a digest of
the content, never by a URL. Nothing that is read here is trusted: the checksums of the readers find holes, interrupted
writes and truncated or deleted files, and those bytes are fetched again. So writes need no order, no temporary name and
no fsync. When the files grow too large together, the least recently used are deleted. No file stays open, so a store
can be forked and pickled.
"""

import fcntl
import os
import re
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path

from xxhash import xxh3_64_intdigest

from dray.shards.arguments import as_int

DISK_BLOCK_BYTES = 4096
CELL_BYTES = 4 << 20
SHARED_BYTES = 4 << 30  # default size of the store in the temporary folder
LASTING_BYTES = 64 << 30  # default size of a store in `cache_dir`
FULL, EMPTIER = 10, 9  # a full store is reduced to nine tenths
LOCKS = 1024  # number of lock files; with more, unrelated fetches share one less often
WAIT_S = 60.0  # maximum wait for the fetch of another process; longer than a request takes
POLL_S = (0.001, 0.05)  # first and longest pause

_CELL = re.compile(r"[0-9a-f]{32}\.(tar|index)-\d+")


class Kept(IntEnum):
    """What readers keep in a block store."""

    INDEXES = 0
    RUNS = 1  # also runs of several samples, which workers share
    ALL = 2  # everything, for later epochs and restarts


class BlockStore:
    """Bytes of objects, shared by the processes of a node.

    Args:
        folder: Folder of the files; created on first use.
        max_bytes: Maximum size of all files together.
        kept: What readers keep here.
    """

    def __init__(self, folder: Path, max_bytes: int, kept: Kept) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.kept = kept
        self._is_refused = False  # whether a write failed

    def read(self, name: str, start: int, size: int) -> memoryview | None:
        """Returns bytes of an object, arbitrary where they are not stored; None if none of them are stored."""
        body, found = bytearray(size), 0
        for cell, at, begin, count in _cells(start, size) if self._is_own() else ():
            with suppress(OSError):
                found += self._read_file(f"{name}-{cell}", at, memoryview(body)[begin : begin + count])
        return memoryview(body).toreadonly() if found else None

    def write(self, name: str, start: int, data: memoryview) -> None:
        """Store bytes of an object. If a write fails, warns once and does not try again."""
        for cell, at, begin, count in _cells(start, len(data)):
            self._write(f"{name}-{cell}", at, data[begin : begin + count])

    def get(self, name: str) -> bytes | None:
        """Returns a whole object as stored, which may differ from what `put` got; None if it is not stored."""
        with suppress(OSError):
            return (self.folder / f"{name}-0").read_bytes() if self._is_own() else None
        return None

    def put(self, name: str, data: bytes) -> None:
        """Store a whole object. See `write`."""
        with suppress(OSError):
            (self.folder / f"{name}-0").unlink()  # the old file may be longer
        self._write(f"{name}-0", 0, memoryview(data))

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Guarantee that no other process or thread of the node is in this block for the same `what`.

        After `WAIT_S` the block runs without the lock, which costs only requests; a killed process releases its lock.
        """
        descriptor = self._lock(what)
        try:
            yield
        finally:
            if descriptor is not None:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may hold the descriptor too
                os.close(descriptor)

    def _lock(self, what: str) -> int | None:
        try:
            self._open()
            number = xxh3_64_intdigest(what.encode()) % LOCKS
            descriptor = os.open(self.folder / f"lock-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None  # `write` warns
        pause, end = POLL_S[0], time.monotonic() + WAIT_S
        while time.monotonic() < end:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except OSError:
                time.sleep(pause)
                pause = min(2 * pause, POLL_S[1])
        os.close(descriptor)
        return None

    def _open(self) -> None:
        """Create the folder for this user alone.

        Raises:
            PermissionError: It belongs to another user, or others may write to it.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._is_own():
            raise PermissionError("it belongs to another user, or others may write there")

    def _is_own(self) -> bool:
        """Whether the folder exists and only this user may write to it: anyone can create one in a temporary folder."""
        try:
            found = self.folder.lstat()
        except OSError:
            return False
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022

    def _write(self, file: str, at: int, data: memoryview) -> None:
        if self._is_refused:
            return
        try:
            self._open()
            self._make_room(_on_disk(at, len(data)))
            self._write_file(file, at, data)
        except OSError as exc:
            self._is_refused = True
            warnings.warn(f"{self.folder}: goes on without this cache, which cannot be written: {exc}", stacklevel=2)

    def _read_file(self, file: str, at: int, buffer: memoryview) -> int:
        """Returns the number of bytes read."""
        descriptor = os.open(self.folder / file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.utime(descriptor)  # marks it as recently used
            return os.preadv(descriptor, [buffer], at)
        finally:
            os.close(descriptor)

    def _write_file(self, file: str, at: int, data: memoryview) -> None:
        descriptor = os.open(self.folder / file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while data:
                count = os.pwrite(descriptor, data, at)
                at, data = at + count, data[count:]
        finally:
            os.close(descriptor)

    def _make_room(self, num_bytes: int) -> None:
        """Count bytes about to be written, in a file that all processes share; make room for them."""
        descriptor = os.open(self.folder / "used", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            stored = os.pread(descriptor, 8, 0)
            used = int.from_bytes(stored, "little") + num_bytes
            if used > self.max_bytes or not stored:
                used = self._empty(self.max_bytes * EMPTIER // FULL - num_bytes) + num_bytes
            os.pwrite(descriptor, used.to_bytes(8, "little"), 0)
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _empty(self, target: int) -> int:
        """Delete the least recently used files until at most `target` bytes are left; return the number left."""
        files = []
        for entry in os.scandir(self.folder):
            if _CELL.fullmatch(entry.name):
                with suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    files.append((found.st_mtime_ns, found.st_blocks * 512, entry.path))
        left = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if left <= target:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            left -= size
        return left


def open_blocks(
    cache_dir: str | os.PathLike[str] | None, cache_bytes: int | None, *, num_workers: int, num_ranks: int
) -> BlockStore | None:
    """Returns the block store of a loader: in `cache_dir`, or a temporary one if processes share what they read.

    Args:
        cache_dir: Parent folder of the store; None: the temporary folder, if processes can share a store.
        cache_bytes: Maximum size of all files together; 0: no store; None: the default size.
        num_workers: Number of workers of a rank.
        num_ranks: Number of ranks on all nodes.
    """
    if cache_bytes is not None and as_int("cache_bytes", cache_bytes) == 0:
        return None
    if cache_dir is not None:
        return BlockStore(Path(cache_dir).absolute() / "dray-blocks", cache_bytes or LASTING_BYTES, Kept.ALL)
    if not num_workers and num_ranks == 1:
        return None
    folder = Path(tempfile.gettempdir(), f"dray-blocks-{os.getuid()}").absolute()
    return BlockStore(folder, cache_bytes or SHARED_BYTES, Kept.RUNS if num_workers else Kept.INDEXES)


def _on_disk(start: int, size: int) -> int:
    """Returns the largest size on disk of a range of a sparse file: whole blocks."""
    return (-(-(start + size) // DISK_BLOCK_BYTES) - start // DISK_BLOCK_BYTES) * DISK_BLOCK_BYTES


def _cells(start: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields for each cell: its number, the offset of the bytes in it, their offset in the range, and their number."""
    done = 0
    while done < size:
        cell, at = divmod(start + done, CELL_BYTES)
        count = min(CELL_BYTES - at, size - done)
        yield cell, at, done, count
        done += count
