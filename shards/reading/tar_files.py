"""Finds tars that no build committed: those of a folder, of a list, or of a pattern such as `train-{000..099}.tar`.

Braces expand as in webdataset, whose `::` between patterns is known too; `*`, `?`, `[...]` and `**` as in `glob`. A
name or a pattern never stands for fewer tars than it says: each tar that it names must exist.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice, takewhile
from typing import TypeAlias
from urllib.parse import unquote

from braceexpand import braceexpand

from dray.shards.errors import CallError, NotFoundError
from dray.shards.layout import DRAY_FOLDER, Layout, Location, some
from dray.shards.log import numbers_in, read_head
from dray.shards.manifest import Kind
from dray.shards.messages import counted
from dray.shards.snapshot import DEFAULT_PREFIX, Snapshot
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store
from dray.shards.storage.urls import normal_url, split_version

DataUrl: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A dataset's directory, a folder of tars, or tars: one, a pattern, or a list of these."""

MOST_NAMES = 1_000_000  # for which the braces of a pattern may stand
MAX_NAMED = 3  # files of a kind in an error
_COMPRESSIONS = ("gz", "bz2", "xz", "zst")  # last extension of a compressed tar, as in `a.tar.gz`
_SHORT = {"tgz": "gz", "taz": "gz", "tbz": "bz2", "tbz2": "bz2", "txz": "xz", "tzst": "zst"}
_UNPACK = "tars are read in place, at any offset, so unpack it first: gunzip, or `dray index URL --unpack-to FOLDER`"
_BRACES = re.compile(r"\{[^{}]*(?:,|\.\.)[^{}]*\}")
_GLOB = re.compile(r"[*?]|\[[^]]+\]")


@dataclass(frozen=True, slots=True)
class TarFiles:
    """Tars that exist, in the order in which they are read.

    Attributes:
        store: Store of the folder that holds them, directly or in folders below it.
        names: Their paths below it.
    """

    store: Store
    names: tuple[str, ...]


def names_tars(url: DataUrl) -> bool:
    """Returns whether a URL names tars, by a list, a pattern or the name of one, rather than a folder."""
    if not isinstance(url, str | os.PathLike):
        return True
    text, _ = split_version(url)
    if text.lower().endswith(".tar") or compression_of(text) or "*" in text or "?" in text or _BRACES.search(text):
        scheme, _, path = text.rpartition("://")
        return "/" in path if scheme else not os.path.isdir(os.path.expanduser(text))
    return False


def named_tars(url: DataUrl, storage_options: StorageOptions | None = None) -> TarFiles:
    """Returns the tars of a list, a pattern or a name: braces and lists in the order given, globs in natural order.

    Raises:
        CallError: The tars are in several buckets, one is named twice, or a glob matches shards of a dataset of dray.
        NotFoundError: A tar that is named does not exist, or nothing matches; says what is there.
    """
    places = [_place(text) for text in _expanded(url)]
    if not places:
        raise CallError("an empty list of tars: name at least one")
    root = _common_folder([folder for folder, _ in places])
    listings = _Listings(Store(root, storage_options), storage_options)
    names = [name for folder, path in places for name in listings.matching(folder[len(root) :].lstrip("/"), path)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise CallError(f"tars of {root} that are named twice: {some(twice, MAX_NAMED)}; name each once")
    return TarFiles(listings.store, tuple(names))


def tars_in(store: Store, prefix: str) -> TarFiles:
    """Returns the tars `{prefix}-*.tar` directly in a folder that has no dataset of this prefix, in natural order.

    With the prefix "" all tars of the folder are meant; so they are with the default prefix if no tar has it.

    Raises:
        NotFoundError: There are none, or they belong to datasets of dray; says what is there.
    """
    names = [info.name for info in store.list_folder()]
    tars = sorted((name for name in names if name.endswith(".tar") and not is_hidden(name)), key=natural_key)
    begun = prefixes_in(store)
    found = [name for name in tars if name.startswith(f"{prefix}-")] if prefix else []
    if not found and prefix in ("", DEFAULT_PREFIX) and not begun:
        found = tars
    if not found or prefix in begun or own_shards(store, found, begun):
        raise NotFoundError(_what_is_there(store, prefix, begun))
    return TarFiles(store, tuple(found))


def prefixes_in(store: Store) -> list[str]:
    """Returns the prefixes under which dray has stored anything in a folder, sorted."""
    return [name.removeprefix(f"{DRAY_FOLDER}/") for name in store.list_folders(DRAY_FOLDER)]


def own_shards(store: Store, names: Sequence[str], prefixes: Iterable[str]) -> list[str]:
    """Returns the files of a folder that have names of shards of the datasets of some prefixes that dray writes there.

    Also of those that a build has reserved.
    """
    own = []
    for layout in map(Layout, prefixes):
        shards = [name for name in names if layout.shard_number(name) is not None]
        if shards and _is_writer(Location(store, layout)):
            own += shards
    return own


def _is_writer(location: Location) -> bool:
    """Returns whether dray writes the tars of a dataset, or began to, rather than indexing those of others."""
    head = read_head(location)
    if head is None:
        return bool(numbers_in(location.store, location.layout.intents))
    return Snapshot.load(location, head).manifest.kind != Kind.INDEXED


# ---- Patterns ----


def _expanded(url: DataUrl) -> Iterator[str]:
    """Yields the URL of each tar that braces, `::` and lists stand for; it may still hold a glob.

    Raises:
        TypeError: A list holds something that is not a URL.
        CallError: Braces are not balanced, or a tar is compressed.
    """
    for given in [url] if isinstance(url, str | os.PathLike) else url:
        for pattern in os.fspath(given).split("::"):
            found = expand_braces(pattern) if _BRACES.search(pattern) else [pattern]
            if packed := [name for name in found if compression_of(name)]:
                raise CallError(f"{packed[0]} is compressed: {_UNPACK}")
            yield from found


def expand_braces(pattern: str) -> list[str]:
    """Returns the names for which the braces of a pattern stand, as webdataset expands them.

    Raises:
        CallError: Braces are not balanced, or stand for more than `MOST_NAMES` names.
    """
    try:
        found = list(islice(braceexpand(pattern), MOST_NAMES + 1))
    except ValueError as exc:
        raise CallError(f"pattern {pattern!r:.200}: expected balanced braces, such as train-{{000..099}}.tar") from exc
    if len(found) > MOST_NAMES:
        raise CallError(f"pattern {pattern!r:.200}: its braces stand for more than {MOST_NAMES:,} names")
    return found


def compression_of(name: str) -> str:
    """Returns the compression of a tar by its name, "gz", "bz2", "xz" or "zst"; empty if it has no such name."""
    stem, _, last = name.lower().rpartition(".")
    if last in _SHORT:
        return _SHORT[last]
    return last if last in _COMPRESSIONS and stem.endswith(".tar") else ""


def unpacked_name(name: str) -> str:
    """Returns the name of a compressed tar once it is unpacked: `a.tar` for `a.tar.gz` and `a.tgz`."""
    stem, _, last = name.rpartition(".")
    return f"{stem}.tar" if last.lower() in _SHORT else stem if compression_of(name) else name


def is_glob(text: str) -> bool:
    """Returns whether a text holds a glob: `*`, `?` or `[...]`."""
    return _GLOB.search(text) is not None


def is_hidden(name: str) -> bool:
    """Returns whether a file, or a folder above it, has a name that begins with a dot, such as `._train-000.tar`."""
    return re.search(r"(?:^|/)\.", name) is not None


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Returns a key that sorts names with their numbers by value: `2.tar` before `10.tar`."""
    words = re.split(r"(\d+)", name)
    return [int(word) if place % 2 else word for place, word in enumerate(words)], name


def _place(text: str) -> tuple[str, str]:
    """Returns the URL of a tar's folder, and the rest: its name, or the path from the first component with a glob."""
    glob = _GLOB.search(text)
    head = text if glob is None else text[: glob.start()]
    folder, slash, _ = head.rpartition("/")
    path = text[len(folder + slash) :]
    return normal_url(folder or slash or "."), unquote(path) if text.startswith("file://") else path


def _common_folder(folders: Sequence[str]) -> str:
    """Returns the URL of the deepest folder that holds all of the folders.

    Raises:
        CallError: There is none, as they are in several buckets.
    """
    first, last = min(folders).split("/"), max(folders).split("/")  # the others share what these share
    shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]
    if len(shared) < 3:
        raise CallError(f"tars in one bucket, or on a disk, expected; found {min(folders)} and {max(folders)}")
    return "/".join(shared) if shared != ["file:", "", ""] else "file:///"


class _Listings:
    """The tars of a store, listed when they are asked for, each folder once."""

    def __init__(self, store: Store, storage_options: StorageOptions | None) -> None:
        self.store = store
        self._options = storage_options
        self._tars: dict[tuple[str, bool], dict[str, None]] = {}

    def matching(self, folder: str, pattern: str) -> list[str]:
        """Returns the paths of the tars in a folder that a name or a glob stands for, sorted.

        Raises:
            CallError: A glob matches shards of a dataset of dray.
            NotFoundError: There are none.
        """
        path = f"{folder}/{pattern}".lstrip("/")
        tars = self._list(folder, is_deep="/" in pattern)
        if path in tars:
            return [path]
        wanted = path.split("/")
        tried = tars if is_glob(pattern) else ()
        found = [name for name in tried if matches(name.split("/"), wanted) and not is_hidden(name)]
        if not found:
            raise NotFoundError(_nothing_matches(self.store, path, list(tars)))
        for parent in {name.rpartition("/")[0] for name in found}:
            self._check_foreign(parent, found)
        return found

    def _list(self, folder: str, *, is_deep: bool) -> dict[str, None]:
        if (folder, is_deep) not in self._tars:
            infos = self.store.list_tree(folder) if is_deep else self.store.list_folder(folder)
            tars = [info.name for info in infos if info.name.endswith(".tar")]
            self._tars[folder, is_deep] = dict.fromkeys(sorted(tars, key=natural_key))
        return self._tars[folder, is_deep]

    def _check_foreign(self, folder: str, names: Sequence[str]) -> None:
        """Refuses a glob that also finds the shards of older versions, and of builds that are not finished."""
        inside = [name[len(folder) :].lstrip("/") for name in names if name.rpartition("/")[0] == folder]
        inner = Store(self.store.url_of(folder), self._options)
        if shards := own_shards(inner, inside, prefixes_in(inner)):
            raise CallError(
                f"{inner.url} holds a dataset of dray, and the pattern matches its shards, also those "
                f"of older versions ({some(shards, MAX_NAMED)}): open the folder, which reads the last version"
            )


def matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Returns whether the components of a path match those of a glob; `**` stands for any number of folders."""
    if not (path and pattern):
        return not path and not pattern
    if pattern[0] == "**":
        return matches(path, pattern[1:]) or matches(path[1:], pattern)
    return fnmatchcase(path[0], pattern[0]) and matches(path[1:], pattern[1:])


# ---- If there are none ----


def _nothing_matches(store: Store, path: str, tars: Sequence[str]) -> str:
    there = f"it has {counted(len(tars), 'tar')} ({some(tars, MAX_NAMED)})" if tars else str(_Content.of(store))
    return f"no tar {path!r} in {store.url}: {there}; check the names"


def _what_is_there(store: Store, prefix: str, begun: Sequence[str]) -> str:
    """Returns the message of the error for a folder without the tars that are asked for."""
    tars = f"tars {prefix}-*.tar" if prefix else "tars"
    missing = f"neither a dataset {f'with prefix {prefix!r} ' if prefix else ''}nor {tars} in {store.url}"
    committed = [name for name in begun if numbers_in(store, Layout(name).commits)]
    if prefix in begun and prefix not in committed:
        return (
            f"{missing}: a build of {prefix!r} started there but made no version yet: let it finish, or run the same "
            "build again"
        )
    if committed:
        prefixes = " and ".join(map(repr, committed))
        return (
            f"{store.url} holds {'datasets' if committed[1:] else 'a dataset'} of dray with the prefix {prefixes}, not "
            f"{prefix!r}: ask for that prefix, or name other tars there, as a list or a pattern; {_Content.of(store)}"
        )
    content = _Content.of(store)
    return f"{missing}: {content}; {content.advice}"


@dataclass(frozen=True, slots=True)
class _Content:
    """What a folder holds: names of files and folders by kind."""

    tars: Sequence[str]
    compressed: Sequence[str]
    others: Sequence[str]
    folders: Sequence[str]
    problem: str

    @classmethod
    def of(cls, store: Store) -> "_Content":
        """Returns the content of a folder; empty for a missing one."""
        names = [info.name for info in store.list_folder() if not is_hidden(info.name)]
        root = store.local_root
        is_missing = root is not None and not os.path.isdir(root)
        tars = [name for name in names if name.endswith(".tar")]
        compressed = [name for name in names if compression_of(name)]
        return cls(
            tars=tars,
            compressed=compressed,
            others=[name for name in names if name not in {*tars, *compressed}],
            folders=[name for name in store.list_folders() if name != DRAY_FOLDER],
            problem="the folder does not exist" if is_missing else "the folder is empty or does not exist",
        )

    def __str__(self) -> str:
        kinds = ("tar", self.tars), ("compressed tar", self.compressed), ("file", self.others), ("folder", self.folders)
        found = [f"{counted(len(names), noun)} ({some(names, MAX_NAMED)})" for noun, names in kinds if names]
        return f"it holds {', '.join(found)}" if found else self.problem

    @property
    def advice(self) -> str:
        """What the caller can do."""
        if self.tars:
            return "ask for the prefix '' to read all tars, or for one with which their names begin"
        if self.compressed:
            return _UNPACK
        if self.folders:
            return "name one of its folders, or check directory and prefix"
        return (
            "check directory and prefix, or build a dataset first: PickledDataWDS.prepare_data(), pickles_to_tars() "
            "or `dray build`"
        )
