"""How far an epoch has been consumed: a small value for checkpoints, the same on every rank."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from dray.loaders.order.permutation import ALGORITHM, Order
from dray.shards.arguments import as_bool, as_int, as_seed
from dray.shards.errors import CallError
from dray.shards.parsing.records import FORMAT, HEADER, FormatError, check_format

PASSES = 1 << 32  # pass p of epoch e has the order of epoch e + p * PASSES, which no other epoch has


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A place in an epoch: JSON-able, about 300 bytes, equal on all ranks.

    It names the data and the order and counts what the trainer consumed, so training can be resumed with another number
    of ranks or workers, or another batch size.

    Attributes:
        dataset: Digest of the version's manifest.
        version: Number of the version.
        num_samples: Number of samples in an epoch.
        shuffle: Whether the order is permuted.
        seed: Seed of the order.
        epoch: Number of the epoch, from 0, plus `PASSES` for each further pass over the data in it.
        lanes: Lanes of the order; kept to the end of the epoch, whatever the batch size is after a resume.
        block: Samples per block of the order; kept likewise.
        consumed: Samples consumed in this pass, over all ranks.
        steps: Steps taken in this epoch.
    """

    dataset: str
    version: int
    num_samples: int
    shuffle: bool
    seed: int
    epoch: int
    lanes: int
    block: int
    consumed: int = 0
    steps: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Returns the cursor as JSON-able values for a checkpoint; docs/format.md specifies them."""
        return {**HEADER, "order": ALGORITHM, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Cursor":
        """Returns the cursor that a checkpoint holds.

        Raises:
            CallError: This version of dray cannot read it, or a value in it is out of range.
        """
        names = [field.name for field in fields(cls)]
        check_state("cursor", values, [*names, "order"])
        if values["order"] != ALGORITHM:
            raise CallError(
                f"the cursor in the checkpoint uses the order {values['order']!r:.80}, and this version of dray knows "
                f"only {ALGORITHM!r}: upgrade dray"
            )
        try:
            found = cls(**{name: _CHECKS.get(name, _as_count)(name, values[name]) for name in names})
        except CallError as exc:
            raise changed_cursor(str(exc)) from exc
        if found.consumed > found.num_samples:
            raise changed_cursor(f"consumed {found.consumed} of {found.num_samples} samples")
        return found

    def order(self) -> Order:
        """Returns the order of the epoch."""
        return Order(
            num_samples=self.num_samples,
            lanes=self.lanes,
            block=self.block,
            seed=self.seed,
            epoch=self.epoch,
            shuffle=self.shuffle,
        )

    def advanced(self, steps: int, batch: int) -> "Cursor":
        """Returns the cursor after a number of further steps of `batch` samples."""
        consumed = min(self.num_samples, self.consumed + steps * batch)
        return replace(self, consumed=consumed, steps=self.steps + steps)

    def differences(self, other: "Cursor") -> list[str]:
        """Returns the fields of data and order in which this cursor, of a checkpoint, differs from a loader's own."""
        return [
            f"{name}: {getattr(self, name)!r} in the checkpoint, {getattr(other, name)!r} here"
            for name in ("dataset", "num_samples", "shuffle", "seed")
            if getattr(self, name) != getattr(other, name)
        ]


def changed_cursor(problem: str) -> CallError:
    """Returns the error for a cursor whose values cannot be true."""
    return CallError(f"a cursor that dray did not save, or that was changed since: {problem}")


def check_state(what: str, values: object, names: Iterable[str]) -> None:
    """Check that a loader's state from a checkpoint has these fields and a format that this version of dray reads.

    Raises:
        CallError: It has not; the message says what to do.
    """
    if not isinstance(values, Mapping) or "format" not in values:
        raise CallError(f"not a {what} that dray saved: {values!r:.300}")
    try:
        check_format(values)
    except FormatError as exc:
        if values["format"] >= FORMAT:
            raise CallError(f"the {what} in the checkpoint: {exc}") from exc
        raise CallError(
            f"the {what} in the checkpoint has format {values['format']}, which an older dray saved; this one reads "
            f"{FORMAT}: resume with that version of dray, or do not load its state and begin with a whole epoch"
        ) from exc
    except ValueError as exc:
        raise CallError(f"not a {what} that dray saved: {exc}") from exc
    if missing := {*names} - values.keys():
        raise CallError(f"not a {what} that dray saved: it lacks {', '.join(sorted(missing))}; found {values!r:.300}")


def _as_count(name: str, value: object) -> int:
    return as_int(name, value, 1 if name in ("lanes", "block") else 0)


def _as_digest(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise CallError(f"{name}={value!r:.100}: expected a digest")
    return value


_CHECKS: Mapping[str, Callable[[str, object], Any]] = {"dataset": _as_digest, "shuffle": as_bool, "seed": as_seed}
