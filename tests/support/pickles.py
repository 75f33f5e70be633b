"""Pickles of containers that the scan admits, leaves or must refuse; and what a test sees of a value that was read."""

import pickle
import struct
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

from dray.shards.codecs.pickles.machine import Machine

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
