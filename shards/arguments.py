"""Checks of arguments: each returns a plain Python value, or raises an error that names the argument."""

import numbers
from operator import index

import numpy as np

from dray.shards.errors import CallError

MOST = 1 << 62  # the sum of two still fits an int64


def as_int(name: str, value: object, least: int = 0) -> int:
    """Returns an integer argument as an int.

    Args:
        name: The argument's name, for the message.
        value: An int, a numpy integer, or anything else with `__index__`; a bool is not an integer.
        least: Smallest allowed value.

    Raises:
        CallError: It is not an integer, or out of range.
    """
    number = _index(value)
    if number is None or number < least:
        raise CallError(f"{name}={_shown(value)}: expected an integer of at least {least}")
    if number > MOST:
        raise CallError(f"{name}={_shown(value)}: expected an integer of at most {MOST}")
    return number


def as_seed(name: str, value: object) -> int:
    """Returns a seed as an int: any integer, of any size and sign.

    Raises:
        CallError: It is not an integer.
    """
    number = _index(value)
    if number is None:
        raise CallError(f"{name}={_shown(value)}: expected an integer")
    return number


def as_seconds(name: str, value: object) -> float:
    """Returns a number of seconds as a float.

    Raises:
        CallError: It is not a number, or negative.
    """
    seconds = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else -1.0
    if not seconds >= 0:  # nor is NaN
        raise CallError(f"{name}={_shown(value)}: expected a number of seconds, 0 or more")
    return seconds


def as_bool(name: str, value: object) -> bool:
    """Returns a flag as a bool; numpy's bools count, other true or false values do not.

    Raises:
        CallError: It is not a bool.
    """
    if not isinstance(value, bool | np.bool_):
        raise CallError(f"{name}={_shown(value)}: expected True or False")
    return bool(value)


def _index(value: object) -> int | None:
    """Returns what `__index__` gives; None for a bool and for what is not an integer."""
    try:
        return None if isinstance(value, bool) else index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:100]}..."
