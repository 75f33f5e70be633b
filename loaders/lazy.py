"""A property that is computed once, without a lock.

Before Python 3.12, `functools.cached_property` holds a lock per class while it computes. A child that is forked in the
meantime would wait for this lock forever. Here, two threads may both compute the value, and one result is kept.
"""

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

T = TypeVar("T")


class lazy(Generic[T]):  # noqa: N801  it is used as a decorator
    """Property that is computed at the first access and stored in the instance's `__dict__`.

    Args:
        compute: Method that computes the value.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> T | Self:
        if instance is None:
            return self
        found = instance.__dict__[self._name] = self._compute(instance)
        return found
