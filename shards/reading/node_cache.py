"""The block store of a node: bytes of object storage on a local disk, so that its processes fetch them once.

The bytes of an object lie in sparse files of `CELL_BYTES`, each byte at its place; the files are named by a digest of
content, never by a URL. Nothing that is read here is believed: a hole, a write that a kill cut off, a file that was cut
or deleted meanwhile are all found by the checksums that readers have anyway, and fetched again. So a write needs no
order, no second name and no fsync. The files that were used longest ago are deleted when all together grow too large.
No file stays open, so a store crosses forks and pickles as it is.
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

CELL_BYTES = 4 << 20
SHARED_BYTES = 4 << 30  # of the store in the temporary folder
LASTING_BYTES = 64 << 30  # of one that was asked for
FULL, EMPTIER = 10, 9  # a full store is emptied to nine tenths
LOCKS = 1024  # files; more make it rarer that two fetches of other things wait for one another
WAIT_S = 60.0  # for another process's fetch at the most: longer than a request takes
POLL_S = (0.001, 0.05)  # from, up to

_CELL = re.compile(r"[0-9a-f]{32}\.(tar|index)-\d+")


class Kept(IntEnum):
    """What a block store is used for."""

    INDEXES = 0
    RUNS = 1  # and runs of several samples, which several workers read
    ALL = 2  # for later epochs, and restarts


class BlockStore:
    """Bytes of objects, shared by the processes of a node.

    Args:
        folder: Where they lie; made when it is needed.
        max_bytes: Of all files together.
        kept: What readers put here.
    """

    def __init__(self, folder: Path, max_bytes: int, kept: Kept) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.kept = kept
        self._is_refused = False  # by the disk

    def read(self, name: str, start: int, size: int) -> memoryview | None:
        """Some bytes of an object, with anything at all where it has none; None where nothing of them lies here."""
        body, found = bytearray(size), 0
        for cell, at, begin, count in _cells(start, size) if self._is_own() else ():
            with suppress(OSError):
                found += self._read_file(f"{name}-{cell}", at, memoryview(body)[begin : begin + count])
        return memoryview(body).toreadonly() if found else None

    def write(self, name: str, start: int, data: memoryview) -> None:
        """Keep bytes of an object. A disk that does not take them is warned of, once, and not tried again."""
        for cell, at, begin, count in _cells(start, len(data)):
            self._write(f"{name}-{cell}", at, data[begin : begin + count])

    def get(self, name: str) -> bytes | None:
        """A whole object of unknown size, as `put` got it or not; None where it does not lie here."""
        with suppress(OSError):
            return (self.folder / f"{name}-0").read_bytes() if self._is_own() else None
        return None

    def put(self, name: str, data: bytes) -> None:
        """Keep a whole object. See `write`."""
        with suppress(OSError):
            (self.folder / f"{name}-0").unlink()  # it may be longer
        self._write(f"{name}-0", 0, memoryview(data))

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """While this block runs, no other process or thread of the node is in one for the same.

        It is waited for only so long: who is killed lets go by that, and nothing wrong comes of two at once.
        """
        descriptor = self._lock(what)
        try:
            yield
        finally:
            if descriptor is not None:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may have the descriptor too
                os.close(descriptor)

    def _lock(self, what: str) -> int | None:
        try:
            self._open()
            number = xxh3_64_intdigest(what.encode()) % LOCKS
            descriptor = os.open(self.folder / f"lock-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None  # `write` tells
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
        """Make the folder, for this user alone.

        Raises:
            PermissionError: It is another user's, or one that others may write.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._is_own():
            raise PermissionError("it belongs to another user, or others may write there")

    def _is_own(self) -> bool:
        """Whether the folder is there, and this user's alone to write: in a temporary one anybody may have made it."""
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
            self._make_room(len(data))
            self._write_file(file, at, data)
        except OSError as exc:
            self._is_refused = True
            warnings.warn(f"{self.folder}: goes on without this cache, which cannot be written: {exc}", stacklevel=2)

    def _read_file(self, file: str, at: int, buffer: memoryview) -> int:
        """How many bytes came."""
        descriptor = os.open(self.folder / file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.utime(descriptor)  # used just now
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
        """Count bytes that are about to be written, in a file that all processes share; delete old ones if need be."""
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
        """Delete the least recently used until at most this number of bytes is left; return how many are."""
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
    """The store that a loader uses: one that was asked for, or a temporary one where processes share what they read.

    Args:
        cache_dir: Where it is to lie; None: in the temporary folder, where it can help.
        cache_bytes: Of all files together; 0: no store; None: as is usual for either.
        num_workers: Of a rank.
        num_ranks: Of all nodes.
    """
    if cache_bytes is not None and as_int("cache_bytes", cache_bytes) == 0:
        return None
    if cache_dir is not None:
        return BlockStore(Path(cache_dir).absolute() / "dray-blocks", cache_bytes or LASTING_BYTES, Kept.ALL)
    if not num_workers and num_ranks == 1:
        return None
    folder = Path(tempfile.gettempdir(), f"dray-blocks-{os.getuid()}").absolute()
    return BlockStore(folder, cache_bytes or SHARED_BYTES, Kept.RUNS if num_workers else Kept.INDEXES)


def _cells(start: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Of each cell that some bytes lie in: its number, where they start in it, where among themselves, how many."""
    done = 0
    while done < size:
        cell, at = divmod(start + done, CELL_BYTES)
        count = min(CELL_BYTES - at, size - done)
        yield cell, at, done, count
        done += count
