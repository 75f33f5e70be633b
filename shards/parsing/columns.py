"""The columns of an index file, validated once on reading: anyone who can write to the store may have written them.

Digests detect accidents, not an attacker who writes an index together with its digest. Arrow checks the framing of a
file and, on request, every buffer and string. It does not know the columns of an index, does not require parts to be
inside the tar, and decompresses a few bytes to any size. This module checks that. Cost: about 3 ns per sample and part.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from xxhash import xxh3_128

from dray.shards.errors import DamagedError
from dray.shards.parsing.arrays import ArrayLayout
from dray.shards.parsing.records import FormatError, check_format
from dray.shards.tar import BLOCK

PART_COLUMNS = ("offset", "size", "xxh3_64")  # columns of each suffix, all uint64
SOURCE_COLUMNS = ("source", "fingerprint")  # optional columns, both uint64
ABOUT, DIGEST = b"dray", b"dray.digest"  # keys in the metadata of the schema
_UINT64, _STRING = pa.uint64(), pa.string()
_MAGIC = b"ARROW1"
_START = 8  # offset of the first message, after the magic and two bytes of padding
_BAD = (pa.ArrowException, OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError, struct.error)

Column = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Columns:
    """The columns of the index of a shard of n samples.

    Attributes:
        keys: (n,) strings, key of each sample.
        offsets: Suffix -> (n,) uint64, start of the part's data in the tar; 0 where the sample lacks the part.
        sizes: Suffix -> (n,) uint64, size of the part in bytes; 0 where the sample lacks the part.
        hashes: Suffix -> (n,) uint64, xxh3_64 of the data; 0 where the sample lacks the part.
        sources: (n,) uint64, number of the source of each sample; None if not recorded.
        fingerprints: (n,) uint64, fingerprint of that source; None if not recorded.
        arrays: Suffix -> layout of its parts, if all of them are arrays of one dtype and shape.
        shard_bytes: Size of the tar.
        num_bytes: Size of the index in memory.
        digest: Digest of the content as the index states it; `read` does not verify it.
        content: The arguments of `content_digest` that verify it.
    """

    keys: pa.Array
    offsets: dict[str, Column]
    sizes: dict[str, Column]
    hashes: dict[str, Column]
    sources: Column | None
    fingerprints: Column | None
    arrays: Mapping[str, ArrayLayout]
    shard_bytes: int
    num_bytes: int
    digest: str
    content: tuple[bytes, pa.Buffer]

    @classmethod
    def read(cls, body: bytes, where: str, expected: tuple[int, int] | None = None) -> "Columns":
        """Read the bytes of an index file without copying them.

        Args:
            body: The Arrow file.
            where: URL of the index, for messages.
            expected: Number of samples and size of the tar in bytes, as in the snapshot; None: any.

        Raises:
            DamagedError: The file is not a complete index of a known format, describes another shard, or has a part
                outside the tar.
        """
        try:
            columns = cls._read(body)
            found = len(columns.keys), columns.shard_bytes
            if expected not in (None, found):
                raise ValueError("{} samples in {} bytes expected, found {} in {}".format(*expected, *found))
        except FormatError as exc:
            raise DamagedError(str(exc), url=where) from exc
        except _BAD as exc:
            raise damaged(where, exc) from exc
        return columns

    @classmethod
    def _read(cls, body: bytes) -> "Columns":
        batch, content = _open(body)
        metadata = batch.schema.metadata or {}
        about, digest = json.loads(metadata[ABOUT]), metadata[DIGEST].decode()
        check_format(about)
        suffixes, shard_bytes = about["suffixes"], about["shard_bytes"]
        _check_suffixes(suffixes)
        if type(shard_bytes) is not int or not 0 <= shard_bytes < 1 << 63:
            raise ValueError(f"shard_bytes is {shard_bytes!r:.40}")
        batch.validate()
        of_parts, others = _uint64_columns(batch, suffixes)
        keys = _keys(batch)
        places = [dict(zip(suffixes, of_parts[place :: len(PART_COLUMNS)], strict=True)) for place in range(3)]
        offsets, sizes, hashes = places
        arrays = {name: ArrayLayout.from_json(values) for name, values in about.get("arrays", {}).items()}
        if not arrays.keys() <= set(suffixes):
            raise ValueError(f"arrays of other suffixes than {suffixes!r:.200}")
        for suffix in suffixes:
            _check_parts(suffix, offsets[suffix], sizes[suffix], hashes[suffix], shard_bytes, arrays.get(suffix))
        if sum(int(column.sum()) for column in sizes.values()) > shard_bytes:
            raise ValueError(f"its parts are larger than the {shard_bytes} bytes of the tar")
        return cls(
            keys=keys,
            offsets=offsets,
            sizes=sizes,
            hashes=hashes,
            sources=others.get("source"),
            fingerprints=others.get("fingerprint"),
            arrays=arrays,
            shard_bytes=shard_bytes,
            num_bytes=len(body),
            digest=digest,
            content=(metadata[ABOUT], content),
        )


def content_digest(about: bytes, columns: pa.Buffer) -> str:
    """Returns the digest of an index's content.

    Args:
        about: The value of `dray` in the metadata of the schema.
        columns: The body of the record batch's message.
    """
    hasher = xxh3_128(about)
    hasher.update(columns)
    return hasher.hexdigest()


def damaged(where: str, why: object) -> DamagedError:
    """Returns the error for an unusable index, with the reason and the next command."""
    return DamagedError(
        f"not a whole index of a shard ({why!s:.500}): dray verify shows which shards to build again", url=where
    )


def _open(body: bytes) -> tuple[pa.RecordBatch, pa.Buffer]:
    """Returns the unchecked record batch of an Arrow file, and the bytes of its columns."""
    if not (body.startswith(_MAGIC) and body.endswith(_MAGIC)):
        raise ValueError("it does not begin and end as an Arrow file does")
    messages = pa.ipc.MessageReader.open_stream(pa.BufferReader(pa.py_buffer(body).slice(_START)))
    schema, batch = islice(messages, 2)
    if schema.type != "schema" or batch.type != "record batch":
        raise ValueError(f"a schema and a record batch expected, found {schema.type} and {batch.type}")
    if _is_compressed(batch.metadata.to_pybytes()):
        raise ValueError("its columns are compressed")
    return pa.ipc.read_record_batch(batch, pa.ipc.read_schema(schema)), batch.body


def _is_compressed(message: bytes) -> bool:
    """Whether the header of a record batch has a compression: a field of the flatbuffer tables in Message.fbs."""
    (table,) = struct.unpack_from("<I", message)
    header = _field(message, table, 2)
    (step,) = struct.unpack_from("<I", message, header)
    return _field(message, header + step, 3) != 0


def _field(message: bytes, table: int, number: int) -> int:
    """Returns the offset of a field of a flatbuffer table; 0 if the table lacks it."""
    (back,) = struct.unpack_from("<i", message, table)
    fields, entry = table - back, 4 + 2 * number
    (size,) = struct.unpack_from("<H", message, fields)
    (step,) = struct.unpack_from("<H", message, fields + entry) if entry < size else (0,)
    return table + step if step else 0


def _check_suffixes(suffixes: Any) -> None:
    if not isinstance(suffixes, list) or not all(isinstance(name, str) and "/" not in name for name in suffixes):
        raise ValueError(f"suffixes are {suffixes!r:.200}")
    if len(set(suffixes)) != len(suffixes):
        raise ValueError(f"a suffix appears twice in {suffixes!r:.200}")


def _uint64_columns(batch: pa.RecordBatch, suffixes: list[str]) -> tuple[list[Column], dict[str, Column]]:
    """Returns the columns of the parts, which come first, and the existing ones of `SOURCE_COLUMNS`."""
    names = [f"{suffix}/{what}" for suffix in suffixes for what in PART_COLUMNS]
    found = batch.schema.names
    if found[: len(names)] != names:
        raise ValueError(f"its columns are not those of an index with the suffixes {suffixes!r:.200}")
    others = [name for name in SOURCE_COLUMNS if name in found]
    if len(others) == 1:
        raise ValueError(f"a column {others[0]!r} without the other one of {' and '.join(SOURCE_COLUMNS)}")
    arrays = [_uint64(batch.column(place), name) for place, name in enumerate(names)]
    return arrays, {name: _uint64(batch.column(name), name) for name in others}


def _uint64(column: pa.Array, name: str) -> Column:
    if column.type != _UINT64 or column.null_count:
        raise ValueError(f"column {name!r} is {column.type} with {column.null_count} nulls, not uint64 without nulls")
    return cast(Column, column.to_numpy())


def _keys(batch: pa.RecordBatch) -> pa.Array:
    keys = batch.column("key")
    if keys.type != _STRING or keys.null_count:
        raise ValueError(f"column 'key' is {keys.type} with {keys.null_count} nulls, not strings without nulls")
    if not _is_ascii(keys):
        keys.validate(full=True)  # a bad offset could point anywhere
    return keys


def _check_parts(
    suffix: str, offsets: Column, sizes: Column, hashes: Column, shard_bytes: int, layout: ArrayLayout | None
) -> None:
    """Check that the parts of a suffix are in order inside the tar, each at the start of a block."""
    if not offsets.all():
        is_there = offsets > 0
        if sizes[~is_there].any() or hashes[~is_there].any():
            raise ValueError(f"a sample without {suffix!r} has a size or a checksum of it")
        offsets, sizes = offsets[is_there], sizes[is_there]
    if not len(offsets):
        return
    ends = offsets + sizes  # the next check finds an overflow
    if (ends < offsets).any() or (ends[:-1] > offsets[1:]).any() or np.bitwise_or.reduce(offsets) % BLOCK:
        raise ValueError(f"{suffix!r} parts overlap, or are out of order or off a block of {BLOCK} bytes")
    if ends[-1] > shard_bytes:
        raise ValueError(f"{suffix!r} parts lie beyond the {shard_bytes} bytes of the tar")
    if layout is not None and (sizes != layout.num_bytes).any():
        raise ValueError(f"{suffix!r} parts are not all of the {layout.num_bytes} bytes that their array takes")


def _is_ascii(keys: pa.Array) -> bool:
    """Whether all strings are contiguous ASCII; takes a tenth of the time of `validate`."""
    _, ends, text = keys.buffers()
    if not len(keys) or text is None:
        return False
    places, letters = np.frombuffer(ends, np.int32, len(keys) + 1), np.frombuffer(text, np.uint8)
    return bool(places[0] == 0 and (places[:-1] <= places[1:]).all() and letters[: places[-1]].max(initial=0) < 128)
