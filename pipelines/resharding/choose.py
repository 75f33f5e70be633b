"""Which samples of a source are copied."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dray.pipelines.resharding.rows import Rows
from dray.shards.errors import CallError, InputError
from dray.shards.index import digest_of
from dray.shards.layout import some

Predicate: TypeAlias = Callable[[str, Mapping[str, int]], bool]
"""`f(key, sizes)`: whether a sample is copied; `sizes` has suffix -> bytes of each of its parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartLimits:
    """A predicate over the key and the parts of a sample. A sample that lacks a part that it names is not copied.

    Attributes:
        key_glob: Pattern of the key; `*` stands for slashes too. None: any key.
        has: Suffixes that the sample has.
        min_bytes: Suffix -> least size of that part.
        max_bytes: Suffix -> largest size of that part.
    """

    key_glob: str | None = None
    has: Collection[str] = ()
    min_bytes: Mapping[str, int] = field(default_factory=dict)
    max_bytes: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, key: str, sizes: Mapping[str, int]) -> bool:
        """Returns whether a sample is copied."""
        return (
            (self.key_glob is None or fnmatchcase(key, self.key_glob))
            and all(suffix in sizes for suffix in self.has)
            and all(sizes.get(suffix, -1) >= least for suffix, least in self.min_bytes.items())
            and all(sizes.get(suffix, most + 1) <= most for suffix, most in self.max_bytes.items())
        )

    @property
    def suffixes(self) -> list[str]:
        """The suffixes that it names."""
        return [*self.has, *self.min_bytes, *self.max_bytes]

    def __str__(self) -> str:
        glob = [] if self.key_glob is None else [f"key {self.key_glob}"]
        least = [f"{suffix} >= {limit}" for suffix, limit in self.min_bytes.items()]
        most = [f"{suffix} <= {limit}" for suffix, limit in self.max_bytes.items()]
        return ", ".join((*glob, *(f"has {suffix}" for suffix in self.has), *least, *most))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Choice:
    """Which samples are copied.

    Attributes:
        keys: Their keys; None: any.
        where: A predicate; None: any.
    """

    keys: pa.Array | None = None
    where: Predicate | None = None

    @classmethod
    def of(cls, keys: Iterable[str] | None, where: Predicate | None) -> "Choice":
        """Returns the choice that the arguments ask for.

        Raises:
            CallError: `keys` are not strings, or `where` is not a function.
        """
        if isinstance(keys, str | bytes):
            raise CallError(f"keys={keys!r:.80}: expected several keys, such as a list of them")
        found = None if keys is None else sorted(set(keys), key=str)
        if wrong := [key for key in found or () if not isinstance(key, str)]:
            raise CallError(f"keys= holds {wrong[0]!r:.80}: expected strings")
        if where is not None and not callable(where):
            raise CallError(f"where={where!r:.80}: expected a function of a key and the sizes of its parts")
        return cls(keys=None if found is None else pa.array(found, pa.string()), where=where)

    def to_json(self) -> dict[str, str]:
        """Returns the fields that a recipe records."""
        values: dict[str, str] = {}
        if self.keys is not None:
            values["keys"] = digest_of("\n".join(self.keys.to_pylist()).encode())
        if isinstance(self.where, PartLimits):
            values["where"] = str(self.where)
        elif self.where is not None:
            values["where"] = getattr(self.where, "__qualname__", type(self.where).__qualname__)
        return values

    def mask(self, rows: Rows, samples: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns (n,) whether each row is copied.

        Args:
            rows: n rows, those of one sample together.
            samples: (n,) the number of the sample of each row, which ascends.

        Raises:
            CallError: A limit names a suffix that no sample has.
            InputError: A key is asked for that no sample has.
        """
        is_chosen = np.ones(len(rows), bool)
        if self.keys is not None:
            missing = np.flatnonzero(~_is_in(self.keys, rows.keys))
            if len(missing):
                named = some(self.keys.take(pa.array(missing)).to_pylist())
                raise InputError(f"keys= names keys that no sample of the source has: {named}")
            is_chosen = _is_in(rows.keys, self.keys)
        if self.where is not None:
            _check_known(self.where, rows)
            passes = [bool(self.where(key, sizes)) for key, sizes in _key_and_sizes(rows, samples)]
            is_chosen = is_chosen & np.array(passes, bool)[samples]
        return is_chosen


def _is_in(keys: pa.Array, others: pa.Array) -> NDArray[np.bool_]:
    """Returns (n,) whether each key is among the others."""
    found = pc.call_function("is_in", [keys], pc.SetLookupOptions(value_set=others))
    is_in: NDArray[np.bool_] = found.to_numpy(zero_copy_only=False)
    return is_in


def _check_known(where: Predicate, rows: Rows) -> None:
    if isinstance(where, PartLimits) and (unknown := sorted(set(where.suffixes) - set(rows.suffixes))):
        raise CallError(f"no sample has a part {unknown[0]!r}; their parts are {', '.join(rows.suffixes)}")


def _key_and_sizes(rows: Rows, samples: NDArray[np.int64]) -> Iterator[tuple[str, dict[str, int]]]:
    """Yields the key of each sample, and suffix -> bytes of its parts."""
    bounds = [*np.flatnonzero(np.diff(samples, prepend=-1)).tolist(), len(samples)]
    is_there: NDArray[np.bool_] = rows.offsets > 0
    for start, stop, key in zip(bounds, bounds[1:], rows.keys.take(pa.array(bounds[:-1])).to_pylist(), strict=False):
        sizes = rows.sizes[start:stop].sum(axis=0).tolist()  # one of the rows of a sample has the part
        columns = np.flatnonzero(is_there[start:stop].any(axis=0)).tolist()
        yield key, {rows.suffixes[column]: sizes[column] for column in columns}
