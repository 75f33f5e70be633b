"""Where every part of one shard lies: offset, size, checksum and key, as an uncompressed Arrow file.

The fixed-width columns come first, part by part, so that the rows of a block of samples are a range read; the keys
follow. 20 bytes a part without the keys. A sample that lacks a part has offset 0 there (no data starts at 0 in a tar).
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from xxhash import xxh3_128, xxh3_128_hexdigest

from dray.shards.errors import DamagedError
from dray.shards.parsing.columns import FORMAT, Columns, damaged
from dray.shards.tar import Member

_KEY_AND_SUFFIX = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)  # WebDataset: the key ends at the first dot
_WEBDATASET_META = re.compile(r"__[^/]*__(?:$|/)")


def digest_of(data: bytes | bytearray | memoryview) -> str:
    """xxh3_128 of some bytes, 32 hexadecimal digits: what names and checks every object but the shards."""
    return xxh3_128_hexdigest(data)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ShardIndex:
    """The index of one shard of n samples and s suffixes.

    Attributes:
        keys: n keys in the shard's order.
        suffixes: s suffixes.
        offsets: (n, s) uint64: start of a part's data in the tar; 0 where the sample lacks the part.
        sizes: (n, s) uint32, bytes.
        xxh3_64: (n, s) uint64, of the part's data.
        shard_bytes: Size of the tar.
    """

    keys: Sequence[str]
    suffixes: tuple[str, ...]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint32]
    xxh3_64: NDArray[np.uint64]
    shard_bytes: int

    def to_bytes(self) -> bytes:
        """The Arrow file; the same bytes for the same index."""
        columns: dict[str, pa.Array] = {}
        for column, suffix in enumerate(self.suffixes):
            columns[f"{suffix}/offset"] = pa.array(self.offsets[:, column])
            columns[f"{suffix}/size"] = pa.array(self.sizes[:, column])
            columns[f"{suffix}/xxh3_64"] = pa.array(self.xxh3_64[:, column])
        columns["key"] = pa.array(self.keys, pa.string())
        about = {
            "format": FORMAT,
            "suffixes": self.suffixes,
            "shard_bytes": self.shard_bytes,
            "digest": self._digest(),
        }
        batch = pa.record_batch(columns).replace_schema_metadata({"dray": json.dumps(about, sort_keys=True)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return bytes(sink.getvalue())

    @classmethod
    def from_bytes(cls, data: bytes, where: str, expected: tuple[int, int] | None = None) -> "ShardIndex":
        """Read an index; the arguments are those of `Columns.read`.

        Raises:
            DamagedError: See `Columns.read`; or one byte of what the index says has changed.
        """
        columns = Columns.read(data, where, expected)
        index = cls(
            keys=columns.keys.to_pylist(),
            suffixes=tuple(columns.offsets),
            offsets=_matrix(columns, columns.offsets, np.uint64),
            sizes=_matrix(columns, columns.sizes, np.uint32),
            xxh3_64=_matrix(columns, columns.hashes, np.uint64),
            shard_bytes=columns.shard_bytes,
        )
        if columns.digest != index._digest():
            raise damaged(where, "its checksum does not match")
        return index

    def parts(self) -> dict[str, int]:
        """Returns suffix -> number of samples that have that part."""
        return dict(zip(self.suffixes, (self.offsets > 0).sum(axis=0).tolist(), strict=True))

    def _digest(self) -> str:
        """Of all that the index says."""
        hasher = xxh3_128(json.dumps([self.suffixes, self.shard_bytes, list(self.keys)]).encode())
        for matrix in (self.offsets, self.sizes, self.xxh3_64):
            hasher.update(matrix.tobytes())
        return hasher.hexdigest()

    @classmethod
    def of_members(cls, members: Iterable[Member], *, shard_bytes: int, where: str) -> "ShardIndex":
        """The index of any tar's members, grouped as WebDataset groups them: one key's members in a row.

        Raises:
            DamagedError: A sample has one part twice, or a name that is not UTF-8.
        """
        samples: list[tuple[str, dict[str, Member]]] = []
        for member in members:
            found = _KEY_AND_SUFFIX.fullmatch(member.name)
            if not found or _WEBDATASET_META.match(member.name):
                continue
            if not member.name.isascii() and _is_foreign(member.name):
                raise DamagedError(f"{where} at offset {member.offset}: the name {member.name!r} is not UTF-8")
            key, suffix = found.groups()
            if not samples or samples[-1][0] != key:
                samples.append((key, {}))
            if suffix in samples[-1][1]:
                raise DamagedError(f"{where} at offset {member.offset}: key {key!r} has {suffix!r} twice")
            samples[-1][1][suffix] = member
        suffixes = tuple(dict.fromkeys(suffix for _, parts in samples for suffix in parts))
        absent = Member("", 0, 0, 0)
        rows = [[parts.get(suffix, absent) for suffix in suffixes] for _, parts in samples]
        shape = (len(samples), len(suffixes))
        return cls(
            keys=[key for key, _ in samples],
            suffixes=suffixes,
            offsets=np.array([[part.offset for part in row] for row in rows], np.uint64).reshape(shape),
            sizes=np.array([[part.size for part in row] for row in rows], np.uint32).reshape(shape),
            xxh3_64=np.array([[part.xxh3_64 for part in row] for row in rows], np.uint64).reshape(shape),
            shard_bytes=shard_bytes,
        )


def _matrix(columns: Columns, by_suffix: Mapping[str, NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    """One kind of column, (n, s)."""
    matrix = np.empty((len(columns.keys), len(by_suffix)), dtype)
    for number, column in enumerate(by_suffix.values()):
        matrix[:, number] = column
    return matrix


def _is_foreign(name: str) -> bool:
    """True for a name whose bytes were not UTF-8: the scanner reads them as lone surrogates."""
    return any("\ud800" <= letter <= "\udfff" for letter in name)
