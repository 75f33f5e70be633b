"""The index of a shard: offset, size, checksum and key of every part, as an uncompressed Arrow file.

The fixed-width columns come first, part by part, so that the rows of a block of samples are a range read; the keys
follow. 24 bytes a part without the keys. A sample that lacks a part has offset 0 there (no data starts at 0 in a tar).
docs/format.md has the format.
"""

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from dray.shards.errors import DamagedError
from dray.shards.layout import WEBDATASET_META
from dray.shards.parsing.arrays import ArrayLayout, constant_layouts
from dray.shards.parsing.columns import ABOUT, DIGEST, PART_COLUMNS, Column, Columns, content_digest, damaged
from dray.shards.parsing.records import HEADER
from dray.shards.tar import Member, header

_ODD = np.uint64(0x9E3779B97F4A7C15)
MOST_SUFFIXES = 1000  # of a tar's samples that have few parts each; every suffix is a column of the index
_KEY_AND_SUFFIX = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)  # WebDataset: the key ends at the first dot


def split_name(name: str) -> tuple[str, str] | None:
    """Returns key and suffix of a member; None if it is no part: it has no suffix, is hidden, or `__meta__`."""
    found = _KEY_AND_SUFFIX.fullmatch(name)
    return None if found is None or WEBDATASET_META.match(name) else (found[1], found[2])


def digest_of(data: bytes | bytearray | memoryview) -> str:
    """Returns xxh3_128 of some bytes, 32 hexadecimal digits; it names and checks every object but the shards."""
    return xxh3_128_hexdigest(data)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ShardIndex:
    """The index of one shard of n samples and s suffixes.

    Attributes:
        keys: n keys in the shard's order.
        suffixes: s suffixes.
        offsets: (n, s) uint64: start of a part's data in the tar; 0 where the sample lacks the part.
        sizes: (n, s) uint64, bytes; 0 where the sample lacks the part.
        xxh3_64: (n, s) uint64, of the part's data; 0 where the sample lacks the part.
        shard_bytes: Size of the tar.
        arrays: Suffix -> layout of its parts, where all of them are `.npy` arrays of one dtype and shape.
        sources: (n,) uint64, number of the source that each sample was made of; None if not recorded.
        fingerprints: (n,) uint64, fingerprint of that source; given if `sources` is.
    """

    keys: Sequence[str]
    suffixes: tuple[str, ...]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    xxh3_64: NDArray[np.uint64]
    shard_bytes: int
    arrays: Mapping[str, ArrayLayout] = field(default_factory=dict)
    sources: Column | None = None
    fingerprints: Column | None = None

    def to_bytes(self) -> bytes:
        """Returns the Arrow file; equal indexes give equal bytes."""
        columns: dict[str, Any] = {}
        for number, suffix in enumerate(self.suffixes):
            of_suffix = (matrix[:, number] for matrix in (self.offsets, self.sizes, self.xxh3_64))
            columns |= {f"{suffix}/{what}": column for what, column in zip(PART_COLUMNS, of_suffix, strict=True)}
        if self.sources is not None:
            columns |= {"source": self.sources, "fingerprint": self.fingerprints}
        columns["key"] = pa.array(self.keys, pa.string())
        about = {
            **HEADER,
            "suffixes": self.suffixes,
            "shard_bytes": self.shard_bytes,
            "arrays": {suffix: layout.to_json() for suffix, layout in self.arrays.items()},
        }
        return _arrow_file(pa.record_batch(columns), json.dumps(about, sort_keys=True).encode())

    @classmethod
    def from_bytes(cls, data: bytes, where: str, expected: tuple[int, int] | None = None) -> "ShardIndex":
        """Reads an index; the arguments are those of `Columns.read`.

        Raises:
            DamagedError: See `Columns.read`; or any other byte of the index changed.
        """
        columns = Columns.read(data, where, expected)
        if columns.digest != content_digest(*columns.content):
            raise damaged(where, "its checksum does not match")
        return cls(
            keys=columns.keys.to_pylist(),
            suffixes=tuple(columns.offsets),
            offsets=_matrix(columns.offsets, len(columns.keys)),
            sizes=_matrix(columns.sizes, len(columns.keys)),
            xxh3_64=_matrix(columns.hashes, len(columns.keys)),
            shard_bytes=columns.shard_bytes,
            arrays=columns.arrays,
            sources=columns.sources,
            fingerprints=columns.fingerprints,
        )

    def parts(self) -> dict[str, int]:
        """Returns suffix -> number of samples that have that part."""
        return dict(zip(self.suffixes, (self.offsets > 0).sum(axis=0).tolist(), strict=True))

    def array_types(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Returns suffix -> dtype and shape of its parts, where all of them are `.npy` arrays of these."""
        return {suffix: (layout.dtype, layout.shape) for suffix, layout in self.arrays.items()}

    def members(self) -> Iterator["IndexedPart"]:
        """Yields the parts in the order of their members in the tar."""
        offsets, sizes, hashes = self.offsets.ravel(), self.sizes.ravel(), self.xxh3_64.ravel()
        cells = np.flatnonzero(offsets)
        cells = cells[np.argsort(offsets[cells], kind="stable")]
        for cell, offset, size, xxh in zip(
            cells.tolist(), offsets[cells].tolist(), sizes[cells].tolist(), hashes[cells].tolist(), strict=True
        ):
            row, column = divmod(int(cell), len(self.suffixes))
            key, suffix = self.keys[row], self.suffixes[column]
            yield IndexedPart(key, suffix, header(f"{key}.{suffix}".encode(), size), offset, size, xxh)

    @classmethod
    def of_members(cls, members: Iterable[Member], *, shard_bytes: int, where: str) -> "ShardIndex":
        """Returns the index of any tar's members, grouped as WebDataset groups them: consecutive members of one key.

        Raises:
            DamagedError: A sample has one part twice (upper and lower case are the same), a name is not UTF-8, or there
                are more than `MOST_SUFFIXES` suffixes of samples with few parts.
        """
        keys: list[str] = []
        parts: dict[str, _PartCells] = {}
        seen = set[str]()  # suffixes of the last sample
        for member in members:
            named = split_name(member.name)
            if named is None:
                continue
            key, suffix = named
            if not member.name.isascii() and _is_foreign(member.name):
                raise DamagedError(f"the name {member.name!r} is not UTF-8", url=where, offset=member.offset)
            if not keys or keys[-1] != key:
                keys.append(key)
                seen.clear()
            if suffix.lower() in seen:
                raise DamagedError(
                    f"key {key!r} has {suffix!r} twice (upper and lower case are the same)",
                    url=where,
                    offset=member.offset,
                )
            seen.add(suffix.lower())
            if suffix not in parts:
                if len(parts) >= MOST_SUFFIXES and 2 * len(seen) < len(parts):
                    raise _too_many_suffixes(suffix, where)
                parts[suffix] = _PartCells()
            parts[suffix].add(len(keys) - 1, member)
        places, sizes, hashes = (np.zeros((len(keys), len(parts)), np.uint64) for _ in range(3))
        for column, cells in enumerate(parts.values()):
            rows = np.array(cells.rows, np.int64)
            places[rows, column], sizes[rows, column], hashes[rows, column] = cells.offsets, cells.sizes, cells.hashes
        return cls(
            keys=keys,
            suffixes=tuple(parts),
            offsets=places,
            sizes=sizes,
            xxh3_64=hashes,
            shard_bytes=shard_bytes,
            arrays=constant_layouts({suffix: cells.layouts for suffix, cells in parts.items()}),
        )


def content_hashes(index: ShardIndex) -> NDArray[np.uint64]:
    """Returns (n,) uint64, a checksum of the suffixes and contents of each sample, whatever the order of its parts."""
    salts = np.array([xxh3_64_intdigest(suffix.encode()) for suffix in index.suffixes], np.uint64)
    mixed = (index.xxh3_64 ^ salts) * _ODD
    hashes: NDArray[np.uint64] = np.where(index.offsets > 0, mixed ^ mixed >> np.uint64(29), 0).sum(
        axis=1, dtype=np.uint64
    )
    return hashes


class _PartCells:
    """The parts of one suffix in the order of the tar, 32 bytes each: a tar may hold millions."""

    def __init__(self) -> None:
        self.rows, self.offsets, self.sizes, self.hashes = (array("Q") for _ in range(4))
        self.layouts: set[ArrayLayout | None] = set()

    def add(self, row: int, member: Member) -> None:
        self.rows.append(row)
        self.offsets.append(member.offset)
        self.sizes.append(member.size)
        self.hashes.append(member.xxh3_64)
        self.layouts.add(member.array)


@dataclass(frozen=True, slots=True)
class IndexedPart:
    """A part as its shard's index describes it."""

    key: str
    suffix: str
    header: bytes  # header of its member in a tar that dray wrote
    offset: int  # offset of its data in the tar
    size: int  # bytes of its data
    xxh3_64: int  # checksum of its data

    @property
    def start(self) -> int:
        """Offset of its header in a tar that dray wrote."""
        return self.offset - len(self.header)


def _arrow_file(batch: pa.RecordBatch, about: bytes) -> bytes:
    """Returns a record batch as an Arrow file whose metadata describes it and has the digest of both."""
    columns = pa.ipc.read_message(batch.serialize()).body
    batch = batch.replace_schema_metadata({ABOUT: about, DIGEST: content_digest(about, columns)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def _matrix(by_suffix: Mapping[str, Column], num_samples: int) -> NDArray[np.uint64]:
    """Returns the columns of n samples and s suffixes as (n, s)."""
    return np.stack([*by_suffix.values()], axis=1) if by_suffix else np.empty((num_samples, 0), np.uint64)


def _too_many_suffixes(suffix: str, where: str) -> DamagedError:
    return DamagedError(
        f"more than {MOST_SUFFIXES:,} different suffixes, such as {suffix!r:.100}: a key ends at the first dot of the "
        "file name, so names of members must have no dot before their suffix",
        url=where,
    )


def _is_foreign(name: str) -> bool:
    """Returns whether a name's bytes were not UTF-8: the scanner reads them as lone surrogates."""
    return any("\ud800" <= letter <= "\udfff" for letter in name)
