"""How far an epoch is consumed, and how the rest of it is shared out: arithmetic, the same on every rank."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dray.loaders.order.permutation import Order
from dray.shards.arguments import as_bool, as_int, as_seed
from dray.shards.errors import CallError

FORMAT = 1
PASSES = 1 << 32  # pass p of epoch e has the order of epoch e + p * PASSES: it does not disturb the next epoch


class Remainder(StrEnum):
    """What becomes of the samples that do not fill the last global batch."""

    DROP = "drop"
    PAD = "pad"
    KEEP = "keep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A place in an epoch: rank-free, JSON-able, some 200 bytes.

    It names the data and the order, and counts what the trainer consumed, so it may be opened with another number of
    ranks, workers or samples a batch.

    Attributes:
        dataset: Digest of the version's manifest.
        version: Its number, to open it again.
        num_samples: Of an epoch.
        shuffle: Whether the order is permuted.
        seed: Of the order, as are
        epoch: from 0,
        lanes: kept to the epoch's end whatever the batch size is after a resume,
        block: in samples, and
        window_rows: of the permutation among neighbours.
        consumed: Samples, over all ranks.
        steps: Taken in this epoch.
    """

    dataset: str
    version: int
    num_samples: int
    shuffle: bool
    seed: int
    epoch: int
    lanes: int
    block: int
    window_rows: int
    consumed: int = 0
    steps: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Cursor":
        """Read one from a checkpoint.

        Raises:
            CallError: It is no cursor of a format that this version of dray knows, or a value in it is impossible.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or values.keys() != {"format", *names} or values["format"] != FORMAT:
            raise CallError(f"not a cursor of format {FORMAT}: {values!r:.300}; was it saved by a newer dray?")
        try:
            found = cls(**{name: _CHECKS.get(name, _as_count)(name, values[name]) for name in names})
        except CallError as exc:
            raise CallError(f"a cursor that dray did not save, or that was changed since: {exc}") from exc
        if found.consumed > found.num_samples:
            raise CallError(
                f"a cursor that dray did not save, or that was changed since: consumed {found.consumed} of "
                f"{found.num_samples} samples"
            )
        return found

    def order(self) -> Order:
        """The epoch's order."""
        return Order(
            num_samples=self.num_samples,
            lanes=self.lanes,
            block=self.block,
            seed=self.seed,
            epoch=self.epoch,
            window_rows=self.window_rows,
            shuffle=self.shuffle,
        )

    def advanced(self, steps: int, batch: int) -> "Cursor":
        """After so many more steps of a global batch."""
        consumed = min(self.num_samples, self.consumed + steps * batch)
        return replace(self, consumed=consumed, steps=self.steps + steps)

    def check_same(self, other: "Cursor") -> None:
        """Refuse to go on in another epoch than one's own.

        Raises:
            CallError: Names what differs.
        """
        differing = [
            f"{name}: {getattr(self, name)!r} in the checkpoint, {getattr(other, name)!r} here"
            for name in ("dataset", "num_samples", "shuffle", "seed", "window_rows")
            if getattr(self, name) != getattr(other, name)
        ]
        if differing:
            raise CallError(
                f"the checkpoint was saved in another epoch than this loader's ({'; '.join(differing)}): open the "
                f"loader with version={self.version} and the same seed, or do not load its state"
            )


def _as_count(name: str, value: object) -> int:
    return as_int(name, value, 1 if name in ("lanes", "block", "window_rows") else 0)


def _as_digest(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise CallError(f"{name}={value!r:.100}: expected a digest")
    return value


_CHECKS: Mapping[str, Callable[[str, object], Any]] = {"dataset": _as_digest, "shuffle": as_bool, "seed": as_seed}


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank takes in one step.

    Attributes:
        positions: (m,) of the epoch; for filler those of samples that were taken before.
        num_valid: The first so many are samples of this step, the others filler.
    """

    positions: NDArray[np.int64]
    num_valid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """The rest of an epoch, in steps that are equal on every rank.

    Attributes:
        num_samples: Of the epoch.
        consumed: By the steps before.
        batch: Samples a step, over all ranks.
        num_ranks: That share them.
        remainder: What becomes of the last samples, fewer than a batch.
    """

    num_samples: int
    consumed: int
    batch: int
    num_ranks: int
    remainder: Remainder

    def __len__(self) -> int:
        """Steps."""
        left = self.num_samples - self.consumed
        return left // self.batch if self.remainder == Remainder.DROP else -(-left // self.batch)

    def share(self, step: int, rank: int) -> Share:
        """What a rank takes in a step of the rest, from 0.

        A short last batch is shared out evenly where it is kept: a rank may get nothing. Where it is padded every rank
        has its full number, and filler repeats the samples of the epoch's beginning.
        """
        start, stop = self._bounds(step, rank)
        positions = np.arange(start, stop)
        if stop > self.num_samples:
            positions %= self.num_samples
        return Share(positions, max(0, min(stop, self.num_samples) - start))

    def share_size(self, step: int, rank: int) -> int:
        """Samples, filler included, that a rank takes in a step."""
        start, stop = self._bounds(step, rank)
        return stop - start

    def _bounds(self, step: int, rank: int) -> tuple[int, int]:
        first = self.consumed + step * self.batch
        size = min(self.batch, self.num_samples - first) if self.remainder == Remainder.KEEP else self.batch
        return first + rank * size // self.num_ranks, first + (rank + 1) * size // self.num_ranks
