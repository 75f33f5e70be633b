"""The splits train, val and test."""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, TypeVar, overload

from dray.shards.errors import CallError

Value = TypeVar("Value")


class Split(Enum):
    """Name of a split; each split is one dataset."""

    train = auto()
    val = auto()
    test = auto()


@overload
def by_split(argument: str, values: Mapping[Any, Value]) -> Mapping[Split, Value]: ...
@overload
def by_split(argument: str, values: Mapping[Any, Value] | None) -> Mapping[Split, Value] | None: ...
def by_split(argument: str, values: Mapping[Any, Value] | None) -> Mapping[Split, Value] | None:
    """Returns the values by `Split`, whose names are accepted as keys as well.

    Raises:
        CallError: A key is not a split, or the same split is named twice; names the argument.
    """
    if values is None or all(isinstance(key, Split) for key in values):
        return values
    found: dict[Split, Value] = {}
    for key, value in values.items():
        split = key if isinstance(key, Split) else Split.__members__.get(key)
        if split is None or split in found:
            expected = ", ".join(f"Split.{name} or {name!r}" for name in Split.__members__)
            raise CallError(f"{argument}: the key {key!r} is not a split, or names one twice: expected {expected}")
        found[split] = value
    return found
