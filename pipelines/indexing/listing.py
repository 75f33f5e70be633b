"""Finding the tars of a folder: by name, by pattern, or all of them."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from dray.shards.errors import CallError, InputError, MissingInputError
from dray.shards.index import digest_of
from dray.shards.layout import DRAY_FOLDER, is_path, some
from dray.shards.parsing.records import canonical_json
from dray.shards.reading.tar_files import (
    compression_of,
    expand_braces,
    is_glob,
    is_hidden,
    matches,
    natural_key,
    own_shards,
    prefixes_in,
    unpacked_name,
)
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store

ALL_TARS = "**/*.tar"
_NUMBERED = re.compile(r"(.+)-[0-9]{6,18}\.tar")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tar:
    """A tar as it is now.

    Attributes:
        name: Path relative to the folder.
        num_bytes: Its size.
        etag: Its ETag; None on a disk.
        mtime: Its modification time in nanoseconds since 1970; None on object storage.
    """

    name: str
    num_bytes: int
    etag: str | None = None
    mtime: int | None = None

    def digest(self, keys: str) -> str:
        """Returns the digest of what its index is made of: the tar, and how keys are made of names."""
        return digest_of(canonical_json({**asdict(self), "keys": keys}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The tars that were found, in natural order of their names.

    Attributes:
        tars: Tars, and files that are tars by their name.
        compressed: Files with the name of a compressed tar.
        own: Names of tars that dray wrote: they belong to another dataset, and are left out.
    """

    tars: Sequence[Tar]
    compressed: Sequence[Tar] = ()
    own: Sequence[str] = ()

    @property
    def packed(self) -> Sequence[Tar]:
        """The compressed tars that were not unpacked beside them."""
        plain = {tar.name for tar in self.tars}
        return [tar for tar in self.compressed if unpacked_name(tar.name) not in plain]


def find_tars(
    store: Store, patterns: Sequence[str] | None, prefix: str, storage_options: StorageOptions | None
) -> Listing:
    """Returns the tars below a folder, less those of other datasets that dray wrote.

    Args:
        store: The folder.
        patterns: Names, with braces and globs; None: all tars in the folder and those below it.
        prefix: Prefix of the dataset that indexes them.
        storage_options: Options of the store.

    Raises:
        MissingInputError: A tar that is named does not exist, or a pattern matches nothing; says what is there.
        InputError: The name of a tar holds what no name of a shard may hold.
        CallError: A pattern is wrong.
    """
    wanted = [_checked(name) for pattern in patterns or () for name in expand_braces(pattern)]
    found = {tar.name: tar for tar in _files(store, wanted or [ALL_TARS])}
    names = _matches(store, wanted, found) if patterns is not None else _all_tars(found)
    own = _own_tars(store, names, prefix, storage_options)
    _check_names(store, names)
    tars = [found[name] for name in sorted(names - own, key=natural_key)]
    if not tars:
        raise MissingInputError(_nothing(store, own, patterns))
    return Listing(
        tars=[tar for tar in tars if not compression_of(tar.name)],
        compressed=[tar for tar in tars if compression_of(tar.name)],
        own=sorted(own, key=natural_key),
    )


def _own_tars(store: Store, names: Iterable[str], prefix: str, storage_options: StorageOptions | None) -> set[str]:
    """Returns the names of tars that another dataset in their folder wrote or has reserved."""
    by_folder: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        if _NUMBERED.fullmatch(file):
            by_folder.setdefault(folder, []).append(file)
    found: set[str] = set()
    for folder, files in by_folder.items():
        inner = Store(store.url_of(folder), storage_options)
        others = [other for other in prefixes_in(inner) if folder or other != prefix]
        found.update(f"{folder}/{file}" if folder else file for file in own_shards(inner, files, others))
    return found


def _check_names(store: Store, names: Iterable[str]) -> None:
    bad = [name for name in names if not is_path(name)]
    if bad:
        shown = some((ascii(name)[1:-1] for name in sorted(bad)), 5)
        raise InputError(
            f"names of tars in {store.url} hold control characters or bytes that are not UTF-8: {shown}; rename them"
        )


def _checked(name: str) -> str:
    if not name or name.startswith("/") or "//" in name or ".." in name.split("/"):
        raise CallError(f"pattern {name!r:.200}: expected names relative to the folder, such as train-{{000..099}}.tar")
    return name.removeprefix("./")


def _matches(store: Store, wanted: Sequence[str], found: Mapping[str, Tar]) -> set[str]:
    names: set[str] = set()
    missing: list[str] = []
    for name in wanted:
        if name in found:
            names.add(name)
        elif is_glob(name):
            path = name.split("/")
            matched = {one for one in found if matches(one.split("/"), path) and not is_hidden(one)}
            if not matched:
                raise MissingInputError(f"nothing matches pattern {name!r} in {store.url}{_there(found)}")
            names |= matched
        else:
            missing.append(name)
    if missing:
        raise MissingInputError(
            f"{len(missing):,} of {len(wanted):,} tars do not exist in {store.url}: {some(missing, 5)}"
            f"{_there(found)}; to index those that do, give a glob such as 'train-*.tar'"
        )
    return names


def _all_tars(found: Mapping[str, Tar]) -> set[str]:
    tars = (name for name in found if name.endswith(".tar") or compression_of(name))
    return {name for name in tars if not is_hidden(name)}


def _there(found: Mapping[str, Tar]) -> str:
    return f"; there are {some(sorted(found, key=natural_key), 5)}" if found else ", which holds no file there"


def _nothing(store: Store, own: set[str], patterns: Sequence[str] | None) -> str:
    what = "tar" if patterns is None else f"tar that matches {some(patterns, 5)}"
    if own:
        return f"no {what} of another program in {store.url}: dray wrote {some(sorted(own), 5)}, which need no index"
    return f"no {what} in {store.url}: check the URL; dray index takes *.tar in that folder and those below it"


def _files(store: Store, wanted: Sequence[str]) -> Iterator[Tar]:
    """Yields the files in the folders of some patterns, without dray's records."""
    folders = dict.fromkeys(name.rpartition("/")[0] for name in wanted)
    trees = [re.split(r"(?:^|/)[^/]*[*?[]", folder)[0] for folder in folders if is_glob(folder)]
    if store.local_root is not None:
        whole = {tree for tree in trees if not is_glob(tree)}
        for folder in folders.keys() - set(filter(is_glob, folders)) | whole:
            yield from _walk(store.local_root, folder, is_deep=folder in whole)
        return
    listed = [info for tree in dict.fromkeys(trees) for info in store.list_tree(tree)]
    listed += [info for folder in folders if not is_glob(folder) for info in store.list_folder(folder)]
    for info in listed:
        if DRAY_FOLDER not in info.name.split("/"):
            yield Tar(name=info.name, num_bytes=info.size, etag=info.etag)


def _walk(root: str, folder: str, *, is_deep: bool) -> Iterator[Tar]:
    """Yields the files of a folder on a disk, and those below it; links are followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    waiting, links = [folder], list[str]()  # links come last: a folder is listed under its own path if it has one
    while waiting or links:
        current = (waiting or links).pop()
        path = os.path.join(root, current)
        if not os.path.isdir(path):
            continue
        info = os.stat(path)
        if (info.st_dev, info.st_ino) in seen:
            continue
        seen.add((info.st_dev, info.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                name = f"{current}/{entry.name}" if current else entry.name
                if entry.is_dir():
                    if is_deep and entry.name != DRAY_FOLDER:
                        (links if entry.is_symlink() else waiting).append(name)
                elif entry.is_file() and not re.search(r"#[0-9]+$", entry.name):  # never finished by its writer
                    found = entry.stat()
                    yield Tar(name=name, num_bytes=found.st_size, mtime=found.st_mtime_ns)
