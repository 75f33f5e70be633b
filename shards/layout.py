"""Names of a dataset's objects below its URL, and which names users may choose."""

import os
import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from dray.shards.errors import CallError
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store
from dray.shards.storage.urls import normal_url

DRAY_FOLDER = "__dray__"  # in a dataset's directory; holds everything but the shards
OLD_FOLDER = "_dray"  # folder of format 1
MOST_SHARDS = 10**18  # shard numbers are smaller
# A path below a folder: components without control characters; "." and ".." are ruled out apart.
_PATH = re.compile(r"(?:[^/\x00-\x1f\x7f]+/)*[^/\x00-\x1f\x7f]+")
_PLAIN_PART = r"[A-Za-z0-9][A-Za-z0-9_.+=,@-]*"
_PLAIN_NAME = re.compile(rf"(?:{_PLAIN_PART}/)*{_PLAIN_PART}")  # certainly valid, as most names are
_STEP_OUT = re.compile(r"(?:^|/)\.{1,2}(?:/|$)")
NAME_RULE = (
    "a name is a relative path without '..', empty parts or control characters, and not between double underscores"
)
WEBDATASET_META = re.compile(r"__[^/]*__(?:$|/)")  # WebDataset's readers skip such members


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of one dataset's objects, relative to its directory.

    Raises:
        CallError: The prefix is empty, holds a slash or a control character, or is dray's own folder.
    """

    prefix: str

    def __post_init__(self) -> None:
        if not is_path(self.prefix) or "/" in self.prefix or self.prefix == DRAY_FOLDER or "#" in self.prefix:
            raise CallError(
                f"prefix {self.prefix!r}: a dataset's prefix is a file name without '/', '#' or control characters"
            )

    @property
    def folder(self) -> str:
        """The folder of everything but the shards."""
        return f"{DRAY_FOLDER}/{self.prefix}"

    @property
    def commits(self) -> str:
        """The folder of the commits."""
        return f"{self.folder}/commits"

    @property
    def intents(self) -> str:
        """The folder of the intents."""
        return f"{self.folder}/intents"

    @property
    def manifests(self) -> str:
        """The folder of the manifests and their tables."""
        return f"{self.folder}/manifests"

    @property
    def holds(self) -> str:
        """The folder of the lists of holds."""
        return f"{self.folder}/holds"

    @property
    def jobs(self) -> str:
        """The folder of the records of jobs."""
        return f"{self.folder}/jobs"

    @property
    def indexes(self) -> str:
        """The folder of the indexes."""
        return f"{self.folder}/index"

    def shard(self, number: int) -> str:
        """Returns the name of a shard's tar."""
        return f"{self.prefix}-{number:06d}.tar"

    def shard_number(self, name: str) -> int | None:
        """Returns the number of a tar of this dataset from its name; None for any other name."""
        found = re.fullmatch(re.escape(self.prefix) + r"-([0-9]{6,18})\.tar", name)
        return int(found[1]) if found else None

    def brace_pattern(self, numbers: Sequence[int]) -> str | None:
        """Returns the tars as one pattern, `a-{000000..000009}.tar`; None if the numbers are not consecutive."""
        if not numbers:
            return None
        first, last = f"{numbers[0]:06d}", f"{numbers[-1]:06d}"
        if list(numbers) != list(range(numbers[0], numbers[0] + len(numbers))) or len(first) != len(last):
            return None
        return self.shard(numbers[0]) if len(numbers) == 1 else f"{self.prefix}-{{{first}..{last}}}.tar"

    def index(self, number: int) -> str:
        """Returns the name of a shard's index."""
        return f"{self.indexes}/{number:06d}.arrow"

    def commit(self, version: int) -> str:
        """Returns the name of a version's commit."""
        return f"{self.commits}/{version:010d}.json"

    def intent(self, number: int) -> str:
        """Returns the name of an intent."""
        return f"{self.intents}/{number:010d}.json"

    def hold_list(self, digest: str) -> str:
        """Returns the name of a list of holds with that digest."""
        return f"{self.holds}/{digest}.json"

    def manifest(self, intent: int, digest: str) -> str:
        """Returns the name of a manifest written under an intent, with that digest."""
        return f"{self.manifests}/{intent:010d}-{digest}.json"

    def table(self, intent: int, digest: str) -> str:
        """Returns the name of a chunk of a manifest's table, by intent and digest."""
        return f"{self.manifests}/{intent:010d}-{digest}.parquet"


@dataclass(frozen=True, slots=True)
class DataPlace:
    """Where the tars of an indexed dataset may be read outside the dataset's folder, because a caller says so.

    Attributes:
        url: Normal URL, which must be the base that the manifest names.
        storage_options: Options of its store, see `Store`; those of the dataset are not used there.
    """

    url: str
    storage_options: StorageOptions = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, url: str | os.PathLike[str] | None, storage_options: StorageOptions | None = None
    ) -> "DataPlace | None":
        """Returns the place that the arguments `data_url` and `data_storage_options` name; None without a URL.

        Raises:
            CallError: The URL is wrong, or there are options without a URL.
        """
        if url is not None:
            return cls(normal_url(url), dict(storage_options or {}))
        if storage_options:
            raise CallError("data_storage_options without data_url: give the URL of the tars that they are for")
        return None


class Location(NamedTuple):
    """Where a dataset is: the store of its directory, and the names of its objects there.

    Attributes:
        store: Store of the directory.
        layout: Names of its objects.
        data: Where its tars may be read outside the directory; None: nowhere.
    """

    store: Store
    layout: Layout
    data: DataPlace | None = None

    @property
    def url(self) -> str:
        """URL of the directory."""
        return self.store.url

    @property
    def prefix(self) -> str:
        """The dataset's prefix."""
        return self.layout.prefix

    def __str__(self) -> str:
        return f"{self.url} {self.prefix}"


def record_number(name: str) -> int | None:
    """Returns the number of a commit or intent from its name; None for any other file."""
    found = re.fullmatch(r"(?:.*/)?([0-9]{10})\.json", name)
    return int(found[1]) if found else None


def intent_of(name: str) -> int | None:
    """Returns the intent under which a manifest or table was written, from its name; None for any other file."""
    found = re.fullmatch(r"(?:.*/)?([0-9]{10})-[0-9a-f]+\.(?:json|parquet)", name)
    return int(found[1]) if found else None


def indexed_number(name: str) -> int | None:
    """Returns the shard number of an index from its name; None for any other file."""
    found = re.fullmatch(r"(?:.*/)?([0-9]{6,18})\.arrow", name)
    return int(found[1]) if found else None


def key_of(name: str) -> str:
    """Returns the key of an input name: dots after the last slash become dashes.

    WebDataset ends a key at the first dot of the file name; dots of folder names are part of the key.
    """
    folder, slash, file = name.rpartition("/")
    return name if "." not in file else f"{folder}{slash}{file.replace('.', '-')}"  # most of millions are shared


def check_names(names: Iterable[str]) -> None:
    """Checks that each input name can become a key and stays in the input directory.

    Raises:
        CallError: Some do not; names the first 20.
    """
    if bad := bad_names(names):
        raise CallError(f"{some(bad)}: {NAME_RULE}")


def bad_names(names: Iterable[str]) -> list[str]:
    """Returns the names that cannot become a key, or that would leave the input directory."""
    unusual = [name for name in names if not _PLAIN_NAME.fullmatch(name)]  # one match for each of millions
    return [name for name in unusual if not is_path(name) or WEBDATASET_META.match(name)]


def check_suffixes(suffixes: str | Iterable[str]) -> tuple[str, ...]:
    """Returns the suffixes as a tuple.

    Raises:
        TypeError: Not a string and not an iterable of strings.
        CallError: There are none, two are equal without case (WebDataset reads suffixes in lower case), or one is
            empty, starts with a dot, holds a slash or ends in two underscores (WebDataset skips `__a.b__`).
    """
    if not isinstance(suffixes, str) and not isinstance(suffixes, Iterable):
        raise TypeError(f"a suffix is a string or an iterable of strings, not {type(suffixes).__name__}: {suffixes!r}")
    found = (suffixes,) if isinstance(suffixes, str) else tuple(suffixes)
    if isinstance(suffixes, Set):
        found = tuple(sorted(found, key=str))  # the order of a set differs between processes
    for suffix in found:
        if not isinstance(suffix, str):
            raise TypeError(f"a suffix is a string, not {type(suffix).__name__}: {suffix!r}")
        if not is_path(suffix) or "/" in suffix or suffix.startswith(".") or suffix.endswith("__"):
            raise CallError(
                f"suffix {suffix!r}: give what follows the name's dot, such as 'tensor.pyd', without '/' "
                "and not ending in '__'"
            )
    if not found or len({suffix.lower() for suffix in found}) != len(found):
        raise CallError(f"suffixes {list(found)}: at least one, and each once")
    return found


def some(names: Iterable[str], most: int = 20) -> str:
    """Returns names for a message: the first ones and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(repr(name) for name in listed[:most]) + more


def is_path(name: str) -> bool:
    """Returns whether a name is a relative path below its folder, without control characters."""
    return _PATH.fullmatch(name) is not None and _STEP_OUT.search(name) is None and name.isprintable()
