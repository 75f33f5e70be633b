"""What WebDataset drops, merges or rejects, counted while a tar is scanned."""

import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from dray.shards.index import split_name
from dray.shards.layout import WEBDATASET_META, some
from dray.shards.messages import counted
from dray.shards.tar import Member

MOST_NAMED = 3  # examples of each kind


class Oddity(StrEnum):
    """Members of tars of which no part of a sample is made, and keys that are easily confused."""

    NO_SUFFIX = "without_suffix"
    HIDDEN = "hidden"
    META = "meta"
    FOLDER = "folder"
    LINK = "link"
    DEVICE = "device"
    CASE = "case"


_TEXTS: Mapping[Oddity, tuple[str, str]] = {
    Oddity.NO_SUFFIX: ("member", "without a dot in the name (left out, by webdataset too)"),
    Oddity.HIDDEN: ("hidden file", "left out (webdataset makes a sample of it, named after its folder)"),
    Oddity.META: ("__meta__ member", "left out, by webdataset too"),
    Oddity.LINK: ("link", "left out, by webdataset too"),
    Oddity.DEVICE: ("device or pipe", "left out, by webdataset too"),
    Oddity.CASE: ("key", "that differs from another one of its tar by case alone"),
}


@dataclass(slots=True)
class Notes:
    """Counts of oddities, and the names of the first ones.

    Attributes:
        counts: Oddity -> number.
        examples: Oddity -> up to `MOST_NAMED` names of members or keys.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, oddity: Oddity, name: str) -> None:
        """Count one."""
        self.counts[oddity] += 1
        named = self.examples.setdefault(oddity, [])
        if len(named) < MOST_NAMED:
            named.append(name)

    def watch(self, members: Iterable[Member]) -> Iterator[Member]:
        """Yields members, and counts those that are no part of a sample."""
        for member in members:
            if split_name(member.name) is None:
                self.add(_kind_of(member.name), member.name)
            yield member

    def other(self, name: str, kind: bytes) -> None:
        """Count a member that is not a regular file."""
        links = (tarfile.SYMTYPE, tarfile.LNKTYPE)
        self.add(Oddity.FOLDER if kind == tarfile.DIRTYPE else Oddity.LINK if kind in links else Oddity.DEVICE, name)

    def compare_case(self, keys: Sequence[str]) -> None:
        """Count the keys that differ from an earlier one by case alone."""
        lowered = [key.lower() for key in keys]
        if len(set(lowered)) < len(keys):
            seen: set[str] = set()
            for key, lower in zip(keys, lowered, strict=True):
                if lower in seen:
                    self.add(Oddity.CASE, key)
                seen.add(lower)

    def in_tar(self, tar: str) -> "Notes":
        """Returns the same notes with the tar before each name."""
        return Notes(self.counts, {kind: [f"{tar}: {name}" for name in names] for kind, names in self.examples.items()})

    def include(self, notes: "Notes") -> None:
        """Add the notes of another tar."""
        self.counts.update(notes.counts)
        for kind, names in notes.examples.items():
            self.examples[kind] = [*self.examples.get(kind, ()), *names][:MOST_NAMED]

    def __str__(self) -> str:
        lines = [
            f"{counted(self.counts[oddity], noun)} {what}: {some(self.examples[oddity], MOST_NAMED)}"
            for oddity, (noun, what) in _TEXTS.items()
            if self.counts[oddity]
        ]
        return "; ".join(lines)


def _kind_of(name: str) -> Oddity:
    if WEBDATASET_META.match(name):
        return Oddity.META
    return Oddity.HIDDEN if name.rpartition("/")[2].startswith(".") else Oddity.NO_SUFFIX
