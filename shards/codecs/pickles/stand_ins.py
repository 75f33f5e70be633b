"""Stand-ins for the names that a safe pickle may use; here those of plain Python.

A pickle builds its values by naming functions and classes and calling them. Here every name of the safe list maps
to a `Global`: an inert stand-in whose `call` is a function of ours. It checks its arguments (types, shapes, sizes
against the bytes that are really there) and only then builds the value, so no argument that a pickle can write makes
numpy or torch read outside a buffer. What a name does here is what it does in `pickle`, or a refusal.
`pickles.numpy_names` and `pickles.torch_names` have the names of numpy and torch.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dray.shards.errors import RefusedError

MAX_BYTES = 4 << 30
"""No part is larger than the largest shard: 4 GiB. Arrays and views that claim more are lies."""


@dataclass(frozen=True, slots=True)
class Global:
    """An inert stand-in for a function or class: data can carry it about, but only the machine calls it."""

    name: str
    """The full name, as a pickle writes it: `torch._utils._rebuild_tensor_v2`."""
    call: Callable[..., Any] | None = None
    """What REDUCE does with it; None: it only serves as an argument."""
    hashes: bool = False
    """Whether `call` hashes the items of its first argument; the machine checks them first."""


def require(condition: bool, expected: str) -> None:
    """Raise RefusedError unless `condition` holds; `expected` says what should have been there."""
    if not condition:
        raise RefusedError(f"refused pickle: expected {expected}")


def shape_product(shape: Any) -> int:
    """The number of elements of a checked `shape`: a tuple of up to 64 non-negative ints."""
    require(isinstance(shape, tuple) and len(shape) <= 64, "a shape of up to 64 dimensions")
    require(all(type(n) is int and n >= 0 for n in shape), "a shape of non-negative ints")
    return math.prod(shape)


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, as protocols 0 to 2 write them: text in Latin-1."""
    require(type(text) is str and encoding in ("latin1", "latin-1"), "text in latin1")
    return text.encode("latin-1")


def _bytes() -> bytes:
    return b""


def _bytearray(data: bytes | str = b"", encoding: str = "latin-1") -> bytearray:
    if type(data) is str:
        return bytearray(_encode(data, encoding))
    if type(data) is not bytes:
        raise RefusedError("refused pickle: expected bytes for a bytearray")
    return bytearray(data)


def _complex(real: float, imag: float) -> complex:
    require(type(real) is float and type(imag) is float, "two floats for a complex")
    return complex(real, imag)


def _set(items: list[Any]) -> set[Any]:
    require(type(items) is list, "a list of a set's items")
    return set(items)


def _frozenset(items: list[Any]) -> frozenset[Any]:
    require(type(items) is list, "a list of a frozenset's items")
    return frozenset(items)


def _ordered_dict() -> "OrderedDict[Any, Any]":
    return OrderedDict()


def _build_ordered_dict(target: "OrderedDict[Any, Any]", state: Any) -> None:
    """Set the attributes of an OrderedDict: a state_dict has `_metadata`."""
    require(type(state) is dict, "a dict of attributes")
    require(all(type(name) is str and not name.startswith("__") for name in state), "attribute names")
    vars(target).update(state)


PLAIN_TYPES: dict[str, Any] = {
    "builtins.bytes": Global("builtins.bytes", _bytes),
    "builtins.bytearray": Global("builtins.bytearray", _bytearray),
    "builtins.complex": Global("builtins.complex", _complex),
    "builtins.set": Global("builtins.set", _set, hashes=True),
    "builtins.frozenset": Global("builtins.frozenset", _frozenset, hashes=True),
    "collections.OrderedDict": Global("collections.OrderedDict", _ordered_dict),
}
"""Types of the language: a caller who allows one gets the real one, to use as a value."""

PLAIN_FUNCTIONS: dict[str, Any] = {"_codecs.encode": Global("_codecs.encode", _encode)}
"""Functions of the language: always ours, whatever a caller allows."""

PLAIN_BUILDERS: dict[type, Callable[[Any, Any], None]] = {OrderedDict: _build_ordered_dict}
"""What BUILD does to a plain value, by its type."""
