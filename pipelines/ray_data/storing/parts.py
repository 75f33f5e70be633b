"""The rows of a block as samples, in a worker.

Tensors, bytes, text and integers become parts column by column, which is several times faster than value by value and
gives the same bytes.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from ray.data.block import BlockAccessor
from ray.data.extensions import ArrowPythonObjectType

from dray.pipelines.inputs.values import encode_field, stored_suffix
from dray.pipelines.planning.rewrites import UNKNOWN
from dray.pipelines.ray_data.datasource import KEY, SOURCE
from dray.pipelines.writing.shard import Sample
from dray.shards.errors import CallError, InputError
from dray.shards.layout import NAME_RULE, bad_names, check_suffixes, key_of
from dray.shards.parsing.arrays import npy_header
from dray.shards.parts import is_pickled

_TEXT = ("txt", "text", "transcript")
_INTEGERS = ("json", "cls", "cls2", "index", "inx", "id")
Arrays = NDArray[Any] | list[NDArray[Any]]

_NPY_KINDS = "biuf"  # kinds of dtypes whose arrays are written without torch


class _Parts(NamedTuple):
    """A column as parts.

    Attributes:
        suffixes: The suffixes under which they are stored.
        data: The bytes of each row; None where it has none.
        own: The suffix of each row; None if all rows have the same one.
    """

    suffixes: tuple[str, ...]
    data: Sequence[bytes | None]
    own: Sequence[str | None] | None = None

    def suffix(self, row: int) -> str:
        """Returns the suffix of a row that has a part."""
        return (self.own[row] if self.own is not None else None) or self.suffixes[0]


def samples_of(
    block: Any,
    start: int,
    stop: int,
    sources: pa.Table | None,
    *,
    steps: str,
    keep_pickles: bool,
    renamed: dict[str, str],
) -> Iterator[Sample]:
    """Yields rows of a block as samples.

    Args:
        block: The block.
        start: The first row.
        stop: The row after the last one.
        sources: Columns key, number and fingerprint of the sources; None: the rows have no sources.
        steps: What made the rows, for errors.
        keep_pickles: See `encode_sample`.
        renamed: Gets column -> suffix for each column that is stored under another suffix.

    Raises:
        InputError: A column is missing or cannot be a part, or a key or value cannot be stored; names it.
    """
    whole = BlockAccessor.for_block(block).to_arrow()
    table = whole.slice(start, stop - start)
    names = table.column_names
    check_columns(names, has_source=sources is not None, steps=steps)
    keys = _keys(table[KEY])
    of_rows: Sequence[tuple[int, int] | None] = [None] * len(keys)
    if sources is not None:
        found, is_known = _sources(table[SOURCE], sources, steps), _are_together(whole[SOURCE])
        of_rows = found if is_known else [(number, UNKNOWN) for number, _ in found]
    values = table.select([name for name in names if name not in (KEY, SOURCE)])
    rows = _rows(values, keys, keep_pickles=keep_pickles, renamed=renamed)
    for key, parts, source in zip(keys, rows, of_rows, strict=True):
        yield Sample(key, parts, source)


def check_columns(names: Sequence[str], *, has_source: bool, steps: str) -> None:
    """Check that a block has the columns of samples.

    Raises:
        InputError: It lacks `__key__` or `__source__`, has no part, or has other columns that begin with underscores.
    """
    wanted = [KEY, *([SOURCE] if has_source else [])]
    found = f"found {', '.join(map(repr, names)) or 'none'}"
    if missing := [name for name in wanted if name not in names]:
        raise InputError(f"expected a column {missing[0]!r} in what {steps} gives, {found}: each step must keep it")
    others = [name for name in names if name not in (KEY, SOURCE)]
    if not others:
        raise InputError(f"expected a column for each part in what {steps} gives, {found}")
    if reserved := [name for name in others if name.startswith("__")]:
        raise InputError(
            f"the column {reserved[0]!r} of {steps} cannot be a part of a sample: rename it, or drop it by "
            f"drop_columns({reserved})"
        )
    try:
        check_suffixes(others)
    except CallError as exc:
        raise InputError(f"a column of {steps} cannot be a part of a sample: {exc}") from exc


def _keys(column: pa.ChunkedArray) -> list[str]:
    names = column.to_pylist()
    if strange := [name for name in names if not isinstance(name, str)]:
        raise InputError(f"expected text in the column {KEY!r}, found {strange[0]!r:.80}")
    keys = [key_of(name) for name in names]
    if bad := bad_names(keys):
        raise InputError(f"the key {bad[0]!r} is not a name: {NAME_RULE}")
    return keys


def _sources(column: pa.ChunkedArray, sources: pa.Table, steps: str) -> list[tuple[int, int]]:
    """Returns number and fingerprint of the source of each row."""
    try:
        keys = column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise InputError(f"expected text in the column {SOURCE!r} of {steps}, found {column.type}") from exc
    rows = pc.call_function("index_in", [keys], pc.SetLookupOptions(value_set=sources["key"].combine_chunks()))
    if rows.null_count:
        unknown = keys.filter(rows.is_null())[0].as_py()
        raise InputError(
            f"{SOURCE} of a sample is {unknown!r:.80}, which is no source of this plan: each step of {steps} must keep "
            "the column as it is"
        )
    found = sources.take(rows.combine_chunks() if isinstance(rows, pa.ChunkedArray) else rows)
    return list(zip(found["number"].to_pylist(), found["fingerprint"].to_pylist(), strict=True))


def _are_together(sources: pa.ChunkedArray) -> bool:
    """Whether the rows of each source follow each other."""
    column = sources.cast(pa.string())
    num_changes = pc.call_function("sum", [pc.call_function("not_equal", [column[1:], column[:-1]])]).as_py() or 0
    return bool(num_changes + 1 == pc.call_function("count_distinct", [column]).as_py())


def _rows(
    table: pa.Table, keys: Sequence[str], *, keep_pickles: bool, renamed: dict[str, str]
) -> Iterator[dict[str, bytes]]:
    """Yields the parts of each row."""
    names = table.column_names
    columns = [_parts(name, table[name], keys, keep_pickles=keep_pickles) for name in names]
    renamed |= {
        name: suffix
        for name, column in zip(names, columns, strict=True)
        for suffix in column.suffixes
        if suffix != name
    }
    suffixes = [suffix for column in columns for suffix in column.suffixes]
    if len(suffixes) == len(names) == len(set(suffixes)) and not any(None in column.data for column in columns):
        yield from (
            dict(zip(suffixes, row, strict=True)) for row in zip(*(column.data for column in columns), strict=True)
        )
        return
    for row, key in enumerate(keys):
        present = [(column.suffix(row), data) for column in columns if (data := column.data[row]) is not None]
        parts = dict(present)
        if len(parts) < len(present) or not parts:
            problem = "two columns would be stored under one suffix" if parts else "all its columns are null"
            raise InputError(f"{problem}: {', '.join(names)}", key=key)
        yield parts


def _parts(name: str, column: pa.ChunkedArray, keys: Sequence[str], *, keep_pickles: bool) -> _Parts:
    found = None if keep_pickles and is_pickled(name) else _quick_parts(name, column)
    if found is not None:
        return found
    each: list[tuple[str, bytes] | None] = []
    for key, value in zip(keys, _values(column), strict=True):
        try:
            each.append(None if value is None else encode_field(name, value, keep_pickles=keep_pickles))
        except CallError as exc:
            raise InputError(exc.problem, key=key, suffix=name) from exc
    own = [None if part is None else part[0] for part in each]
    return _Parts(tuple(dict.fromkeys(filter(None, own))), [None if part is None else part[1] for part in each], own)


def _quick_parts(name: str, column: pa.ChunkedArray) -> _Parts | None:
    """Returns a column of tensors, bytes, text or integers as parts; None for other columns."""
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _Parts((name,), column.to_pylist())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        suffix = stored_suffix(name, "")
        if _extension(suffix) in _TEXT:
            return _Parts((suffix,), [None if text is None else text.encode() for text in column.to_pylist()])
    elif pa.types.is_integer(kind):
        suffix = stored_suffix(name, 0)
        if _extension(suffix) in _INTEGERS:
            return _Parts((suffix,), [None if value is None else b"%d" % value for value in column.to_pylist()])
    elif _is_tensor(kind) and not column.null_count:
        suffix = stored_suffix(name, np.zeros(1))
        arrays = _arrays(column)
        if _extension(suffix) == "npy" and all(array.dtype.kind in _NPY_KINDS for array in arrays):
            return _Parts((suffix,), _npy_parts(arrays))
    return None


def _npy_parts(arrays: Arrays) -> list[bytes]:
    if not isinstance(arrays, np.ndarray):
        return [npy_header(array.dtype, array.shape) + array.tobytes() for array in arrays]
    header = npy_header(arrays.dtype, arrays.shape[1:])
    return [header + row.tobytes() for row in arrays]


def _arrays(column: pa.ChunkedArray) -> Arrays:
    """Returns the tensors of a column as one array if their shapes agree, else as a list."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if hasattr(array, "to_numpy_ndarray"):
        found: NDArray[Any] = array.to_numpy_ndarray()
        return found
    return [np.asarray(value) for value in array.to_numpy(zero_copy_only=False)]


def _values(column: pa.ChunkedArray) -> Sequence[Any]:
    """Returns the values of a column: arrays for tensors, Python's own for others."""
    if _is_tensor(column.type):
        return list(_arrays(column))
    if isinstance(column.type, ArrowPythonObjectType):
        return [value for chunk in column.chunks for value in chunk.to_numpy(zero_copy_only=False)]
    values: list[Any] = column.to_pylist()
    return values


def _is_tensor(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType) and "tensor" in kind.extension_name


def _extension(suffix: str) -> str:
    return suffix.rpartition(".")[2].lower()
