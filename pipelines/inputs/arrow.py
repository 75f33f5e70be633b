"""The rows of Arrow tables as samples: columns become parts. Batches are read one after another."""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from dray.shards.errors import CallError, InputError

KEY = "__key__"
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")  # pandas writes its index under these names
_FILE_FIELDS = {"bytes", "path"}  # an image or sound of Hugging Face datasets: its content and file name
Values = Iterable[Any]


def arrow_samples(table: Any, *, key_column: str | None = None) -> Iterator[dict[str, Any]]:
    """Yields a sample for each row of an Arrow table, for `write_samples`.

    Bytes, text, numbers and booleans are themselves, lists and structs are JSON, and lists of a fixed size of numbers,
    also nested ones and tensors, are arrays. A struct of `bytes` and `path`, as Hugging Face stores images and sounds,
    is the bytes under the extension of its path. A sample lacks the parts that are null.

    Args:
        table: A `pyarrow.Table`, `RecordBatchReader`, dataset, or anything with `to_batches()` or that yields record
            batches, such as `ParquetFile.iter_batches()`.
        key_column: The column of the keys, which is no part: text or integers without nulls. None: `__key__`, if there
            is such a column; else `write_samples` numbers the samples.

    Raises:
        CallError: It is no table, has no such column, or has a column of a type that no part can hold.
        InputError: A key is null.
    """
    for number, batch in enumerate(_batches(table)):
        if not isinstance(batch, pa.RecordBatch):
            raise CallError(f"expected an Arrow table or record batches, found {type(batch).__name__}")
        keys = _key_column(batch.schema, key_column)
        names = [name for name in batch.schema.names if name != keys and not _PANDAS_INDEX.fullmatch(name)]
        columns = [(name, _reader(name, batch.schema.field(name).type)(batch.column(name))) for name in names]
        rows = zip(*(values for _, values in columns), strict=True) if columns else iter([()] * len(batch))
        found = [None] * len(batch) if keys is None else batch.column(keys).to_pylist()
        for row, (key, values) in enumerate(zip(found, rows, strict=True)):
            if keys is not None and key is None:
                raise InputError(f"row {row} of batch {number} has no key: {keys!r} is null")
            sample: dict[str, Any] = {} if key is None else {KEY: str(key)}
            for name, value in zip(names, values, strict=True):
                if isinstance(value, _File):
                    sample[value.suffix] = value.data
                elif value is not None:
                    sample[name] = value
            yield sample


class _File:
    """The content of a file, and the suffix of its part."""

    def __init__(self, name: str, data: bytes, path: str | None) -> None:
        extension = PurePosixPath(path or "").suffix.lstrip(".").lower()
        self.suffix = f"{name}.{extension}" if extension else name
        self.data = data


def _batches(table: Any) -> Iterable[Any]:
    if hasattr(table, "to_batches"):
        batches: Iterable[Any] = table.to_batches()
        return batches
    if isinstance(table, pa.RecordBatch):
        return [table]
    if not isinstance(table, Iterable):
        raise CallError(f"expected an Arrow table or record batches, found {type(table).__name__}")
    return table


def _key_column(schema: pa.Schema, key_column: str | None) -> str | None:
    """Returns the column of the keys; None if there is none."""
    if key_column is None:
        return KEY if KEY in schema.names else None
    if key_column not in schema.names:
        raise CallError(f"key_column={key_column!r}: the table has the columns {', '.join(schema.names)}")
    kind = schema.field(key_column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        raise CallError(f"key_column={key_column!r} is {kind}: expected text or integers")
    return key_column


def _reader(name: str, kind: pa.DataType) -> Callable[[pa.Array], Values]:
    """Returns the function from a column to its values, None for nulls.

    Raises:
        CallError: No part can hold them.
    """
    if isinstance(kind, pa.FixedShapeTensorType):
        return _tensors
    if pa.types.is_fixed_size_list(kind) and _numbers_of(kind) is not None:
        return lambda column: _arrays(column, kind)
    if pa.types.is_struct(kind) and {field.name for field in kind} == _FILE_FIELDS:
        return lambda column: (
            None if value is None or value["bytes"] is None else _File(name, value["bytes"], value["path"])
            for value in column.to_pylist()
        )
    if _is_binary(kind) or _is_plain(kind):
        return lambda column: column.to_pylist()
    raise CallError(
        f"column {name!r} is {kind}, which no part can hold: cast it to text, numbers, bytes or lists of these, or "
        "leave it out"
    )


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_plain(kind: pa.DataType) -> bool:
    """Whether JSON can hold values of a type."""
    types = pa.types
    if types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    if types.is_struct(kind):
        return all(_is_plain(field.type) for field in kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_plain(kind.value_type)
    checks = (types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_string)
    return any(check(kind) for check in (*checks, types.is_large_string))


def _numbers_of(kind: pa.DataType) -> tuple[pa.DataType, list[int]] | None:
    """Returns the number type and the shape of nested lists of fixed sizes; None for lists of anything else."""
    shape: list[int] = []
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    return (kind, shape) if pa.types.is_integer(kind) or pa.types.is_floating(kind) else None


def _arrays(column: pa.Array, kind: pa.DataType) -> Values:
    found = _numbers_of(kind)
    present = column.drop_null()
    flat = present
    while pa.types.is_fixed_size_list(flat.type):
        flat = flat.flatten()
    if found is None or flat.null_count or len(flat) != len(present) * int(np.prod(found[1])):
        raise InputError(f"an array of type {kind} holds a null: replace it by a number")
    rows = iter(flat.to_numpy(zero_copy_only=False).reshape(len(present), *found[1]))
    return [next(rows) if valid else None for valid in column.is_valid().to_pylist()]


def _tensors(column: Any) -> Values:
    rows = iter(column.filter(column.is_valid()).to_numpy_ndarray()) if len(column) > column.null_count else iter(())
    return [next(rows) if valid else None for valid in column.is_valid().to_pylist()]
