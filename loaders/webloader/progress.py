"""How far a loader of a DataModule has come: what its epoch has given, what is left of it, what a checkpoint says."""

import warnings
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dray.loaders.order.cursor import PASSES, Cursor
from dray.loaders.order.epochs import Epochs
from dray.loaders.order.passes import Pass
from dray.shards.arguments import as_int
from dray.shards.errors import CallError

FORMAT = 1
LOOK_AHEAD = 1  # samples that the last pipeline may take before it gives an output
MOST_HELD = 1024  # chunks without an output: the checkpoints of a pipeline that holds so many are inexact anyway


@dataclass(frozen=True, slots=True)
class Place:
    """A place in an epoch, the same on every rank where the pipelines give one output a chunk.

    Attributes:
        cursor: After the last chunk that was consumed: as many as there were outputs, if these were handed out wholly.
        outputs: Of the last pipeline, in this epoch.
        covered: Samples over all ranks that these stand for.
    """

    cursor: Cursor
    outputs: int = 0
    covered: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"format": FORMAT, "cursor": self.cursor.to_dict(), "outputs": self.outputs, "covered": self.covered}


class Progress:
    """Of one rank's loader; copies of it share this.

    Args:
        epochs: Of its stream.
        rank: Whose stream it is.
        num_samples: What counts as the samples of an epoch; None: an epoch is one pass.

    Attributes:
        goal: Number of outputs of a whole epoch; None: as many as one pass gives.
        is_loaded: Whether a loaded state waits for its first output.
        repeats_epoch: Whether a further iteration is another pass of the same epoch, as a Trainer expects.
    """

    def __init__(self, epochs: Epochs, rank: int, num_samples: int | None) -> None:
        self.epochs = epochs
        self.rank = rank
        self._num_samples = num_samples
        self.handed = 0  # what the workers gave and the last pipeline took, in this epoch
        self.goal: int | None = None
        self.is_loaded = self.repeats_epoch = False
        self._here = self._before = Place(epochs.start(0))  # now, and before the last output
        self._next: Place | None = self._here  # None: what follows the epoch at hand
        self._turn = 0
        self._has_warned = False
        self._begin_at(self._here.cursor)

    @property
    def shuffles(self) -> bool:
        """Whether the order is permuted."""
        return self.epochs.shuffle

    @property
    def epoch(self) -> int:
        """Epoch, from 0, at hand, or the next one where none has begun since the last change."""
        return self._here.cursor.epoch % PASSES

    @property
    def steps(self) -> int:
        """Number of outputs of the epoch that the trainer has got, those before a resume included."""
        return self._here.outputs

    def go_to(self, epoch: int) -> None:
        """Let the next epoch be this one, from its start."""
        self._move(Place(self.epochs.start(epoch)))
        self.repeats_epoch = False

    def end(self) -> None:
        """Let the iterator that runs, if one does, end."""
        self._turn += 1

    def begin(self) -> int:
        """Go to the next epoch, or to where a loaded state says. Returns the turn, for `check`."""
        self._move(self._following())
        self._next = None
        self._begin_at(self._here.cursor)
        return self._turn

    def _move(self, place: Place) -> None:
        self._here = self._before = self._next = place
        self.is_loaded = False
        self.end()

    def _following(self) -> Place:
        """Where the next iteration begins."""
        if self._next is not None:
            return self._next
        if self.repeats_epoch:
            return Place(replace(self.epochs.next_pass(self._end), steps=0))
        return Place(self.epochs.next_epoch(self._here.cursor))

    def _begin_at(self, cursor: Cursor) -> None:
        self._end = cursor  # of the last chunk that was handed out
        self._ends: deque[tuple[Cursor, int]] = deque(maxlen=MOST_HELD)  # without an output as yet, and `handed` there
        self._is_exact = True
        self._passes = self.handed = 0

    def check(self, turn: int) -> None:
        """Raise CallError unless it is still that turn: two iterators of one stream would take from each other."""
        if turn != self._turn:
            raise CallError(
                "this iterator ended when a newer one of its loader began, or when that was told to go on elsewhere, "
                "or was closed"
            )

    def next_pass(self) -> Pass:
        """The next pass of the epoch, or what is left of the first."""
        cursor = self._end
        if self._passes or not len(self.epochs.rest(cursor)):
            cursor = self.epochs.next_pass(cursor)
        self._passes += 1
        return Pass(cursor, self.epochs.rest(cursor), self.rank)

    def end_chunk(self, cursor: Cursor, *, is_exact: bool) -> None:
        """Note that the last pipeline took all that a chunk gave, and whether that was one for each sample, or one."""
        self._end = cursor
        self._ends.append((cursor, self.handed))
        self._is_exact &= is_exact

    def count_output(self) -> None:
        """Note that the trainer has one more: of the first chunk that had none.

        It is exact if that chunk was handed out wholly and of the next one a sample at the most, as webdataset's
        `batched` looks so far ahead.
        """
        here = self._here
        cursor, handed = self._ends.popleft() if self._ends else (here.cursor, -LOOK_AHEAD - 1)
        self._is_exact &= self.handed - handed <= LOOK_AHEAD
        self._before = here
        self._here = Place(cursor, here.outputs + 1, here.covered + self.epochs.batch)

    def left(self) -> int | None:
        """Outputs that are left of the epoch at hand; None: as many as the passes give."""
        return self._left(self._here)

    def length(self) -> int | None:
        """Outputs of the epoch at hand, those that were given before a resume too; after its end, of the next one."""
        place = self._following() if self._is_over(self._here) else self._here
        left = self._left(place)
        return None if left is None else place.outputs + left

    def state(self, *, unfinished: int = 0) -> dict[str, Any]:
        """For a checkpoint: JSON-able and small; with `unfinished=1`, as before the last output."""
        here = self._before if unfinished else self._here
        if here.outputs and not (self._is_exact or self._has_warned or self._is_over(here)):
            self._has_warned = True
            warnings.warn(
                "a checkpoint inside an epoch whose pipelines do not give one output for each sample or for each "
                "chunk (ceil(global_batch_size / ranks) samples): what they hold back, a shuffle buffer say, is lost "
                "or comes again after a resume; kwargs_wds={'shardshuffle': True} shuffles without a buffer",
                stacklevel=2,
            )
        return here.to_dict()

    def state_at(self, epoch: int) -> dict[str, Any]:
        """The state at the start of an epoch."""
        return Place(self.epochs.start(epoch)).to_dict()

    def load(self, state: Mapping[str, Any]) -> None:
        """Let the next epoch be the rest of the one that was saved; where that was over, the one after it.

        Raises:
            CallError: It was saved over other data or with another seed; names the difference.
        """
        names = {"format", "cursor", "outputs", "covered"}
        if not isinstance(state, Mapping) or state.keys() != names or state["format"] != FORMAT:
            raise CallError(f"not a state of format {FORMAT}: {state!r:.300}; was it saved by a newer dray?")
        cursor = Cursor.from_dict(state["cursor"])
        try:
            cursor.check_same(self._here.cursor)
        except CallError as exc:
            raise CallError(
                f"{exc}; a DataModule opens that version by its directory: "
                f"'{self.epochs.snapshot.store.url}?version={cursor.version}'"
            ) from exc
        outputs, covered = (as_int(f"the state's {name}", state[name]) for name in ("outputs", "covered"))
        place = Place(replace(cursor, version=self.epochs.snapshot.version), outputs, covered)
        self._move(Place(self.epochs.next_epoch(cursor)) if self._is_over(place) else place)
        self.is_loaded = True

    def _left(self, place: Place) -> int | None:
        if self.goal is None:
            return None
        if self._num_samples is None:
            return max(0, self.goal - place.outputs)
        steps = -(-self._num_samples // self.epochs.batch)  # where no method of webdataset changed the goal
        return max(0, -((place.covered - self._num_samples) // self.epochs.batch) + self.goal - steps)

    def _is_over(self, place: Place) -> bool:
        left = len(self.epochs.rest(place.cursor)) if self.goal is None else self._left(place)
        return place.outputs > 0 and left == 0
