"""Where one rank's `ShardLoader` is in its epochs: arithmetic on cursors, without I/O."""

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any

from dray.loaders.order.cursor import PASSES, Cursor, Remainder, Rest
from dray.loaders.order.passes import Pass
from dray.shards.arguments import as_int


class Position:
    """How far the trainer has come, and where the next iteration begins.

    Args:
        first: Start of epoch 0, laid out for this batch size.
        batch: Samples a step over all ranks.
        rank: Rank whose position this is.
        num_ranks: Number of ranks that share a step.
        remainder: What happens to samples that do not fill the last batch.

    Attributes:
        start: Where the pass at hand began, or will begin.
        taken: Number of steps that the trainer took since.
        turn: Changes whenever an iterator that still runs must end.
        is_loaded: Whether a loaded state waits for its first batch.
        repeats_epoch: Whether a further iteration is another pass of the same epoch, as a Trainer expects.
    """

    def __init__(self, first: Cursor, *, batch: int, rank: int, num_ranks: int, remainder: Remainder) -> None:
        self._first = first
        self._batch, self._rank, self._num_ranks, self._remainder = batch, rank, num_ranks, remainder
        self._next: Cursor | None = first  # None: what follows the pass at hand
        self._num_before = 0  # samples, in the passes before
        self.start, self.taken, self.turn = first, 0, 0
        self.is_loaded = self.repeats_epoch = False

    @property
    def shuffles(self) -> bool:
        """Whether the order is permuted."""
        return self._first.shuffle

    @property
    def epoch(self) -> int:
        """Epoch, from 0, of the pass at hand, or of the next one where none has begun since the last change."""
        return self.start.epoch % PASSES

    @property
    def steps(self) -> int:
        """Number of steps of the pass that the trainer has got, those before a resume included."""
        return self.start.steps + self.taken

    @property
    def num_samples(self) -> int:
        """Number of samples that the trainer has got on this rank, filler included."""
        rest, last = self.rest(self.start), self.taken - 1  # the last step alone may be shorter
        taken = last * rest.share_size(0, self._rank) + rest.share_size(last, self._rank) if self.taken else 0
        return self._num_before + taken

    def length(self) -> int:
        """Returns the number of steps of the pass at hand, those before a resume included."""
        return self.start.steps + len(self.rest(self.start))

    def rest(self, cursor: Cursor) -> Rest:
        """Returns the steps from a cursor to the end of its pass."""
        return Rest(
            num_samples=cursor.num_samples,
            consumed=cursor.consumed,
            batch=self._batch,
            num_ranks=self._num_ranks,
            remainder=self._remainder,
        )

    def start_of(self, epoch: int) -> Cursor:
        """Returns the start of an epoch.

        Raises:
            CallError: The epoch is not an integer from 0 on.
        """
        return replace(self._first, epoch=as_int("epoch", epoch))

    def begin(self) -> Pass:
        """Begin the next pass, and end the iterator of the last one."""
        self._move(self._following() if self._next is None else self._next)
        self._next = None
        return Pass(self.start, self.rest(self.start), self._rank)

    def go_to(self, epoch: int) -> None:
        """Let the next pass be the start of an epoch, and the following ones those of the epochs after it."""
        self._next = self.start_of(epoch)
        self._move(self._next)
        self.repeats_epoch = False

    def state(self, *, unfinished: int = 0) -> dict[str, Any]:
        """Returns the cursor after the steps that the trainer got, but for the last `unfinished` of them."""
        return self.start.advanced(max(0, self.taken - unfinished), self._batch).to_dict()

    def state_at(self, epoch: int) -> dict[str, Any]:
        """Returns the cursor at the start of an epoch."""
        return self.start_of(epoch).to_dict()

    def load(self, state: Mapping[str, Any]) -> None:
        """Let the next pass be the rest of the one that was saved; where nothing is left of it, the next epoch.

        Raises:
            CallError: It was saved over other data or with another seed; names the difference.
        """
        saved = Cursor.from_dict(state)
        saved.check_same(self._first)
        is_over = len(self.rest(saved)) == 0 and saved.steps > 0
        self._next = self.start_of(saved.epoch % PASSES + 1) if is_over else replace(saved, version=self._first.version)
        self._move(self._next)
        self.is_loaded = True

    def resumed(self) -> "Position":
        """Returns another position that goes on where this one is, and counts samples anew."""
        found = copy(self)
        found.load(self.state())
        found._num_before = 0
        return found

    def _following(self) -> Cursor:
        """What comes after the pass at hand: another pass, in an order of its own, or the next epoch."""
        return self.start_of(self.start.epoch + PASSES if self.repeats_epoch else self.epoch + 1)

    def _move(self, start: Cursor) -> None:
        self._num_before = self.num_samples
        self.start, self.taken = start, 0
        self.turn += 1
        self.is_loaded = False
