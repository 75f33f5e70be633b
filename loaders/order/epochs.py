"""The epochs of a DataModule's stream: where each pass begins, and how its steps are shared out by the ranks."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from dray.loaders.order.cursor import PASSES, Cursor, Remainder, Rest, Share
from dray.loaders.order.permutation import BLOCK_BYTES, choose_block
from dray.shards.arguments import as_int
from dray.shards.errors import CallError
from dray.shards.snapshot import Snapshot

LANES = 64  # where no global batch size tells how many
MOST_SAMPLES = 64  # of a chunk, likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class EvenRest(Rest):
    """The rest of an epoch in which no rank is ever without a sample.

    A short last step is shared out evenly; if it has fewer samples than there are ranks, the epoch's first ones follow.
    """

    def share(self, step: int, rank: int) -> Share:
        """What a rank takes in a step of the rest, from 0."""
        first = self.consumed + step * self.batch
        size = max(min(self.batch, self.num_samples - first), self.num_ranks)
        start, stop = first + rank * size // self.num_ranks, first + (rank + 1) * size // self.num_ranks
        return Share(np.arange(start, stop) % self.num_samples, max(0, min(stop, self.num_samples) - start))


@dataclass(frozen=True, slots=True, kw_only=True)
class Epochs:
    """What all epochs of a stream have in common.

    Attributes:
        snapshot: What is read.
        batch: Samples a step over all ranks, laid out so in every new epoch.
        lanes: Of the order.
        num_ranks: That share a step.
        is_even: Whether every rank has a sample in every step; else each sample comes once, whatever a rank has.
        shuffle: Whether the order is permuted.
        seed: Of the permutation.
    """

    snapshot: Snapshot
    batch: int
    lanes: int
    num_ranks: int
    is_even: bool
    shuffle: bool
    seed: int

    @classmethod
    def of(cls, snapshot: Snapshot, global_batch_size: int | None, num_ranks: int, *, shuffle: bool, seed: int) -> Self:
        """Those of a global batch size; without one, a rank's chunks are as large as make a good read.

        Raises:
            CallError: It is no multiple of the number of ranks: their batches could not be equal.
        """
        if global_batch_size is not None and global_batch_size % num_ranks:
            raise CallError(
                f"global_batch_size={global_batch_size} on {num_ranks} ranks: batches of one size need a multiple of "
                f"{num_ranks}, such as {-(-global_batch_size // num_ranks) * num_ranks}"
            )
        chunk = max(1, min(MOST_SAMPLES, int(BLOCK_BYTES // max(1.0, _sample_bytes(snapshot)))))
        return cls(
            snapshot=snapshot,
            batch=global_batch_size or chunk * num_ranks,
            lanes=global_batch_size or LANES,
            num_ranks=num_ranks,
            is_even=global_batch_size is not None,
            shuffle=shuffle,
            seed=seed,
        )

    @property
    def sample_bytes(self) -> float:
        """The mean size of a sample in its tar."""
        return _sample_bytes(self.snapshot)

    def start(self, epoch: int, number: int = 0, steps: int = 0) -> Cursor:
        """The start of a pass of an epoch, all counted from 0, after so many steps of the epoch."""
        snapshot, num_samples = self.snapshot, self.snapshot.num_samples
        return Cursor(
            dataset=snapshot.commit.manifest,
            version=snapshot.version,
            num_samples=num_samples,
            shuffle=self.shuffle,
            seed=self.seed,
            epoch=as_int("epoch", epoch) + number * PASSES,
            lanes=self.lanes,
            block=choose_block(num_samples, self.lanes, self.sample_bytes),
            window_rows=1,
            steps=steps,
        )

    def next_pass(self, cursor: Cursor) -> Cursor:
        """The start of the pass that follows in the same epoch."""
        number, epoch = divmod(cursor.epoch, PASSES)
        return self.start(epoch, number + 1, cursor.steps)

    def next_epoch(self, cursor: Cursor) -> Cursor:
        """The start of the epoch after."""
        return self.start(cursor.epoch % PASSES + 1)

    def rest(self, cursor: Cursor) -> Rest:
        """The rest of a pass, in steps."""
        kind = EvenRest if self.is_even else Rest
        return kind(
            num_samples=cursor.num_samples,
            consumed=cursor.consumed,
            batch=self.batch,
            num_ranks=self.num_ranks,
            remainder=Remainder.KEEP,
        )


def _sample_bytes(snapshot: Snapshot) -> float:
    return snapshot.num_bytes / max(1, snapshot.num_samples)
