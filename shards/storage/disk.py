"""Files that are created whole or not at all, and never overwritten."""

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from dray.shards.errors import DeniedError, DrayError, NotFoundError, StoreError

_LEFTOVER = re.compile(r"#[0-9]+$")  # name of a file until it is whole
_LINK_REFUSALS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EMLINK}


def create_file(path: Path, pieces: Iterable[bytes | bytearray | memoryview]) -> None:
    """Creates a file that is whole as soon as it has its name: written and fsynced as `name#1`, then linked.

    Raises:
        FileExistsError: The file exists already.
        OSError: It cannot be written; nothing is left, as after an error of `pieces`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as exc:
        raise NotADirectoryError(f"{path.parent} is a file") from exc
    staged, descriptor = _open_staged(path)
    try:
        try:
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]  # 2 GiB at most a call
        finally:
            fsync(descriptor)
        _link(staged, path)
    finally:
        os.unlink(staged)


def _open_staged(path: Path) -> tuple[str, int]:
    """Opens a new file beside its final name for writing."""
    for number in count(1):
        staged = f"{path}#{number}"  # the name that `leftovers` looks for
        try:
            return staged, os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:  # from another writer or a crash
            continue
    raise AssertionError("unreachable: numbers do not end")


def _link(staged: str, path: Path) -> None:
    try:
        os.link(staged, path)
    except FileExistsError:
        raise
    except OSError as exc:
        if exc.errno not in _LINK_REFUSALS:
            raise
        raise OSError(
            "this disk refuses hard links, which dray needs to create files without overwriting: "
            f"use another disk or object storage ({exc.strerror})"
        ) from None


def leftovers(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Returns the names of files that unfinished writes left in a folder."""
    if not folder.is_dir():
        return []
    found: dict[str, os.stat_result] = {}
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # its writer has just finished
            if _LEFTOVER.search(entry.name) and entry.is_file(follow_symlinks=False):
                found[entry.name] = entry.stat(follow_symlinks=False)
    return sorted(found.items())


def sync_folders(paths: Sequence[Path], root: Path) -> None:
    """Waits until the names of files have reached the disk: each folder up to the one that holds `root` may be new.

    Raises:
        FileNotFoundError: A file vanished.
    """
    for path in paths:
        path.stat()
    folders = {folder for path in paths for folder in path.parents}
    for folder in folders:
        if folder == root.parent or folder.is_relative_to(root):
            fsync(os.open(folder, os.O_RDONLY))


def fsync(descriptor: int) -> None:
    """Waits until the content has reached the disk, and closes."""
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def file_errors(url: str) -> Iterator[None]:
    """Translates errors of files to errors of a store."""
    try:
        yield
    except DrayError:
        raise
    except OSError as exc:
        kinds = {FileNotFoundError: NotFoundError, PermissionError: DeniedError}
        raise kinds.get(type(exc), StoreError)(f"cannot read {url}: {exc.strerror}") from exc
