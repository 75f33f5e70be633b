"""Replaces samples that cannot be read, if training is to go on without them.

A bad sample has the same replacement for any number of ranks and workers, so that steps and batches stay equal. Each
replacement is appended to a file as one line by a single write, so that many processes can share the file.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from webdataset.handlers import ignore_and_stop, reraise_exception, warn_and_stop

from dray.loaders.order.cursor import Cursor
from dray.shards.errors import CallError, DamagedError, DrayError, NotFoundError, RefusedError

FAR = 24  # replacements are sought up to 2**24 rows away
NEAR = 8  # number of neighbours that are tried next
PARTS = 32  # number of equal parts of the epoch in which the same place is tried last
UNREADABLE = (DamagedError, RefusedError, NotFoundError)  # NotFoundError: a shard or an index is missing

Ints = NDArray[np.int64]
Handler = Callable[[Exception], bool]


class OnBad(StrEnum):
    """How a sample that cannot be read is handled."""

    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Skipper:
    """Replaces samples that cannot be read, those of a missing shard included, and records each replacement.

    If none of many candidates can be read either, the dataset is assumed lost, and the error is raised.

    Attributes:
        path: File with one JSON object per line: epoch, position, replaced_by (a position), error (the message), and
            url, key, suffix and offset of what cannot be read, each null if unknown.
    """

    path: str

    def __post_init__(self) -> None:
        if not Path(self.path).parent.is_dir():
            raise CallError(f"bad_samples={self.path!r}: its folder does not exist")

    def replaced(self, positions: Ints, cursor: Cursor, read: Callable[[Ints], object]) -> Ints:
        """Returns the positions with unreadable samples replaced by deterministic substitutes.

        The candidates that the same lane reads next come first, in strides that double, to leave a damaged shard soon.
        Bad samples are found by bisection, so that good ones are read together.

        Args:
            positions: Positions in the epoch.
            cursor: Cursor in the epoch.
            read: Reads the samples at some positions; raises one of `UNREADABLE` if it cannot.

        Raises:
            DamagedError: A sample is damaged, and no candidate can be read.
            RefusedError: A sample holds something unsafe, and no candidate can be read.
            NotFoundError: A shard or an index is missing, and no candidate can be read.
        """
        try:
            read(positions)
            return positions
        except UNREADABLE as exc:
            if len(positions) == 1:
                return np.array([self._other(int(positions[0]), cursor, read, exc)])
        middle = len(positions) // 2
        halves = positions[:middle], positions[middle:]
        return np.concatenate([self.replaced(half, cursor, read) for half in halves])

    def first_readable(self, num_samples: int, read: Callable[[Ints], object], first: int = 0) -> int:
        """Returns the first readable one of a few samples, beginning with `first`; 0 if there is none."""
        spread = (num_samples * part // PARTS for part in range(1, PARTS))
        for sample in chain([first], range(min(NEAR, num_samples)), spread):
            with suppress(*UNREADABLE):
                read(np.array([sample]))
                return sample
        return 0

    def _other(self, position: int, cursor: Cursor, read: Callable[[Ints], object], error: DrayError) -> int:
        for candidate in _candidates(position, cursor):
            try:
                read(np.array([candidate]))
            except UNREADABLE:
                continue
            self._note(position, candidate, cursor.epoch, error)
            return candidate
        raise error

    def _note(self, position: int, candidate: int, epoch: int, error: DrayError) -> None:
        warnings.warn(f"samples that cannot be read are replaced and listed in {self.path}", stacklevel=2)
        numbers = {"epoch": epoch, "position": position, "replaced_by": candidate}
        entry = {**numbers, "error": str(error), **error.place}
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, json.dumps(entry).encode() + b"\n")
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class HandledSkipper(Skipper):
    """Replaces unreadable samples as long as the user's webdataset handler continues.

    Attributes:
        handler: Gets the error and returns whether to continue; called in the process that reads.
    """

    handler: Handler = reraise_exception

    def _note(self, position: int, candidate: int, epoch: int, error: Exception) -> None:  # noqa: ARG002
        if not self.handler(error):
            raise CallError(f"handler {self.handler!r} stops at an error, which would make ranks uneven") from error


def skipper_of(handler: Handler | None) -> Skipper | None:
    """Returns the skipper for the `handler` in `kwargs_wds`; None if unreadable samples raise errors.

    Raises:
        CallError: The handler would end this rank's epoch before the others'.
    """
    if handler in (ignore_and_stop, warn_and_stop):
        raise CallError(
            f"kwargs_wds: handler={handler!r} would end this rank's epoch before the others': use one that continues"
        )
    return None if handler in (None, reraise_exception) else HandledSkipper("", handler)


def _candidates(position: int, cursor: Cursor) -> Iterator[int]:
    for power in range(FAR):
        yield (position + (cursor.lanes << power)) % cursor.num_samples
    for near in range(1, NEAR):
        yield (position + near) % cursor.num_samples
    for part in range(1, PARTS):
        yield (position + cursor.num_samples * part // PARTS) % cursor.num_samples
