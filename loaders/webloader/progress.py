"""Where a DataModule's loader is in its epochs, by the outputs of its last pipeline."""

import warnings
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dray.loaders.order.cursor import Cursor, check_state
from dray.loaders.order.epochs import Epochs
from dray.loaders.order.passes import Pass
from dray.loaders.order.position import EpochPosition
from dray.shards.arguments import as_int
from dray.shards.parsing.records import HEADER

LOOK_AHEAD = 1  # most samples that the last pipeline may take before an output for the state to be exact
MAX_HELD = 1024  # most chunks without an output whose ends are kept: a pipeline that holds more is inexact anyway


@dataclass(frozen=True, slots=True)
class Place:
    """A place in an epoch: the same on every rank if the pipelines give one output for each chunk.

    Attributes:
        cursor: Cursor after the last chunk that has an output, if that chunk was handed out wholly.
        outputs: Number of outputs of the last pipeline in this epoch.
        covered: Number of samples, over all ranks, that these outputs stand for.
    """

    cursor: Cursor
    outputs: int = 0
    covered: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Returns a state for a checkpoint, JSON-able and small."""
        return {**HEADER, "cursor": self.cursor.to_dict(), "outputs": self.outputs, "covered": self.covered}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], epochs: Epochs) -> "Place":
        """Returns the place that a checkpoint holds.

        Raises:
            CallError: It is not such a state, or was saved over other data or in another order.
        """
        check_state("state", state, ("cursor", "outputs", "covered"))
        outputs, covered = (as_int(f"the state's {name}", state[name]) for name in ("outputs", "covered"))
        return cls(epochs.resumed(state["cursor"]), outputs, covered)


class Progress(EpochPosition):
    """Where one rank's loader is: an iteration takes one pass or several, and a step gives one output.

    Copies of the loader share it.

    Args:
        epochs: The loader's epochs.
        rank: Rank whose position this is.
        num_samples: Number of samples that count as an epoch; None: an epoch is one pass.

    Attributes:
        goal: Number of outputs of a whole epoch; None: as many as one pass gives.
        handed: Number of the workers' outputs that the last pipeline took in this epoch.
    """

    _here: Place
    _before: Place  # the same without the last output

    def __init__(self, epochs: Epochs, rank: int, num_samples: int | None) -> None:
        super().__init__(epochs, rank)
        self._num_samples = num_samples
        self._has_warned = False
        self.goal: int | None = None
        self._count_from(Place(self.start))

    @property
    def steps(self) -> int:
        """See `EpochPosition`."""
        return self._here.outputs

    def next_pass(self) -> Pass:
        """Returns the next pass of the epoch: at first what is left of the one that was resumed."""
        cursor = self._last
        if self._passes or not len(self.epochs.rest(cursor)):
            cursor = replace(self.epochs.next_pass(cursor), steps=cursor.steps)
        self._passes += 1
        return self.epochs.pass_from(cursor, self.rank)

    def end_chunk(self, cursor: Cursor, *, is_exact: bool) -> None:
        """Note that the last pipeline took all that a chunk gave, and whether that was one for each sample, or one."""
        self._last = cursor
        self._ends.append((cursor, self.handed))
        self._is_exact &= is_exact

    def count_output(self) -> None:
        """Note that the trainer got another output, and count it for the first chunk that had none.

        It is exact if that chunk was handed out wholly, and at most one sample of the next: webdataset's `batched`
        takes a sample ahead.
        """
        here = self._here
        cursor, handed = self._ends.popleft() if self._ends else (here.cursor, -LOOK_AHEAD - 1)
        self._is_exact &= self.handed - handed <= LOOK_AHEAD
        self._before = here
        self._here = Place(cursor, here.outputs + 1, here.covered + self.epochs.batch)

    def left(self) -> int | None:
        """Returns the number of outputs that are left of the epoch; None: as many as the passes give."""
        return self._left(self._here)

    def length(self) -> int | None:
        """Returns the number of outputs of the epoch at hand or, after its end, of the next one.

        Those before a resume count; None: it is unknown.
        """
        place = Place(self._following()) if self._has_begun and self._is_over(self._here) else self._here
        left = self._left(place)
        return None if left is None else place.outputs + left

    def state(self, *, unfinished: int = 0) -> dict[str, Any]:
        """See `EpochPosition`."""
        here = self._before if unfinished else self._here
        if here.outputs and not (self._is_exact or self._has_warned or self._is_over(here)):
            self._has_warned = True
            warnings.warn(
                "a checkpoint inside an epoch whose pipelines do not give one output for each sample or for each "
                "chunk (ceil(global_batch_size / ranks) samples): samples that they hold back, in a shuffle buffer "
                "for example, are lost or repeated after a resume; kwargs_wds={'shardshuffle': True} shuffles without "
                "a buffer",
                stacklevel=2,
            )
        return here.to_dict()

    def state_at(self, epoch: int) -> dict[str, Any]:
        """See `EpochPosition`."""
        return Place(self.epochs.start(epoch)).to_dict()

    def load(self, state: Mapping[str, Any]) -> None:
        """See `EpochPosition`."""
        place = Place.from_dict(state, self.epochs)
        if self._is_over(place):
            self._move(self.epochs.next_epoch(place.cursor))
        else:
            self._move(place.cursor)
            self._count_from(place)
        self.is_loaded = True

    def _move(self, start: Cursor) -> None:
        super()._move(start)
        self._count_from(Place(start))

    def _count_from(self, place: Place) -> None:
        self._here = self._before = place
        self._ends: deque[tuple[Cursor, int]] = deque(maxlen=MAX_HELD)  # of chunks without an output; `handed` there
        self._is_exact: bool = True
        self._passes = 0
        self.handed: int = 0

    def _left(self, place: Place) -> int | None:
        if self.goal is None:
            return None
        if self._num_samples is None:
            return max(0, self.goal - place.outputs)
        steps = -(-self._num_samples // self.epochs.batch)  # the goal unless the user changed it by with_epoch
        return max(0, -((place.covered - self._num_samples) // self.epochs.batch) + self.goal - steps)

    def _is_over(self, place: Place) -> bool:
        left = len(self.epochs.rest(place.cursor)) if self.goal is None else self._left(place)
        return place.outputs > 0 and left == 0
