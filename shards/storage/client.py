"""Opens the obstore client of a URL, and turns its errors into dray's, without secrets."""

import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, LocalStore, MemoryStore, ObjectStore, S3Store

from dray.shards.errors import CallError, DeniedError, DrayError, ExistsError, NotFoundError, StoreError
from dray.shards.storage.aws import AwsCredentials, AwsSettings, needs_provider, read_settings, seen_secrets
from dray.shards.storage.endpoint import Endpoint, find_endpoint, is_endpoint, without_user

StorageOptions = Mapping[str, Any]

CONNECT_TIMEOUT_S = 5
RETRY_TIMEOUT = timedelta(seconds=60)  # the client starts no retry later than this
MESSAGE_CHARS = 400  # longest quote of a client's message in an error

_CLIENT_OPTIONS = {"allow_http", "allow_invalid_certificates", "connect_timeout", "proxy_url", "timeout"}
SECRET_NAME = re.compile(r"secret|token|key|password|sas|credential", re.IGNORECASE)
_SECRET_ENV = re.compile(r"^(AWS|GOOGLE|AZURE)_.*(SECRET|TOKEN|KEY|SAS|PASSWORD)", re.IGNORECASE)
_SIGNATURE = re.compile(r"([?&](?:sig|X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token)=)[^&\s]+")
_KINDS = {  # errors without a type in the client
    "code: AccessDenied": DeniedError,
    "401 Unauthorized": DeniedError,
    "403 Forbidden": DeniedError,
    "NoSuchBucket": NotFoundError,
}
_PROVIDER = "credential provider: "  # precedes the error of a credential provider
_METADATA = "http://169.254.169.254"  # asked by the client if it has no credentials
_NO_CREDENTIALS = {
    "gs": "no credentials found: looked at storage_options (service_account_path, service_account_key), the variables "
    "GOOGLE_*, the application default credentials of gcloud, and the machine's service account; set one of them",
    "az": "no credentials found: looked at storage_options (account_key, sas_key, client_id, use_azure_cli), the "
    "variables AZURE_*, and the machine's managed identity; set one of them",
}
_SIGNED_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_CLIENTS: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
_memory_stores: dict[str, MemoryStore] = {}  # memory://NAME lives as long as the process: for tests and trials


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach the objects below a URL.

    Attributes:
        url: A normal URL.
        options: As the caller gave them; they may hold secrets.
        endpoint: Where the store is asked.
        config: What the client takes.
        client: What its HTTP client takes.
    """

    url: str
    options: StorageOptions = field(default_factory=dict, repr=False)
    endpoint: Endpoint = field(default_factory=Endpoint)
    config: StorageOptions = field(default_factory=dict, repr=False)
    client: StorageOptions = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, url: str, options: StorageOptions) -> "Access":
        """Returns the result of options, environment and AWS profile.

        Raises:
            CallError: A value is wrong.
        """
        scheme = url.partition("://")[0]
        if scheme in ("file", "memory"):
            return cls(url, options)
        settings = read_settings() if scheme == "s3" else AwsSettings()
        endpoint = find_endpoint(scheme, options, settings)
        client = {name: value for name, value in options.items() if name in _CLIENT_OPTIONS}
        config = {name: value for name, value in options.items() if name not in _CLIENT_OPTIONS}
        config["retry_config"] = {"retry_timeout": RETRY_TIMEOUT, **(options.get("retry_config") or {})}
        if endpoint.url.startswith("http://"):  # the caller asked for an endpoint without TLS
            client.setdefault("allow_http", True)
        if scheme == "s3":
            config = _s3_config(config, endpoint, settings)
        return cls(url, options, endpoint, config, client)


def _s3_config(config: dict[str, Any], endpoint: Endpoint, settings: AwsSettings) -> dict[str, Any]:
    """Adds what the client would not find, or would rank differently from the AWS command line.

    Raises:
        CallError: A value holds a line break, as the content of a file does that was not stripped.
    """
    variables = {name: os.environ.get(name, "") for name in _SIGNED_VARIABLES}
    for name, value in {**variables, **config}.items():
        if isinstance(value, str) and not value.isprintable():
            raise CallError(f"the value of {name} holds a line break or another control character: strip it")
    config = {name: value for name, value in config.items() if not is_endpoint(name)}
    if endpoint.url:
        config["aws_endpoint_url_s3"] = endpoint.url
    has_region = any(name.lower().endswith("region") for name in config) or any(map(os.environ.get, _REGIONS))
    if settings.region and not has_region:
        config["region"] = settings.region
    if needs_provider(config):
        config["credential_provider"] = AwsCredentials()
    return config


def open_client(access: Access, timeout_s: float) -> ObjectStore:
    """Opens a client: rooted at the top for disk and memory, at the URL elsewhere.

    Args:
        access: What it is to reach.
        timeout_s: Timeout of one request, its whole body included; a `timeout` among the options goes before it.

    Raises:
        CallError: An option is unknown or wrong.
    """
    scheme, _, place = access.url.partition("://")
    if scheme == "file":
        return LocalStore("/")
    if scheme == "memory":
        return _memory_stores.setdefault(access.url, MemoryStore())
    bucket, _, folder = place.partition("/")
    client = {"timeout": f"{timeout_s:.0f}s", "connect_timeout": f"{CONNECT_TIMEOUT_S}s", **access.client}
    try:
        with client_panics():
            opened = _CLIENTS[scheme](bucket, prefix=folder or None, client_options=client, **access.config)
    except (BaseError, ValueError, TypeError, ArithmeticError, OSError) as exc:
        raise CallError(f"cannot open {access.url}: {_reason(exc, access.options)}") from None
    return cast(ObjectStore, opened)


def create_object(client: ObjectStore, key: str, data: bytes | bytearray | memoryview) -> None:
    """Creates an object by one conditional request.

    Raises:
        AlreadyExistsError: The object exists.
        OSError: The store reports a conflict, but has no such object: try again.
    """
    try:
        client.put(key, data, mode="create", use_multipart=False)
    except (AlreadyExistsError, FileExistsError):
        try:
            client.head(key)
        except FileNotFoundError:  # S3 answers 409 during another write, which may fail
            raise OSError("the store says both that the object exists and that it does not") from None
        raise


@contextmanager
def client_errors(verb: str, where: str, access: Access) -> Iterator[None]:
    """Translates the client's errors: typed, with the URL, without secrets.

    `from None`: the client's own message is quoted, redacted, and its debug output may hold a signed URL.
    """
    check_process()
    options = access.options
    try:
        with client_panics():
            yield
    except DrayError:
        raise
    except FileNotFoundError as exc:
        raise NotFoundError(f"cannot {verb} {where}: {_reason(exc, options)}") from None
    except (AlreadyExistsError, FileExistsError):
        raise ExistsError(f"cannot {verb} {where}: the object exists already") from None
    except (PermissionDeniedError, UnauthenticatedError, PermissionError) as exc:
        if _PROVIDER in str(exc):
            raise DeniedError(f"cannot {verb} {where}: {_provider_reason(exc, options)}") from None
        raise DeniedError(
            f"cannot {verb} {where}: permission denied; check the key and what it may do ({_reason(exc, options)})"
        ) from None
    except NotImplementedError as exc:  # an option disables what dray needs, such as conditional_put="disabled"
        raise CallError(f"cannot {verb} {where}: {_reason(exc, options)}") from None
    except (BaseError, OSError) as exc:
        if _PROVIDER in str(exc):  # from a streaming write
            raise DeniedError(f"cannot {verb} {where}: {_provider_reason(exc, options)}") from None
        if _METADATA in str(exc):
            raise DeniedError(f"cannot {verb} {where}: {_NO_CREDENTIALS[where.partition(':')[0]]}") from None
        kind = next((kind for text, kind in _KINDS.items() if text in str(exc)), StoreError)
        raise kind(f"cannot {verb} {where}: {_reason(exc, options)}{_unreached(exc, access)}") from None


def _provider_reason(exc: Exception, options: StorageOptions) -> str:
    """Returns the error of a credential provider without the client's text around it."""
    kind, _, text = _reason(exc, options, 2 * MESSAGE_CHARS).partition(_PROVIDER)[2].partition(": ")
    return text if kind == DeniedError.__name__ else f"no credentials: {kind}: {text}"


def _unreached(exc: Exception, access: Access) -> str:
    """Returns the cause of a failure to connect, and who named the endpoint."""
    text = str(exc)
    if "error sending request" not in text:
        return ""
    cause = re.search(r'(?:message|error): "([^"]+)"', text)
    words = [cause[1] if cause else "no answer in time" if "kind: Timeout" in text else "", str(access.endpoint)]
    return f" ({'; '.join(filter(None, words))})" if any(words) else ""


def _reason(exc: Exception, options: StorageOptions, most: int = MESSAGE_CHARS) -> str:
    """Returns the client's message on one line, without debug output and secrets."""
    text = without_secrets(" ".join(str(exc).split("\n\nDebug source")[0].split()), options)
    return text if len(text) <= most else f"{text[:most]}..."


def without_secrets(text: str, options: StorageOptions) -> str:
    """Returns a text without the secrets of the options, of clients and of the environment, and without signatures."""
    secrets = {str(value) for name, value in options.items() if SECRET_NAME.search(name)}
    secrets |= seen_secrets()
    secrets |= {value for name, value in os.environ.items() if _SECRET_ENV.search(name)}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) > 3:
            text = text.replace(secret, "***").replace(urllib.parse.quote_plus(secret), "***")
    return without_user(_SIGNATURE.sub(r"\1***", text))


@contextmanager
def client_panics() -> Iterator[None]:
    """Turns a panic of the client into an OSError: a wrong value, or joined ranges that were short (obstore 0.12)."""
    try:
        yield
    except BaseException as exc:
        if type(exc).__name__ != "PanicException":
            raise
        raise OSError(f"the client failed: {exc}") from None


_client_process: int | None = None  # the process that used a client first


def check_process() -> None:
    """Refuses to work in a forked child: the client's threads stayed in the parent, so the child would hang.

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
