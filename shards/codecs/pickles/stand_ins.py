"""Stand-ins for the names that a safe pickle may use: those of Python itself.

A pickle builds its values by naming functions and classes and calling them. Here every name of the safe list maps to a
`Global`, an inert stand-in whose `call` is a function of this package. It checks its arguments (types, shapes, and
sizes against the bytes that are there) before it builds the value, so no pickle can make numpy or torch read outside a
buffer. A call returns what it returns in `pickle`, or is refused. `pickles.numpy_names`, `pickles.torch_names` and
`pickles.graph_names` have the names of numpy, torch and PyTorch Geometric.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dray.shards.errors import RefusedError

MAX_BYTES = 4 << 30
"""Maximum size of a part, which is that of a shard; arrays and views that claim more are refused."""


@dataclass(frozen=True, slots=True)
class Global:
    """An inert stand-in for a function or class; only the machine calls it."""

    name: str
    """Full name as pickles write it: `torch._utils._rebuild_tensor_v2`."""
    call: Callable[..., Any] | None = None
    """Function that REDUCE calls; None if the name is only an argument of calls."""
    hashes: bool = False
    """Whether `call` hashes the items of its first argument, so that the machine must check them first."""


def require(condition: bool, expected: str) -> None:
    """Raise RefusedError unless `condition` is true; `expected` says what the pickle should hold."""
    if not condition:
        raise RefusedError(f"refused pickle: expected {expected}")


def shape_product(shape: Any) -> int:
    """Return the number of elements of `shape`; refuse all but a tuple of up to 64 non-negative ints."""
    require(isinstance(shape, tuple) and len(shape) <= 64, "a shape of up to 64 dimensions")
    require(all(type(n) is int and n >= 0 for n in shape), "a shape of non-negative ints")
    return math.prod(shape)


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes from text in Latin-1, as protocols 0 to 2 write them."""
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
    """Set the attributes of an OrderedDict; a state_dict has `_metadata`."""
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
"""Built-in types: `allow` makes the real type available as a value."""

PLAIN_FUNCTIONS: dict[str, Any] = {"_codecs.encode": Global("_codecs.encode", _encode)}
"""Functions of the standard library, always replaced by those of this package, whatever the caller allows."""

PLAIN_BUILDERS: dict[type, Callable[[Any, Any], None]] = {OrderedDict: _build_ordered_dict}
"""What BUILD does to a plain value, by its type."""
