"""One way to reach a dataset's objects: disk, S3, GCS, Azure or memory, all through obstore.

Objects are created, never overwritten: `put_new` is one conditional request, so of two writers one wins and the
other is told. Local disk obeys the same rule through hard links. Every error names the URL and none shows a secret.
"""

import errno
import io
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import obstore
from obstore.store import ObjectStore

from dray.shards.client import StorageOptions, client_errors, client_panics, open_client
from dray.shards.errors import CallError, DamagedError, DeniedError, DrayError, NotFoundError, StoreError
from dray.shards.urls import escaped, local_path, normal_url

REQUEST_TIMEOUT_S = 30
SLOWEST_BYTES_PER_S = 4 << 20  # a transfer slower than this is taken for a stuck one
STREAM_CHUNK_BYTES = 8 << 20
DELETES_AT_ONCE = 16
LIST_CHUNK = 1000  # objects; a page of most object stores

_LEFTOVER = re.compile(r"#[0-9]+$")  # how a file is named until it is whole
_LINK_REFUSALS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EMLINK}
_STEP_OUT = re.compile(r"(?:^|/)\.{0,2}(?:/|$)")  # an empty part, "." or ".."


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing or a HEAD request tells it."""

    name: str  # relative to the store's URL
    size: int  # bytes
    etag: str
    modified: datetime


def _info(name: str, meta: Any) -> ObjectInfo:
    """Azure quotes an ETag in one answer and not in another; a store without ETags has a time at least."""
    etag = (meta["e_tag"] or meta["last_modified"].isoformat()).removeprefix("W/").strip('"')
    return ObjectInfo(name, meta["size"], etag, meta["last_modified"])


class ByteSink(Protocol):
    """What a streaming write hands out."""

    def write(self, data: bytes, /) -> int:
        """Append to the object; nothing shows before the block ends."""
        ...


class Store:
    """The objects below one URL.

    Args:
        url: A plain path, `file://`, `s3://`, `gs://`, `az://`, or `memory://` (this process only).
        storage_options: What obstore takes for that store (`endpoint`, `region`, `access_key_id`, ...), and of its
            client `timeout`, `connect_timeout`, `allow_http`, `proxy_url`. The usual environment variables
            (AWS_*, GOOGLE_*, AZURE_*) serve for what is not given.

    Raises:
        CallError: The URL has an unknown scheme, holds a user or a query, or an option is unknown.
    """

    def __init__(self, url: str | os.PathLike[str], storage_options: StorageOptions | None = None) -> None:
        self.url = normal_url(url)
        self._options = dict(storage_options or {})
        self.local_root = local_path(self.url)
        self._client = open_client(self.url, self._options, REQUEST_TIMEOUT_S)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __reduce__(self) -> tuple[type["Store"], tuple[str, dict[str, Any]]]:
        return Store, (self.url, self._options)

    def url_of(self, name: str) -> str:
        """Returns the URL of one object or folder."""
        if not name:
            return self.url
        return f"{self.url.rstrip('/')}/{name if self.local_root is None else escaped(name)}"

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Create an object, whole, at once: a crash or an error leaves nothing visible.

        On local disk its content is durable then, its name after `sync`: a power cut leaves the whole object or none.

        Raises:
            ExistsError: An object lies there already; it was not touched. After a lost reply it may be this very
                one: read it back before judging.
            DeniedError: The caller may not write.
            StoreError: The outcome is unknown: read back. Or the disk refuses hard links.
        """
        with self._errors("write", name):
            if self.local_root is None:
                self._client_for(len(data)).put(self._key(name), data, mode="create", use_multipart=False)
            else:  # the client does not wait until the content has reached the disk before it names it
                self._check_name(name)
                _create_file(Path(self.local_root, name), data)

    @contextmanager
    def open_writer(self, name: str) -> Iterator[ByteSink]:
        """A streaming write: the object appears whole when the block ends, and never if it raises.

        It replaces what lies there; where two writers may meet use `put_new`.
        """
        with self._errors("write", name), obstore.open_writer(self._client, self._key(name)) as sink:
            yield cast(ByteSink, sink)

    def get(self, name: str) -> bytes:
        """The bytes of one object.

        Raises:
            NotFoundError: Nothing lies there.
        """
        return self.get_object(name)[0]

    def get_object(self, name: str, expected_bytes: int = 0) -> tuple[bytes, ObjectInfo]:
        """The bytes of one object with the size and ETag that came with them.

        Args:
            name: The object.
            expected_bytes: Its size, if known: a large one is given the time that it takes.

        Raises:
            NotFoundError: Nothing lies there.
        """
        with self._errors("read", name):
            found = self._client_for(expected_bytes).get(self._key(name))
            return bytes(found.bytes()), _info(name, found.meta)

    def get_ranges(
        self, name: str, starts: Sequence[int], lengths: Sequence[int], *, gap: int = 1 << 20
    ) -> list[memoryview]:
        """Byte ranges of one object, fetched concurrently. An empty range is b"".

        Args:
            name: The object.
            starts: In bytes.
            lengths: In bytes.
            gap: Ranges that lie at most so many bytes apart are fetched in one request.

        Raises:
            DamagedError: The object ends before a range does.
        """
        asked = [(start, length) for start, length in zip(starts, lengths, strict=True) if length]
        try:
            with self._errors("read", name), client_panics():
                found = self._client.get_ranges(
                    self._key(name),
                    starts=[start for start, _ in asked],
                    lengths=[length for _, length in asked],
                    coalesce=gap,
                )
        except (NotFoundError, DeniedError):
            raise
        except StoreError:  # a range past the end looks like any other failure: the size tells
            info = self.head(name)
            if info is not None:
                for start, length in asked:
                    self._check_range(name, start, length, max(0, info.size - start))
            raise
        for (start, length), data in zip(asked, found, strict=True):
            self._check_range(name, start, length, len(data))
        rest = iter(found)
        return [memoryview(next(rest) if length else b"") for length in lengths]

    def _check_range(self, name: str, start: int, length: int, found: int) -> None:
        if found < length:
            raise DamagedError(
                f"{self.url_of(name)}: {length} bytes expected at offset {start}, found {found}: "
                "the object was cut short or replaced"
            )

    @contextmanager
    def open_stream(self, name: str, expected_bytes: int | None = None) -> Iterator[BinaryIO]:
        """A file object that reads one object from its start to its end, without seeking.

        An object is fetched in ranges, the next while the last is read: each request has its own timeout, so a reader
        may take as long as it likes.

        Args:
            name: The object.
            expected_bytes: Its size, if it must be that.

        Raises:
            NotFoundError: Nothing lies there.
            DamagedError: Nothing, or something of another size, lies where a size is expected.
        """
        if self.local_root is not None:  # without the client: a forked worker may read files
            self._check_name(name)
            path = Path(self.local_root, name)
            self._check_size(name, path.stat().st_size if path.is_file() else None, expected_bytes)
            with _file_errors(self.url_of(name)), path.open("rb") as file:
                yield file
            return
        info = self.head(name)
        self._check_size(name, info.size if info else None, expected_bytes)
        if info is None:
            raise NotFoundError(f"cannot read {self.url_of(name)}: nothing lies there")
        with ThreadPoolExecutor(1) as ahead:
            yield io.BufferedReader(_Ranges(self, info, ahead), STREAM_CHUNK_BYTES)

    def _check_size(self, name: str, found: int | None, expected: int | None) -> None:
        if expected is not None and found != expected:
            raise DamagedError(
                f"{self.url_of(name)}: {expected} bytes expected, found {'nothing' if found is None else found}: "
                "it was cut, replaced or deleted; build the dataset again"
            )

    def head(self, name: str) -> ObjectInfo | None:
        """Size and ETag of one object; None where nothing lies."""
        try:
            with self._errors("look up", name):
                found = self._client.head(self._key(name))
        except NotFoundError:
            return None
        return _info(name, found)

    def list_folder(self, folder: str = "") -> list[ObjectInfo]:
        """The objects right in a folder, by name; deeper ones are not looked at. A missing folder is empty."""
        with self._errors("list", folder):
            found = self._client.list_with_delimiter(self._key(folder) or None)["objects"]
        start = len(f"{self._key('')}/".lstrip("/"))
        return sorted(
            (_info(meta["path"][start:], meta) for meta in found),
            key=lambda info: info.name,
        )

    def list_tree(self, folder: str = "") -> Iterator[ObjectInfo]:
        """Yields the objects in a folder and all folders below it, in the store's order. A missing folder is empty."""
        start = len(f"{self._key('')}/".lstrip("/"))
        with self._errors("list", folder):
            for page in obstore.list(self._client, self._key(folder) or None, chunk_size=LIST_CHUNK):
                yield from (_info(meta["path"][start:], meta) for meta in page)

    def list_folders(self, folder: str = "") -> list[str]:
        """The folders right in a folder, sorted, as paths from the store's URL. A missing folder has none."""
        with self._errors("list", folder):
            found = self._client.list_with_delimiter(self._key(folder) or None)["common_prefixes"]
        start = len(f"{self._key('')}/".lstrip("/"))
        return sorted(path[start:].rstrip("/") for path in found)

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects, many at a time; one that is not there is no error."""
        with ThreadPoolExecutor(DELETES_AT_ONCE) as threads:
            for _ in threads.map(self._delete, names):
                pass

    def _delete(self, name: str) -> None:
        with self._errors("delete", name):
            if self.local_root is not None:  # the client cannot name what `leftovers` finds
                self._check_name(name)
                Path(self.local_root, name).unlink(missing_ok=True)
                return
            with suppress(FileNotFoundError):
                self._client.delete(self._key(name))

    def leftovers(self, folder: str = "") -> list[ObjectInfo]:
        """What writes that never ended left right in a folder on local disk: `name#1`, seen by no listing."""
        if self.local_root is None:
            return []
        path, found = Path(self.local_root, folder), []
        with self._errors("list", folder), suppress(FileNotFoundError):
            for entry in os.scandir(path):
                if _LEFTOVER.search(entry.name) and entry.is_file(follow_symlinks=False):
                    info = entry.stat(follow_symlinks=False)
                    name = f"{folder}/{entry.name}".lstrip("/")
                    modified = datetime.fromtimestamp(info.st_mtime, UTC)
                    found.append(ObjectInfo(name, info.st_size, "", modified))
        return sorted(found, key=lambda info: info.name)

    def sync(self, names: Sequence[str]) -> None:
        """Make objects durable: on local disk their folders reach the disk; elsewhere they are durable already."""
        if self.local_root is None:
            return
        with self._errors("fsync", names[0] if names else ""):
            paths = [Path(self.local_root, name) for name in names]
            for path in paths:
                path.stat()  # what vanished cannot be made durable
            for folder in {folder for path in paths for folder in self._folders(path)}:
                _fsync(os.open(folder, os.O_RDONLY))

    def _folders(self, path: Path) -> list[Path]:
        """The folders from the object's own up to the one that holds the store's root (each may be new)."""
        root = Path(cast(str, self.local_root))
        return [folder for folder in path.parents if folder == root.parent or folder.is_relative_to(root)]

    def _errors(self, verb: str, name: str) -> AbstractContextManager[None]:
        return client_errors(verb, self.url_of(name), self._options)

    def _check_name(self, name: str) -> None:
        if name and _STEP_OUT.search(name):
            raise CallError(f"{name!r} is no name of an object below {self.url}: it must not step out of it")

    def _key(self, name: str) -> str:
        """The object's path for the client: a local or memory client is rooted at the top, others at the URL."""
        self._check_name(name)
        if self.local_root is None:
            return name
        return f"{self.local_root}/{name}".strip("/")

    def _client_for(self, transfer_bytes: int) -> ObjectStore:
        """A client whose timeout lets a transfer of that size end: obstore's covers the whole body."""
        if transfer_bytes < SLOWEST_BYTES_PER_S * REQUEST_TIMEOUT_S // 4 or "timeout" in self._options:
            return self._client
        return open_client(self.url, self._options, REQUEST_TIMEOUT_S + transfer_bytes / SLOWEST_BYTES_PER_S)


@contextmanager
def _file_errors(url: str) -> Iterator[None]:
    """Translate a file's errors to a store's."""
    try:
        yield
    except DrayError:
        raise
    except OSError as exc:
        kind = NotFoundError if isinstance(exc, FileNotFoundError) else StoreError
        raise kind(f"cannot read {url}: {exc.strerror}") from exc


class _Ranges(io.RawIOBase):
    """An object as a raw file: one range is read while the next is fetched."""

    def __init__(self, store: Store, info: ObjectInfo, ahead: Executor) -> None:
        self._store = store
        self._info = info
        self._ahead = ahead
        self._rest = memoryview(b"")
        self._next = 0  # where the range after the coming one starts
        self._coming = self._fetch()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # the type of a writable buffer has a public name from Python 3.12 on
        if not self._rest and self._coming is not None:
            self._rest, self._coming = self._coming.result()[0], self._fetch()
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def _fetch(self) -> Future[list[memoryview]] | None:
        start, length = self._next, min(STREAM_CHUNK_BYTES, self._info.size - self._next)
        if length <= 0:
            return None
        self._next += length
        return self._ahead.submit(self._store.get_ranges, self._info.name, [start], [length])


def _create_file(path: Path, data: bytes | bytearray | memoryview) -> None:
    """Create a file that is whole as soon as it has its name: written and fsynced as `name#1`, then linked.

    Raises:
        FileExistsError: A file lies there already.
        OSError: It cannot be written; nothing is left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as exc:
        raise NotADirectoryError(f"{path.parent} is a file") from exc
    staged, descriptor = _open_staged(path)
    try:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]  # 2 GiB at most a call
        finally:
            _fsync(descriptor)
        _link(staged, path)
    finally:
        os.unlink(staged)


def _open_staged(path: Path) -> tuple[str, int]:
    """A new file beside the one that it is to become, open for writing."""
    for number in count(1):
        staged = f"{path}#{number}"  # `leftovers` knows it by that
        try:
            return staged, os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:  # another writer's, or a crash's
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


def _fsync(descriptor: int) -> None:
    """Wait until what was written has reached the disk, and close."""
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
