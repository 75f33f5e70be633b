"""The steps of one rank in a pass: which samples each takes, and what is read together with them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from dray.loaders.order.cursor import PASSES, Cursor
from dray.loaders.order.shares import Rest, Share
from dray.shards.reading.samples import Run

CHUNK_SAMPLES = 8192  # number of positions that are permuted in one call


@dataclass(frozen=True, slots=True)
class Pass:
    """One rank's steps from a cursor to the end of its pass.

    Attributes:
        start: Cursor at which the pass begins or is resumed.
        rest: How the remaining steps are shared out.
        rank: Rank whose steps these are.
    """

    start: Cursor
    rest: Rest
    rank: int

    @property
    def epoch(self) -> int:
        """Epoch, from 0, that the pass belongs to."""
        return self.start.epoch % PASSES

    def steps(self, first: int = 0, stride: int = 1, *, with_runs: bool = True) -> Iterator["Step"]:
        """Yields the steps `first`, `first + stride`, ... of the pass; the order is computed for many at once."""
        numbers = iter(range(first, len(self.rest), stride))
        order = self.start.order()
        steps_at_once = max(1, CHUNK_SAMPLES * self.rest.num_ranks // self.rest.batch)
        while chunk := list(islice(numbers, steps_at_once)):
            shares = [self.rest.share(number, self.rank) for number in chunk]
            positions = np.concatenate([share.positions for share in shares])
            samples, runs = order.at(positions), list[Run]()
            if with_runs:
                firsts, sizes = order.runs(positions)
                runs = list(zip(firsts.tolist(), sizes.tolist(), strict=True))
            end = 0
            for number, share in zip(chunk, shares, strict=True):
                start, end = end, end + len(share.positions)
                yield Step(number, share, samples[start:end], runs[start:end])


@dataclass(frozen=True, slots=True)
class Step:
    """What one rank takes in one step.

    Attributes:
        number: Number of the step, from the start of the pass.
        share: Positions that the rank takes.
        samples: (m,) int64 sample number at each position.
        runs: Run that each sample is read with; empty unless asked for.
    """

    number: int
    share: Share
    samples: NDArray[np.int64]
    runs: Sequence[Run]
