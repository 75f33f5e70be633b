"""Inputs of any kind, from which a function makes samples: the key of each, and what tells whether it changed."""

import operator
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dray.pipelines.inputs.sources import ABSENT
from dray.shards.errors import CallError
from dray.shards.layout import NAME_RULE, bad_names, key_of, some
from dray.shards.parsing.parquet import source_schema

SUFFIXES = ("input",)  # names the columns of fingerprints in the table of sources
MOST_PATH_BYTES = 4096
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^/@]*@)?")
_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,9}$")
Print = tuple[int, int, int]  # bytes and stamp of the files that an input names, and xxh3_64 of its value


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Items:
    """The n inputs of a run, in order.

    Attributes:
        values: The inputs.
        keys: Their keys, which differ.
        prints: (n, 3) uint64, size, stamp and hash of each.
    """

    values: Sequence[Any]
    keys: Sequence[str]
    prints: NDArray[np.uint64]

    @classmethod
    def of(
        cls,
        values: Sequence[Any],
        key: Callable[[Any], str] | None,
        fingerprint: Callable[[Any], Any] | None,
        *,
        are_compared: bool,
    ) -> "Items":
        """Returns the inputs with their keys and fingerprints.

        Args:
            values: The inputs.
            key: Returns the key of an input; None: see `default_name`.
            fingerprint: Returns a plain value that changes if the input does; None: the input's own value, and size
                and time of the files that it names.
            are_compared: Whether fingerprints are needed.

        Raises:
            CallError: There is no input, two have the same key, or one has no key or no fingerprint.
        """
        if not values:
            raise CallError("inputs is empty: expected at least one input")
        keys = [_checked_key(number, value, key) for number, value in enumerate(values)]
        if len(set(keys)) < len(keys):
            seen: set[str] = set()
            twice = [name for name in keys if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
            raise CallError(f"inputs share a key: {some(dict.fromkeys(twice))}: give key=, a function that tells apart")
        prints = [
            _print_of(number, value, fingerprint) if are_compared else (0, 0, 0) for number, value in enumerate(values)
        ]
        return cls(values=values, keys=keys, prints=np.array(prints, np.uint64).reshape(len(values), 3))

    def marks(self) -> NDArray[np.uint64]:
        """Returns (n,) uint64, one fingerprint per input."""
        return np.array([xxh3_64_intdigest(row.tobytes()) for row in self.prints], np.uint64)

    def table(self, positions: NDArray[np.int64]) -> pa.Table:
        """Returns the table of sources of some inputs, sorted by key."""
        keys = pa.array([self.keys[position] for position in positions.tolist()], pa.string())
        signed, hashes = self.prints.view(np.int64)[positions], self.prints[positions, 2]
        columns = [keys, keys, pa.array(signed[:, 0]), pa.array(signed[:, 1]), pa.array(hashes)]
        return pa.table(columns, schema=source_schema(SUFFIXES, has_places=False)).sort_by("key")


def prints_in(table: pa.Table) -> dict[str, tuple[int, ...]]:
    """Returns key -> fingerprint of each source in a table of sources, as in `Items.prints`."""
    columns = [table[f"{SUFFIXES[0]}/{what}"].to_numpy() for what in ("size", "stamp", "xxh3_64")]
    prints = np.stack([column.view(np.uint64) for column in columns], axis=1)
    return dict(zip(table["key"].to_pylist(), map(tuple, prints.tolist()), strict=True))


def default_name(number: int, value: Any) -> str:
    """Returns the name of an input, whose dots become dashes in its key.

    A path or text is its own name, without a scheme, a leading slash and an extension; an integer is its digits; any
    other input has its number in the list.
    """
    if isinstance(value, str | os.PathLike):
        text = _SCHEME.sub("", str(os.fspath(value)))
        path = posixpath.normpath(text.partition("?")[0] if "://" in str(value) else text)
        while path.startswith(("/", "../")):
            path = path.removeprefix("..").lstrip("/")
        return _EXTENSION.sub("", path)
    try:
        return f"{operator.index(value):09d}"
    except TypeError:
        return f"{number:09d}"


def _checked_key(number: int, value: Any, key: Callable[[Any], str] | None) -> str:
    if key is None and type(value) is int and value >= 0:
        return default_name(number, value)
    found = default_name(number, value) if key is None else key(value)
    if not isinstance(found, str) or not found or bad_names([found]) or found == ".":
        kind = "its key" if key is None else "its key by key="
        raise CallError(f"inputs[{number}]: {kind} is {found!r:.200}: {NAME_RULE}; give key=, a function of the input")
    return key_of(found)


def _print_of(number: int, value: Any, fingerprint: Callable[[Any], Any] | None) -> Print:
    """Returns the fingerprint of an input.

    Raises:
        CallError: Its value cannot be compared.
    """
    shown = value if fingerprint is None else fingerprint(value)
    try:
        text = dumps(_plain(shown), sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass")
    except TypeError as exc:
        what = f"inputs[{number}] holds a" if fingerprint is None else f"fingerprint= gave for inputs[{number}] a"
        raise CallError(
            f"{what} {exc}, which cannot be compared with the last run's: give fingerprint=, a function that returns "
            "text, numbers or bytes that change if the input does"
        ) from exc
    files = list(_files(value)) if fingerprint is None else []
    if not files:
        return ABSENT % (1 << 64), 0, xxh3_64_intdigest(text)
    stamp = xxh3_64_intdigest(np.array(files, np.int64).tobytes())
    return sum(size for size, _ in files), stamp, xxh3_64_intdigest(text)


def _plain(value: Any) -> Any:
    """Returns a value as JSON can hold it; equal values give equal JSON.

    Raises:
        TypeError: It cannot; its message is the name of the type.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return ["bytes", xxh3_64_intdigest(value)]
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        return [value.dtype.str, list(value.shape), xxh3_64_intdigest(value.tobytes())]
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__}")


def _files(value: Any) -> Iterator[tuple[int, int]]:
    """Yields size and modification time in nanoseconds of each file on disk that a value names."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _files(item)
    if isinstance(value, Path) or (isinstance(value, str) and 0 < len(value) < MOST_PATH_BYTES):
        try:
            info = os.stat(value)
        except (OSError, ValueError):
            return
        if S_ISREG(info.st_mode):
            yield info.st_size, info.st_mtime_ns
