"""Which parts the samples of a dataset have, as its builds recorded it; no index is read.

A build with `encode` gives a part another suffix: `image.pyd` becomes `image.npy`. With "auto" it does so sample by
sample, and the values that no format holds stay `image.pyd`. For a reader these suffixes are forms of one part.
Suffixes compare without case, as in WebDataset.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dray.shards.manifest import Manifest, Shard

PICKLES = ("pyd", "pkl", "pickle")
"""The extensions of pickled parts."""
TARGETS = ("npy", "safetensors", "json")
"""The extensions that a pickled part may get."""
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class PartForms:
    """One encoded part.

    Attributes:
        name: The suffix of its source, such as "image.pyd".
        forms: The suffixes under which it may be stored, in lower case; a sample has at most one of them.
    """

    name: str
    forms: frozenset[str]

    @property
    def aliases(self) -> frozenset[str]:
        """All names by which it may be asked for, in lower case: name, forms, and the name without its extension."""
        return self.forms | {self.name.lower()} | {stem_of(self.name).lower().removesuffix(".")} - {""}


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


def stored_counts(manifest: Manifest, shard: Shard) -> Mapping[str, int] | None:
    """Stored suffix -> number of samples of a shard that have it; None where the build did not record it."""
    if shard.parts is not None:
        return shard.parts
    recipe = manifest.recipe
    if recipe.get("transform") is not None or "encode" in recipe or not recipe.get("suffixes"):
        return None
    return dict.fromkeys(recipe["suffixes"], shard.num_samples)


def encoded_parts(manifest: Manifest) -> tuple[PartForms, ...]:
    """The parts that the build encoded, in the order of their sources.

    The recipe names the sources, but not those that a user's function makes for "auto". Of these, the suffixes of a
    pickle that stayed and of its encodings are one part where each sample has exactly one of them, by the counts.
    """
    recipe = manifest.recipe
    encode = recipe.get("encode")
    if encode is None:
        return ()
    if recipe.get("transform") is None:
        sources: Collection[str] = recipe["suffixes"]
    elif encode == AUTO:
        counts = [stored_counts(manifest, shard) or {} for shard in manifest.shards]
        sources = dict.fromkeys(suffix for of_shard in counts for suffix in of_shard)
    else:
        sources = encode
    targets = {source: _target(encode, source) for source in sources}
    found = [
        PartForms(source, frozenset(suffix.lower() for suffix in encoded_suffixes(source, target)))
        for source, target in targets.items()
        if target is not None
    ]
    if recipe.get("transform") is not None:
        found = [part for part in found if len(part.forms) == 1 or _is_one_part(manifest, part)]
    return tuple(part for part in found if not any(part.forms & other.forms for other in found if other is not part))


def _target(encode: Any, source: str) -> str | None:
    if encode == AUTO:
        return AUTO if is_pickled(source) else None
    target: str | None = encode.get(source)
    return target


def _is_one_part(manifest: Manifest, part: PartForms) -> bool:
    """Whether every sample has exactly one of the forms, by the counts."""
    counts: Sequence[Mapping[str, int] | None] = [stored_counts(manifest, shard) for shard in manifest.shards]
    return all(
        of_shard is not None
        and sum(count for suffix, count in of_shard.items() if suffix.lower() in part.forms) == shard.num_samples
        for shard, of_shard in zip(manifest.shards, counts, strict=True)
    )
