"""The C unpickler reads containers only if every opcode is known, and returns what the machine returns."""

import io
import math
import pickle
import struct
import subprocess
import sys
import textwrap
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.shards.codecs.pickles.c_unpickler import (
    _NAMES,
    KNOWN_NAMES,
    NO_NAMES,
    NOT_READ,
    SINGLE_ARRAY,
    UNKNOWN,
    read,
    scan,
)
from dray.shards.codecs.pickles.machine import Machine
from dray.shards.codecs.pickles.unpickle import loads
from dray.shards.errors import RefusedError
from tests.support.values import VALUES

SHARED_ARRAY = np.ones(3)
SHARED_TENSOR = torch.ones(3)
CIRCLE: list[Any] = [1]
CIRCLE.append(CIRCLE)

CIRCLE_OF_TUPLES: list[Any] = [np.ones(2)]
CIRCLE_OF_TUPLES.append((CIRCLE_OF_TUPLES, np.ones(2)))

GOOD: dict[str, Any] = {
    "number": 7,
    "text": "grüße",
    "long text": "z" * 300,
    "bytes": [b"x", b"y" * 300],
    "plain dict": {"a": 1, "b": "text", "c": 2.5, "d": None, "e": True},
    "keys": {1: 2, 2.5: 3, None: 4, False: 5, b"x": 6, 2**40: 7, -1: 8, "t" * 50: 9},
    "numbers": [0, 255, 256, 65536, -1, 2**31, -(2**63), 1.5],
    "nested": {"a": {"b": {"c": [1, 2, {"d": ()}]}}, "e": [[[1, [2, [3]]]]]},
    "tuples": (1, (2.5, ("x",)), (1, 2, 3, 4, 5), ()),
    "tuples in a dict": {"size": (1, 2), "other": ((1, 2), [3]), "long": (1, 2, 3, 4), "last": 1},
    "list of tuples": [(i, "ab") for i in range(50)],
    "list of dicts": [{"id": i, "label": "x", "box": [1.0, 2.0]} for i in range(20)],
    "sets": [set(range(20)), {"a"}, set(), {b"x", None, 1.5}],
    "many items": {str(i): i for i in range(3000)},
    "many lists": [[i] for i in range(3000)],
    "frames": [str(i) * 10 for i in range(5000)],
    "circle": CIRCLE,
    "ordered": OrderedDict(a=1, b=[2]),
    "scalars": [np.float32(1.5), np.int8(-3), np.bool_(True), {"a": np.float64(2), "b": np.float64(3)}],
    "array": {"x": np.arange(6).reshape(2, 3)},
    "arrays": {
        name: np.full(3, i, code) for i, (name, code) in enumerate(zip("abcd", ("?", "<f4", ">f4", "i1"), strict=True))
    },
    "fortran": [np.asfortranarray(np.ones((2, 3))), np.array(3), np.zeros(0)],
    "complex array": [np.array([1j])],
    "large arrays": [np.arange(20_000), np.arange(3), np.arange(20_000)],
    "many dimensions": [np.zeros((1,) * 20)],
    "array in a tuple": (np.ones(3), 5),
    "array in tuples": {"a": (np.ones(2), [np.ones(2)]), "b": 1},
    "shared array": [SHARED_ARRAY, SHARED_ARRAY, {"x": SHARED_ARRAY}, (SHARED_ARRAY, (SHARED_ARRAY,))],
    "list of dicts of arrays": [{"x": np.ones(2), "y": i} for i in range(20)],
    "tensor": {"x": torch.arange(6.0).reshape(2, 3)},
    "tensors": [
        torch.ones(2, dtype=torch.bfloat16),
        torch.zeros(0),
        torch.tensor(3),
        torch.ones(2, requires_grad=True),
    ],
    "tensor in a tuple": (torch.ones(3), 5),
    "shared tensor": [SHARED_TENSOR, SHARED_TENSOR],
    "list of dicts of tensors": [{"x": torch.ones(2), "y": i} for i in range(5)],
    "state dict": OrderedDict(a=torch.ones(2), b=torch.ones(3)),
    "transposed": [torch.ones(2, 3).T],
    "shared keys and tuples": [{"a": (1, 2), "b": [i]} for i in range(20)],
    "items of one byte": [np.array([1], "i1"), np.array([1], "i1"), np.bool_(True), np.bool_(True)],
    "array of nothing": [np.zeros((0, 3)), np.zeros((2, 0), order="F")],
    "complex scalar": [np.complex64(1j)],
    "large numbers": [2**70, 2**63, -(2**64), 2**64 - 1],
    "circle beside a tuple": CIRCLE_OF_TUPLES,
    "old bytes": [b"", bytes(range(256)) * 20, "ü".encode() * 9],
}
OTHERS: dict[str, Any] = {
    "frozenset": [frozenset([1])],
    "tuple as a key": {(1, 2): 3},
    "scalar as a key": {np.int64(3): 1},
    "complex": [1j],
    "objects": [np.array([1, None], dtype=object)],
    "text array": [np.array(["a"])],
    "time": [np.array(["2020"], "M8[ns]")],
    "structure": [np.zeros(2, [("a", "f4")])],
    "dtype": [np.dtype("f4")],
    "parameter": [torch.nn.Parameter(torch.ones(2))],
    "conjugate": [torch.tensor([1j]).conj()],
    "newer dtype": [torch.ones(2, dtype=torch.uint16)],
    "module's state": torch.nn.Linear(2, 3).state_dict(),
    "array and tuple as keys": [{np.int64(1): np.ones(2)}],
    "circle through a tuple": CIRCLE_OF_TUPLES[1],
    "large number as a key": {2**70: 1},
}


def visible(value: Any, seen: tuple[int, ...] = ()) -> Any:
    """Everything observable of a value, types and memory layout included, in a form that compares."""
    if id(value) in seen:
        return "circle", len(seen) - seen.index(id(value))
    inside = (*seen, id(value))
    if isinstance(value, torch.Tensor):
        place = value.storage_offset(), value.untyped_storage().nbytes(), value.requires_grad
        elements = repr(value.tolist()) if value.numel() else ""  # no list of 2**40 empty rows
        return type(value), value.dtype, value.shape, value.stride(), place, elements
    if isinstance(value, np.ndarray):
        elements = repr(value.tolist()) if value.dtype.hasobject else value.tobytes()
        return type(value), value.dtype, value.shape, value.strides, value.flags.writeable, elements
    if isinstance(value, list | tuple):
        return type(value), [visible(item, inside) for item in value]
    if isinstance(value, dict):
        return type(value), [(type(key), key, visible(item, inside)) for key, item in value.items()]
    return type(value), sorted(map(repr, value)) if isinstance(value, set | frozenset) else repr(value)


def slow(data: bytes) -> Any:
    """What the machine alone returns, in the same form, or "refused"."""
    try:
        return visible(Machine(data, allow=frozenset()).load_whole())
    except Exception:
        return "refused"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", GOOD)
def test_a_container_is_read_fast(name: str, protocol: int) -> None:
    """Values, types and layouts equal those of pickle and of the machine, from bytes and from views."""
    data = pickle.dumps(GOOD[name], protocol)
    for given_data in (data, memoryview(data), memoryview(bytearray(data))):
        found = read(given_data)
        assert found is not NOT_READ
        assert visible(found) == visible(pickle.loads(data)) == slow(data)


@pytest.mark.parametrize("protocol", [0, 1])
@pytest.mark.parametrize("name", GOOD)
def test_the_oldest_protocols_are_left(name: str, protocol: int) -> None:
    """They have other opcodes and are hardly written any more."""
    data = pickle.dumps(GOOD[name], protocol)
    assert read(data) is NOT_READ
    assert visible(loads(data)) == visible(pickle.loads(data))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_is_left(name: str, protocol: int) -> None:
    """The machine reads whatever is unsafe in the C unpickler, or rare."""
    assert read(pickle.dumps(OTHERS[name], protocol)) is NOT_READ


def test_what_was_shared_is_shared() -> None:
    """An array or list that occurs twice is one object again; a list may contain itself."""
    first, second, inside, (third, (fourth,)) = loads(pickle.dumps(GOOD["shared array"]))
    assert first is second is inside["x"] is third is fourth
    circle = loads(pickle.dumps(CIRCLE))
    assert circle[1] is circle
    pair, array = (np.ones(2), 1), np.ones(3)
    items: list[Any] = [array]
    items.append(items)
    found = read(pickle.dumps([pair, pair, items, {"a": items, "b": (pair,)}]))
    assert found[0] is found[1] is found[3]["b"][0]
    assert found[2] is found[2][1] is found[3]["a"]


NESTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda v: (
        st.lists(v)
        | st.lists(v).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.booleans() | st.none() | st.binary(), v)
        | st.sets(st.integers() | st.text())
        | st.lists(v, max_size=2).map(lambda items: [items, np.arange(len(items) + 1), (np.float32(2), items)])
    ),
    max_leaves=15,
)


@settings(deadline=None)  # the first one compiles expressions
@given(value=NESTS, protocol=st.integers(2, 5))
def test_any_nest_is_read_as_the_machine_reads_it(value: Any, protocol: int) -> None:
    """Law: both unpicklers return the same value."""
    data = pickle.dumps(value, protocol)
    assert visible(loads(data)) == slow(data) == visible(pickle.loads(data))


@settings(deadline=None)
@given(value=VALUES, protocol=st.integers(2, 5))
def test_whatever_users_pickle_is_read_as_the_machine_reads_it(value: Any, protocol: int) -> None:
    """Law: so they do for tensors and arrays of every kind, in dicts and alone."""
    data = pickle.dumps(value, protocol)
    assert visible(loads(data)) == slow(data)
    assert scan(data) == UNKNOWN or check_alike(data)


# ---- what the scan must refuse ----

DEEP_KEY = b"}" + b")" + b"2\x86" * 60 + b"K\x01s"


def body(*pieces: bytes) -> bytes:
    return b"\x80\x04" + b"".join(pieces) + b"."


ARRAY = pickle.dumps([np.ones(2)], 4)[11:-1]
UNKNOWN_PICKLES = {
    "nested key by DUP": body(DEEP_KEY),
    "nested key from the memo": body(
        b"]\x94K\x01\x85\x94" + b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(1, 40)), b"0}(h\x28K\x01u"
    ),
    "nested item of a set": body(
        b"\x8f(K\x01\x85\x94" + b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(40)) + b"\x90"
    ),
    "tuple as a key": body(b"}(K\x01K\x02\x86K\x03u"),
    "tuple as a single key": body(b"}K\x01K\x02\x86K\x03s"),
    "tuple that takes what a run passed": body(b"}(K\x01K\x02K\x03K\x04\x87K\x05u"),
    "tuple that takes a key of a run": body(b"}(K\x01K\x02\x86K\x05u"),
    "tuple as an item of a set": body(b"\x8f(K\x01K\x02\x86\x90"),
    "long tuple as a key": body(b"}((K\x01K\x02K\x03K\x04tK\x05u"),
    "frozenset as a key": body(b"}((K\x01\x91K\x05u"),
    "large number as a key": body(b"}(\x8a\x09" + b"\x01" * 9 + b"K\x05u"),
    "very large number": body(b"\x8b\x09\x00\x00\x00" + b"\x01" * 9),
    "memo far away": body(b"]r\xff\xff\xff\x7f"),
    "memo far away in a run": body(b"](K\x01r\xff\xff\xff\x7fK\x01e"),
    "memo far away by GET": body(b"]\x94(j\x00\x00\x01\x00e"),
    "odd number of items": body(b"}(K\x01K\x02K\x03u"),
    "items of a list for a dict": body(b"}(K\x01e"),
    "items of a dict for a list": body(b"](K\x01K\x02u"),
    "append to a bytearray": b"\x80\x05\x96" + struct.pack("<Q", 0) + b"K\x01a.",
    "append to what a GET gives": body(b"]\x94(h\x00K\x01ae"),
    "item of an array": body(ARRAY[1:-1] if ARRAY.startswith(b"]") else ARRAY, b"K\x00K\x01s"),
    "BUILD on a list": body(b"]}b"),
    "BUILD on what a GET gives": body(b"]\x94h\x00}b"),
    "REDUCE of a text": body(b"\x8c\x01x)R"),
    "GLOBAL": b"\x80\x02cos\nsystem\n.",
    "GLOBAL and REDUCE": b"\x80\x02cos\nsystem\nU\x04true\x85R.",
    "STACK_GLOBAL": body(b"\x8c\x02os\x8c\x06system\x93"),
    "INST": b"\x80\x02(ios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\no.",
    "NEWOBJ": body(b"\x8c\x02os\x8c\x06system\x93)\x81"),
    "extension": body(b"\x82\x01"),
    "persistent id": body(b"K\x01Q"),
    "out-of-band buffer": b"\x80\x05\x97.",
    "DUP": body(b"K\x012\x86"),
    "POP": body(b"K\x01K\x020"),
    "text behind": body(b"K\x01") + b"x",
    "pickle behind": body(b"K\x01") + body(b"K\x01"),
    "no end": b"\x80\x04K\x01",
    "end inside": b"\x80\x04](K\x01.",
    "nothing": b"\x80\x04.",
    "no protocol": b"K\x01.",
    "protocol 6": b"\x80\x06K\x01.",
    "GET of an unset place": body(b"]\x94h\x01a"),
    "PUT over a place": body(b"]q\x00K\x01q\x00a"),
    "PUT out of order": body(b"]q\x01."),
    "PUT of a MARK": body(b"](\x94e"),
    "PUT of nothing": body(b"\x94]"),
    "two PUTs of one thing": body(b"]\x94\x94"),
    "PUT of what a GET gives": body(b"]\x94h\x00\x94a"),
    "MARK alone": body(b"("),
    "MARK below the value": body(b"(K\x01"),
    "MARK in a tuple": body(b"K\x01(\x86"),
    "MARK in a tuple of one": body(b"(\x85"),
    "MARK between list and item": body(b"](K\x01a"),
    "MARK between dict and item": body(b"}(K\x01K\x02s"),
    "MARK as an item": body(b"]((e"),
    "MARK without a list": body(b"(K\x01e"),
    "MARK as the list": body(b"((K\x01e"),
    "APPENDS without a MARK": body(b"]K\x01e"),
    "TUPLE without a MARK": body(b"K\x01t"),
    "tuple of more than there is": body(b"K\x01\x86"),
    "item for nothing": body(b"K\x01a"),
    "key for nothing": body(b"K\x01K\x02s"),
    "POP_MARK": body(b"K\x01(K\x021"),
    "protocol twice": body(b"\x80\x04K\x01"),
    "text by the memo as a name": body(b"\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93"),
    "bytes as a name": body(b"C\x05numpyC\x05dtype\x93"),
    "name as a value": body(b"\x8c\x05numpy\x8c\x05dtype\x93"),
    "name in a list": body(b"](cnumpy\ndtype\ne"),
    "name in a tuple": body(b"cnumpy\ndtype\n\x85"),
    "name as a key": body(b"}cnumpy\ndtype\nNs"),
    "name that is longer": body(b"\x8c\x05numpy\x8c\x06dtypes\x93"),
    "name that is shorter": body(b"\x8c\x05numpy\x8c\x04dtyp\x93"),
    "name with a zero": body(b"\x8c\x05numpy\x8c\x06dtype\x00\x93"),
    "name without an end": b"\x80\x02cnumpy\ndtype",
    "name of Python 2 in protocol 3": b"\x80\x03c__builtin__\nset\n]\x85R.",
    "dtype of a structure": body(b"cnumpy\ndtype\n\x8c\x05f4,f4\x89\x88\x87R"),
    "dtype that is shared": body(b"cnumpy\ndtype\n\x8c\x02f4\x89\x89\x87R"),
    "dtype without its order": body(b"cnumpy\ndtype\n\x8c\x02f4\x89\x88\x87R"),
    "array that is not filled": body(b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"),
    "array of another class": body(b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85C\x01b\x87R"),
    "array of a first shape": body(b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x07\x85C\x01b\x87R"),
    "array class that is called": body(b"cnumpy\nndarray\nK\x07\x85\x85R"),
    "arguments by the memo": body(b"](ccollections\nOrderedDict\n)\x94Rccollections\nOrderedDict\nh\x00Re"),
    "arguments in a list": body(b"ccollections\nOrderedDict\n]R"),
    "OrderedDict of items": body(b"ccollections\nOrderedDict\n]\x85R"),
    "OrderedDict with attributes": body(b"ccollections\nOrderedDict\n)R}b"),
    "set of tuples": body(b"cbuiltins\nset\n](K\x01\x85e\x85R"),
    "set of lists": body(b"cbuiltins\nset\n](]e\x85R"),
    "set of a tuple": body(b"cbuiltins\nset\nK\x01\x85\x85R"),
    "set of a list by the memo": body(b"](]\x94cbuiltins\nset\nh\x00\x85Re"),
    "set of texts by the memo": body(b"](X\x11\x00\x00\x00" + b"x" * 17 + b"\x94cbuiltins\nset\n](h\x00e\x85Re"),
    "text encoded in another way": body(b"c_codecs\nencode\n\x8c\x01x\x8c\x06rot_13\x86R"),
    "text encoded over and over": body(
        b"](X\x11\x00\x00\x00" + b"x" * 17 + b"\x94c_codecs\nencode\n\x94h\x00\x8c\x06latin1\x86Re"
    ),
    "deep lists": body(b"]" * 1002 + b"a" * 1001),
    "deep tuples": body(b")" + b"\x85" * 1001),
    "deep dicts": body(b"}K\x01" * 1001 + b"}" + b"s" * 1001),
    "very large number of bytes": body(b"\x8a\xff" + b"\x01" * 200),
    "negative length": body(b"B\xff\xff\xff\xffx"),
    "negative length of text": body(b"X\xff\xff\xff\xffx"),
    "text beyond memory": body(b"\x8d" + b"\xff" * 8 + b"x"),
    "frame in a frame": b"\x80\x04\x95" + struct.pack("<Q", 12) + b"\x95" + struct.pack("<Q", 3) + b"K\x01.",
    "frame that ends inside an opcode": b"\x80\x04\x95" + struct.pack("<Q", 2) + b"J\x01\x00\x00\x00.",
    "frame of all memory": b"\x80\x04\x95" + b"\xff" * 8 + b"K\x01.",
    "frame that is cut": b"\x80\x04\x95\x01",
    "frame that is shorter": b"\x80\x04\x95" + struct.pack("<Q", 1) + b"K\x01.",
    "frame that is longer": b"\x80\x04\x95" + struct.pack("<Q", 4) + b"K\x01.",
    "bytes beyond the end": body(b"C\xffx"),
    "bytes beyond memory": body(b"\x8e" + b"\xff" * 8 + b"x"),
    "bytearray beyond memory": b"\x80\x05\x96" + b"\xff" * 8 + b"x.",
    **{f"text that ends {back} bytes before its length": body(b"N" * 20 + b"\x8d" + struct.pack("<Q", 2**64 - back))
       for back in (1, 9, 10, 20, 29)},
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", UNKNOWN_PICKLES)
def test_harmful_pickles_are_unknown(case: str) -> None:
    """Composite keys, foreign opcodes and names, wrong lengths: none reaches the C unpickler."""
    assert scan(UNKNOWN_PICKLES[case]) == UNKNOWN
    assert read(UNKNOWN_PICKLES[case]) is NOT_READ


KNOWN_PICKLES = {
    "some depth": (body(b"]" * 101 + b"a" * 100), NO_NAMES),
    "shared list": (body(b"]\x94(h\x00h\x00e"), NO_NAMES),
    "list of ten PUTs": (body(b"(" + b"".join(b"K\x01q%c" % n for n in range(10)) + b"t"), NO_NAMES),
    "tuple of nothing by a MARK": (body(b"(t"), NO_NAMES),
    "items of nothing": (body(b"](}(u\x8f(\x90](ee"), NO_NAMES),
    "frames of nothing": (body(b"\x95" + bytes(8) + b"K\x01"), NO_NAMES),
    "frame amid": (body(b"]\x95" + struct.pack("<Q", 2) + b"K\x01a"), NO_NAMES),
    "text by the memo as a name": (
        body(b"](\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94h\x00h\x01\x93)R\x93"[:-1] + b"e"),
        KNOWN_NAMES,
    ),
    "short text encoded again": (
        body(b"](\x8c\x01x\x94c_codecs\nencode\n\x94h\x00\x8c\x06latin1\x86Rh\x01h\x00\x8c\x06latin1\x86Re"),
        KNOWN_NAMES,
    ),
    "set before protocol 4": (b"\x80\x03cbuiltins\nset\n](K\x01X\x01\x00\x00\x00xe\x85R.", KNOWN_NAMES),
    "set of protocol 2": (b"\x80\x02c__builtin__\nset\n](K\x01X\x01\x00\x00\x00xe\x85R.", KNOWN_NAMES),
    "array": (pickle.dumps(np.ones(2), 4), SINGLE_ARRAY),
    "array in protocol 2": (pickle.dumps(np.ones(2), 2), SINGLE_ARRAY),
    "tensor": (pickle.dumps(torch.ones(2)), SINGLE_ARRAY),
}


@pytest.mark.parametrize("case", KNOWN_PICKLES)
def test_what_does_no_harm_is_seen_to_do_none(case: str) -> None:
    """The pickles above are unknown for their one fault, as these have none."""
    data, kind = KNOWN_PICKLES[case]
    assert scan(data) == kind
    assert visible(read(data)) == slow(data) == visible(pickle.loads(data))


def test_depth_has_an_end() -> None:
    """For any mix of containers."""
    assert scan(body(b"]" * 1001 + b"a" * 1000)) == NO_NAMES
    for deep in (b"]" * 1002 + b"a" * 1001, b"]" + b"(]" * 1001 + b"e" * 1001, b")" + b"\x85" * 1001):
        assert scan(body(deep)) == UNKNOWN
    inside = [b"]\x94j%ba" % struct.pack("<I", place) for place in range(1001)]
    assert scan(body(b"](]\x94", *inside[:900], b"e")) == NO_NAMES
    assert scan(body(b"](]\x94", *inside, b"e")) == UNKNOWN


def test_keys_from_the_memo_are_known_by_kind() -> None:
    """Changing any memo reference gives what the machine gives: each memo entry keeps its kind."""
    value = [{"a": 1}, (1, 2), {"a": (3, "a"), "b": {"a"}}, 2.5]
    data = pickle.dumps(value, 4)
    assert scan(data) == NO_NAMES
    assert read(data) == value
    for place in range(12):
        changed = data.replace(b"h\x02", b"h%c" % place)
        found = read(changed)
        assert (slow(changed) if found is NOT_READ else visible(found)) == slow(changed), place
        assert found is NOT_READ or all(type(key) is str for key in found[2]), place


@pytest.mark.timeout(20)
def test_a_long_key_is_not_compared_over_and_over() -> None:
    """Two equal texts of 1 MB, one used as a key 100,000 times: every use would compare all of it."""
    text = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"\x94"
    assert scan(body(text, text, b"}(h\x00N", b"h\x01N" * 100_000, b"u\x87")) == UNKNOWN
    assert scan(body(text, text, b"}(h\x00N", b"h\x01N" * 10, b"u\x87")) == NO_NAMES
    assert scan(body(text, text, b"\x8f(", b"h\x01h\x00" * 100_000, b"\x90\x87")) == UNKNOWN


@pytest.mark.parametrize("name", GOOD)
def test_truncated_pickles_are_unknown(name: str) -> None:
    """At every byte of small pickles, and at some of large ones."""
    for protocol in (2, 3, 4, 5):
        data = pickle.dumps(GOOD[name], protocol)
        for end in range(0, len(data), max(1, len(data) // 2000)):
            assert scan(data[:end]) == UNKNOWN, (protocol, end)


@pytest.mark.timeout(60)
def test_many_things_are_remembered() -> None:
    """More entries than the scan holds without allocating, and more than 65,536; over a million is too many."""
    many = [str(n) for n in range(70_000)]
    assert read(pickle.dumps(many, 4)) == many
    assert read(pickle.dumps(tuple(many), 2)) == tuple(many)
    assert scan(body(b"(" + b"N" * ((1 << 20) - 1) + b"t")) == NO_NAMES
    assert scan(body(b"(" + b"N" * (1 << 20) + b"t")) == UNKNOWN


def test_elements_serve_one_array() -> None:
    """Numpy keeps the bytes that it is given and changes them, so nothing else may refer to them."""
    data = pickle.dumps([np.arange(300), 5], 4)
    place = data.count(b"\x94", 0, data.index(b"B\x60")) + 0
    for number in range(place - 1, place + 3):
        changed = data.replace(b"K\x05", b"h%c" % number)
        found = read(changed)
        assert found is NOT_READ or type(found[1]) is not bytes, number


def test_no_other_kind_of_input_is_looked_at() -> None:
    """Only contiguous bytes are scanned."""
    for given_data in ("text", None, [1], memoryview(b"x" * 10)[::2]):
        with pytest.raises((TypeError, BufferError)):
            scan(given_data)  # type: ignore[arg-type]
    assert scan(memoryview(b"x" + pickle.dumps(1))[1:]) == NO_NAMES


def lie(value: Any, old: bytes, new: bytes, protocol: int = 4) -> bytes:
    """A container's pickle with one change."""
    data = pickle.dumps([value], protocol)
    assert data.count(old) == 1
    changed = data.replace(old, new)
    return changed[:3] + struct.pack("<Q", len(changed) - 11) + changed[11:]


LIES = {
    "array of more": lie(np.ones(2), b"K\x02\x85", b"K\x03\x85"),
    "array of less": lie(np.ones(2), b"K\x02\x85", b"K\x01\x85"),
    "array of many": lie(np.ones(2), b"K\x02\x85", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"),
    "array of a larger dtype": lie(np.ones(2, "f4"), b"\x02f4", b"\x02f8"),
    "array of objects": lie(np.ones(2), b"\x02f8", b"\x02O8"),
    "array of an unknown order": lie(np.ones(2), b"\x01<", b"\x01|"),
    "array over bytes beyond memory": lie(np.ones(2), b"C\x10", b"\x8e" + b"\xff" * 8),
    "array of another version": lie(np.ones(2), b"(K\x01K\x02\x85", b"(K\x02K\x02\x85"),
    "array of a function": lie(np.ones(2), b"ndarray", b"memmap\x20"),
    "array over more": lie(np.ones(2), b"K\x02\x85", b"K\x03\x85", 5),
    "array over many": lie(np.ones(2), b"K\x02\x85", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", 5),
    "array over objects": lie(np.ones(2), b"\x02f8", b"\x02O8", 5),
    "scalar of more": lie(np.float32(1), b"\x02f4", b"\x02f8"),
    "scalar of objects": lie(np.float64(1), b"\x02f8", b"\x02O8"),
    "tensor of more": lie(torch.ones(2), b"K\x00K\x02\x85", b"K\x00K\x03\x85"),
    "tensor of many": lie(torch.ones(2), b"K\x00K\x02\x85", b"K\x00J\xff\xff\xff\x7f\x85"),
    "tensor of another stride": lie(torch.ones(2), b"K\x01\x85\x94\x89", b"K\x02\x85\x94\x89"),
    "storage of many": lie(torch.ones(2), b"\x02" + bytes(7), b"\xff" * 7 + b"\x7f"),
    "storage of a program": lie(torch.ones(2), b"ctorch\nFloatStorage\n", b"cposix\nsystem      \n"),
    "name of a program": lie(np.ones(2), b"\x0c_reconstruct", b"\x0c_reconstrucs"),
    "module of a program": lie(np.float64(1), b"\x05numpy", b"\x05posix"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_lie_inside_a_container_is_refused(case: str) -> None:
    """The scan refuses it, so it never reaches the C unpickler; and the machine refuses it."""
    if not case.startswith(("tensor", "storage")):  # their functions check again
        assert scan(LIES[case]) == UNKNOWN
    assert read(LIES[case]) is NOT_READ
    with pytest.raises(RefusedError):
        loads(LIES[case])


def test_a_name_never_becomes_a_value() -> None:
    """Nor does a dtype, or an unfilled array, from the memo."""
    for value in (np.float64(1), np.ones(2), torch.ones(2)):
        for protocol in (2, 4, 5):
            data = pickle.dumps([value, 2], protocol)
            at = data.rindex(b"K\x02")
            for place in range(25):
                changed = data[:at] + b"h%c" % place + data[at + 2 :]
                found = read(changed)
                whole = list, tuple, str, bytes, np.float64, np.ndarray, torch.Tensor, bytearray, OrderedDict
                assert found is NOT_READ or type(found[1]) in whole, place


def test_a_key_from_the_memo_is_plain_or_left() -> None:
    """A scalar, a tensor or a name from the memo is refused as a key."""
    for value in (np.float64(1), torch.ones(1)):
        data = pickle.dumps([value, {"a": 2}, {"a": 2}], 4)
        kept = data.index(b"a\x94K\x02s") - 2
        places = [at for at in range(len(data) - 1) if data[at] == ord("h") and at > kept]
        for number in range(40):
            changed = bytearray(data)
            changed[places[-1] + 1] = number
            found = read(bytes(changed))
            assert found is NOT_READ or set(map(type, found[2])) <= {str, bytes, int}, number


def test_what_is_found_cannot_be_changed() -> None:
    """It holds only built-in types, functions of C, and instances without attributes."""
    for found in _NAMES.values():
        with pytest.raises((AttributeError, TypeError)):
            found.call = None
        assert not hasattr(found, "__setstate__") or isinstance(found, type)


@pytest.mark.parametrize("size", [10, 300, 100_000, 5_000_000])
def test_a_mapped_file_is_copied_before_it_is_read(size: int) -> None:
    """A change between scan and reading would go unchecked; and a value refers to nothing of its input."""
    values = []
    for number in range(3):
        data = bytearray(pickle.dumps([np.full(size, number), {"a": number}, "x" * size], 4))
        values.append(read(memoryview(data)))
        data[:] = bytes(len(data))
    for number, (array, plain, text) in enumerate(values):
        assert array.tolist() == [number] * size
        assert plain == {"a": number}
        assert text == "x" * size


def test_threads_do_not_share_a_copy() -> None:
    """Each thread has its own buffer while it reads."""
    pickles = [memoryview(bytearray(pickle.dumps([np.full(20_000, n), [n] * 50_000], 5))) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for n, found in zip([*range(8)] * 20, pool.map(read, pickles * 20), strict=True):
            assert found[0].tolist() == [n] * 20_000
            assert found[1] == [n] * 50_000


def test_without_the_compiled_scan_everything_is_left_to_the_machine() -> None:
    """Where dray was installed without a compiler: slower, and as safe."""
    code = """
        import pickle, sys
        sys.modules["dray.shards.codecs.pickles.scan"] = None
        import numpy as np, torch
        from dray.shards.codecs.pickles.c_unpickler import NOT_READ, read
        from dray.shards.codecs.pickles.unpickle import loads
        value = [{"x": np.arange(3)}, torch.ones(2), (1, "a")]
        assert read(pickle.dumps(value)) is NOT_READ
        assert read(pickle.dumps(torch.ones(2))).tolist() == [1, 1]
        print(loads(pickle.dumps(value)))
        loads(b"cos\\nsystem\\n(S'true'\\ntR.")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.stdout.strip() == "[{'x': array([0, 1, 2])}, tensor([1., 1.]), (1, 'a')]"
    assert "RefusedError: pickle names os.system" in done.stderr


# ---- what the C unpickler does with a pickle that the scan admits ----

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
