"""An unpickler in which no opcode can reach a foreign object: the standard library's, with those opcodes replaced.

No real callable is ever on its stack. A name of the safe list becomes a stand-in (`pickles.stand_ins`), and
`find_class` refuses any other name before it is imported. REDUCE, NEWOBJ and BUILD reach only functions of this package
and the names that the caller allowed. Copying and hashing draw on a budget that grows with the input, so a small pickle
cannot ask for much memory or time. The price: about 40 us for the smallest dict of a tensor or an array.
"""

import functools
import importlib
import io
import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from dray.shards.codecs.pickles.compat import PythonUnpickler, reconstruct_object
from dray.shards.codecs.pickles.graph_names import GRAPH_NAMES, find_graph_name, graph_builder, new_graph_part
from dray.shards.codecs.pickles.numpy_names import ARRAY_BUILDERS, ARRAY_FUNCTIONS
from dray.shards.codecs.pickles.refusals import python_3_name
from dray.shards.codecs.pickles.stand_ins import (
    MAX_BYTES,
    PLAIN_BUILDERS,
    PLAIN_FUNCTIONS,
    PLAIN_TYPES,
    Global,
    require,
)
from dray.shards.codecs.pickles.torch_names import TENSOR_FUNCTIONS
from dray.shards.errors import RefusedError


class NameRefusedError(RefusedError):
    """The pickle names something outside the safe list; `loads` turns this into the error for the caller."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Arguments(tuple[Any, ...]):
    """A tuple that holds a stand-in: valid as the arguments of a call, not as a value."""

    __slots__ = ()


_NOT_VALUES = frozenset({Global, _Arguments})
_PLAIN_KEYS = frozenset({float, bool, type(None)})
_NUMPY_KEYS = (np.bool_, np.integer, np.floating, np.character, np.datetime64)
_RECONSTRUCTOR = Global("copyreg._reconstructor")
_BASES = {f"builtins.{base.__name__}": base for base in (object, dict, list, tuple, set, str, int, float)}
FUNCTIONS = PLAIN_FUNCTIONS | ARRAY_FUNCTIONS | TENSOR_FUNCTIONS | {_RECONSTRUCTOR.name: _RECONSTRUCTOR}
"""Names that always mean a function of this package, whatever the caller allows."""
NAMES = {name: Global(name) for name in _BASES} | PLAIN_TYPES | FUNCTIONS
"""The safe list, but for graphs: full name -> its stand-in."""
_BUILDERS = PLAIN_BUILDERS | ARRAY_BUILDERS


def _as_tuple(items: list[Any]) -> tuple[Any, ...]:
    return tuple(items) if _NOT_VALUES.isdisjoint(map(type, items)) else _Arguments(items)


def _check_values(items: Iterable[Any]) -> None:
    """Refuse stand-ins among `items`: a class or function is no value."""
    if not _NOT_VALUES.isdisjoint(map(type, items)):
        found: Any = items
        while type(found) is not Global:
            found = next(item for item in found if type(item) in _NOT_VALUES)
        raise NameRefusedError(found.name)


class Machine(PythonUnpickler):
    """Reads one pickle.

    Args:
        data: The whole pickle.
        allow: Full names that may be imported and called besides the safe list.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(PythonUnpickler.dispatch)

    def __init__(self, data: bytes | memoryview, *, allow: frozenset[str]) -> None:
        super().__init__(io.BytesIO(data))
        self._allow = allow
        self._budget = 64 * len(data) + (1 << 20)  # bytes that calls and keys may still copy or hash
        self._hashed: dict[int, Any] = {}  # hash -> the first key that had it
        self._imported: dict[int, Any] = {}  # id -> the object that an allowed name stands for

    def load_whole(self) -> Any:
        """Return the value of the pickle; RefusedError if anything follows it."""
        value = self.load()
        _check_values([value])
        require(self.read(1) == b"", "nothing after the end of the pickle")
        return value

    # ---- names ----

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name of the safe list, or the object that the caller allowed."""
        module, name = python_3_name(module, name, self.proto)
        full_name = f"{module}.{name}"
        if full_name in self._allow and full_name not in FUNCTIONS:
            return self._import(module, name)
        if full_name in GRAPH_NAMES:
            return find_graph_name(full_name)
        if full_name not in NAMES:
            raise NameRefusedError(full_name)
        return NAMES[full_name]

    def _import(self, module: str, name: str) -> Any:
        sys.audit("pickle.find_class", module, name)
        try:
            found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
        except (ImportError, AttributeError) as exc:
            raise RefusedError(f"{module}.{name} is allowed, and cannot be imported here ({exc})") from exc
        self._imported[id(found)] = found
        return found

    def _is_allowed_type(self, kind: type) -> bool:
        if not self._allow:
            return False
        return id(kind) in self._imported or f"{kind.__module__}.{kind.__qualname__}" in self._allow

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to objects outside the pickle."""
        raise RefusedError(f"refused pickle: it refers to an object outside itself, by a {type(pid).__qualname__}")

    # ---- the budget ----

    def _spend(self, cost: int) -> None:
        self._budget -= cost
        require(self._budget >= 0, "a pickle that does not copy its own pieces over and over")

    def _charge_copies(self, arguments: tuple[Any, ...]) -> None:
        """Charge what a call may copy of its arguments: bytes once, and 64 bytes an item for a hash table."""
        for argument in arguments:
            kind = type(argument)
            if kind is bytes or kind is str or kind is bytearray:
                self._spend(len(argument))
            elif kind is list or kind is dict:
                self._spend(64 * len(argument))

    def _check_keys(self, keys: Iterable[Any], depth: int = 0) -> None:
        """Refuse keys whose hash or comparison would run foreign code; charge those that take long."""
        require(depth < 32, "keys nested at most 32 deep")
        for key in keys:
            kind = type(key)
            if kind is str or kind is bytes:
                self._spend(len(key) >> 4)
            elif kind is int:
                if key.bit_length() > 64:
                    self._spend(key.bit_length() >> 4)
                    self._charge_collision(key)
            elif kind is tuple or kind is frozenset:
                self._spend(1)
                self._check_keys(key, depth + 1)
                if depth == 0:
                    self._charge_collision(key)
            elif kind not in _PLAIN_KEYS and not isinstance(key, _NUMPY_KEYS) and not self._is_allowed_type(kind):
                raise RefusedError(f"refused pickle: a value of type {kind.__qualname__} as a key")

    def _charge_collision(self, key: Any) -> None:
        """Charge a key that has the hash of an unequal key, for types whose hashes an attacker can choose."""
        first = self._hashed.setdefault(hash(key), key)
        if first is not key and first != key:
            self._spend(1 << 16)

    # ---- calls ----

    def _load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        require(isinstance(arguments, tuple), "a tuple of arguments")
        if type(function) is Global:
            self.stack[-1] = self._call(function, arguments)
            return
        require(id(function) in self._imported, f"a function to call, not a {type(function).__qualname__}")
        _check_values(arguments)
        self.stack[-1] = function(*arguments)

    def _call(self, function: Global, arguments: tuple[Any, ...]) -> Any:
        if function is _RECONSTRUCTOR:
            return self._reconstruct(*arguments)
        if function.call is None:
            raise NameRefusedError(function.name)
        if function.hashes:
            self._check_keys(arguments[0] if type(arguments[0]) is list else ())
            _check_values(arguments[0])
        self._charge_copies(arguments)
        return function.call(*arguments)

    def _reconstruct(self, kind: Any, base: Any, state: Any) -> Any:
        """Return a new instance of an allowed class, or a part of a graph, as protocols 0 and 1 write it."""
        if base is NAMES["builtins.object"] and state is None and (made := new_graph_part(kind, ())) is not None:
            return made
        require(isinstance(kind, type) and id(kind) in self._imported, "an allowed class")
        real_base = _BASES.get(base.name) if type(base) is Global else self._imported.get(id(base))
        require(isinstance(real_base, type), "the base of an allowed class")
        return reconstruct_object(kind, real_base, state)

    def _load_newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        self._new(kind, arguments, {})

    def _load_newobj_ex(self) -> None:
        keywords, arguments, kind = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self._new(kind, arguments, keywords)

    def _new(self, kind: Any, arguments: Any, keywords: Any) -> None:
        if keywords == {} and (made := new_graph_part(kind, arguments)) is not None:
            self.append(made)
            return
        _check_values([kind])
        require(isinstance(kind, type) and id(kind) in self._imported, "an allowed class")
        require(type(arguments) is tuple, "the arguments of an allowed class")
        require(type(keywords) is dict, "the keyword arguments of an allowed class")
        self.append(kind.__new__(kind, *arguments, **keywords))

    def _load_build(self) -> None:
        state, target = self.stack[-1], self.stack[-2]
        _check_values([state])
        kind = np.dtype if isinstance(target, np.dtype) else type(target)
        build = _BUILDERS.get(kind) or graph_builder(kind)
        if build is not None:
            self._charge_copies(state if type(state) is tuple else (state,))
            build(target, state)
            del self.stack[-1]
        elif self._is_allowed_type(type(target)):
            super().load_build()
        else:
            raise RefusedError(f"refused pickle: BUILD on a value of type {type(target).__qualname__}")

    def _load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii", "replace") for _ in range(2))
        raise RefusedError(f"refused pickle: {module}.{name} is a class of Python 2's old style")

    def _load_refused(self) -> None:
        raise RefusedError("refused pickle: it uses an extension code, an outside buffer or a class of Python 2")

    # ---- containers ----

    def _target(self, *kinds: type) -> Any:
        """Return the container on top of the stack: one of `kinds`, or an instance of an allowed class."""
        target = self.stack[-1]
        if type(target) not in kinds and not self._is_allowed_type(type(target)):
            raise RefusedError(f"refused pickle: a value of type {type(target).__qualname__} as a container")
        return target

    def _put_items(self, items: list[Any]) -> None:
        require(len(items) % 2 == 0, "a value for each key")
        keys, values = items[::2], items[1::2]
        self._check_keys(keys)
        _check_values(values)
        target = self._target(dict, OrderedDict)
        for key, value in zip(keys, values, strict=True):
            target[key] = value

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put_items([key, value])

    def _load_setitems(self) -> None:
        self._put_items(self.pop_mark())

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._put_items(items)

    def _load_append(self) -> None:
        item = self.stack.pop()
        _check_values([item])
        self._target(list).append(item)

    def _load_appends(self) -> None:
        items = self.pop_mark()
        _check_values(items)
        self._target(list).extend(items)

    def _load_list(self) -> None:
        items = self.pop_mark()
        _check_values(items)
        self.append(items)

    def _load_additems(self) -> None:
        items = self.pop_mark()
        self._check_keys(items)
        self._target(set).update(items)

    def _load_frozenset(self) -> None:
        items = self.pop_mark()
        self._check_keys(items)
        self.append(frozenset(items))

    def _load_tuple(self) -> None:
        items = self.pop_mark()
        self.append(_as_tuple(items))

    def _load_tuple1(self) -> None:
        self._last_as_tuple(1)

    def _load_tuple2(self) -> None:
        self._last_as_tuple(2)

    def _load_tuple3(self) -> None:
        self._last_as_tuple(3)

    def _last_as_tuple(self, length: int) -> None:
        require(len(self.stack) >= length, "the items of a tuple")
        self.stack[-length:] = [_as_tuple(self.stack[-length:])]

    def _load_bytearray8(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        content = self.read(min(length, MAX_BYTES))
        require(len(content) == length, "all bytes of a bytearray")
        self.append(bytearray(content))


_REPLACED = (
    *("REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "INST", "SETITEM", "SETITEMS", "DICT", "APPEND", "APPENDS", "LIST"),
    *("ADDITEMS", "FROZENSET", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BYTEARRAY8"),
)
_REFUSED = ("OBJ", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER")
Machine.dispatch |= {getattr(pickle, opcode)[0]: getattr(Machine, f"_load_{opcode.lower()}") for opcode in _REPLACED}
Machine.dispatch |= {getattr(pickle, opcode)[0]: Machine._load_refused for opcode in _REFUSED}
