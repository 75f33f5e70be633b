"""What a caller names as tars: a folder, a tar, a pattern, or a list of these."""

import os
import re
import urllib.parse
from collections.abc import Sequence
from itertools import takewhile

from dray.shards.errors import CallError
from dray.shards.reading.tar_files import compression_of
from dray.shards.storage.urls import local_path, normal_url

Path = str | os.PathLike[str]


def find_place(url: Path | Sequence[Path], pattern: str | Sequence[str] | None) -> tuple[str, list[str] | None]:
    """Returns the folder of some tars, as a normal URL, and the patterns of their names below it; None: all tars.

    Raises:
        CallError: There are patterns in both arguments, or tars on different stores.
    """
    if pattern is not None and not isinstance(url, str | os.PathLike):
        raise CallError("pattern and a list of tars: give one of them")
    urls = [url] if isinstance(url, str | os.PathLike) else list(url)
    if not urls:
        raise CallError("url is an empty list: give a folder, a tar or a list of tars")
    found = [_split(os.fspath(one)) for one in urls]
    if pattern is not None:
        folder, name = found[0]
        if name is not None:
            raise CallError(f"url {os.fspath(urls[0])!r} names tars, and so does pattern={pattern!r}: give one of them")
        return folder, [pattern] if isinstance(pattern, str) else list(pattern)
    if len(found) == 1:
        folder, name = found[0]
        return folder, None if name is None else [name]
    return _common(found)


def _split(text: str) -> tuple[str, str | None]:
    """Returns the folder that a path or URL names, and the pattern or tar in it; None if it names a folder."""
    scheme, separator, rest = text.rpartition("://")
    is_local = not separator or scheme == "file"
    if is_local and os.path.isdir(local_path(normal_url(text)) or ""):
        return normal_url(text), None
    parts = rest.split("/")
    special = [place for place, part in enumerate(parts) if re.search(r"[*?[{]", part)]
    start = special[0] if special else len(parts) - 1
    if not special and not (parts[-1].endswith(".tar") or compression_of(parts[-1])):
        return normal_url(text), None
    folder, name = "/".join(parts[:start]), "/".join(parts[start:])
    if not separator:
        return normal_url(folder or ("/" if text.startswith("/") else ".")), name
    return normal_url(f"{scheme}://{folder}"), urllib.parse.unquote(name) if scheme == "file" else name


def _common(found: Sequence[tuple[str, str | None]]) -> tuple[str, list[str]]:
    """Returns the innermost folder above all tars, and their names below it."""
    if folders := [folder for folder, name in found if name is None]:
        raise CallError(f"{folders[0]!r} is not a tar: a list names tars, one URL may name a folder")
    parts = [folder.split("/") for folder, _ in found]
    same = takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))
    shared = [names[0] for names in same]
    if len(shared) < 3:
        raise CallError(f"{found[0][0]} and {found[-1][0]} share no folder: index the tars of each store by itself")
    folder = "file:///" if shared == ["file:", "", ""] else "/".join(shared)
    inner = ["/".join([*one[len(shared) :], str(name)]) for one, (_, name) in zip(parts, found, strict=True)]
    is_file = folder.startswith("file:")
    return folder, [urllib.parse.unquote(one) if is_file else one for one in inner]
