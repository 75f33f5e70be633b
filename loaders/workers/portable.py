"""Pickles values together with the lambdas and local functions in them."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Generic, TypeVar

import cloudpickle

T = TypeVar("T")


class Portable(Generic[T]):
    """Holds a value that is sent to spawned processes by cloudpickle; callable if the value is a function.

    Args:
        value: Value that may refer to the user's functions.
    """

    def __init__(self, value: T) -> None:
        self.value = value

    def __call__(self: "Portable[Callable[..., Any]]", *args: Any) -> Any:
        """Returns what the function returns."""
        return self.value(*args)

    def __reduce__(self) -> tuple[Callable[[bytes], "Portable[T]"], tuple[bytes]]:
        return _restored, (cloudpickle.dumps(self.value),)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Portable[T]":
        return Portable(deepcopy(self.value, memo))


def _restored(pickled: bytes) -> Portable[Any]:
    return Portable(cloudpickle.loads(pickled))
