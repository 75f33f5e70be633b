"""How the rest of an epoch is shared out by the ranks in steps of one global batch: arithmetic, without I/O."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Remainder(StrEnum):
    """What happens to the last samples of an epoch if they do not fill a global batch."""

    DROP = "drop"
    PAD = "pad"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank takes in one step.

    Attributes:
        positions: (m,) int64 positions of the epoch, filler last; filler repeats the beginning of the epoch.
        num_valid: Number of positions that are not filler.
    """

    positions: NDArray[np.int64]
    num_valid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """The steps that are left of an epoch: equally many on every rank.

    Attributes:
        num_samples: Number of samples in the whole epoch.
        consumed: Number of samples that earlier steps took.
        batch: Number of samples in a step, over all ranks.
        num_ranks: Number of ranks that share a step.
        remainder: What happens to the last samples if they do not fill a step. "keep" shares them out evenly, so that
            some ranks may get none.
        serves_every_rank: With "keep", whether filler is added so that every rank gets a sample in the last step.
    """

    num_samples: int
    consumed: int
    batch: int
    num_ranks: int
    remainder: Remainder
    serves_every_rank: bool = False

    def __len__(self) -> int:
        """Returns the number of steps."""
        left = self.num_samples - self.consumed
        return left // self.batch if self.remainder == Remainder.DROP else -(-left // self.batch)

    def share(self, step: int, rank: int) -> Share:
        """Returns what a rank takes in a step; steps count from 0 at the beginning of the rest."""
        start, stop = self._bounds(step, rank)
        positions = np.arange(start, stop)
        if stop > self.num_samples:
            positions %= self.num_samples
        return Share(positions, max(0, min(stop, self.num_samples) - start))

    def share_size(self, step: int, rank: int) -> int:
        """Returns the number of samples, filler included, that a rank takes in a step."""
        start, stop = self._bounds(step, rank)
        return stop - start

    def _bounds(self, step: int, rank: int) -> tuple[int, int]:
        first, size = self.consumed + step * self.batch, self.batch
        if self.remainder == Remainder.KEEP:
            size = min(size, self.num_samples - first)
            size = max(size, self.num_ranks) if self.serves_every_rank else size
        return first + rank * size // self.num_ranks, first + (rank + 1) * size // self.num_ranks
