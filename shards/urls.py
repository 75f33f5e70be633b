"""The spelling of a dataset's URL."""

import os
import re
import urllib.parse

from dray.shards.errors import CallError

SCHEMES = ("s3", "gs", "az", "memory")
_VERSION = "?version="
_STEP = re.compile(r"(?:^|/)\.{1,2}(?:/|$)")


def normal_url(url: str | os.PathLike[str]) -> str:
    """The one spelling of a directory URL: an absolute path becomes `file:///...`, no slash at the end.

    In a `file://` URL `%`, `?` and `#` of a path are escaped, and nothing else: it stays legible, and other programs
    that open URLs find the same file.

    Raises:
        CallError: An unknown scheme, a URL that holds a user, a query or a fragment, or a `file://` URL with a host.
    """
    text = os.fspath(url)
    if not text:
        raise CallError("an empty URL: give a path or s3://bucket/path")
    scheme, separator, rest = text.partition("://")
    if not separator:
        if _VERSION in text:
            raise CallError(f"{text}: here the last version is meant, leave {_VERSION}... out")
        return _file_url(os.path.expanduser(text))
    if scheme == "file":
        if not rest.startswith("/"):
            raise CallError(f"{text}: expected file:///absolute/path, with three slashes")
        if "?" in rest or "#" in rest:
            raise CallError(f"{text}: write '?' and '#' of a path as %3F and %23 in a file:// URL")
        return _file_url(urllib.parse.unquote(rest))
    if scheme not in SCHEMES:
        raise CallError(f"{scheme}:// is not a storage URL that dray opens: a path, file://, s3://, gs:// or az://")
    if "@" in rest.split("/")[0]:
        raise CallError(f"a {scheme}:// URL must not hold a key: pass it by storage_options or the environment")
    if "?" in rest or "#" in rest:
        raise CallError(f"{scheme}://{re.split('[?#]', rest)[0]}: a storage URL has no query or fragment")
    if _STEP.search(rest):
        raise CallError(f"{text}: a storage URL holds no '.' or '..'")
    if not rest.split("/")[0]:
        raise CallError(f"{text}: the bucket is missing")
    return f"{scheme}://{rest.rstrip('/')}"


def split_version(url: str | os.PathLike[str], version: int | str | None = None) -> tuple[str, int | str | None]:
    """A dataset's URL without its `?version=7`, and the version that the URL or the argument names.

    A path that really ends like that is written as a `file://` URL, with `%3F` for `?`.

    Raises:
        CallError: Both name a version, and not the same.
    """
    text, mark, pinned = os.fspath(url).partition(_VERSION)
    if not mark:
        return text, version
    if not pinned or (version is not None and str(version) != pinned):
        raise CallError(f"{text}: version {version!r} was asked for, and {_VERSION}{pinned} in the URL: give one")
    return text, pinned


def local_path(url: str) -> str | None:
    """The path of a normal `file://` URL; None for other schemes."""
    return urllib.parse.unquote(url.removeprefix("file://")) if url.startswith("file://") else None


def _file_url(path: str) -> str:
    escaped = os.path.abspath(path).replace("%", "%25").replace("?", "%3F").replace("#", "%23")
    return f"file://{escaped}"
