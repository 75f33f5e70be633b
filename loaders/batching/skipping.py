"""What takes the place of samples that cannot be read, where a training run is to go on without them.

The same sample takes the place of a bad one whatever the number of ranks and workers, so steps stay equal and batches
the same. Each replacement is a line of a file, written at once: many processes may add to it.
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

from dray.loaders.order.cursor import Cursor
from dray.shards.errors import CallError, DamagedError, DrayError, NotFoundError, RefusedError

FAR = 24  # looked for up to 2**24 rows away
NEAR = 8  # number of neighbours that are tried,
PARTS = 32  # then the same place in this number of parts of the epoch
UNREADABLE = (DamagedError, RefusedError, NotFoundError)  # the last: a shard or an index is missing

Ints = NDArray[np.int64]


class OnBad(StrEnum):
    """How a sample that cannot be read is handled."""

    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Skipper:
    """Finds a sample for the place of one that cannot be read, and notes it; a shard that is missing spoils its own.

    Where none of many others can be read either, the dataset is gone, and that is an error.

    Attributes:
        path: The file, one JSON object a line: epoch, position, replaced_by (a position), error (the message), and
            url, key, suffix and offset of what cannot be read, each null where it is unknown.
    """

    path: str

    def __post_init__(self) -> None:
        if not Path(self.path).parent.is_dir():
            raise CallError(f"bad_samples={self.path!r}: its folder does not exist")

    def replaced(self, positions: Ints, cursor: Cursor, read: Callable[[Ints], object]) -> Ints:
        """The positions, but in the place of each one that cannot be read the first of certain others that can.

        First come those that the same lane reads next, in strides that double: what spoiled a whole shard is left soon.
        Bad ones are found by halves, so that good ones are read together.

        Args:
            positions: Of the epoch.
            cursor: In the epoch.
            read: Reads the samples at some positions; raises one of `UNREADABLE` where it cannot.

        Raises:
            DamagedError: One cannot be read, and none of the others: its error.
            RefusedError: Likewise.
            NotFoundError: Likewise.
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
        """The first sample of a few that can be read, beginning with `first`; 0 if none can."""
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


def _candidates(position: int, cursor: Cursor) -> Iterator[int]:
    for power in range(FAR):
        yield (position + (cursor.lanes << power)) % cursor.num_samples
    for near in range(1, NEAR):
        yield (position + near) % cursor.num_samples
    for part in range(1, PARTS):
        yield (position + cursor.num_samples * part // PARTS) % cursor.num_samples
