"""The obstore client of a URL: its options and timeouts, and its errors in dray's terms, without secrets."""

import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, LocalStore, MemoryStore, ObjectStore, S3Store

from dray.shards.errors import CallError, DeniedError, DrayError, ExistsError, NotFoundError, StoreError

StorageOptions = Mapping[str, Any]

CONNECT_TIMEOUT_S = 5
MESSAGE_CHARS = 400  # of a client's message that an error quotes

_CLIENT_OPTIONS = {"allow_http", "allow_invalid_certificates", "connect_timeout", "proxy_url", "timeout"}
_SECRET_NAME = re.compile(r"secret|token|key|password|sas|credential", re.IGNORECASE)
_SECRET_ENV = re.compile(r"^(AWS|GOOGLE|AZURE)_.*(SECRET|TOKEN|KEY|SAS|PASSWORD)", re.IGNORECASE)
_SIGNATURE = re.compile(r"([?&](?:sig|X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token)=)[^&\s]+")
_USER = re.compile(r"(://)[^/@\s]+@")  # an endpoint may hold one
_KINDS = {  # errors that have no type in the client
    "code: AccessDenied": DeniedError,
    "401 Unauthorized": DeniedError,
    "403 Forbidden": DeniedError,
    "NoSuchBucket": NotFoundError,
}
_CLIENTS: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
_memory_stores: dict[str, MemoryStore] = {}  # memory://NAME lives as long as the process: for tests and trials


def open_client(url: str, options: StorageOptions, timeout_s: float) -> ObjectStore:
    """A client for a normal URL: rooted at the top for disk and memory, at the URL elsewhere.

    Args:
        url: As `normal_url` spells it.
        options: See `dray.shards.Store`.
        timeout_s: Of one request, its whole body included; a `timeout` among the options goes before it.

    Raises:
        CallError: An option is unknown or wrong.
    """
    if url.startswith("file://"):
        return LocalStore("/")
    if url.startswith("memory://"):
        return _memory_stores.setdefault(url, MemoryStore())
    client: dict[str, Any] = {"timeout": f"{timeout_s:.0f}s", "connect_timeout": f"{CONNECT_TIMEOUT_S}s"}
    client |= {name: value for name, value in options.items() if name in _CLIENT_OPTIONS}
    config = {name: value for name, value in options.items() if name not in _CLIENT_OPTIONS}
    endpoint = str(config.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL") or "")
    if endpoint.startswith("http://"):  # an endpoint without TLS was asked for by name
        client.setdefault("allow_http", True)
    try:
        scheme, _, place = url.partition("://")
        bucket, _, folder = place.partition("/")
        opened = _CLIENTS[scheme](bucket, prefix=folder or None, client_options=client, **config)
        return cast(ObjectStore, opened)
    except (BaseError, ValueError, TypeError) as exc:
        raise CallError(f"cannot open {url}: {_reason(exc, options)}") from None


def create_object(client: ObjectStore, key: str, data: bytes | bytearray | memoryview) -> None:
    """Creates an object by one conditional request.

    Raises:
        AlreadyExistsError: An object lies there.
        OSError: The store says so, and none does: it may be asked again.
    """
    try:
        client.put(key, data, mode="create", use_multipart=False)
    except (AlreadyExistsError, FileExistsError):
        try:
            client.head(key)
        except FileNotFoundError:  # S3 answers 409 while somebody writes, who may fail
            raise OSError("the store says that an object lies there, and that none does") from None
        raise


@contextmanager
def client_errors(verb: str, where: str, options: StorageOptions) -> Iterator[None]:
    """Translate the client's errors: typed, with the URL, without secrets.

    `from None`: the client's own message is quoted, redacted, and its debug output may hold a signed URL.
    """
    _check_process()
    try:
        yield
    except DrayError:
        raise
    except FileNotFoundError as exc:
        raise NotFoundError(f"cannot {verb} {where}: {_reason(exc, options)}") from None
    except (AlreadyExistsError, FileExistsError):
        raise ExistsError(f"cannot {verb} {where}: an object lies there already") from None
    except (PermissionDeniedError, UnauthenticatedError, PermissionError) as exc:
        raise DeniedError(
            f"cannot {verb} {where}: permission denied; check the key and what it may do ({_reason(exc, options)})"
        ) from None
    except (BaseError, OSError) as exc:
        kind = next((kind for text, kind in _KINDS.items() if text in str(exc)), StoreError)
        raise kind(f"cannot {verb} {where}: {_reason(exc, options)}") from None


def _reason(exc: Exception, options: StorageOptions) -> str:
    """The client's message on one line, without its debug output and without secrets."""
    text = " ".join(str(exc).split("\n\nDebug source")[0].split())
    secrets = {str(value) for name, value in options.items() if _SECRET_NAME.search(name)}
    secrets |= {value for name, value in os.environ.items() if _SECRET_ENV.search(name)}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) > 3:
            text = text.replace(secret, "***").replace(urllib.parse.quote_plus(secret), "***")
    text = _USER.sub(r"\1***@", _SIGNATURE.sub(r"\1***", text))
    return text if len(text) <= MESSAGE_CHARS else f"{text[:MESSAGE_CHARS]}..."


@contextmanager
def client_panics() -> Iterator[None]:
    """Turn a panic of the client into an OSError: it cuts joined ranges without a look at what came (obstore 0.12)."""
    try:
        yield
    except BaseException as exc:
        if type(exc).__name__ != "PanicException":
            raise
        raise OSError(f"the client failed: {exc}") from None


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
