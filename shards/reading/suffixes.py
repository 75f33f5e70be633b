"""Resolves wanted suffixes to the stored parts of samples. Suffixes compare without case.

A wanted suffix may name a part as it is stored, or an encoded part by any of its names (see `dray.shards.parts`).
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from dray.shards.errors import CallError, DamagedError, NotFoundError
from dray.shards.layout import check_suffixes
from dray.shards.manifest import Manifest
from dray.shards.parsing.columns import Columns
from dray.shards.parts import Counts, PartForms
from dray.shards.reading.catalog import Catalog

FEW_SHARDS = 8  # number of shards that are searched for a sample with all parts


class Missing(StrEnum):
    """What happens to a sample that lacks a wanted part."""

    ERROR = "error"
    NONE = "none"

    @classmethod
    def of(cls, value: str) -> "Missing":
        """Returns the member with this value.

        Raises:
            CallError: There is none.
        """
        if value not in list(cls):
            raise CallError(f"missing={value!r}: expected one of {', '.join(cls)}")
        return cls(value)


@dataclass(frozen=True, slots=True)
class Part:
    """One wanted part.

    Attributes:
        name: Name of the part in samples and batches.
        choices: Sets of stored suffixes in lower case, in order of preference.
        endings: Endings of suffixes, such as ".pyd", that match where a sample has none of the choices.
        ending_forms: Suffixes of forms of encoded parts that match where a sample has none of the choices.
    """

    name: str
    choices: tuple[frozenset[str], ...]
    endings: tuple[str, ...] = ()
    ending_forms: frozenset[str] = frozenset()

    def among(self, suffixes: Iterable[str]) -> list[str]:
        """Returns the stored suffixes of a sample that match this part; several if the name is ambiguous."""
        lower = {suffix: suffix.lower() for suffix in suffixes}
        for choice in self.choices:
            if found := [suffix for suffix in lower if lower[suffix] in choice]:
                return found
        return [name for name in lower if lower[name] in self.ending_forms or lower[name].endswith(self.endings)]


@dataclass(frozen=True, slots=True)
class WantedParts:
    """The parts that a loader reads.

    Attributes:
        parts: The parts, in the order of a batch.
        missing: What happens to a sample that lacks one.
        is_all: Whether every stored part is read under its own suffix; `parts` is ignored then.
    """

    parts: tuple[Part, ...]
    missing: Missing
    is_all: bool = False

    def stored(self, columns: Columns) -> tuple[str, ...]:
        """Returns the stored suffixes to read from a shard, alternatives included where samples lack a part."""
        if self.is_all:
            return tuple(columns.offsets)
        found: list[str] = []
        for part in self.parts:
            names = list(columns.offsets)
            while matching := part.among(names):
                found += matching
                if np.any([columns.offsets[name] > 0 for name in matching], axis=0).all():
                    break
                names = [name for name in names if name not in matching]
        return tuple(dict.fromkeys(found))


def lacking_error(where: str, name: str, stored: Sequence[str]) -> CallError:
    """Returns the error for a sample that lacks a part."""
    return CallError(
        f"{where}: no part with suffix {name!r}; it has {list(stored)}. Give missing='none' to get None in its "
        "place, or read only parts that all samples have"
    )


def several_error(where: str, name: str, found: Sequence[str]) -> CallError:
    """Returns the error for a sample with several stored parts that match one wanted part."""
    return CallError(
        f"{where}: several parts with suffix {name!r}: {' and '.join(map(repr, found))}. Name one in full, or if "
        "only upper and lower case differ, rename one and build again"
    )


EVERY_PART = WantedParts((), Missing.ERROR, is_all=True)
"""Reads every stored part under its own suffix."""


def named_parts(
    names: Sequence[str], manifest: Manifest | None, missing: Missing, *, by_ending: bool = False
) -> WantedParts:
    """Returns the parts that the caller names.

    Args:
        names: Suffixes; with `by_ending` also alternatives such as "a;b", of which the first that exists is taken.
        manifest: The manifest of the dataset; None if it has none.
        missing: See `WantedParts`.
        by_ending: Whether a name may be the end of a suffix: "pyd" for "tensor.pyd". This does not apply to a name
            that some sample is known to have as a suffix: no other part may replace it where it is missing.
    """
    known = () if manifest is None else manifest.parts
    stored = {suffix.lower() for part in known for suffix, count in part.forms.items() if count}
    parts = []
    for name in names:
        alternatives = name.lower().split(";") if by_ending else [name.lower()]
        choices = tuple(choice for wanted in alternatives for choice in _choices(wanted, known))
        if by_ending and not any(choice & stored for choice in choices):
            endings = tuple(f".{wanted}" for wanted in alternatives)
            parts.append(Part(name, choices, endings, _forms_ending(endings, known, stored)))
        else:
            parts.append(Part(name, choices))
    return WantedParts(tuple(parts), missing)


def _choices(wanted: str, known: Sequence[PartForms]) -> list[frozenset[str]]:
    """Returns the suffix itself, then all forms of the encoded part that it names."""
    forms = [part.suffixes for part in known if part.is_encoded and wanted in part.aliases]
    return [frozenset({wanted}), *([frozenset().union(*forms)] if forms else [])]


def _forms_ending(endings: tuple[str, ...], known: Sequence[PartForms], stored: set[str]) -> frozenset[str]:
    """Returns all forms of the encoded parts with a stored form that ends so; if none, of those whose name does."""
    encoded = [part for part in known if part.is_encoded]
    found = [part for part in encoded if any(form.endswith(endings) for form in part.suffixes & stored)]
    found = found or [part for part in encoded if part.name.lower().endswith(endings)]
    return frozenset().union(*(part.suffixes for part in found))


def open_parts(catalog: Catalog, names: str | Iterable[str] | None, missing: str) -> WantedParts:
    """Returns the parts that the caller of a loader asks for.

    Raises:
        CallError: `missing` is unknown; or no sample has a part, or with `names=None` some samples lack one.
    """
    if names is None:
        return all_parts(catalog, Missing.of(missing))
    wanted = named_parts(check_suffixes(names), catalog.snapshot.manifest, Missing.of(missing))
    check_named(catalog, wanted)
    return wanted


def all_parts(catalog: Catalog, missing: Missing) -> WantedParts:
    """Returns all parts of a dataset's samples, an encoded one under the suffix of its source.

    Raises:
        CallError: Some samples lack a part, and `missing` is "error".
    """
    counts = _counts(catalog)
    stored = {suffix for of_shard in counts for suffix, count in of_shard.items() if count}
    parts = tuple(
        Part(part.name, (part.suffixes,)) for part in catalog.snapshot.manifest.parts if stored & part.forms.keys()
    )
    if missing == Missing.ERROR:
        _check_all_have(catalog, parts, counts)
    return WantedParts(parts, missing)


def first_complete(catalog: Catalog, wanted: WantedParts) -> int:
    """Returns the number of the first sample that has all wanted parts; 0 if the first shards have none."""
    for place in range(min(catalog.num_places, FEW_SHARDS)):
        try:
            columns = catalog.columns(place)
        except (DamagedError, NotFoundError):
            continue
        counts = [sum(columns.offsets[suffix] > 0 for suffix in part.among(columns.offsets)) for part in wanted.parts]
        is_complete = np.all([np.broadcast_to(count == 1, len(columns.keys)) for count in counts], axis=0)
        rows = np.flatnonzero(is_complete)
        if len(rows) and catalog.first_sample(place) + rows[0] < catalog.num_samples:
            return catalog.first_sample(place) + int(rows[0])
    return 0


def check_named(catalog: Catalog, wanted: WantedParts) -> None:
    """Check that some sample has each of the wanted parts.

    Raises:
        CallError: No sample has a wanted part; names the existing parts.
    """
    stored = sorted({suffix for of_shard in _counts(catalog) for suffix, count in of_shard.items() if count})
    for part in wanted.parts:
        if not part.among(stored):
            raise CallError(
                f"{catalog.snapshot.store.url}: no sample has a part {part.name!r}; their parts are {', '.join(stored)}"
            )


def _counts(catalog: Catalog) -> list[Counts]:
    """Returns the counts of each shard that has samples within the limit."""
    return catalog.snapshot.manifest.counts()[: catalog.num_places]


def _check_all_have(catalog: Catalog, parts: Collection[Part], counts: Sequence[Counts]) -> None:
    """Check that all samples have the parts, except in a shard that the limit cuts.

    Raises:
        CallError: Some samples lack a part.
    """
    for place, of_shard in enumerate(counts):
        num_samples = catalog.shard(place).num_samples
        if catalog.first_sample(place) + num_samples > catalog.num_samples:
            return
        for part in parts:
            have = sum(of_shard[suffix] for suffix in part.among(of_shard))
            if have < num_samples:
                raise CallError(
                    f"parts=None reads all parts, but {num_samples - have:,} of the {num_samples:,} samples of "
                    f"{catalog.shard_url(place)} lack {part.name!r}: name the parts with parts=, or give missing='none'"
                )
