"""Where the objects of a dataset lie below its URL, and which names may be used there."""

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from dray.shards.errors import CallError
from dray.shards.storage.store import Store

DRAY_FOLDER = "__dray__"  # in a dataset's directory; holds everything but the shards
OLD_FOLDER = "_dray"  # where format 1 kept it
MOST_SHARDS = 10**18  # numbers of shards are smaller
# A path below a folder: components without control characters; "." and ".." are ruled out apart.
_PATH = re.compile(r"(?:[^/\x00-\x1f\x7f]+/)*[^/\x00-\x1f\x7f]+")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=,@-]*")  # beyond doubt, as most are
_STEP_OUT = re.compile(r"(?:^|/)\.{1,2}(?:/|$)")
NAME_RULE = (
    "a name is a relative path without '..', empty parts or control characters, and not between double underscores"
)
_WEBDATASET_META = re.compile(r"__[^/]*__(?:$|/)")  # readers of WebDataset pass such members over


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
        """Where all but the shards lies."""
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
    def indexes(self) -> str:
        """The folder of the indexes."""
        return f"{self.folder}/index"

    def shard(self, number: int) -> str:
        """The tar of a shard."""
        return f"{self.prefix}-{number:06d}.tar"

    def shard_number(self, name: str) -> int | None:
        """The number of a tar of this dataset by its name; None for any other name."""
        found = re.fullmatch(re.escape(self.prefix) + r"-([0-9]{6,18})\.tar", name)
        return int(found[1]) if found else None

    def brace_pattern(self, numbers: Sequence[int]) -> str | None:
        """The tars as one pattern, `a-{000000..000009}.tar`; None where the numbers are not one ascending run."""
        if not numbers:
            return None
        first, last = f"{numbers[0]:06d}", f"{numbers[-1]:06d}"
        if list(numbers) != list(range(numbers[0], numbers[0] + len(numbers))) or len(first) != len(last):
            return None
        return self.shard(numbers[0]) if len(numbers) == 1 else f"{self.prefix}-{{{first}..{last}}}.tar"

    def index(self, number: int) -> str:
        """The index of a shard."""
        return f"{self.indexes}/{number:06d}.arrow"

    def commit(self, version: int) -> str:
        """The commit of a version."""
        return f"{self.commits}/{version:010d}.json"

    def intent(self, number: int) -> str:
        """An intent."""
        return f"{self.intents}/{number:010d}.json"

    def hold_list(self, digest: str) -> str:
        """A list of holds, by the digest of its content."""
        return f"{self.holds}/{digest}.json"

    def manifest(self, intent: int, digest: str) -> str:
        """A manifest: the intent under which it was written, and the digest of its content."""
        return f"{self.manifests}/{intent:010d}-{digest}.json"

    def table(self, intent: int, digest: str) -> str:
        """A table of a manifest (a chunk of the sources, say), named in the same way."""
        return f"{self.manifests}/{intent:010d}-{digest}.parquet"


class Location(NamedTuple):
    """Where a dataset is: the store of its directory, and the names of its objects there."""

    store: Store
    layout: Layout

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
    """The number of a commit or intent by its object's name; None for another file that strayed there."""
    found = re.fullmatch(r"(?:.*/)?([0-9]{10})\.json", name)
    return int(found[1]) if found else None


def intent_of(name: str) -> int | None:
    """The intent under which a manifest or a table of one was written, by its object's name; None for another file."""
    found = re.fullmatch(r"(?:.*/)?([0-9]{10})-[0-9a-f]+\.(?:json|parquet)", name)
    return int(found[1]) if found else None


def indexed_number(name: str) -> int | None:
    """The number of the shard whose index an object is, by its name; None for another file."""
    found = re.fullmatch(r"(?:.*/)?([0-9]{6,18})\.arrow", name)
    return int(found[1]) if found else None


def key_of(name: str) -> str:
    """Returns the key of an input name: dots after the last slash become dashes.

    WebDataset ends a key at the first dot of the file name; dots of folder names are part of the key.
    """
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.replace('.', '-')}"


def check_names(names: Iterable[str]) -> None:
    """Refuse input names that no key can be made of, or that would leave the input directory.

    Raises:
        CallError: Names the first 20.
    """
    if bad := bad_names(names):
        raise CallError(f"{some(bad)}: {NAME_RULE}")


def bad_names(names: Iterable[str]) -> list[str]:
    """Returns the names that no key can be made of, or that would leave the input directory."""
    unusual = [name for name in names if not _PLAIN_NAME.fullmatch(name)]  # one look for each of millions
    return [name for name in unusual if not is_path(name) or _WEBDATASET_META.match(name)]


def check_suffixes(suffixes: str | Iterable[str]) -> tuple[str, ...]:
    """The suffixes as a tuple.

    Raises:
        TypeError: Not a string and not an iterable of strings.
        CallError: None given, one twice (also but for case: WebDataset reads suffixes in lower case), or one that is
            empty, starts with a dot, holds a slash or ends in two underscores (WebDataset passes over `__a.b__`).
    """
    if not isinstance(suffixes, str) and not isinstance(suffixes, Iterable):
        raise TypeError(f"a suffix is a string or an iterable of strings, not {type(suffixes).__name__}: {suffixes!r}")
    found = (suffixes,) if isinstance(suffixes, str) else tuple(suffixes)
    if isinstance(suffixes, Set):
        found = tuple(sorted(found, key=str))  # its own order differs from process to process
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
    """Names for a message: the first 20 and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(repr(name) for name in listed[:most]) + more


def is_path(name: str) -> bool:
    """Whether a name is a relative path that stays below its folder, without control characters."""
    return _PATH.fullmatch(name) is not None and _STEP_OUT.search(name) is None and name.isprintable()
