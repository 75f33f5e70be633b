"""The columns of a block as parts of samples, in a worker.

A tensor column becomes `.npy` parts that share one header; other values are encoded one by one.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data.block import BlockAccessor

from dray.pipelines.inputs.values import encode_field, stored_suffix
from dray.pipelines.ray_data.datasource import KEY, SOURCE
from dray.shards.errors import CallError, InputError
from dray.shards.layout import NAME_RULE, bad_names, check_suffixes, key_of
from dray.shards.parts import is_pickled

Part = tuple[str, bytes]  # suffix and bytes
Encoded = tuple[str, str | None, dict[str, bytes]]  # key, key of the source, parts by suffix


def check_columns(names: Sequence[str], *, has_source: bool, step: str) -> None:
    """Check that a block has the columns of samples.

    Raises:
        InputError: It lacks `__key__` or `__source__`, has no part, or has other columns between double underscores.
    """
    wanted = [KEY, *([SOURCE] if has_source else [])]
    found = f"found {', '.join(map(repr, names)) or 'none'}"
    if missing := [name for name in wanted if name not in names]:
        raise InputError(f"expected a column {missing[0]!r} in what {step} gives, {found}: each step must keep it")
    others = [name for name in names if name not in (KEY, SOURCE)]
    if not others:
        raise InputError(f"expected a column for each part in what {step} gives, {found}")
    if reserved := [name for name in others if name.startswith("__")]:
        raise InputError(f"the column {reserved[0]!r} of {step} cannot be a part of a sample: rename or drop it")
    try:
        check_suffixes(others)
    except CallError as exc:
        raise InputError(f"a column of {step} cannot be a part of a sample: {exc}") from exc


def encoded_samples(block: Any, *, keep_pickles: bool, renamed: dict[str, str]) -> Iterator[Encoded]:
    """Yields the samples of a block; its columns were checked.

    Args:
        block: A block of Ray Data.
        keep_pickles: See `encode_sample`.
        renamed: Gets column -> suffix for each column that is stored under another suffix.

    Raises:
        InputError: A key is not a name, two parts of a sample get one suffix, or a value cannot be stored; names it.
    """
    table = BlockAccessor.for_block(block).to_arrow()
    keys = [_as_key(key) for key in table[KEY].to_pylist()]
    if bad := bad_names(keys):
        raise InputError(f"the key {bad[0]!r} is not a name: {NAME_RULE}")
    sources = table[SOURCE].to_pylist() if SOURCE in table.column_names else [None] * len(keys)
    names = [name for name in table.column_names if name not in (KEY, SOURCE)]
    columns = [_parts_of(name, table[name], keys, keep_pickles=keep_pickles) for name in names]
    for name, column in zip(names, columns, strict=True):
        renamed.update((name, part[0]) for part in column if part is not None and part[0] != name)
    for key, source, *found in zip(keys, sources, *columns, strict=True):
        present = [part for part in found if part is not None]
        parts = dict(present)
        if len(parts) < len(present) or not parts:
            problem = "two columns would be stored under one suffix" if parts else "all its columns are null"
            raise InputError(f"{problem}: {', '.join(names)}", key=key)
        yield key, source, parts


def _as_key(key: Any) -> str:
    if not isinstance(key, str):
        raise InputError(f"expected text in the column {KEY!r}, found {key!r:.80}")
    return key_of(key)


def _parts_of(name: str, column: pa.ChunkedArray, keys: Sequence[str], *, keep_pickles: bool) -> list[Part | None]:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # no rows
        return []
    if not (is_pickled(name) and keep_pickles) and (tensors := _tensors(array)) is not None:
        suffix = stored_suffix(name, tensors)
        if suffix.endswith(".npy") or suffix == "npy":
            return _npy_parts(suffix, tensors)
    if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        return [None if value is None else (name, value) for value in array.to_pylist()]
    return _each(name, _values(array), keys, keep_pickles=keep_pickles)


def _tensors(array: pa.Array) -> "np.ndarray[Any, Any] | None":
    """Returns (n, ...) the elements of a column of tensors of one shape; None for any other column."""
    is_tensors = hasattr(array.type, "shape") and hasattr(array, "to_numpy_ndarray") and not array.null_count
    return np.ascontiguousarray(array.to_numpy_ndarray()) if is_tensors else None


def _npy_parts(suffix: str, tensors: "np.ndarray[Any, Any]") -> list[Part | None]:
    from dray.shards.codecs.npy import as_npy  # loads torch

    if not len(tensors):
        return []
    first = as_npy(tensors[0], tensors[0].nbytes)
    header = first[: len(first) - tensors[0].nbytes]
    little = tensors.astype(tensors.dtype.newbyteorder("<"), copy=False)
    return [(suffix, header + row.tobytes()) for row in little]


def _values(array: pa.Array) -> list[Any]:
    if not isinstance(array, pa.ExtensionArray):
        return list(array.to_pylist())
    rows: Any = BlockAccessor.for_block(pa.table({"value": array})).iter_rows(public_row_format=True)
    return [row["value"] for row in rows]


def _each(name: str, values: Sequence[Any], keys: Sequence[str], *, keep_pickles: bool) -> list[Part | None]:
    found: list[Part | None] = []
    for key, value in zip(keys, values, strict=True):
        try:
            found.append(None if value is None else encode_field(name, value, keep_pickles=keep_pickles))
        except CallError as exc:
            raise InputError(exc.problem, key=key, suffix=name) from exc
    return found
