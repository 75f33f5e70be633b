"""The columns of an index file, checked once as they are read: whoever can write to the store may have made them.

Digests find accidents; they do not stop somebody who writes an index and its digest. Arrow checks the framing of a file
and, when asked, every buffer and string. It knows neither which columns an index has nor that each part must lie inside
the tar, and it decompresses a few bytes to any size: that is checked here. Price: some 5 ns a sample and part.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dray.shards.errors import DamagedError
from dray.shards.tar import BLOCK

FORMAT = 1
FIXED: Mapping[str, np.dtype[Any]] = {
    "offset": np.dtype(np.uint64),
    "size": np.dtype(np.uint32),
    "xxh3_64": np.dtype(np.uint64),
}
_MAGIC = b"ARROW1"
_START = 8  # of the messages in the file: the magic and two bytes of padding come first
_BAD = (pa.ArrowException, OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError, struct.error)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Columns:
    """The columns of the index of a shard of n samples.

    Attributes:
        keys: (n,) strings.
        offsets: Suffix -> (n,) uint64, start of the part's data in the tar; 0 where the sample lacks the part.
        sizes: Suffix -> (n,) uint32, bytes; 0 where the sample lacks the part.
        hashes: Suffix -> (n,) uint64, xxh3_64 of the data; 0 where the sample lacks the part.
        shard_bytes: Size of the tar.
        digest: Digest of the content, as the index states it.
        num_bytes: Memory that the index takes.
    """

    keys: pa.Array
    offsets: dict[str, NDArray[np.uint64]]
    sizes: dict[str, NDArray[np.uint32]]
    hashes: dict[str, NDArray[np.uint64]]
    shard_bytes: int
    digest: str
    num_bytes: int

    @classmethod
    def read(cls, body: bytes, where: str, expected: tuple[int, int] | None = None) -> "Columns":
        """Read the bytes of an index file without copying them.

        Args:
            body: The Arrow file.
            where: URL of the index, for messages.
            expected: Number of samples and size of the tar in bytes, as the snapshot knows them; None: any.

        Raises:
            DamagedError: The file is not a whole index of a format that this version of dray knows, or describes
                another shard, or a part that lies outside the tar.
        """
        try:
            columns = cls._read(body)
            found = len(columns.keys), columns.shard_bytes
            if expected not in (None, found):
                raise ValueError("{} samples in {} bytes expected, found {} in {}".format(*expected, *found))
        except _BAD as exc:
            raise damaged(where, exc) from exc
        return columns

    @classmethod
    def _read(cls, body: bytes) -> "Columns":
        batch = _open(body)
        about = json.loads((batch.schema.metadata or {})[b"dray"])
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']!r:.40}, this dray reads {FORMAT}: upgrade dray")
        suffixes, shard_bytes, digest = about["suffixes"], about["shard_bytes"], about["digest"]
        _check_types(suffixes, shard_bytes, digest)
        if not batch.schema.equals(_schema(suffixes)):
            raise ValueError(f"its columns are not those of an index with the suffixes {suffixes!r:.200}")
        batch.validate()
        keys = batch.column("key")
        if not _is_ascii(keys):
            keys.validate(full=True)  # a bad offset of a key would be followed anywhere
        if any(column.null_count for column in batch.columns):
            raise ValueError("a column has nulls")
        arrays = [column.to_numpy() for column in batch.columns[:-1]]
        offsets, sizes, hashes = (dict(zip(suffixes, arrays[place :: len(FIXED)], strict=True)) for place in range(3))
        for suffix in suffixes:
            _check_parts(suffix, offsets[suffix], sizes[suffix], hashes[suffix], shard_bytes)
        if sum(int(column.sum(dtype=np.uint64)) for column in sizes.values()) > shard_bytes:
            raise ValueError(f"its parts are larger than the {shard_bytes} bytes of the tar")
        return cls(
            keys=keys,
            offsets=offsets,
            sizes=sizes,
            hashes=hashes,
            shard_bytes=shard_bytes,
            digest=digest,
            num_bytes=len(body),
        )


def damaged(where: str, why: object) -> DamagedError:
    """Returns the error for an index that cannot be used, with the reason and the way out."""
    return DamagedError(
        f"{where}: not a whole index of a shard ({why!s:.500}): dray verify shows which shards to build again"
    )


def _open(body: bytes) -> pa.RecordBatch:
    """The record batch of an Arrow file, as its messages follow one another; buffers are not checked yet."""
    if not (body.startswith(_MAGIC) and body.endswith(_MAGIC)):
        raise ValueError("it does not begin and end as an Arrow file does")
    messages = pa.ipc.MessageReader.open_stream(pa.BufferReader(pa.py_buffer(body).slice(_START)))
    schema, batch = islice(messages, 2)
    if schema.type != "schema" or batch.type != "record batch":
        raise ValueError(f"a schema and a record batch expected, found {schema.type} and {batch.type}")
    if _is_compressed(batch.metadata.to_pybytes()):
        raise ValueError("its columns are compressed")
    return pa.ipc.read_record_batch(batch, pa.ipc.read_schema(schema))


def _is_compressed(message: bytes) -> bool:
    """Whether the header of a record batch names a compression: fields of the flatbuffer tables in Message.fbs."""
    (table,) = struct.unpack_from("<I", message)
    header = _field(message, table, 2)
    (step,) = struct.unpack_from("<I", message, header)
    return _field(message, header + step, 3) != 0


def _field(message: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer table lies; 0 where the table lacks it."""
    (back,) = struct.unpack_from("<i", message, table)
    fields, entry = table - back, 4 + 2 * number
    (size,) = struct.unpack_from("<H", message, fields)
    (step,) = struct.unpack_from("<H", message, fields + entry) if entry < size else (0,)
    return table + step if step else 0


def _check_types(suffixes: Any, shard_bytes: Any, digest: Any) -> None:
    if not isinstance(suffixes, list) or not all(isinstance(name, str) and "/" not in name for name in suffixes):
        raise ValueError(f"suffixes are {suffixes!r:.200}")
    if len(set(suffixes)) != len(suffixes):
        raise ValueError(f"a suffix appears twice in {suffixes!r:.200}")
    if type(shard_bytes) is not int or not 0 <= shard_bytes < 1 << 63:
        raise ValueError(f"shard_bytes is {shard_bytes!r:.40}")
    if not isinstance(digest, str):
        raise ValueError(f"digest is {digest!r:.40}")


def _schema(suffixes: list[str]) -> pa.Schema:
    fields = [(f"{suffix}/{what}", pa.from_numpy_dtype(dtype)) for suffix in suffixes for what, dtype in FIXED.items()]
    return pa.schema([*fields, ("key", pa.string())])


def _check_parts(
    suffix: str,
    offsets: NDArray[np.uint64],
    sizes: NDArray[np.uint32],
    hashes: NDArray[np.uint64],
    shard_bytes: int,
) -> None:
    """Check that a suffix's parts follow one another inside the tar, each at the start of a block."""
    if not offsets.all():
        is_there = offsets > 0
        if sizes[~is_there].any() or hashes[~is_there].any():
            raise ValueError(f"a sample without {suffix!r} has a size or a checksum of it")
        offsets, sizes = offsets[is_there], sizes[is_there]
    if not len(offsets):
        return
    if offsets.max() > shard_bytes or (ends := offsets + sizes)[-1] > shard_bytes:
        raise ValueError(f"{suffix!r} parts lie beyond the {shard_bytes} bytes of the tar")
    if (ends[:-1] > offsets[1:]).any() or np.bitwise_or.reduce(offsets) % BLOCK:
        raise ValueError(f"{suffix!r} parts overlap, or are out of order or off a block of {BLOCK} bytes")


def _is_ascii(keys: pa.Array) -> bool:
    """Whether all strings of a column are ASCII that lies end to end: a tenth of the time that `validate` takes."""
    _, ends, text = keys.buffers()
    if not len(keys) or text is None:
        return False
    places, letters = np.frombuffer(ends, np.int32, len(keys) + 1), np.frombuffer(text, np.uint8)
    return bool(places[0] == 0 and (places[:-1] <= places[1:]).all() and letters[: places[-1]].max(initial=0) < 128)
