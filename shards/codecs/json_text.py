"""`.json`: None, numbers, text, and lists and dicts of these, as UTF-8."""

import json
import math
from types import NoneType
from typing import Any

from dray.shards.codecs.unfit import UnfitError, check_size, check_text, type_name

MAX_DEPTH = 100  # nested lists and dicts that every JSON reader accepts
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1  # every JSON reader takes 64-bit integers exactly, signed or unsigned


def as_json(value: Any, max_bytes: int) -> bytes:
    """Return JSON that reads back as the same value.

    Args:
        value: The value to store.
        max_bytes: Maximum size of the JSON.

    Raises:
        UnfitError: JSON would change the value: a tuple, a key that is not a string, NaN, an integer of more than 64
            bits, half a surrogate pair, None at the top (readers take it for "no value"); or it is too large.
    """
    if value is None:
        raise UnfitError("None alone means that there is no value, and readers would return the bytes instead")
    _check_plain(value, max_bytes)
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    check_size(len(data), max_bytes)
    return data


def _check_plain(value: Any, max_values: int) -> None:
    """Refuse what JSON would change, layer by layer; the count stops lists that a small pickle repeats endlessly."""
    layer: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in layer:
            _check_item(item)
            if type(item) in (list, dict):
                max_values -= len(item)
                check_size(-max_values, 0)
                inner += item if type(item) is list else item.values()
        if not inner:
            return
        layer = inner
    raise UnfitError(f"it is nested more than {MAX_DEPTH} deep")


def _check_item(item: Any) -> None:
    """Refuse one value, without its content."""
    kind = type(item)
    if kind is str:
        check_text(item, "text")
    elif kind is dict:
        for key in item:
            check_text(key, "a key")
    elif kind is int:
        if not _MIN_INT <= item <= _MAX_INT:
            raise UnfitError("an integer in it has more than 64 bits")
    elif kind is float:
        if not math.isfinite(item):
            raise UnfitError(f"JSON has no {item}")
    elif kind not in (list, bool, NoneType):
        raise UnfitError(f"{type_name(item)} would come back as something else, or not at all")
