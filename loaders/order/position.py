"""Where a loader is in its epochs, and where its next iteration begins: arithmetic on cursors, without I/O."""

from collections.abc import Mapping
from copy import copy
from typing import Any, Self

from dray.loaders.order.cursor import PASSES, Cursor, changed_cursor
from dray.loaders.order.epochs import Epochs
from dray.shards.errors import CallError
from dray.shards.messages import counted


class EpochPosition:
    """Where one rank's loader is in its epochs; base of the positions of both kinds of loaders.

    Args:
        epochs: The loader's epochs.
        rank: Rank whose position this is.

    Attributes:
        start: Cursor at which the iteration at hand began, or at which the next one will begin.
        turn: Number that changes when a running iterator must end.
        is_loaded: Whether a loaded state waits for its first batch.
        repeats_epoch: Whether a further iteration is another pass of the same epoch, as a Trainer expects.
    """

    def __init__(self, epochs: Epochs, rank: int) -> None:
        self.epochs, self.rank = epochs, rank
        self.start = self._last = epochs.start(0)  # _last: a cursor of the iteration's last pass
        self.turn = 0
        self.is_loaded = self.repeats_epoch = False
        self._has_begun = False  # whether an iteration began at `start`

    @property
    def epoch(self) -> int:
        """Epoch, from 0, of the iteration at hand, or of the next one if none has begun since the last change."""
        return self.start.epoch % PASSES

    @property
    def steps(self) -> int:
        """Number of steps of the epoch that the trainer has got, those before a resume included."""
        raise NotImplementedError

    def length(self) -> int | None:
        """Returns the number of steps of the epoch at hand, those before a resume included; None if it is unknown."""
        raise NotImplementedError

    def state(self, *, unfinished: int = 0) -> dict[str, Any]:
        """Returns the state after the steps that the trainer got, but for the last `unfinished` (0 or 1) of them."""
        raise NotImplementedError

    def state_at(self, epoch: int) -> dict[str, Any]:
        """Returns the state at the start of an epoch."""
        raise NotImplementedError

    def load(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration be the rest of the one that was saved; if nothing is left of it, the next epoch.

        Raises:
            CallError: It is not a state, or was saved over other data or in another order; names the difference.
        """
        raise NotImplementedError

    def begin(self) -> int:
        """Begin the next iteration, which ends the one before. Returns its turn, for `check`."""
        if self._has_begun:
            self._move(self._following())
        self.end()
        self.is_loaded, self._has_begun = False, True
        return self.turn

    def end(self) -> None:
        """Let a running iterator end."""
        self.turn += 1

    def check(self, turn: int) -> None:
        """Raise CallError unless it is still that turn: two iterators would take samples from each other."""
        if turn != self.turn:
            raise CallError(
                "this iterator has ended: its loader was iterated over again, closed, or moved by set_epoch or "
                "load_state_dict"
            )

    def go_to(self, epoch: int) -> None:
        """Let the next iteration be an epoch from its start, and the following ones the epochs after it."""
        self._move(self.epochs.start(epoch))
        self.repeats_epoch = False

    def _following(self) -> Cursor:
        """Returns where the iteration after the one at hand begins."""
        return self.epochs.next_pass(self._last) if self.repeats_epoch else self.epochs.next_epoch(self.start)

    def _move(self, start: Cursor) -> None:
        """Let the next iteration begin at a cursor."""
        self.start = self._last = start
        self.is_loaded = self._has_begun = False
        self.end()


class BatchPosition(EpochPosition):
    """Where a `ShardLoader` is: an iteration is one pass, and a step gives one batch.

    Attributes:
        taken: Number of steps that the trainer got since `start`.
    """

    def __init__(self, epochs: Epochs, rank: int) -> None:
        super().__init__(epochs, rank)
        self.taken = 0
        self._num_before = 0  # samples of the iterations before

    @property
    def steps(self) -> int:
        """See `EpochPosition`."""
        return self.start.steps + self.taken

    @property
    def num_samples(self) -> int:
        """Number of samples that the trainer has got on this rank in all epochs, filler included."""
        rest, last = self.epochs.rest(self.start), self.taken - 1  # only the last step may be shorter
        taken = last * rest.share_size(0, self.rank) + rest.share_size(last, self.rank) if self.taken else 0
        return self._num_before + taken

    def length(self) -> int:
        """See `EpochPosition`."""
        return self.start.steps + len(self.epochs.rest(self.start))

    def state(self, *, unfinished: int = 0) -> dict[str, Any]:
        """See `EpochPosition`."""
        return self.start.advanced(max(0, self.taken - unfinished), self.epochs.batch).to_dict()

    def state_at(self, epoch: int) -> dict[str, Any]:
        """See `EpochPosition`."""
        return self.epochs.start(epoch).to_dict()

    def load(self, state: Mapping[str, Any]) -> None:
        """See `EpochPosition`."""
        saved = self.epochs.resumed(state)
        num_passes = saved.epoch // PASSES + 1
        if saved.steps > num_passes * saved.num_samples:
            passes = counted(num_passes, "pass", "passes")
            raise changed_cursor(f"{saved.steps} steps in {passes} over {saved.num_samples} samples")
        is_over = len(self.epochs.rest(saved)) == 0 and saved.steps > 0
        self._move(self.epochs.next_epoch(saved) if is_over else saved)
        self.is_loaded = True

    def resumed(self) -> Self:
        """Returns a copy that goes on where this position is, and counts samples from 0."""
        found = copy(self)
        found.load(self.state())
        found._num_before = 0
        return found

    def _move(self, start: Cursor) -> None:
        self._num_before = self.num_samples
        super()._move(start)
        self.taken = 0
