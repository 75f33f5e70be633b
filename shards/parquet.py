"""The tables of a snapshot as Parquet, read without trusting them.

Arrow's reader finds bytes that make no sense, but it allocates what a page's header asks for, and a few bytes may stand
for a billion rows. So every page is looked at before it is read: its values are stored plainly, it has the bytes that
they take, and all pages together have no more than such a file can honestly hold. Price: 20 us a page of 20,000 values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MOST_RATIO = 1000  # of a table's bytes to those of its file: sorted names of much the same length shrink to a hundredth
_FEW_BYTES = 64 << 20  # which any file may take
_MOST_ITEMS = 1 << 16  # of a list in the footer: columns, mostly
_WIDTHS = {"INT64": 8, "BYTE_ARRAY": 4}  # least bytes of a value
_DEEPEST = 4  # structs in structs of a page's header
_PLAIN_PAGE = (0, 0, 3, 3)  # a data page, plain values, levels as runs
LEFT_OUT = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "name", "file", "stage", "error", "fate")),
        ("stamp", pa.uint64()),
    ]
)


def source_schema(suffixes: Sequence[str]) -> pa.Schema:
    """Returns the columns of a table of sources whose samples have files of these suffixes."""
    kinds = {"size": pa.int64(), "stamp": pa.int64(), "xxh3_64": pa.uint64()}
    files = [(f"{suffix}/{what}", kind) for suffix in suffixes for what, kind in kinds.items()]
    return pa.schema([("key", pa.string()), ("name", pa.string()), ("shard", pa.int64()), ("row", pa.int64()), *files])


def read_table(body: bytes, schema: pa.Schema, num_rows: int) -> pa.Table:
    """Read a table that has these columns, that number of rows, and no nulls.

    Raises:
        ValueError: It is another one, or none.
    """
    try:
        # In this thread: others leave the buffer, which is Python's, to a thread of Arrow's, and a process that ends
        # before that thread has let go of it is aborted.
        with pq.ParquetFile(pa.BufferReader(body), pre_buffer=False, thrift_container_size_limit=_MOST_ITEMS) as file:
            if not file.schema_arrow.equals(schema):
                raise ValueError(f"the columns {', '.join(schema.names)!r:.200} expected, found others")
            _check_pages(file.metadata, body, num_rows)
            table = file.read(use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, LookupError, TypeError) as exc:
        raise ValueError(f"{exc!s:.500}") from exc
    if any(column.null_count for column in table.columns):
        raise ValueError("a column has nulls")
    return table


def _check_pages(metadata: pq.FileMetaData, body: bytes, num_rows: int) -> None:
    """Check that the pages of a file are as `read_table` wants them, before any is decompressed."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if metadata.num_rows != num_rows or sum(group.num_rows for group in groups) != num_rows:
        raise ValueError(f"{num_rows:,} rows expected, found {metadata.num_rows:,}")
    num_bytes = 0
    for group in groups:
        for column in (group.column(number) for number in range(metadata.num_columns)):
            width = _WIDTHS[column.physical_type]
            for page in _pages(body, column, group.num_rows):
                num_bytes += page.num_bytes
                if not page.is_plain or page.num_values * width > page.num_bytes:
                    raise ValueError("a page is not as dray writes it")
    if num_bytes > max(_FEW_BYTES, MOST_RATIO * len(body)):
        raise ValueError(f"{num_bytes:,} bytes of pages are too many for a file of {len(body):,}")


@dataclass(frozen=True, slots=True)
class _Page:
    num_values: int
    num_bytes: int  # when it is decompressed
    is_plain: bool  # a data page with values one after another


def _pages(body: bytes, column: pq.ColumnChunkMetaData, num_values: int) -> Iterator[_Page]:
    """The pages of a column of a row group, by their headers."""
    start, end = column.data_page_offset, column.data_page_offset + column.total_compressed_size
    if column.has_dictionary_page or column.num_values != num_values or not 0 <= start <= end <= len(body):
        raise ValueError("a column has a dictionary, or does not lie where the footer says")
    while num_values > 0:
        header = _Header(body, start)
        fields = header.read()
        values = fields[5]
        page = _Page(values[1], fields[2], (fields[1], *(values[number] for number in (2, 3, 4))) == _PLAIN_PAGE)
        if min(page.num_values, page.num_bytes, fields[3]) < 0 or page.num_values > num_values:
            raise ValueError("a page has a size that cannot be")
        yield page
        num_values -= page.num_values
        start = header.end + fields[3]
        if start > end or not page.num_values:
            raise ValueError("a page lies beyond its column")


class _Header:
    """The header of a page: a struct in Thrift's compact protocol, whose fields ascend."""

    def __init__(self, body: bytes, start: int) -> None:
        self._body = body
        self.end = start

    def read(self, level: int = 0) -> dict[int, Any]:
        """Field number -> whole number or struct; None for what is of another type."""
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._number()
            if number <= max(found, default=0) or level > _DEEPEST:
                raise ValueError("a page's header is out of order or too deep")
            found[number] = self._value(head & 15, level)
        return found

    def _value(self, kind: int, level: int) -> Any:
        if kind in (1, 2):  # true and false have no bytes
            return None
        if kind in (4, 5, 6):
            return self._number()
        if kind == 8:  # bytes
            size = self._varint()
            self.end += size
            return None
        if kind == 12:
            return self.read(level + 1)
        raise ValueError(f"a page's header has a field of type {kind}")

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
        raise ValueError("a page's header has a number of more than 64 bits")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
