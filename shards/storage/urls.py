"""The spelling of a dataset's URL."""

import os
import re
import urllib.parse
from collections.abc import Iterable

from dray.shards.errors import CallError

SCHEMES = ("s3", "gs", "az", "memory")
_MEANT = {  # other spellings -> the scheme that is meant
    **{name: name for name in (*SCHEMES, "file")},
    **dict.fromkeys(("s3a", "s3n"), "s3"),
    **dict.fromkeys(("gcs", "gcp"), "gs"),
    **dict.fromkeys(("abfs", "abfss", "adl", "azure", "wasb", "wasbs"), "az"),
}
_OTHERS = ("ftp", "ftps", "hdfs", "hf", "http", "https", "oci", "r2", "sftp", "ssh")  # schemes of other tools
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/*)(.*)", re.DOTALL)
_PINNED = re.compile(r"\?version=([^/]*)$")
_QUERY = re.compile(r"\?[^/]*=")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_STEP_OUT = re.compile(r"(?:^|/)\.{0,2}(?:/|$)")  # an empty part, "." or ".."
_STEP = re.compile(r"(?:^|/)\.{1,2}(?:/|$)")


def normal_url(url: str | os.PathLike[str]) -> str:
    """Returns the normal form of a directory URL: an absolute path becomes `file:///...`, without a slash at the end.

    In a `file://` URL `%`, `?` and `#` of a path are escaped, and nothing else: it stays legible, and other programs
    that open URLs find the same file. In other URLs every character stands for itself, as in the AWS CLI: `%20` is
    not a space there.

    Raises:
        CallError: The scheme is unknown or misspelt, the URL holds a user or a query, or it is a `file://` URL with a
            host.
    """
    text = os.fspath(url)
    if not text:
        raise CallError("an empty URL: give a path or s3://bucket/path")
    if pinned := _PINNED.search(text):
        raise CallError(f"{text}: here the last version is meant, leave {pinned[0]} out")
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in (*SCHEMES, "file"):
        _check_scheme(text)
        return _file_url(os.path.expanduser(text))
    return _file_url(_path_of(text, rest)) if scheme == "file" else _object_url(text, scheme, rest)


def _check_scheme(text: str) -> None:
    """Refuses what looks like a URL and would otherwise be read as a relative path.

    Raises:
        CallError: It is a misspelt URL, or one of a kind that dray does not open.
    """
    found = _SCHEME.fullmatch(text)
    if found is None or not (found[2].startswith("//") or found[1].lower() in (*_MEANT, *_OTHERS)):
        return
    scheme, rest = found[1], found[3]
    shown = text if "@" not in rest else f"{scheme}:{found[2]}..."  # it may contain a password
    if meant := _MEANT.get(scheme.lower()):
        slashes = ":///" if meant == "file" else "://"
        hint = f"did you mean {meant}{slashes}{'...' if '@' in rest else rest}?"
    else:
        hint = f"{scheme}:// is not a storage URL that dray opens: give a path, file://, s3://, gs:// or az://"
    relative = "" if found[2].startswith("//") else f" (a folder of that name is ./{shown})"
    raise CallError(f"{shown}: {hint}{relative}")


def _path_of(text: str, rest: str) -> str:
    """Returns the path of a `file://` URL."""
    if not rest.startswith("/"):
        shown = text if "@" not in rest else "file://..."  # it may contain a password
        raise CallError(f"{shown}: expected file:///absolute/path, with three slashes")
    if "?" in rest or "#" in rest:
        raise CallError(f"{text}: write '?' and '#' of a path as %3F and %23 in a file:// URL")
    return urllib.parse.unquote(rest)


def _object_url(text: str, scheme: str, rest: str) -> str:
    bucket = rest.split("/")[0]
    if "@" in bucket:
        raise CallError(f"a {scheme}:// URL must not hold a key: pass it by storage_options or the environment")
    if _QUERY.search(rest):
        raise CallError(f"{scheme}://{rest.split('?')[0]}: a storage URL has no query; options go into storage_options")
    if _STEP.search(rest):
        raise CallError(f"{text}: a storage URL holds no '.' or '..'")
    if not bucket:
        raise CallError(f"{text}: the bucket is missing; expected {scheme}://bucket/path")
    if "//" in (path := rest.rstrip("/")):
        raise CallError(f"{text}: a storage URL holds no empty folder name; leave one slash out")
    return f"{scheme}://{path}"


def split_version(url: str | os.PathLike[str], version: int | str | None = None) -> tuple[str, int | str | None]:
    """Returns a dataset's URL without its `?version=7`, and the version that the URL or the argument names.

    A path that really ends like that is written as a `file://` URL, with `%3F` for `?`.

    Raises:
        CallError: Both name a version, and not the same.
    """
    text = os.fspath(url)
    found = _PINNED.search(text)
    if found is None:
        return text, version
    pinned = found[1]
    if not pinned or (version is not None and str(version) != pinned):
        raise CallError(f"{text}: version {version!r} was asked for, and {found[0]} in the URL: give one")
    return text[: found.start()], pinned


def check_apart(source: str, destination: str) -> None:
    """Refuses a destination that would fill the source with shards. The source may be inside the destination.

    Args:
        source: A normal URL.
        destination: A normal URL on the same kind of store.

    Raises:
        CallError: The destination is the source or lies inside it, also by way of symbolic links.
    """
    outer, inner = (real_url(url).rstrip("/") + "/" for url in (source, destination))
    if inner.startswith(outer):
        place = "is the source itself" if inner == outer else f"lies inside the source {source}"
        raise CallError(
            f"the destination {destination} {place}: shards among the inputs would be taken for inputs; "
            "choose a folder beside the source"
        )


def check_distinct(urls: Iterable[str]) -> None:
    """Refuses equal directories: two datasets of one prefix would take each other for an older version.

    Args:
        urls: Normal URLs.

    Raises:
        CallError: Two are the same directory, also by way of symbolic links; names them.
    """
    seen: dict[str, str] = {}
    for url in urls:
        if (real := real_url(url)) in seen:
            raise CallError(f"{seen[real]} and {url} are the same directory: each split needs a directory of its own")
        seen[real] = url


def real_url(url: str) -> str:
    """Returns a normal URL without the symbolic links of a local path."""
    path = local_path(url)
    return url if path is None else f"file://{os.path.realpath(path)}"


def local_path(url: str) -> str | None:
    """Returns the path of a normal `file://` URL; None for other schemes."""
    return urllib.parse.unquote(url.removeprefix("file://")) if url.startswith("file://") else None


def check_name(url: str, name: str) -> None:
    """Refuses the name of an object that is not below a URL.

    Raises:
        CallError: It steps out of it, or holds what no object's name may hold.
    """
    if name and _STEP_OUT.search(name):
        raise CallError(f"{name!r} is not the name of an object below {url}: it must not step out of it")
    if _CONTROL.search(name) and not url.startswith("file:"):
        raise CallError(f"{name!r} is not the name of an object below {url}: it holds a control character")


def url_below(url: str, name: str) -> str:
    """Returns the URL of an object or folder below a normal URL."""
    path = escaped(name) if url.startswith("file:") else name
    return f"{url.rstrip('/')}/{path}" if name else url


def path_below(url: str, inner: str) -> str | None:
    """Returns the path of a normal URL below another one, "" if they are the same; None if it is elsewhere."""
    inside = f"{inner.rstrip('/')}/".partition(f"{url.rstrip('/')}/")
    if inside[0] or not inside[1]:
        return None
    path = inside[2].rstrip("/")
    return urllib.parse.unquote(path) if url.startswith("file:") else path


def escaped(path: str) -> str:
    """Returns a path as written in a `file://` URL."""
    return path.replace("%", "%25").replace("?", "%3F").replace("#", "%23")


def _file_url(path: str) -> str:
    return f"file://{escaped(os.path.abspath(path))}"
