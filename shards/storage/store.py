"""One way to reach a dataset's objects: disk, S3, GCS, Azure or memory, all through obstore.

Objects are created, never overwritten: `put_new` is one conditional request, so of two writers one wins and the
other gets an error. Local disk obeys the same rule through hard links. Errors name the URL and show no secret.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore

from dray.shards.errors import DamagedError, NotFoundError, StoreError
from dray.shards.storage import disk
from dray.shards.storage.client import (
    Access,
    StorageOptions,
    check_process,
    client_errors,
    client_panics,
    create_object,
    open_client,
)
from dray.shards.storage.deletes import delete_in_chunks
from dray.shards.storage.objects import ObjectInfo, info_of
from dray.shards.storage.retry import Retries
from dray.shards.storage.stream import STREAM_CHUNK_BYTES, RangeReader
from dray.shards.storage.urls import check_name, local_path, normal_url, url_below

REQUEST_TIMEOUT_S = 30
SLOWEST_BYTES_PER_S = 4 << 20  # a slower transfer counts as stuck
PAGE = 1000  # objects that most object stores list, or delete, with one request

Answer = TypeVar("Answer")


class Store:
    """The objects below one URL.

    Args:
        url: A plain path, `file://`, `s3://`, `gs://`, `az://`, or `memory://` (this process only).
        storage_options: What obstore takes for that store (`endpoint`, `region`, `access_key_id`, ...), and of its
            client `timeout`, `connect_timeout`, `allow_http`, `proxy_url`. What is not given comes from the usual
            variables (AWS_*, GOOGLE_*, AZURE_*); for `s3://` then from AWS_PROFILE's profile and from roles.

    Raises:
        CallError: The URL has an unknown scheme, holds a user or a query, or an option is unknown or wrong.
    """

    def __init__(self, url: str | os.PathLike[str], storage_options: StorageOptions | None = None) -> None:
        self.url = normal_url(url)
        self.local_root = local_path(self.url)
        self._retries = Retries.of(storage_options or {})
        self._access = Access.of(self.url, dict(storage_options or {}))
        self.endpoint = self._access.endpoint.url
        self._client = open_client(self._access, REQUEST_TIMEOUT_S)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __reduce__(self) -> tuple[type["Store"], tuple[str, dict[str, Any]]]:
        return Store, (self.url, dict(self._access.options))

    def url_of(self, name: str) -> str:
        """Returns the URL of one object or folder."""
        return url_below(self.url, name)

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Creates a whole object at once: a crash or an error leaves nothing visible.

        On local disk its content is durable then, its name after `sync`: a power cut leaves the whole object or none.

        Raises:
            ExistsError: The object exists already; it was not touched. Where the server failed after it had stored
                this very one, and the client tried again, it may be that: read it back before judging.
            DeniedError: The caller may not write.
            StoreError: The outcome is unknown, after some tries: read back. Or the disk refuses hard links.
        """
        if self.local_root is not None:  # the client does not wait until the content has reached the disk
            with self._errors("write", name):
                check_name(self.url, name)
                disk.create_file(Path(self.local_root, name), [data])
            return
        client, key, tries = self._client_for(len(data)), self._key(name), count(1)

        def request() -> None:
            is_again = next(tries) > 1
            try:
                create_object(client, key, data)
            except (AlreadyExistsError, FileExistsError):
                if not (is_again and self._holds(name, data)):  # our write succeeded, but its reply was lost
                    raise

        self._ask("write", name, request, len(data))

    def call(self, verb: str, name: str, call: Callable[[ObjectStore, str], None], num_bytes: int) -> None:
        """Calls a function once with the client and its path of an object; each request moves up to `num_bytes`."""
        with self._errors(verb, name):
            call(self._client_for(num_bytes), self._key(name))

    def takes_again(self, name: str, data: bytes) -> bool:
        """Returns whether the store takes an object that holds `data` again: then it ignores `put_new`'s condition."""
        if self.local_root is not None:
            return False
        try:
            self._ask("write", name, lambda: create_object(self._client, self._key(name), data))
        except StoreError:  # it exists, or there was no answer: a store that accepted it would have said so
            return False
        return True

    def _holds(self, name: str, data: bytes | bytearray | memoryview) -> bool:
        """Returns whether an object holds these bytes."""
        with self.open_stream(name) as stream:
            pieces = (memoryview(data)[at : at + STREAM_CHUNK_BYTES] for at in range(0, len(data), STREAM_CHUNK_BYTES))
            return all(stream.read(len(piece)) == piece for piece in pieces) and not stream.read(1)

    def get(self, name: str) -> bytes:
        """Returns the bytes of one object.

        Raises:
            NotFoundError: The object does not exist.
        """
        if self.local_root is not None:  # without the client: a forked worker may read files
            check_name(self.url, name)
            with disk.file_errors(self.url_of(name)):
                return Path(self.local_root, name).read_bytes()
        return self.get_object(name)[0]

    def get_object(self, name: str, expected_bytes: int = 0) -> tuple[bytes, ObjectInfo]:
        """Returns the bytes of one object with its size and ETag.

        Args:
            name: The object.
            expected_bytes: Its size, if known: a large one is given the time that it takes.

        Raises:
            NotFoundError: The object does not exist.
        """
        client = self._client_for(expected_bytes)

        def request() -> tuple[bytes, ObjectInfo]:
            found = client.get(self._key(name))
            return bytes(found.bytes()), info_of(name, found.meta)

        return self._ask("read", name, request, expected_bytes)

    def get_range(self, name: str, start: int, length: int) -> tuple[memoryview, ObjectInfo]:
        """Returns a byte range of one object, shorter where the object ends, with the object's size and ETag.

        One request: the answer says of which object its bytes are.

        Raises:
            NotFoundError: The object does not exist.
        """
        client = self._client_for(length)

        def request() -> tuple[memoryview, ObjectInfo]:
            try:
                with client_panics():
                    found = client.get(self._key(name), options={"range": (start, start + length)})
                    return memoryview(found.bytes()), info_of(name, found.meta)
            except FileNotFoundError:
                raise
            except (BaseError, OSError):  # a range past the end looks like any other failure
                info = info_of(name, client.head(self._key(name)))
                if start < info.size:
                    raise
                return memoryview(b""), info

        return self._ask("read", name, request, length)

    def get_ranges(
        self, name: str, starts: Sequence[int], lengths: Sequence[int], *, gap: int = 1 << 20
    ) -> list[memoryview]:
        """Returns byte ranges of one object, fetched concurrently. An empty range is b"".

        Args:
            name: The object.
            starts: In bytes.
            lengths: In bytes.
            gap: Largest number of bytes between two ranges that are fetched in one request.

        Raises:
            DamagedError: The object ends before a range does.
        """
        asked = [(start, length) for start, length in zip(starts, lengths, strict=True) if length]
        found = self._ask("read", name, lambda: self._get_ranges(name, asked, gap), sum(lengths)) if asked else []
        rest = iter(found)
        return [memoryview(next(rest) if length else b"") for length in lengths]

    def _get_ranges(self, name: str, asked: Sequence[tuple[int, int]], gap: int) -> Sequence[Any]:
        starts, lengths = zip(*asked, strict=True)
        try:
            with client_panics():
                found = self._client.get_ranges(self._key(name), starts=starts, lengths=lengths, coalesce=gap)
        except FileNotFoundError:
            raise
        except (BaseError, OSError):  # a range past the end looks like any other failure: ask for the size
            num_bytes = self._client.head(self._key(name))["size"]
            for start, length in asked:
                self._check_range(name, start, length, max(0, num_bytes - start))
            raise
        for (start, length), data in zip(asked, found, strict=True):
            self._check_range(name, start, length, len(data))
        return found

    def _check_range(self, name: str, start: int, length: int, found: int) -> None:
        if found < length:
            raise DamagedError(
                f"{length} bytes expected at offset {start}, found {found}: the object was cut short or replaced",
                url=self.url_of(name),
            )

    @contextmanager
    def open_stream(self, name: str, expected_bytes: int | None = None) -> Iterator[BinaryIO]:
        """Opens one object as a file that is read from its start to its end, without seeking.

        The next range is fetched while one is read; each request has its own timeout, so a reader may be slow.

        Args:
            name: The object.
            expected_bytes: Its size, if it must be that.

        Raises:
            NotFoundError: The object does not exist.
            DamagedError: It does not have the expected size.
        """
        if self.local_root is not None:  # without the client: a forked worker may read files
            check_name(self.url, name)
            path = Path(self.local_root, name)
            self._check_size(name, path.stat().st_size if path.is_file() else None, expected_bytes)
            with disk.file_errors(self.url_of(name)), path.open("rb") as file:
                yield file
            return
        info = self.head(name)
        self._check_size(name, info.size if info else None, expected_bytes)
        if info is None:
            raise NotFoundError(f"cannot read {self.url_of(name)}: it does not exist")
        with ThreadPoolExecutor(1) as ahead:
            reader = RangeReader(lambda start, length: self.get_ranges(name, [start], [length])[0], info.size, ahead)
            yield io.BufferedReader(reader, STREAM_CHUNK_BYTES)

    def _check_size(self, name: str, found: int | None, expected: int | None) -> None:
        if expected is not None and found != expected:
            raise DamagedError(
                f"{expected} bytes expected, found {'nothing' if found is None else found}: "
                "it was cut, replaced or deleted; build the dataset again",
                url=self.url_of(name),
            )

    def head(self, name: str) -> ObjectInfo | None:
        """Returns size and ETag of one object; None if it does not exist."""
        try:
            return self._ask("look up", name, lambda: info_of(name, self._client.head(self._key(name))))
        except NotFoundError:
            return None

    def list_folder(self, folder: str = "") -> list[ObjectInfo]:
        """Returns the objects directly in a folder, by name. A missing folder is empty."""
        found = self._list(folder)["objects"]
        start = len(f"{self._key('')}/".lstrip("/"))
        named = ((meta["path"][start:], meta) for meta in found)
        infos = [info_of(name, meta) for name, meta in named if name not in ("", folder)]  # "folder/" may be an object
        return sorted(infos, key=lambda info: info.name)

    def list_tree(self, folder: str = "") -> list[ObjectInfo]:
        """Returns the objects in a folder and all folders below it, in the store's order; none for a missing folder."""
        start = len(f"{self._key('')}/".lstrip("/"))

        def listed() -> list[ObjectInfo]:
            pages = obstore.list(self._client, self._key(folder) or None, chunk_size=PAGE)
            return [info_of(meta["path"][start:], meta) for page in pages for meta in page]

        return self._ask("list", folder, listed)

    def list_folders(self, folder: str = "") -> list[str]:
        """Returns the folders directly in a folder, sorted, as paths from the store's URL; none for a missing one."""
        found = self._list(folder)["common_prefixes"]
        start = len(f"{self._key('')}/".lstrip("/"))
        return sorted(path[start:].rstrip("/") for path in found)

    def _list(self, folder: str) -> Any:
        return self._ask("list", folder, lambda: self._client.list_with_delimiter(self._key(folder) or None))

    def delete(self, names: Sequence[str]) -> None:
        """Deletes objects, many with one request where the store can; a missing one is not an error."""
        delete_in_chunks(self._delete, names, PAGE if self.local_root is None else 1)

    def _delete(self, names: Sequence[str]) -> None:
        if self.local_root is not None:  # the client cannot name what `leftovers` finds
            with self._errors("delete", names[0]):
                check_name(self.url, names[0])
                Path(self.local_root, names[0]).unlink(missing_ok=True)
            return
        keys = [self._key(name) for name in names]
        self._ask("delete", names[0], lambda: self._client.delete(keys if len(keys) > 1 else keys[0]))

    def leftovers(self, folder: str = "") -> list[ObjectInfo]:
        """Returns files that unfinished writes left in a folder on local disk: `name#1`, which no listing shows."""
        if self.local_root is None:
            return []
        with self._errors("list", folder):
            return [
                ObjectInfo(f"{folder}/{name}".lstrip("/"), info.st_size, "", datetime.fromtimestamp(info.st_mtime, UTC))
                for name, info in disk.leftovers(Path(self.local_root, folder))
            ]

    def sync(self, names: Sequence[str]) -> None:
        """Makes objects durable: syncs their folders on local disk; elsewhere they are durable already."""
        if self.local_root is not None:
            with self._errors("fsync", names[0] if names else ""):
                root = Path(self.local_root)
                disk.sync_folders([root / name for name in names], root)

    def _ask(self, verb: str, name: str, request: Callable[[], Answer], num_bytes: int = 0) -> Answer:
        """Returns the answer to a request that moves `num_bytes`; object storage is retried if that may help."""
        if self.local_root is not None:
            return self._ask_once(verb, name, request)
        check_process()  # its refusals are not retried
        what = f"waiting for an answer: {verb} {self.url_of(name)}; {self._access.endpoint}".rstrip("; ")
        return self._retries(lambda: self._ask_once(verb, name, request), what, num_bytes / SLOWEST_BYTES_PER_S)

    def _ask_once(self, verb: str, name: str, request: Callable[[], Answer]) -> Answer:
        with self._errors(verb, name):
            return request()

    def _errors(self, verb: str, name: str) -> AbstractContextManager[None]:
        return client_errors(verb, self.url_of(name), self._access)

    def _key(self, name: str) -> str:
        """Returns the client's path of an object: disk and memory are rooted at the top, others at the URL."""
        check_name(self.url, name)
        return name if self.local_root is None else f"{self.local_root}/{name}".strip("/")

    def _client_for(self, transfer_bytes: int) -> ObjectStore:
        """Returns a client whose timeout is long enough for a transfer: obstore's timeout covers the whole body."""
        if transfer_bytes < SLOWEST_BYTES_PER_S * REQUEST_TIMEOUT_S // 4 or "timeout" in self._access.options:
            return self._client
        return open_client(self._access, REQUEST_TIMEOUT_S + transfer_bytes / SLOWEST_BYTES_PER_S)
