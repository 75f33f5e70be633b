"""One way to reach a dataset's objects: disk, S3, GCS, Azure or memory, all through obstore.

Objects are created, never overwritten: `put_new` is one conditional request, so of two writers one wins and the
other is told. Local disk obeys the same rule through hard links. Every error names the URL and none shows a secret.
"""

import io
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, MemoryStore, ObjectStore, from_url

from dray.shards.errors import (
    CallError,
    DamagedError,
    DeniedError,
    DrayError,
    ExistsError,
    NotFoundError,
    StoreError,
)

StorageOptions = Mapping[str, Any]

REQUEST_TIMEOUT_S = 30
CONNECT_TIMEOUT_S = 5
SLOWEST_BYTES_PER_S = 4 << 20  # a transfer slower than this is taken for a stuck one
STREAM_CHUNK_BYTES = 4 << 20
MESSAGE_CHARS = 400  # of a client's message that an error quotes

_CLIENT_OPTIONS = {"allow_http", "allow_invalid_certificates", "connect_timeout", "proxy_url", "timeout"}
_SECRET_NAME = re.compile(r"secret|token|key|password|sas|credential", re.IGNORECASE)
_SECRET_ENV = re.compile(r"^(AWS|GOOGLE|AZURE)_.*(SECRET|TOKEN|KEY|SAS|PASSWORD)", re.IGNORECASE)
_SIGNATURE = re.compile(r"([?&](?:sig|X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token)=)[^&\s]+")
_KINDS = {"code: AccessDenied": DeniedError, "NoSuchBucket": NotFoundError}  # errors that have no type in the client
_memory_stores: dict[str, MemoryStore] = {}  # memory://NAME lives as long as the process: for tests and trials


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing or a HEAD request tells it."""

    name: str  # relative to the store's URL
    size: int  # bytes
    etag: str


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
        self._client = self._open(REQUEST_TIMEOUT_S)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __reduce__(self) -> tuple[type["Store"], tuple[str, dict[str, Any]]]:
        return Store, (self.url, self._options)

    def url_of(self, name: str) -> str:
        """The URL of one object."""
        return f"{self.url}/{name}" if name else self.url

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Create an object, whole, at once: a crash or an error leaves nothing visible.

        On local disk it is durable only after `sync`.

        Raises:
            ExistsError: An object lies there already; it was not touched. After a lost reply it may be this very
                one: read it back before judging.
            DeniedError: The caller may not write.
            StoreError: The outcome is unknown: read back.
        """
        with self._errors("write", name):
            self._client_for(len(data)).put(self._key(name), data, mode="create", use_multipart=False)

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

    def get_object(self, name: str) -> tuple[bytes, ObjectInfo]:
        """The bytes of one object with the size and ETag that came with them.

        Raises:
            NotFoundError: Nothing lies there.
        """
        with self._errors("read", name):
            found = self._client.get(self._key(name))
            return bytes(found.bytes()), ObjectInfo(name, found.meta["size"], found.meta["e_tag"] or "")

    def get_ranges(self, name: str, starts: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        """Byte ranges of one object, fetched concurrently; near ones in one request.

        Raises:
            DamagedError: The object ends before a range does.
        """
        with self._errors("read", name):
            found = self._client.get_ranges(self._key(name), starts=starts, lengths=lengths)
        for start, length, data in zip(starts, lengths, found, strict=True):
            if len(data) != length:
                raise DamagedError(
                    f"{self.url_of(name)}: {length} bytes expected at offset {start}, found {len(data)}: "
                    "the object was cut short or replaced"
                )
        return [memoryview(data) for data in found]

    @contextmanager
    def open_stream(self, name: str) -> Iterator[BinaryIO]:
        """A file object that reads one object from its start to its end, in one request, without seeking."""
        if self.local_root is not None:  # without the client: a forked worker may read files
            with _file_errors(self.url_of(name)), Path(self.local_root, name).open("rb") as file:
                yield file
            return
        with self._errors("read", name):
            size = self._client.head(self._key(name))["size"]
            found = self._client_for(size).get(self._key(name))
            yield io.BufferedReader(_Stream(found.stream(min_chunk_size=STREAM_CHUNK_BYTES)), STREAM_CHUNK_BYTES)

    def head(self, name: str) -> ObjectInfo | None:
        """Size and ETag of one object; None where nothing lies."""
        try:
            with self._errors("look up", name):
                found = self._client.head(self._key(name))
        except NotFoundError:
            return None
        return ObjectInfo(name, found["size"], found["e_tag"] or "")

    def list_folder(self, folder: str = "") -> list[ObjectInfo]:
        """The objects right in a folder, by name; deeper ones are not looked at. A missing folder is empty."""
        with self._errors("list", folder):
            found = self._client.list_with_delimiter(self._key(folder) or None)["objects"]
        start = len(f"{self._key('')}/".lstrip("/"))
        return sorted(
            (ObjectInfo(meta["path"][start:], meta["size"], meta["e_tag"] or "") for meta in found),
            key=lambda info: info.name,
        )

    def list_folders(self, folder: str = "") -> list[str]:
        """The folders right in a folder, sorted, as paths from the store's URL. A missing folder has none."""
        with self._errors("list", folder):
            found = self._client.list_with_delimiter(self._key(folder) or None)["common_prefixes"]
        start = len(f"{self._key('')}/".lstrip("/"))
        return sorted(path[start:].rstrip("/") for path in found)

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects; one that is not there is no error."""
        with self._errors("delete", names[0] if names else ""):
            for name in names:
                try:
                    self._client.delete(self._key(name))
                except FileNotFoundError:
                    continue

    def sync(self, names: Sequence[str], *, folders: bool = True) -> None:
        """Make objects durable: on local disk they and their folders reach the disk; elsewhere they are already.

        Args:
            names: The objects.
            folders: Whether to sync the folders too, from the objects' own up to the one that holds the store's root.
        """
        if self.local_root is None:
            return
        with self._errors("fsync", names[0] if names else ""):
            paths = [Path(self.local_root, name) for name in names]
            above = {folder for path in paths for folder in self._folders(path)} if folders else set()
            for path in (*paths, *above):
                _fsync(path)

    def _folders(self, path: Path) -> list[Path]:
        """The folders from the object's own up to the one that holds the store's root (each may be new)."""
        root = Path(cast(str, self.local_root))
        return [folder for folder in path.parents if folder == root.parent or folder.is_relative_to(root)]

    def _key(self, name: str) -> str:
        """The object's path for the client: a local or memory client is rooted at the top, others at the URL."""
        if self.local_root is None:
            return name
        return f"{self.local_root}/{name}".strip("/")

    def _open(self, timeout_s: float) -> ObjectStore:
        if self.local_root is not None:
            return LocalStore("/")
        if self.url.startswith("memory://"):
            return _memory_stores.setdefault(self.url, MemoryStore())
        client = {"timeout": f"{timeout_s:.0f}s", "connect_timeout": f"{CONNECT_TIMEOUT_S}s"}
        client |= {name: value for name, value in self._options.items() if name in _CLIENT_OPTIONS}
        config = {name: value for name, value in self._options.items() if name not in _CLIENT_OPTIONS}
        endpoint = str(config.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL") or "")
        if endpoint.startswith("http://"):  # an endpoint without TLS was asked for by name
            client.setdefault("allow_http", cast(Any, True))
        try:
            return from_url(self.url, client_options=cast(Any, client), **config)
        except (BaseError, ValueError) as exc:
            raise CallError(f"cannot open {self.url}: {self._reason(exc)}") from None

    def _client_for(self, transfer_bytes: int) -> ObjectStore:
        """A client whose timeout lets a transfer of that size end: obstore's covers the whole body."""
        if transfer_bytes < SLOWEST_BYTES_PER_S * REQUEST_TIMEOUT_S // 4 or "timeout" in self._options:
            return self._client
        return self._open(REQUEST_TIMEOUT_S + transfer_bytes / SLOWEST_BYTES_PER_S)

    @contextmanager
    def _errors(self, verb: str, name: str) -> Iterator[None]:
        """Translate the client's errors: typed, with the URL, without secrets.

        `from None`: the client's own message is quoted, redacted, and its debug output may hold a signed URL.
        """
        _check_process()
        try:
            yield
        except DrayError:
            raise
        except FileNotFoundError as exc:
            raise NotFoundError(f"cannot {verb} {self.url_of(name)}: {self._reason(exc)}") from None
        except AlreadyExistsError:
            raise ExistsError(f"cannot {verb} {self.url_of(name)}: an object lies there already") from None
        except (PermissionDeniedError, UnauthenticatedError, PermissionError) as exc:
            raise DeniedError(
                f"cannot {verb} {self.url_of(name)}: permission denied; check the key and what it may do "
                f"({self._reason(exc)})"
            ) from None
        except (BaseError, OSError) as exc:
            kind = next((kind for text, kind in _KINDS.items() if text in str(exc)), StoreError)
            raise kind(f"cannot {verb} {self.url_of(name)}: {self._reason(exc)}") from None

    def _reason(self, exc: Exception) -> str:
        text = " ".join(str(exc).split("\n\nDebug source")[0].split())
        secrets = {str(value) for name, value in self._options.items() if _SECRET_NAME.search(name)}
        secrets |= {value for name, value in os.environ.items() if _SECRET_ENV.search(name)}
        for secret in sorted(secrets, key=len, reverse=True):
            if len(secret) > 3:
                text = text.replace(secret, "***").replace(urllib.parse.quote_plus(secret), "***")
        text = _SIGNATURE.sub(r"\1***", text)
        return text if len(text) <= MESSAGE_CHARS else f"{text[:MESSAGE_CHARS]}..."


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


_client_process: int | None = None  # the process that used a client first


def _check_process() -> None:
    """Refuse to work in a forked child: the client's threads stayed in the parent, and the child would wait for ever.

    Raises:
        StoreError: A parent of this process used a client before it forked.
    """
    global _client_process
    if _client_process is None:
        _client_process = os.getpid()
    elif _client_process != os.getpid():
        raise StoreError(
            "this process was forked from one that had used a store already, and a store's connections do not live "
            "through a fork: start workers with multiprocessing_context='spawn' or 'forkserver'"
        )


class _Stream(io.RawIOBase):
    """A body that arrives in chunks, as a raw file."""

    def __init__(self, chunks: Iterator[Any]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # the type of a writable buffer has a public name from Python 3.12 on
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def normal_url(url: str | os.PathLike[str]) -> str:
    """The one spelling of a directory URL: an absolute path becomes `file:///...`, no slash at the end.

    Raises:
        CallError: An unknown scheme, or a URL that holds a user, a query or a fragment.
    """
    text = os.fspath(url)
    if not text:
        raise CallError("an empty URL: give a path or s3://bucket/path")
    scheme, separator, rest = text.partition("://")
    if not separator:
        return "file://" + os.path.abspath(os.path.expanduser(text))
    if scheme == "file":
        return "file://" + os.path.abspath(urllib.parse.unquote(urllib.parse.urlsplit(text).path))
    if scheme not in ("s3", "gs", "az", "memory"):
        raise CallError(f"{scheme}:// is not a storage URL that dray opens: a path, file://, s3://, gs:// or az://")
    if "@" in rest.split("/")[0]:
        raise CallError(f"a {scheme}:// URL must not hold a key: pass it by storage_options or the environment")
    if "?" in rest or "#" in rest:
        raise CallError(f"{scheme}://{re.split('[?#]', rest)[0]}: a storage URL has no query or fragment")
    if not rest.strip("/"):
        raise CallError(f"{text}: the bucket is missing")
    return f"{scheme}://{rest.rstrip('/')}"


def local_path(url: str) -> str | None:
    """The path of a normal `file://` URL; None for other schemes."""
    return url.removeprefix("file://") if url.startswith("file://") else None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
