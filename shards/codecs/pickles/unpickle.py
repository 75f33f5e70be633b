"""Unpickle tensors, arrays, numbers, text and containers of these; refuse everything else before it runs.

Three readers, the fastest that fits. `pickles.layout` reads a single contiguous tensor or array in about 4 us (where
`pickle` takes 60 for a tensor and 3 for an array). The C unpickler reads containers of plain values, arrays and
tensors, once `pickles.scan` has checked each of their opcodes. `pickles.machine` reads the rest.
"""

import pickle
from collections.abc import Collection
from typing import Any

from dray.shards.codecs.pickles.c_unpickler import NOT_READ
from dray.shards.codecs.pickles.c_unpickler import read as read_fast
from dray.shards.codecs.pickles.graph_names import GRAPH_NAMES
from dray.shards.codecs.pickles.machine import FUNCTIONS, NAMES, Machine, NameRefusedError
from dray.shards.codecs.pickles.refusals import TORCH_MAGIC, foreign_file, names_in, refused_name, refused_otherwise
from dray.shards.codecs.pickles.stand_ins import MAX_BYTES, require
from dray.shards.errors import CallError, RefusedError

_NONE_ALLOWED: frozenset[str] = frozenset()


def loads(data: bytes | memoryview, *, allow: Collection[str] = (), allow_pickle: bool = False) -> Any:
    """Return the pickled value, equal to that of `pickle.loads`; import and call nothing outside the safe list.

    Args:
        data: One whole pickle, protocol 0 to 5, at most 4 GiB.
        allow: Full names (`pkg.module.Class`) that may be imported and called besides the safe list.
        allow_pickle: Plain `pickle.loads`: the pickle may run any code.

    Raises:
        RefusedError: The pickle names something that is not allowed, or is malformed, truncated or too long.
        CallError: `allow` is not a collection of full names.
    """
    if allow_pickle:
        return _loads_all(data)
    allowed = check_allow(allow) if allow else _NONE_ALLOWED
    try:
        found = read_fast(data)
        if found is not NOT_READ:
            return found
        require(len(data) <= MAX_BYTES, "a pickle of at most 4 GiB")
        return Machine(data, allow=allowed).load_whole()
    except NameRefusedError as exc:
        raise refusal(exc.name, data) from exc
    except RefusedError as exc:
        raise RefusedError(refused_otherwise(str(exc), data)) from (exc.__cause__ or exc)
    except Exception as exc:
        problem = f"malformed pickle: {type(exc).__name__}: {str(exc)[:200]}"
        raise RefusedError(refused_otherwise(problem, data)) from exc


def _loads_all(data: bytes | memoryview) -> Any:
    """Return what `pickle.loads` returns; errors name the format of data that are not a pickle, if it is known."""
    if bytes(data[: len(TORCH_MAGIC)]) == TORCH_MAGIC:  # pickle would read one number and ignore the rest
        raise RefusedError(refused_otherwise("", data))
    try:
        return pickle.loads(data)  # noqa: S301  the caller asked for it by name
    except Exception as exc:
        if (found := foreign_file(data)) is None:
            raise
        raise RefusedError(found) from exc


def check_allow(allow: Collection[str]) -> frozenset[str]:
    """Return the allowed names as a set; CallError unless each is a full name such as `pkg.module.Class`."""
    if not allow:
        return frozenset()
    if isinstance(allow, str) or not all(isinstance(name, str) and "." in name.strip(".") for name in allow):
        raise CallError(f'allow takes full names, such as allow=["pkg.module.Class"]; got {allow!r}')
    return frozenset(allow)


def refusal(name: str, data: bytes | memoryview = b"") -> RefusedError:
    """Return the error for a name outside the safe list; it says how to allow the name."""
    found = names_in(data)
    known = FUNCTIONS.keys() | GRAPH_NAMES | {"builtins.object"}
    if "collections.defaultdict" not in found:  # its argument is a built-in type as a value, which must be allowed
        known |= NAMES.keys()
    allow = [name, *(other for other in found if other not in known)]
    return RefusedError(refused_name(name, [] if name in FUNCTIONS else list(dict.fromkeys(allow))))
