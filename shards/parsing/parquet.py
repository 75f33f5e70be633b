"""Safe reader of the tables of a snapshot, which are untrusted Parquet files.

The reader of Arrow detects invalid bytes, but it allocates what the header of a page requests, and a few bytes can
encode a billion rows. So every page is checked before it is read: it must have plain values and the bytes that they
take, and the total size must be plausible for the size of the file. Cost: 20 us per page of 20,000 values.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MOST_RATIO = 1000  # maximum ratio of table bytes to file bytes; sorted names shrink to a hundredth
_FEW_BYTES = 64 << 20  # size allowed for any file
_MOST_ITEMS = 1 << 16  # maximum length of a list in the footer
_WIDTHS = {2: 8, 6: 4}  # minimum bytes of a value by physical type: INT64, BYTE_ARRAY
_DEEPEST = 8  # maximum nesting of structs
_BITS = {4: 16, 5: 32, 6: 64}  # width of integers by Thrift type
_SKIPPED = {1: 1, 2: 1, 3: 1, 7: 8, 8: 0}  # size of bools in lists, bytes and doubles by Thrift type
_PLAIN_PAGE = (0, 0, 3, 3)  # data page, plain encoding, RLE levels
LEFT_OUT = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "name", "file", "stage", "error", "fate")),
        ("stamp", pa.uint64()),
    ]
)


PLACE = [("shard", pa.int64()), ("row", pa.int64())]  # columns that locate a sample


def source_schema(suffixes: Sequence[str], *, has_places: bool = True) -> pa.Schema:
    """Returns the schema of a table of sources.

    Args:
        suffixes: Suffixes of the files of a source.
        has_places: Whether each source is one sample, so that the table has its shard and row.
    """
    kinds = {"size": pa.int64(), "stamp": pa.int64(), "xxh3_64": pa.uint64()}
    files = [(f"{suffix}/{what}", kind) for suffix in suffixes for what, kind in kinds.items()]
    return pa.schema([("key", pa.string()), ("name", pa.string()), *(PLACE if has_places else ()), *files])


def sample_schema(*, has_sources: bool) -> pa.Schema:
    """Returns the schema of a table of samples; the column `source` has the key of the source of each sample."""
    return pa.schema([("key", pa.string()), *([("source", pa.string())] if has_sources else []), *PLACE])


def read_table(body: bytes, schema: pa.Schema, num_rows: int) -> pa.Table:
    """Read a table with this schema and number of rows and without nulls.

    Raises:
        ValueError: The bytes are not such a table.
    """
    try:
        _check_pages(body, num_rows)
        # Without threads: a process that ends while a thread of Arrow still holds the Python buffer is aborted.
        with pq.ParquetFile(pa.BufferReader(body), pre_buffer=False, thrift_container_size_limit=_MOST_ITEMS) as file:
            if not file.schema_arrow.equals(schema):
                raise ValueError(f"the columns {', '.join(schema.names)!r:.200} expected, found others")
            table = file.read(use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, LookupError, TypeError) as exc:
        raise ValueError(f"{exc!s:.500}") from exc
    if any(column.null_count for column in table.columns):
        raise ValueError("a column has nulls")
    return table


def check_keys(keys: pa.ChunkedArray) -> None:
    """Check that the keys of a table ascend; raises ValueError if they do not."""
    if len(keys) > 1 and not pc.call_function("all", [pc.call_function("less", [keys[:-1], keys[1:]])]).as_py():
        raise ValueError("its keys are out of order or contain duplicates")


def place_of(keys: pa.ChunkedArray, key: str) -> int:
    """Returns the row of a key among sorted keys, or the row where it would be inserted."""
    return bisect_left(range(len(keys)), key, key=lambda row: keys[row].as_py())


def check_places(table: pa.Table, shards: Mapping[int, int]) -> None:
    """Check that each sample of a table is a different row of the shards.

    Args:
        table: Table with the columns shard and row.
        shards: Number of each shard -> number of its samples.

    Raises:
        ValueError: A row does not exist, or has two samples.
    """
    numbers, counts = np.array(sorted(shards.items()), np.int64).reshape(-1, 2).T
    found, rows = table["shard"].to_numpy(), table["row"].to_numpy()
    places = np.searchsorted(numbers, found).clip(max=len(numbers) - 1)
    if (numbers[places] != found).any() or (rows < 0).any() or (rows >= counts[places]).any():
        raise ValueError("a sample is in a shard or a row that the version does not have")
    if np.bincount((np.cumsum(counts) - counts)[places] + rows).max(initial=0) > 1:
        raise ValueError("two samples are in one row of a shard")


def _check_pages(body: bytes, num_rows: int) -> None:
    """Check that all pages of a file are plain and plausibly large, before any is decompressed.

    The footer is parsed here, because invalid statistics in it crash pyarrow.
    """
    if body[-4:] != b"PAR1":
        raise ValueError("it does not end as a Parquet file does")
    footer = _Thrift(body, len(body) - 8 - int.from_bytes(body[-8:-4], "little")).struct()
    groups = footer[4]
    if footer[3] != num_rows or sum(group[3] for group in groups) != num_rows:
        raise ValueError(f"{num_rows:,} rows expected, found {footer[3]:,}")
    num_bytes = 0
    for group in groups:
        for column in (column[3] for column in group[1]):
            width = _WIDTHS[column[1]]
            for page in _pages(body, column, group[3]):
                num_bytes += page.num_bytes
                if not page.is_plain or page.num_values * width > page.num_bytes:
                    raise ValueError("a page is not as dray writes it")
    if num_bytes > max(_FEW_BYTES, MOST_RATIO * len(body)):
        raise ValueError(f"{num_bytes:,} bytes of pages are too many for a file of {len(body):,}")


@dataclass(frozen=True, slots=True)
class _Page:
    num_values: int
    num_bytes: int  # decompressed size
    is_plain: bool  # whether it is a data page with plain encoding


def _pages(body: bytes, column: dict[int, Any], num_values: int) -> Iterator[_Page]:
    """Yields the pages of a column of a row group, given its ColumnMetaData."""
    start, end = column[9], column[9] + column[7]
    if 11 in column or column[5] != num_values or not 0 <= start <= end <= len(body):
        raise ValueError("a column has a dictionary, or an invalid place in the file")
    while num_values > 0:
        reader = _Thrift(body, start)
        header = reader.struct()
        values = header[5]
        page = _Page(values[1], header[2], (header[1], *(values[number] for number in (2, 3, 4))) == _PLAIN_PAGE)
        if min(page.num_values - 1, page.num_bytes, header[3]) < 0 or page.num_values > num_values:
            raise ValueError("a page has an impossible size")
        yield page
        num_values -= page.num_values
        start = reader.end + header[3]
        if start > end:
            raise ValueError("a page ends beyond its column")


class _Thrift:
    """Reads structs in the compact protocol of Thrift with ascending fields; parquet.thrift defines their numbers."""

    def __init__(self, body: bytes, start: int) -> None:
        if not 0 <= start < len(body):
            raise ValueError("a header is outside the file")
        self._body = body
        self.end = start  # end of the bytes read so far

    def struct(self, level: int = 0) -> dict[int, Any]:
        """Returns field number -> integer, list or struct; None for a value of another type."""
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._number(16)
            if number <= max(found, default=0):
                raise ValueError("the fields of a header are out of order")
            found[number] = None if head & 15 in (1, 2) else self._value(head & 15, level)  # a bool has no bytes
        return found

    def _value(self, kind: int, level: int) -> Any:
        if level > _DEEPEST:
            raise ValueError("a header is nested too deeply")
        if kind in _BITS:
            return self._number(_BITS[kind])
        if kind == 12:
            return self.struct(level + 1)
        if kind == 9:
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            if count > _MOST_ITEMS:
                raise ValueError(f"a header has a list of {count:,} items")
            return [self._value(head & 15, level + 1) for _ in range(count)]
        if kind not in _SKIPPED:
            raise ValueError(f"a header has a field of type {kind}")
        size = self._varint() if kind == 8 else _SKIPPED[kind]
        self.end += size
        if self.end > len(self._body):
            raise ValueError("a header ends beyond the file")
        return None

    def _byte(self) -> int:
        self.end += 1
        return self._body[self.end - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a header has a number of more than 64 bits")

    def _number(self, bits: int) -> int:
        value = self._varint()
        if value >> bits:
            raise ValueError(f"a header has a number of more than {bits} bits")
        return (value >> 1) ^ -(value & 1)
