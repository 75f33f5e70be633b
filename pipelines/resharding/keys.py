"""Keys that samples share: an error, or made different by the names of the tars, or a reason to join the samples."""

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dray.pipelines.resharding.rows import Rows
from dray.shards.errors import CallError, InputError
from dray.shards.messages import counted

MOST_NAMED = 5


class UniqueKeys(StrEnum):
    """What is done about samples that share a key."""

    PREFIX = "prefix"  # each key begins with the path of its tar: `train/00012/cat`
    JOIN = "join"  # they are one sample, whose parts are apart in a tar or in several

    @classmethod
    def of(cls, value: str) -> "UniqueKeys":
        """Returns the member with this value.

        Raises:
            CallError: There is none.
        """
        if value not in list(cls):
            raise CallError(f"unique_keys={value!r:.80}: expected one of {', '.join(cls)}")
        return cls(value)


def grouped(rows: Rows, tars: Sequence[str], unique_keys: UniqueKeys | None) -> tuple[Rows, NDArray[np.int64]]:
    """Returns the rows, those of one sample together, and (n,) the number of the sample of each, which ascends.

    Args:
        rows: The rows of a version, in its order.
        tars: Paths of its tars, by position.
        unique_keys: What is done about rows that share a key; None: an error.

    Raises:
        InputError: Rows share a key, or a key and a suffix if they are joined; names key and tars.
    """
    if unique_keys == UniqueKeys.PREFIX:
        rows = replace(rows, keys=_prefixed(rows, tars))
    firsts = _first_rows(rows.keys)
    if unique_keys != UniqueKeys.JOIN:
        _check_unique(rows, firsts, tars, unique_keys)
        return rows, np.arange(len(rows))
    order = np.argsort(firsts, kind="stable")
    rows, firsts = rows.take(order), firsts[order]
    samples = np.cumsum(np.diff(firsts, prepend=-1) != 0) - 1
    _check_joined(rows, samples, tars)
    return rows, samples


def _prefixed(rows: Rows, tars: Sequence[str]) -> pa.Array:
    stems = pa.array([f"{PurePosixPath(tar).with_suffix('')}/" for tar in tars], pa.string())
    return pc.call_function("binary_join_element_wise", [stems.take(pa.array(rows.places)), rows.keys, ""])


def _first_rows(keys: pa.Array) -> NDArray[np.int64]:
    """Returns (n,) the first row that has the key of each row."""
    encoded = keys.dictionary_encode()
    numbers = encoded.indices.to_numpy(zero_copy_only=False)
    firsts = np.zeros(len(encoded.dictionary), np.int64)
    firsts[numbers[::-1]] = np.arange(len(keys))[::-1]  # of several values the last one stays
    found: NDArray[np.int64] = firsts[numbers]
    return found


def _check_unique(rows: Rows, firsts: NDArray[np.int64], tars: Sequence[str], unique_keys: UniqueKeys | None) -> None:
    later = np.flatnonzero(firsts != np.arange(len(rows)))
    if not len(later):
        return
    named = [_twice(rows, int(firsts[row]), int(row), tars) for row in later[:MOST_NAMED]]
    ways = (
        "unique_keys='prefix' puts the name of its tar before each key; unique_keys='join' makes one sample of those "
        "that share a key, if their parts are apart"
    )
    within = "the keys repeat within one tar: unique_keys='join' makes one sample of those whose parts are apart"
    raise InputError(
        f"{counted(len(later), 'sample has', 'samples have')} a key that an earlier one has: {'; '.join(named)}. "
        f"A dataset has each key once: {ways if unique_keys is None else within}"
    )


def _check_joined(rows: Rows, samples: NDArray[np.int64], tars: Sequence[str]) -> None:
    """Check that rows of one sample have no suffix in common."""
    for column, suffix in enumerate(rows.suffixes):
        has = np.flatnonzero(rows.offsets[:, column] > 0)
        again = np.flatnonzero(np.diff(samples[has]) == 0)
        if len(again):
            first, second = has[again[0]], has[again[0] + 1]
            raise InputError(
                f"{counted(len(again), 'sample has', 'samples have')} the part {suffix!r} twice, so they cannot be "
                f"joined: {_twice(rows, int(first), int(second), tars)}; unique_keys='prefix' keeps both if they are "
                "in different tars"
            )


def _twice(rows: Rows, first: int, second: int, tars: Sequence[str]) -> str:
    one, other = (tars[rows.places[row]] for row in (first, second))
    return f"{rows.keys[second].as_py()!r} in {one}" + (f" and {other}" if one != other else ", twice")
