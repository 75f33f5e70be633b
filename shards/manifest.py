"""The manifest of a version: its parts, shards and tables, its recipe, and the accounting of its inputs."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from types import NoneType
from typing import Any

from dray.shards.errors import DamagedError
from dray.shards.layout import MOST_SHARDS, check_suffixes, is_path
from dray.shards.parsing.arrays import ArrayLayout
from dray.shards.parsing.records import HEADER, FormatError, canonical_json, check_digests, read_record
from dray.shards.parts import ArrayTypes, Counts, PartForms, main_forms, parts_of
from dray.shards.storage.urls import normal_url
from dray.shards.tar import BLOCK, END, MAX_SHARD_BYTES

CHUNK_ROWS = 1_000_000  # maximum number of rows in a chunk of a table
MAX_FOREIGN_BYTES = 1 << 40  # maximum size of a tar that dray did not write
_RECIPE: Mapping[str, tuple[type, ...]] = {
    "suffixes": (list,),
    "transform": (str, NoneType),
    "num_shards": (int, NoneType),
    "shard_bytes": (int,),
    "shard_samples": (int,),
    "shuffle_seed": (int, NoneType),
}
_ENCODING: Mapping[str, tuple[type, ...]] = {"encode": (str, dict), "allow": (list,), "allow_pickle": (bool,)}


class Kind(StrEnum):
    """How a version was created, which decides what its manifest may contain."""

    BUILD = "build"  # packed from files
    WRITTEN = "written"  # written by a program
    INDEXED = "indexed"  # tars that dray did not write


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard as the manifest lists it.

    Attributes:
        number: Unique number in the dataset; names the index, and the tar if `name` is None.
        num_bytes: Size of the tar.
        num_samples: Number of samples.
        digest: Digest of its sources and the recipe.
        index_digest: xxh3_128 of the index, which holds the checksum of every part.
        parts: Stored suffix -> number of samples that have it. None if every sample has each stored part of the
            dataset once, in its main form.
        name: Path of the tar below the base of the manifest; for tars that dray did not write.
        etag: ETag of such a tar when it was indexed, if the store has one.
        mtime: Modification time of such a tar when it was indexed, in nanoseconds since 1970.
    """

    number: int
    num_bytes: int
    num_samples: int
    digest: str
    index_digest: str
    parts: Counts | None = None
    name: str | None = None
    etag: str | None = None
    mtime: int | None = None

    @property
    def label(self) -> str:
        """Name of the tar if it has one of its own, else the number, for messages."""
        return f"{self.number:06d}" if self.name is None else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class TableChunk:
    """A chunk of a table, a Parquet file named by its digest and by the intent under which it was written."""

    intent: int
    digest: str
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """Counts of inputs by outcome: inputs = packed + empty + skipped + quarantined; all 0 if none are known."""

    inputs: int
    packed: int  # with at least one sample
    empty: int = 0  # the user's function returned no sample
    skipped: int = 0
    quarantined: int = 0

    def __post_init__(self) -> None:
        if self.inputs != self.packed + self.num_left_out:
            raise ValueError(f"not every input is accounted for: {self}")

    @property
    def num_left_out(self) -> int:
        """Number of inputs without a sample in the version."""
        return self.empty + self.skipped + self.quarantined


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The stored content of a snapshot, without times and ids: equal builds give equal bytes.

    Attributes:
        kind: See `Kind`.
        base: URL above the tars of an indexed dataset if they are elsewhere. None: the URL of the dataset.
        prefix: Prefix of the dataset.
        source_url: URL of the inputs; empty if unknown.
        recipe: The arguments that, besides the sources, determine the bytes.
        intent: The last intent that the build knew; shards of later ones can be adopted.
        num_samples: Samples in all shards.
        accounting: Counts of the inputs by outcome.
        parts: The parts of the samples.
        shards: In the order of the samples.
        sources: The table of sources, sorted by key; None if unknown.
        samples: The table of samples, sorted by key; None if each source is one sample, located by its own row.
        left_out: The table of the inputs without a sample; None if there are none.
    """

    kind: str = Kind.BUILD
    base: str | None = None
    prefix: str
    source_url: str
    recipe: Mapping[str, Any]
    intent: int
    num_samples: int
    accounting: Accounting
    parts: tuple[PartForms, ...]
    shards: tuple[Shard, ...]
    sources: tuple[TableChunk, ...] | None = None
    samples: tuple[TableChunk, ...] | None = None
    left_out: TableChunk | None = None

    def to_bytes(self) -> bytes:
        """Returns the manifest as canonical JSON; fields of shards that are None are omitted."""
        values = asdict(replace(self, shards=())) | {"shards": [_present(shard) for shard in self.shards]}
        return canonical_json({**HEADER, **values})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Manifest":
        """Read a manifest and check that it is consistent.

        Raises:
            DamagedError: It is not a manifest of a known format, or it contradicts itself.
        """
        try:
            manifest = read_record(cls, data)
            _check_kind(manifest)
            _check_recipe(manifest.recipe, required=_RECIPE.keys() if manifest.kind == Kind.BUILD else ())
            _check_shards(manifest)
            _check_parts(manifest)
            _check_counts(manifest)
        except FormatError as exc:
            raise DamagedError(str(exc), url=where) from exc
        except (ValueError, TypeError) as exc:
            raise DamagedError(
                f"not a readable manifest ({exc}): dray log lists the versions, dray rollback goes back to one",
                url=where,
            ) from exc
        return manifest

    def counts(self) -> list[Counts]:
        """Returns the counts of each shard: stored suffix -> number of samples that have it."""
        main = main_forms(self.parts)
        return [dict.fromkeys(main, shard.num_samples) if shard.parts is None else shard.parts for shard in self.shards]

    def counted_shards(self) -> list[Shard]:
        """Returns the shards, each with the counts of its parts."""
        return [replace(shard, parts=counts) for shard, counts in zip(self.shards, self.counts(), strict=True)]

    def arrays(self) -> ArrayTypes:
        """Returns the dtype and shape of the parts that are arrays of one dtype and shape in all shards."""
        return {
            part.main_form: (part.dtype, part.shape)
            for part in self.parts
            if part.dtype is not None and part.shape is not None
        }

    def chunks(self) -> list[TableChunk]:
        """Returns the chunks of all tables."""
        return [*(self.sources or ()), *(self.samples or ()), *([self.left_out] if self.left_out else [])]


def part_table(
    recipe: Mapping[str, Any], counted_shards: Sequence[Shard], arrays: Sequence[ArrayTypes]
) -> tuple[tuple[PartForms, ...], tuple[Shard, ...]]:
    """Returns the parts of shards, and the shards as a manifest with these parts lists them.

    Args:
        recipe: Recipe of the samples; empty if unknown.
        counted_shards: Shards with the counts of their parts.
        arrays: Types of the arrays of one dtype and shape in each shard.
    """
    counts = [shard.parts or {} for shard in counted_shards]
    parts = parts_of(recipe, [shard.num_samples for shard in counted_shards], counts, arrays)
    main = main_forms(parts)
    return parts, tuple(
        replace(shard, parts=None) if shard.parts == dict.fromkeys(main, shard.num_samples) else shard
        for shard in counted_shards
    )


_SHARD_FIELDS = tuple(field.name for field in fields(Shard))


def _present(shard: Shard) -> dict[str, Any]:
    return {name: value for name in _SHARD_FIELDS if (value := getattr(shard, name)) is not None}


def _check_kind(manifest: Manifest) -> None:
    """Check that a manifest has the fields that its kind requires, and no others."""
    if manifest.kind not in list(Kind):
        raise ValueError(f"kind is {manifest.kind!r:.80}")
    if manifest.sources is None and (manifest.samples is None or manifest.kind == Kind.BUILD):
        raise ValueError("it has no table of sources or samples")
    if manifest.kind == Kind.INDEXED:
        if manifest.base is not None and normal_url(manifest.base) != manifest.base:
            raise ValueError(f"base is {manifest.base!r:.200}")
        return
    if manifest.base is not None or any(shard.name or shard.etag or shard.mtime for shard in manifest.shards):
        raise ValueError(f"tars of a {manifest.kind} dataset are elsewhere, or have a name of their own")


def _check_recipe(recipe: Mapping[str, Any], required: Collection[str]) -> None:
    if missing := set(required) - recipe.keys():
        raise ValueError(f"the recipe lacks {', '.join(sorted(missing))}")
    for name, kinds in {**_RECIPE, **_ENCODING}.items():
        if name in recipe and type(recipe[name]) not in kinds:
            raise ValueError(f"{name} of the recipe is {recipe[name]!r:.80}")
    if "suffixes" in recipe:
        check_suffixes(recipe["suffixes"])
    sizes = [recipe.get(name) for name in ("num_shards", "shard_bytes", "shard_samples")]
    if any(size is not None and size < 1 for size in sizes):
        raise ValueError("a number or a size of shards in the recipe is less than 1")
    encode = recipe.get("encode", {})
    texts = [*encode, *encode.values()] if isinstance(encode, dict) else []
    if not all(isinstance(text, str) for text in (*texts, *recipe.get("allow", ()))):
        raise ValueError("encode or allow of the recipe holds what is not text")


def _check_shards(manifest: Manifest) -> None:
    shards, is_foreign = manifest.shards, manifest.kind == Kind.INDEXED
    most_bytes, end = (MAX_FOREIGN_BYTES, 0) if is_foreign else (MAX_SHARD_BYTES, len(END))
    if len({shard.number for shard in shards}) != len(shards):
        raise ValueError("each shard expected once")
    check_digests(digest for shard in shards for digest in (shard.digest, shard.index_digest))
    for shard in shards:
        fewest_bytes = shard.num_samples * BLOCK + end  # each sample has a header at least
        if not (shard.num_samples and fewest_bytes <= shard.num_bytes <= most_bytes):
            raise ValueError(f"shard {shard.number} has {shard.num_samples} samples in {shard.num_bytes} bytes")
        if shard.number >= MOST_SHARDS:
            raise ValueError(f"a shard has the number {shard.number}")
        if shard.parts and max(shard.parts.values()) > shard.num_samples:
            raise ValueError(f"shard {shard.number} has more parts of a suffix than its {shard.num_samples} samples")
        if shard.name is not None and not is_path(shard.name):
            raise ValueError(f"shard {shard.number} has the name {shard.name!r:.200}")


def _check_parts(manifest: Manifest) -> None:
    """Check that each stored suffix is a form of one part, and that the counts of parts and shards agree."""
    if not all(part.forms for part in manifest.parts):
        raise ValueError("a part has no form")
    suffixes = [suffix for part in manifest.parts for suffix in part.suffixes]
    names = [part.name for part in manifest.parts]
    if len(set(suffixes)) != len(suffixes) or len(set(names)) != len(names):
        raise ValueError("a name or a form of a part appears twice")
    for part in manifest.parts:
        if part.dtype is not None or part.shape is not None:
            ArrayLayout.from_json({"dtype": part.dtype, "shape": part.shape, "data_offset": 0})
    num_plain = sum(shard.num_samples for shard in manifest.shards if shard.parts is None)
    stored = Counter(dict.fromkeys(main_forms(manifest.parts), num_plain))
    for counts in (shard.parts for shard in manifest.shards if shard.parts is not None):
        stored.update(counts)
    expected = {suffix: count for part in manifest.parts for suffix, count in part.forms.items()}
    if +stored != +Counter(expected):
        raise ValueError(f"the parts of its shards are {dict(stored)!r:.200}, not {expected!r:.200}")


def _check_counts(manifest: Manifest) -> None:
    """Check that shards, tables and accounting agree."""
    counts, left_out = manifest.accounting, manifest.left_out
    check_digests(chunk.digest for chunk in manifest.chunks())
    tables = {"sources": (manifest.sources, counts.packed), "samples": (manifest.samples, manifest.num_samples)}
    for name, (chunks, num_rows) in tables.items():
        if chunks is not None:
            _check_chunks(name, chunks, num_rows)
    if manifest.sources is None and counts.inputs:
        raise ValueError(f"without a table of sources no input expected, found {counts}")
    found = (
        sum(shard.num_samples for shard in manifest.shards),
        counts.packed if manifest.samples is None else manifest.num_samples,
        left_out.num_rows if left_out else 0,
    )
    if found != (manifest.num_samples, manifest.num_samples, counts.num_left_out):
        raise ValueError(
            "{} samples in shards, {} in tables and {} inputs left out do not make {} samples of {}".format(
                *found, manifest.num_samples, counts
            )
        )


def _check_chunks(name: str, chunks: Sequence[TableChunk], num_rows: int) -> None:
    found = [chunk.num_rows for chunk in chunks]
    if sum(found) != num_rows:
        raise ValueError(f"{num_rows:,} rows in the table of {name} expected, found {sum(found):,}")
    if found == [0]:  # a table without rows has one chunk for its columns
        return
    if not found or not all(0 < rows <= CHUNK_ROWS for rows in found):
        raise ValueError(f"a chunk of the table of {name} has no row, or more than {CHUNK_ROWS:,}")
