"""How far an epoch is consumed, and how the rest of it is shared out: arithmetic, the same on every rank."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from dray.loaders.order.permutation import Order
from dray.shards.arguments import as_bool, as_int, as_seed
from dray.shards.errors import CallError

FORMAT = 1
PASSES = 1 << 32  # pass p of epoch e has the order of epoch e + p * PASSES: it does not disturb the next epoch


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

    def differences(self, other: "Cursor") -> list[str]:
        """Returns what makes this cursor, of a checkpoint, unusable where `other` is: data and order must agree."""
        return [
            f"{name}: {getattr(self, name)!r} in the checkpoint, {getattr(other, name)!r} here"
            for name in ("dataset", "num_samples", "shuffle", "seed", "window_rows")
            if getattr(self, name) != getattr(other, name)
        ]


def _as_count(name: str, value: object) -> int:
    return as_int(name, value, 1 if name in ("lanes", "block", "window_rows") else 0)


def _as_digest(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise CallError(f"{name}={value!r:.100}: expected a digest")
    return value


_CHECKS: Mapping[str, Callable[[str, object], Any]] = {"dataset": _as_digest, "shuffle": as_bool, "seed": as_seed}
