"""The parts of a dataset's samples, as its manifest lists them; no index is read.

A build with `encode` gives a part another suffix: `image.pyd` becomes `image.npy`. With "auto" it does so sample by
sample, and the values that no format holds stay `image.pyd`. For a reader these suffixes are forms of one part.
Suffixes compare without case, as in WebDataset.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

PICKLES = ("pyd", "pkl", "pickle")
"""The extensions of pickled parts."""
TARGETS = ("npy", "safetensors", "json")
"""The extensions that a pickled part may get."""
AUTO = "auto"
Counts = Mapping[str, int]
"""Stored suffix -> number of samples of a shard that have it."""
ArrayTypes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Stored suffix -> dtype and shape, where all parts of a shard with that suffix are such `.npy` arrays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartForms:
    """One part and the forms in which it is stored.

    Attributes:
        name: The suffix of its source, such as "image.pyd".
        forms: Stored suffix -> number of samples that have it, 0 for a form that no value needed.
        dtype: dtype of the arrays as `numpy.dtype.str` has it, if all are `.npy` of one dtype and shape; else None.
        shape: Shape of these arrays.
    """

    name: str
    forms: Mapping[str, int]
    dtype: str | None = None
    shape: tuple[int, ...] | None = None

    @property
    def suffixes(self) -> frozenset[str]:
        """The suffixes under which it may be stored, in lower case."""
        return frozenset(map(str.lower, self.forms))

    @property
    def is_encoded(self) -> bool:
        """Whether a build may have stored it under another suffix than its source's."""
        return self.suffixes != {self.name.lower()}

    @property
    def aliases(self) -> frozenset[str]:
        """The names by which it may be asked for, in lower case: for an encoded part also its name's stem."""
        stem = {stem_of(self.name).lower().removesuffix(".")} - {""} if self.is_encoded else set()
        return self.suffixes | {self.name.lower()} | stem

    @property
    def num_stored(self) -> int:
        """The number of times that it is stored, in whatever form."""
        return sum(self.forms.values())

    @property
    def main_form(self) -> str:
        """The form of most samples; of equally frequent ones the first by name."""
        return min(self.forms, key=lambda suffix: (-self.forms[suffix], suffix))


def is_pickled(suffix: str) -> bool:
    """Whether a part of that suffix is a pickle."""
    return suffix.rpartition(".")[2].lower() in PICKLES


def stem_of(suffix: str) -> str:
    """A suffix without its last extension: "tensor." of "tensor.pyd", "" of "pyd"."""
    return suffix[: len(suffix) - len(suffix.rpartition(".")[2])]


def encoded_suffixes(suffix: str, target: str | None) -> tuple[str, ...]:
    """The suffixes that a part may have after it was encoded: one, or several if `target` is "auto"."""
    if target is None:
        return (suffix,)
    if target != AUTO:
        return (stem_of(suffix) + target,)
    return (*(stem_of(suffix) + extension for extension in TARGETS), suffix)


def main_forms(parts: Sequence[PartForms]) -> list[str]:
    """Returns the main form of each part that some sample has."""
    return [part.main_form for part in parts if part.num_stored]


def parts_of(
    recipe: Mapping[str, Any],
    shard_sizes: Sequence[int],
    shard_counts: Sequence[Counts],
    shard_arrays: Sequence[ArrayTypes],
) -> tuple[PartForms, ...]:
    """Returns the parts of a dataset, in the order of the recipe, then by shard and suffix.

    Args:
        recipe: What made the samples; empty if that is not known.
        shard_sizes: Number of samples of each shard.
        shard_counts: Of each shard, which parts its samples have.
        shard_arrays: Of each shard, which parts are arrays of one dtype and shape.
    """
    totals = Counter[str]()
    for counts in shard_counts:
        for suffix in sorted(counts):
            totals[suffix] += counts[suffix]
    encoded = tuple(_encoded_forms(recipe, totals, shard_sizes, shard_counts))
    parts: dict[frozenset[str], PartForms] = {}
    stored: dict[frozenset[str], dict[str, int]] = {}
    for suffix, count in totals.items():
        part = part_of(suffix, encoded)
        parts.setdefault(part.suffixes, part)
        stored.setdefault(part.suffixes, {})[suffix] = count
    for part in encoded:
        parts.setdefault(part.suffixes, part)
    arrays = _common_types(shard_counts, shard_arrays)
    found = [_stored_part(part, stored.get(key, {}), arrays) for key, part in parts.items()]
    order = list(recipe.get("suffixes", ()))
    return tuple(sorted(found, key=lambda part: order.index(part.name) if part.name in order else len(order)))


def _stored_part(part: PartForms, counts: Counts, arrays: ArrayTypes) -> PartForms:
    """A part with the counts of its stored forms, and with a dtype and shape if there is only one such form."""
    stored = {suffix.lower() for suffix in counts}
    unused = {suffix: 0 for suffix in part.forms if suffix.lower() not in stored}
    found = replace(part, forms={**unused, **counts})
    if len(counts) != 1 or found.main_form not in arrays:
        return found
    dtype, shape = arrays[found.main_form]
    return replace(found, dtype=dtype, shape=shape)


def _common_types(shard_counts: Sequence[Counts], shard_arrays: Sequence[ArrayTypes]) -> ArrayTypes:
    """The types that are those of all shards with that suffix."""
    found: dict[str, set[tuple[str, tuple[int, ...]] | None]] = {}
    for counts, arrays in zip(shard_counts, shard_arrays, strict=True):
        for suffix in counts:
            found.setdefault(suffix, set()).add(arrays.get(suffix))
    return {suffix: kind for suffix, kinds in found.items() if len(kinds) == 1 and (kind := next(iter(kinds)))}


def part_of(suffix: str, parts: Sequence[PartForms]) -> PartForms:
    """The part that a stored suffix is a form of; else one that has no other form."""
    found = (part for part in parts if suffix.lower() in part.suffixes)
    return next(found, PartForms(name=suffix, forms={suffix: 0}))


def _encoded_forms(
    recipe: Mapping[str, Any], totals: Counts, shard_sizes: Sequence[int], shard_counts: Sequence[Counts]
) -> Iterator[PartForms]:
    """Yields the parts that a build encoded, with the suffixes that they may have, in the order of their sources.

    The recipe names the sources, but not those that a user's function makes for "auto". Of these, the suffixes of a
    pickle that stayed and of its encodings are one part only if each sample has exactly one of them, by the counts.
    """
    encode, is_made = recipe.get("encode"), recipe.get("transform") is not None
    if encode is None:
        return
    sources: Collection[str] = recipe["suffixes"]
    if is_made:
        sources = totals if encode == AUTO else encode
    targets = {source: _target(encode, source) for source in sources}
    found = [
        PartForms(name=source, forms=dict.fromkeys(encoded_suffixes(source, target), 0))
        for source, target in targets.items()
        if target is not None
    ]
    if is_made:
        found = [part for part in found if len(part.forms) == 1 or _is_one_part(part, shard_sizes, shard_counts)]
    for part in found:
        if not any(part.suffixes & other.suffixes for other in found if other is not part):
            yield part


def _target(encode: Any, source: str) -> str | None:
    if encode == AUTO:
        return AUTO if is_pickled(source) else None
    target: str | None = encode.get(source)
    return target


def _is_one_part(part: PartForms, shard_sizes: Sequence[int], shard_counts: Sequence[Counts]) -> bool:
    """Whether every sample has exactly one of the forms, by the counts."""
    return all(
        sum(count for suffix, count in counts.items() if suffix.lower() in part.suffixes) == num_samples
        for num_samples, counts in zip(shard_sizes, shard_counts, strict=True)
    )
