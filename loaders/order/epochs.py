"""The epochs of a loader: where each pass begins, and how the ranks share its steps.

The order of samples is in `permutation.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from dray.loaders.order.cursor import PASSES, Cursor
from dray.loaders.order.passes import Pass
from dray.loaders.order.permutation import BLOCK_BYTES, choose_block
from dray.loaders.order.shares import Remainder, Rest
from dray.shards.arguments import as_int
from dray.shards.errors import CallError
from dray.shards.snapshot import Snapshot

LANES = 64  # number of lanes if there is no global batch size
_SAME_TARS = "the same, unchanged tars, by their names if there is a dataset now,"
MAX_CHUNK_SAMPLES = 64  # most samples that a rank takes in a step if there is no global batch size


@dataclass(frozen=True, slots=True, kw_only=True)
class Epochs:
    """What all epochs of a loader have in common.

    Attributes:
        snapshot: Version that is read.
        num_samples: Number of samples in an epoch.
        batch: Number of samples in a step, over all ranks.
        lanes: Number of lanes in the order of a new epoch.
        num_ranks: Number of ranks that share a step.
        remainder: What happens to the last samples if they do not fill a step.
        serves_every_rank: See `Rest`.
        shuffle: Whether the order is permuted.
        seed: Seed of the permutation.
    """

    snapshot: Snapshot
    num_samples: int
    batch: int
    lanes: int
    num_ranks: int
    remainder: Remainder
    serves_every_rank: bool = False
    shuffle: bool
    seed: int

    @classmethod
    def of_chunks(
        cls, snapshot: Snapshot, global_batch_size: int | None, num_ranks: int, *, shuffle: bool, seed: int
    ) -> Self:
        """Returns epochs in steps of a global batch or, if it is None, of chunks that are large enough to read well.

        Raises:
            CallError: The global batch size is not a multiple of the number of ranks.
        """
        if global_batch_size is not None and global_batch_size % num_ranks:
            raise CallError(
                f"global_batch_size={global_batch_size} on {num_ranks} ranks: batches of one size need a multiple of "
                f"{num_ranks}, such as {-(-global_batch_size // num_ranks) * num_ranks}"
            )
        chunk = max(1, min(MAX_CHUNK_SAMPLES, int(BLOCK_BYTES // max(1.0, _sample_bytes(snapshot)))))
        return cls(
            snapshot=snapshot,
            num_samples=snapshot.num_samples,
            batch=global_batch_size or chunk * num_ranks,
            lanes=global_batch_size or LANES,
            num_ranks=num_ranks,
            remainder=Remainder.KEEP,
            serves_every_rank=global_batch_size is not None,
            shuffle=shuffle,
            seed=seed,
        )

    @property
    def sample_bytes(self) -> float:
        """Mean size of a sample in its tar, in bytes."""
        return _sample_bytes(self.snapshot)

    def start(self, epoch: int) -> Cursor:
        """Returns the start of an epoch.

        Raises:
            CallError: The epoch is not an integer >= 0.
        """
        return Cursor(
            dataset=self.snapshot.commit.manifest,
            version=self.snapshot.version,
            num_samples=self.num_samples,
            shuffle=self.shuffle,
            seed=self.seed,
            epoch=as_int("epoch", epoch),
            lanes=self.lanes,
            block=choose_block(self.num_samples, self.lanes, self.sample_bytes),
        )

    def next_pass(self, cursor: Cursor) -> Cursor:
        """Returns the start of the next pass of the same epoch, which has an order of its own."""
        return self.start(cursor.epoch + PASSES)

    def next_epoch(self, cursor: Cursor) -> Cursor:
        """Returns the start of the next epoch."""
        return self.start(cursor.epoch % PASSES + 1)

    def resumed(self, saved: Mapping[str, Any]) -> Cursor:
        """Returns the cursor that a checkpoint holds.

        Raises:
            CallError: It is not a cursor, or was saved over other data or in another order; names the difference.
        """
        cursor = Cursor.from_dict(saved)
        if differing := cursor.differences(self.start(0)):
            data = f"'{self.snapshot.store.url}?version={cursor.version}'" if cursor.version else _SAME_TARS
            raise CallError(
                f"the checkpoint was saved over other data or in another order ({'; '.join(differing)}): open {data} "
                "with the options of that run, or do not load its state"
            )
        return replace(cursor, version=self.snapshot.version)

    def rest(self, cursor: Cursor) -> Rest:
        """Returns the steps from a cursor to the end of its pass."""
        return Rest(
            num_samples=cursor.num_samples,
            consumed=cursor.consumed,
            batch=self.batch,
            num_ranks=self.num_ranks,
            remainder=self.remainder,
            serves_every_rank=self.serves_every_rank,
        )

    def pass_from(self, cursor: Cursor, rank: int) -> Pass:
        """Returns a rank's steps from a cursor to the end of its pass."""
        return Pass(cursor, self.rest(cursor), rank)


def _sample_bytes(snapshot: Snapshot) -> float:
    return snapshot.num_bytes / max(1, snapshot.num_samples)
