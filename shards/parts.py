"""The parts of the samples of a dataset, as its manifest lists them.

A build with `encode` changes the suffix of a part: `image.pyd` becomes `image.npy`. With "auto" it decides for each
sample, and values that no format supports stay `image.pyd`. For a reader these suffixes are forms of one part.
Suffixes compare without case, as in WebDataset.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

PICKLES = ("pyd", "pkl", "pickle")
"""The extensions of pickled parts."""
TARGETS = ("npy", "safetensors", "json")
"""The extensions that `encode=` may give a part: the keys of `codecs.encode.FORMATS`, which would load torch."""
AUTO = "auto"
Counts = Mapping[str, int]
"""Stored suffix -> number of samples of a shard that have it."""
ArrayTypes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Stored suffix -> dtype and shape, if all parts of a shard with that suffix are such `.npy` arrays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartForms:
    """One part and the forms in which it is stored.

    Attributes:
        name: The suffix of its source, such as "image.pyd".
        forms: Stored suffix -> number of samples that have it; 0 for an unused form.
        dtype: dtype as in `numpy.dtype.str` if all are `.npy` arrays of one dtype and shape; else None.
        shape: Shape of these arrays.
    """

    name: str
    forms: Mapping[str, int]
    dtype: str | None = None
    shape: tuple[int, ...] | None = None

    @property
    def suffixes(self) -> frozenset[str]:
        """The suffixes under which the part may be stored, in lower case."""
        return frozenset(map(str.lower, self.forms))

    @property
    def is_encoded(self) -> bool:
        """Whether a build may have stored the part under another suffix than that of its source."""
        return self.suffixes != {self.name.lower()}

    @property
    def aliases(self) -> frozenset[str]:
        """The names of the part, in lower case; for an encoded part also the stem of its suffix."""
        stem = {stem_of(self.name).lower().removesuffix(".")} - {""} if self.is_encoded else set()
        return self.suffixes | {self.name.lower()} | stem

    @property
    def num_stored(self) -> int:
        """Number of samples that have the part in any form."""
        return sum(self.forms.values())

    @property
    def main_form(self) -> str:
        """The most frequent form; the first by name if several are equally frequent."""
        return min(self.forms, key=lambda suffix: (-self.forms[suffix], suffix))


def is_pickled(suffix: str) -> bool:
    """Whether a part with this suffix is a pickle."""
    return suffix.rpartition(".")[2].lower() in PICKLES


def stem_of(suffix: str) -> str:
    """Returns a suffix without its last extension: "tensor." for "tensor.pyd", "" for "pyd"."""
    return suffix[: len(suffix) - len(suffix.rpartition(".")[2])]


def encoded_suffixes(suffix: str, target: str | None) -> tuple[str, ...]:
    """Returns the suffixes that an encoded part may have: one, or several if `target` is "auto"."""
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
        recipe: Recipe of the samples; empty if unknown.
        shard_sizes: Number of samples of each shard.
        shard_counts: Counts of the stored suffixes of each shard.
        shard_arrays: Types of the arrays of one dtype and shape in each shard.
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
    """Returns a part with the counts of its stored forms, and with dtype and shape if one array form is stored."""
    stored = {suffix.lower() for suffix in counts}
    unused = {suffix: 0 for suffix in part.forms if suffix.lower() not in stored}
    found = replace(part, forms={**unused, **counts})
    if len(counts) != 1 or found.main_form not in arrays:
        return found
    dtype, shape = arrays[found.main_form]
    return replace(found, dtype=dtype, shape=shape)


def _common_types(shard_counts: Sequence[Counts], shard_arrays: Sequence[ArrayTypes]) -> ArrayTypes:
    """Returns the types that all shards with that suffix share."""
    found: dict[str, set[tuple[str, tuple[int, ...]] | None]] = {}
    for counts, arrays in zip(shard_counts, shard_arrays, strict=True):
        for suffix in counts:
            found.setdefault(suffix, set()).add(arrays.get(suffix))
    return {suffix: kind for suffix, kinds in found.items() if len(kinds) == 1 and (kind := next(iter(kinds)))}


def part_of(suffix: str, parts: Sequence[PartForms]) -> PartForms:
    """Returns the part that has a stored suffix as a form; a new part with this form alone if there is none."""
    found = (part for part in parts if suffix.lower() in part.suffixes)
    return next(found, PartForms(name=suffix, forms={suffix: 0}))


def _encoded_forms(
    recipe: Mapping[str, Any], totals: Counts, shard_sizes: Sequence[int], shard_counts: Sequence[Counts]
) -> Iterator[PartForms]:
    """Yields the parts that a build encoded, with the suffixes that they may have, in the order of their sources.

    The recipe names the sources, but with "auto" not the parts that a user's function returns. The suffixes of such a
    pickle and of its encodings are one part only if each sample has exactly one of them, by the counts.
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
