"""Position of a DataModule's loader in its epochs, counted in outputs of its last pipeline."""

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

SAMPLES_AHEAD = 1  # maximum number of samples that the last pipeline may take ahead of an output in an exact state
MAX_HELD = 1024  # maximum number of chunk ends kept without an output; a pipeline that holds more is inexact anyway


@dataclass(frozen=True, slots=True)
class OutputPlace:
    """A place in an epoch; equal on all ranks if the pipelines yield one output per chunk.

    Attributes:
        cursor: Cursor after the last chunk that has an output, if that chunk was handed out completely.
        outputs: Number of outputs of the last pipeline in this epoch.
        covered: Number of samples, over all ranks, that these outputs cover.
    """

    cursor: Cursor
    outputs: int = 0
    covered: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Returns a state for a checkpoint, JSON-able and small."""
        return {**HEADER, "cursor": self.cursor.to_dict(), "outputs": self.outputs, "covered": self.covered}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], epochs: Epochs) -> "OutputPlace":
        """Returns the place that a checkpoint holds.

        Raises:
            CallError: The state is invalid, or was saved for other data or another order.
        """
        check_state("state", state, ("cursor", "outputs", "covered"))
        outputs, covered = (as_int(f"the state's {name}", state[name]) for name in ("outputs", "covered"))
        return cls(epochs.resumed(state["cursor"]), outputs, covered)


class OutputPosition(EpochPosition):
    """Position of one rank's loader: an iteration takes one pass or several, and a step yields one output.

    Copies of the loader share it.

    Args:
        epochs: The loader's epochs.
        rank: Rank whose position this is.
        num_samples: Number of samples that count as an epoch; None: an epoch is one pass.

    Attributes:
        goal: Number of outputs of a whole epoch; None: the outputs of one pass.
        handed: Number of the workers' outputs that the last pipeline took in this epoch.
    """

    _here: OutputPlace
    _before: OutputPlace  # the place before the last output

    def __init__(self, epochs: Epochs, rank: int, num_samples: int | None) -> None:
        super().__init__(epochs, rank)
        self._num_samples = num_samples
        self._has_warned = False
        self.goal: int | None = None
        self._count_from(OutputPlace(self.start))

    @property
    def steps(self) -> int:
        """Number of steps; see `EpochPosition`."""
        return self._here.outputs

    def next_pass(self) -> Pass:
        """Returns the next pass of the epoch, beginning with the rest of the resumed one."""
        cursor = self._last
        if self._passes or not len(self.epochs.rest(cursor)):
            cursor = replace(self.epochs.next_pass(cursor), steps=cursor.steps)
        self._passes += 1
        return self.epochs.pass_from(cursor, self.rank)

    def end_chunk(self, cursor: Cursor, *, is_exact: bool) -> None:
        """Record that the last pipeline took all outputs of a chunk, and whether these were exact."""
        self._last = cursor
        self._ends.append((cursor, self.handed))
        self._is_exact &= is_exact

    def count_output(self) -> None:
        """Record that the trainer got another output, and count it for the first chunk that had none.

        It is exact if that chunk was handed out completely, and at most one sample of the next: webdataset's `batched`
        takes one sample ahead.
        """
        here = self._here
        cursor, handed = self._ends.popleft() if self._ends else (here.cursor, -SAMPLES_AHEAD - 1)
        self._is_exact &= self.handed - handed <= SAMPLES_AHEAD
        self._before = here
        self._here = OutputPlace(cursor, here.outputs + 1, here.covered + self.epochs.batch)

    def left(self) -> int | None:
        """Returns the number of outputs left in the epoch; None if the passes decide."""
        return self._left(self._here)

    def length(self) -> int | None:
        """Returns the number of outputs of the current epoch or, after its end, of the next one.

        Outputs before a resume are included; None if the number is unknown.
        """
        place = OutputPlace(self._following()) if self._has_begun and self._is_over(self._here) else self._here
        left = self._left(place)
        return None if left is None else place.outputs + left

    def state(self, *, unfinished: int = 0) -> dict[str, Any]:
        """See `EpochPosition`."""
        here = self._before if unfinished else self._here
        if here.outputs and not (self._is_exact or self._has_warned or self._is_over(here)):
            self._has_warned = True
            warnings.warn(
                "a checkpoint inside an epoch whose pipelines do not yield one output for each sample or for each "
                "chunk (ceil(global_batch_size / ranks) samples): samples that they hold back, in a shuffle buffer "
                "for example, are lost or repeated after a resume; kwargs_wds={'shardshuffle': True} shuffles without "
                "a buffer",
                stacklevel=2,
            )
        return here.to_dict()

    def state_at(self, epoch: int) -> dict[str, Any]:
        """See `EpochPosition`."""
        return OutputPlace(self.epochs.start(epoch)).to_dict()

    def load(self, state: Mapping[str, Any]) -> None:
        """See `EpochPosition`."""
        place = OutputPlace.from_dict(state, self.epochs)
        if self._is_over(place):
            self._move(self.epochs.next_epoch(place.cursor))
        else:
            self._move(place.cursor)
            self._count_from(place)
        self.is_loaded = True

    def _move(self, start: Cursor) -> None:
        super()._move(start)
        self._count_from(OutputPlace(start))

    def _count_from(self, place: OutputPlace) -> None:
        self._here = self._before = place
        self._ends: deque[tuple[Cursor, int]] = deque(maxlen=MAX_HELD)  # chunks without an output; `handed`
        self._is_exact: bool = True
        self._passes = 0
        self.handed: int = 0

    def _left(self, place: OutputPlace) -> int | None:
        if self.goal is None:
            return None
        if self._num_samples is None:
            return max(0, self.goal - place.outputs)
        steps = -(-self._num_samples // self.epochs.batch)  # the goal, unless the user called `with_epoch`
        return max(0, -((place.covered - self._num_samples) // self.epochs.batch) + self.goal - steps)

    def _is_over(self, place: OutputPlace) -> bool:
        left = len(self.epochs.rest(place.cursor)) if self.goal is None else self._left(place)
        return place.outputs > 0 and left == 0
