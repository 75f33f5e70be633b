"""What the scan promises of each pickle that it admits, checked a second time in Python."""

import io
import math
import pickle
import struct
from collections import OrderedDict
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.shards.codecs.pickles.c_unpickler import (
    _NAMES,
    NO_NAMES,
    NOT_READ,
    UNKNOWN,
    read,
    scan,
)
from dray.shards.codecs.pickles.unpickle import loads
from dray.shards.errors import RefusedError
from tests.support.pickles import ARRAY, GOOD, LIES, UNKNOWN_PICKLES, body, slow, visible
from tests.support.values import VALUES


@settings(deadline=None)
@given(value=VALUES, protocol=st.integers(2, 5))
def test_whatever_users_pickle_is_read_as_the_machine_reads_it(value: Any, protocol: int) -> None:
    """Law: both unpicklers return the same tensors and arrays of every kind, in dicts and alone."""
    data = pickle.dumps(value, protocol)
    assert visible(loads(data)) == slow(data)
    assert scan(data) == UNKNOWN or check_alike(data)


KEYS = frozenset((str, bytes, int, float, bool, type(None)))
CODES = {"?", "b", "B", "h", "H", "i", "I", "l", "L", "q", "Q", "e", "f", "d", "F", "D"}


class Watched(pickle._Unpickler):
    """Checks every call, key and name: the promises of the scan, a second time in Python."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]
    stack: list[Any]
    metastack: list[list[Any]]

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.copied, self.limit = 0, 2 * len(data)  # twice in protocol 2, where bytes are text before

    def find_class(self, module: str, name: str) -> Any:
        return _NAMES[module, name]

    def watch_reduce(self) -> None:
        function, arguments = self.stack[-2:]
        assert type(arguments) is tuple
        names = [name[1] for name, found in _NAMES.items() if found is function]
        getattr(self, f"watch_{names[0]}")(*arguments)
        pickle._Unpickler.dispatch[pickle.REDUCE[0]](self)  # type: ignore[attr-defined]

    def watch_dtype(self, code: Any, swapped: Any, copied: Any) -> None:
        assert type(code) is str
        assert (swapped, copied) == (False, True)
        assert np.dtype(code).char in CODES

    def watch__reconstruct(self, kind: Any, shape: Any, code: Any) -> None:
        assert kind is np.ndarray
        assert (shape, code) == ((0,), b"b")

    def watch_scalar(self, dtype: Any, content: Any) -> None:
        assert type(content) is bytes
        assert dtype.itemsize == len(content)

    def watch__frombuffer(self, content: Any, dtype: Any, shape: Any, order: Any) -> None:
        assert type(content) in (bytes, bytearray)
        assert order in ("C", "F")
        self.watch_elements(dtype, shape, content)

    def watch_elements(self, dtype: Any, shape: Any, content: Any) -> None:
        assert all(type(n) is int and n >= 0 for n in shape)
        assert isinstance(dtype, np.dtype)
        assert dtype.char in CODES
        assert math.prod(shape) * dtype.itemsize == len(content)
        self.watch_copy(content)

    def watch_copy(self, content: Any) -> None:
        """Charge a copy; in all they may not exceed the input, except for very short ones."""
        self.copied += len(content) if len(content) > 16 else 0
        assert self.copied <= self.limit

    def watch__load_from_bytes(self, content: Any) -> None:
        assert type(content) is bytes
        self.watch_copy(content)

    def watch__rebuild_tensor_v2(self, storage: Any, offset: Any, size: Any, stride: Any, *extras: Any) -> None:
        assert type(storage) is torch.storage.TypedStorage
        assert {type(offset), *map(type, size), *map(type, stride)} == {int}
        grad, hooks = extras
        assert type(grad) is bool
        assert type(hooks) is OrderedDict
        assert not hooks

    def watch_OrderedDict(self) -> None:  # noqa: N802  called by the name
        pass

    def watch_encode(self, text: Any, encoding: Any) -> None:
        assert (type(text), encoding) == (str, "latin1")
        self.watch_copy(text)

    def watch_set(self, items: Any) -> None:
        assert type(items) is list
        self.watch_keys(items)

    def watch_bytes(self) -> None:
        pass

    def watch_build(self) -> None:
        target, state = self.stack[-2:]
        assert type(state) is tuple
        if isinstance(target, np.dtype):
            assert state[0] == 3
            assert state[1] in "<>|"
            assert state[2:] == (None, None, None, -1, -1, 0)
            assert target is not np.dtype(target.char)  # numpy's own instance, which is shared
        else:
            version, shape, dtype, fortran, content = state
            assert type(target) is np.ndarray
            assert (target.shape, version, type(fortran), type(content)) == ((0,), 1, bool, bytes)
            self.watch_elements(dtype, shape, content)
        pickle._Unpickler.dispatch[pickle.BUILD[0]](self)  # type: ignore[attr-defined]

    def watch_keys(self, keys: Any) -> None:
        assert set(map(type, keys)) <= KEYS
        assert all(type(key) is not int or key.bit_length() <= 64 for key in keys)

    def watch_setitem(self) -> None:
        self.watch_keys(self.stack[-2:-1])
        pickle._Unpickler.dispatch[pickle.SETITEM[0]](self)  # type: ignore[attr-defined]

    def watch_setitems(self) -> None:
        self.watch_keys(self.stack[::2])
        pickle._Unpickler.dispatch[pickle.SETITEMS[0]](self)  # type: ignore[attr-defined]

    def watch_additems(self) -> None:
        self.watch_keys(self.stack)
        pickle._Unpickler.dispatch[pickle.ADDITEMS[0]](self)  # type: ignore[attr-defined]

    def watch_never(self) -> None:
        raise AssertionError


for _opcode in ("REDUCE", "BUILD", "SETITEM", "SETITEMS", "ADDITEMS"):
    Watched.dispatch[getattr(pickle, _opcode)[0]] = getattr(Watched, f"watch_{_opcode.lower()}")
for _opcode in (
    "INST",
    "OBJ",
    "NEWOBJ",
    "NEWOBJ_EX",
    "EXT1",
    "EXT2",
    "EXT4",
    "PERSID",
    "BINPERSID",
    "FROZENSET",
    "DICT",
):
    Watched.dispatch[getattr(pickle, _opcode)[0]] = Watched.watch_never


def check_left(data: bytes) -> bool:
    assert read(data) is NOT_READ
    return False


def check_alike(data: bytes) -> bool:
    """Whether the scan admits a pickle; if so, it keeps the promises and equals what the machine returns."""
    kind = scan(data)
    if kind == UNKNOWN:
        return False
    try:
        Watched(data).load()
    except (UnicodeError, RefusedError, RuntimeError):  # invalid text; tensors that their functions refuse
        return check_left(data)
    found = read(data)
    assert visible(found) == slow(data) if found is not NOT_READ else slow(data) == "refused"
    assert kind != NO_NAMES or visible(found) == visible(pickle.loads(data))
    return True


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", GOOD)
def test_the_scan_keeps_its_promises(name: str, protocol: int) -> None:
    """For every call, key and copy."""
    assert check_alike(pickle.dumps(GOOD[name], protocol))


PIECES = [data for name in GOOD for p in (2, 4, 5) if len(data := pickle.dumps(GOOD[name], p)) < 3000]
PIECES += [data for data in (*UNKNOWN_PICKLES.values(), *LIES.values()) if 12 < len(data) < 3000]
OPCODES = b"KMJG()tq\x94\x85\x86\x87\x88\x89NBC\x95RX.hj]}aesu\x8c\x8f\x90\x91\x93b2c\x8a\x8b\x960"


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_damaged_and_spliced_containers_are_left_or_read_alike(data: st.DataObject) -> None:
    """Law: whatever the C unpickler reads equals what the machine returns, and every call was as promised."""
    good = bytearray(data.draw(st.sampled_from(PIECES)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(good) - 1))
        if data.draw(st.booleans()):
            good[at] = data.draw(st.sampled_from(OPCODES))
        else:
            other = data.draw(st.sampled_from(PIECES))
            start = data.draw(st.integers(0, len(other) - 1))
            good[at:at] = other[start : start + data.draw(st.integers(1, 40))]
    if len(good) > 11 and good[2:3] == b"\x95":
        good[3:11] = struct.pack("<Q", len(good) - 11)
    check_alike(bytes(good))


@settings(deadline=None, max_examples=300)
@given(pieces=st.lists(st.integers(0, 400), max_size=60))
def test_any_row_of_opcodes_is_left_or_read_alike(pieces: list[int]) -> None:
    """Law: so it is for sequences of opcodes that no pickler writes."""
    check_alike(body(*(WORDS[number % len(WORDS)] for number in pieces)))


WORDS = (
    *(b"N", b"\x88", b"K\x01", b"K\x00", b"]", b"}", b"\x8f", b"(", b")", b"\x85", b"\x86", b"\x87", b"t", b"a", b"s"),
    *(b"e", b"u", b"\x90", b"\x94", b"h\x00", b"h\x01", b"h\x02", b"R", b"b", b"\x8c\x01x", b"C\x01b", b"C\x02xy"),
    *(b"ccollections\nOrderedDict\n)R", b"cbuiltins\nset\n", b"cnumpy\nndarray\n", b"\x8a\x01\x05", b"G" + bytes(8)),
    *(
        ARRAY[:-1] if ARRAY.endswith(b"e") else ARRAY,
        pickle.dumps(np.ones(2), 2)[2:-1],
        pickle.dumps(np.int8(1), 3)[2:-1],
    ),
)
