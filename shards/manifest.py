"""What a version of a dataset holds: its recipe, its shards, its tables, and where every input went."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import NoneType
from typing import Any

from dray.shards.errors import DamagedError
from dray.shards.layout import MOST_SHARDS, check_suffixes
from dray.shards.parsing.records import HEADER, FormatError, canonical_json, check_digests, read_record
from dray.shards.tar import BLOCK, END, MAX_SHARD_BYTES

CHUNK_ROWS = 1_000_000  # largest number of rows of a table of sources
_RECIPE: Mapping[str, tuple[type, ...]] = {
    "suffixes": (list,),
    "transform": (str, NoneType),
    "num_shards": (int, NoneType),
    "shard_bytes": (int,),
    "shard_samples": (int,),
    "shuffle_seed": (int, NoneType),
}
_ENCODING: Mapping[str, tuple[type, ...]] = {"encode": (str, dict), "allow": (list,), "allow_pickle": (bool,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard as its snapshot knows it."""

    number: int
    num_bytes: int  # of the tar
    num_samples: int
    digest: str  # of the sources and the recipe that made it
    index_digest: str  # xxh3_128 of the index, which holds the checksum of every part
    parts: Mapping[str, int] | None = None  # suffix -> how many samples have it, where a build encodes parts


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceChunk:
    """A Parquet table of sources, sorted by key; the intent under which it was written and its digest name it."""

    intent: int
    digest: str
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """Where every input went: inputs = packed + empty + skipped + quarantined."""

    inputs: int
    packed: int
    empty: int = 0  # the user's function gave no sample
    skipped: int = 0
    quarantined: int = 0

    def __post_init__(self) -> None:
        if self.inputs != self.packed + self.num_left_out:
            raise ValueError(f"not every input is accounted for: {self}")

    @property
    def num_left_out(self) -> int:
        """Inputs that the version does not hold."""
        return self.empty + self.skipped + self.quarantined


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of a snapshot as it lies on storage: no time, no id, so the same build gives the same bytes."""

    prefix: str
    source_url: str  # where the inputs lay
    recipe: Mapping[str, Any]
    intent: int  # the last intent that the build knew: later ones may hold shards to adopt
    accounting: Accounting
    shards: tuple[Shard, ...]
    sources: tuple[SourceChunk, ...]
    left_out: SourceChunk | None = None  # the inputs that were empty, skipped or quarantined

    def to_bytes(self) -> bytes:
        """Canonical JSON; what is only there for some datasets is left out elsewhere."""
        values = asdict(self)
        for shard in values["shards"]:
            if shard["parts"] is None:
                del shard["parts"]
        return canonical_json({**HEADER, **values})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Manifest":
        """Read a manifest and check that what it says can be true.

        Raises:
            DamagedError: It is not a manifest of a format that this version of dray knows, or contradicts itself.
        """
        try:
            manifest = read_record(cls, data)
            _check_recipe(manifest.recipe)
            _check_shards(manifest.shards)
            _check_counts(manifest)
        except FormatError as exc:
            raise DamagedError(f"{where}: {exc}") from exc
        except (ValueError, TypeError) as exc:
            raise DamagedError(
                f"{where}: not a readable manifest ({exc}): dray log lists the versions, dray rollback goes back to one"
            ) from exc
        return manifest


def _check_recipe(recipe: Mapping[str, Any]) -> None:
    if missing := _RECIPE.keys() - recipe.keys():
        raise ValueError(f"the recipe lacks {', '.join(sorted(missing))}")
    for name, kinds in {**_RECIPE, **_ENCODING}.items():
        if name in recipe and type(recipe[name]) not in kinds:
            raise ValueError(f"{name} of the recipe is {recipe[name]!r:.80}")
    check_suffixes(recipe["suffixes"])
    sizes = recipe["num_shards"], recipe["shard_bytes"], recipe["shard_samples"]
    if any(size is not None and size < 1 for size in sizes):
        raise ValueError("a number or a size of shards in the recipe is less than 1")
    encode = recipe.get("encode", {})
    texts = [*encode, *encode.values()] if isinstance(encode, dict) else []
    if not all(isinstance(text, str) for text in (*texts, *recipe.get("allow", ()))):
        raise ValueError("encode or allow of the recipe holds what is not text")


def _check_shards(shards: tuple[Shard, ...]) -> None:
    if len({shard.number for shard in shards}) != len(shards):
        raise ValueError("each shard expected once")
    check_digests(digest for shard in shards for digest in (shard.digest, shard.index_digest))
    for shard in shards:
        fewest_bytes = shard.num_samples * BLOCK + len(END)  # each sample has a header at least
        if not (shard.num_samples and fewest_bytes <= shard.num_bytes <= MAX_SHARD_BYTES):
            raise ValueError(f"shard {shard.number} has {shard.num_samples} samples in {shard.num_bytes} bytes")
        if shard.number >= MOST_SHARDS:
            raise ValueError(f"a shard has the number {shard.number}")
        if shard.parts and max(shard.parts.values()) > shard.num_samples:
            raise ValueError(f"shard {shard.number} has more parts of a suffix than its {shard.num_samples} samples")


def _check_counts(manifest: Manifest) -> None:
    """Check that shards, tables and accounting agree."""
    counts, left_out = manifest.accounting, manifest.left_out
    check_digests(chunk.digest for chunk in (*manifest.sources, *([left_out] if left_out else ())))
    found = (
        sum(shard.num_samples for shard in manifest.shards),
        sum(chunk.num_rows for chunk in manifest.sources),
        left_out.num_rows if left_out else 0,
    )
    if found != (counts.packed, counts.packed, counts.num_left_out):
        raise ValueError("{} samples in shards, {} in sources and {} left out do not make {}".format(*found, counts))
    if not manifest.shards:  # a version without samples has a table of no rows, for its columns
        if len(manifest.sources) != 1:
            raise ValueError("without shards, one empty table of sources expected")
    elif not all(0 < chunk.num_rows <= CHUNK_ROWS for chunk in manifest.sources):
        raise ValueError(f"a table of sources has no row, or more than {CHUNK_ROWS:,}")
