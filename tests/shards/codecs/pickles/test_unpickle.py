"""The allow-list unpickler returns what pickle returns for values of the safe list, and runs nothing for others."""

import collections
import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.shards.codecs.pickles.machine import FUNCTIONS
from dray.shards.codecs.pickles.unpickle import loads
from dray.shards.errors import CallError, RefusedError

PROTOCOLS = range(6)
DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
DTYPES += ["complex64", "complex128"]

# ---- values of the safe list ----

SCALARS: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
)
SCALARS |= st.complex_numbers(allow_nan=False)
KEYS = st.recursive(st.integers() | st.text() | st.binary() | st.booleans(), lambda k: st.tuples(k, k), max_leaves=4)
VALUES = st.recursive(
    SCALARS | st.builds(bytearray, st.binary()) | st.sets(KEYS) | st.frozensets(KEYS),
    lambda v: (
        st.lists(v)
        | st.lists(v).map(tuple)
        | st.dictionaries(KEYS, v)
        | st.builds(OrderedDict, st.dictionaries(KEYS, v))
    ),
    max_leaves=12,
)


@settings(deadline=None)  # the first one compiles expressions
@given(value=VALUES, protocol=st.sampled_from(PROTOCOLS))
def test_plain_values_come_back_as_pickle_gives_them(value: Any, protocol: int) -> None:
    """Law: nested plain values, in any protocol, are equal in value and in every type."""
    found = loads(pickle.dumps(value, protocol))
    assert found == value
    assert repr(found) == repr(pickle.loads(pickle.dumps(value, protocol)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", DTYPES)
def test_tensors_of_every_dtype_come_back(name: str, protocol: int) -> None:
    """Values, dtype, shape and stride equal those of pickle."""
    tensor = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(getattr(torch, name))
    data = pickle.dumps(tensor, protocol)
    found, expected = loads(data), pickle.loads(data)
    assert type(found) is torch.Tensor
    assert found.dtype == expected.dtype
    assert found.stride() == expected.stride()
    assert torch.equal(found, expected)


TENSORS = {
    "transposed": torch.arange(24).reshape(2, 3, 4).transpose(0, 2),
    "slice": torch.arange(24)[5:20:3],
    "expanded": torch.arange(3).expand(4, 3),
    "no dimension": torch.tensor(2.5),
    "no element": torch.zeros(0, 3),
    "no element, behind its storage": torch.zeros(4, 0)[1::2],
    "conjugate": torch.tensor([1 + 2j, 3j]).conj(),
    "gradient": torch.ones(2, requires_grad=True),
    "parameter": torch.nn.Parameter(torch.ones(2, 2)),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", TENSORS)
def test_views_and_parameters_come_back(name: str, protocol: int) -> None:
    """A view stays a view of the same storage layout, a Parameter a Parameter."""
    data = pickle.dumps(TENSORS[name], protocol)
    found, expected = loads(data), pickle.loads(data)
    assert type(found) is type(expected)
    assert found.stride() == expected.stride()
    assert found.requires_grad == expected.requires_grad
    assert found.is_conj() == expected.is_conj()
    assert torch.equal(found, expected)


def test_a_tensor_can_be_written_and_resized() -> None:
    """The tensor owns its memory: writing to it changes neither the input nor a second reading."""
    data = pickle.dumps(torch.zeros(3))
    loads(data).fill_(7).resize_(10)
    assert torch.equal(loads(data), torch.zeros(3))


def test_a_state_dict_keeps_its_order_and_metadata() -> None:
    """A module's state_dict, an OrderedDict with an attribute, is read."""
    expected = torch.nn.Linear(2, 3).state_dict()
    found = loads(pickle.dumps(expected))
    assert list(found) == list(expected)
    assert vars(found) == vars(expected)


def test_newer_dtypes_come_back() -> None:
    """uint16 tensors, which another function pickles, are read too."""
    tensor = torch.tensor([1, 65535], dtype=torch.uint16)
    assert torch.equal(loads(pickle.dumps(tensor)), tensor)


ARRAYS = {
    "integers": np.arange(6).reshape(2, 3),
    "other byte order": np.arange(3, dtype=">f4"),
    "shared dtype": [np.ones(2, ">f4"), np.ones(3, ">f4")],
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "permuted": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    "no element": np.zeros((0, 3), "f2"),
    "no dimension": np.array(3),
    "text": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "time": np.array(["2020-01-01", "NaT"], "M8[ns]"),
    "objects": np.array(["a", 3, None, [1]], dtype=object),
    "structure": np.array([(1.5, "x")], dtype=[("a", ">f4"), ("b", "U2")]),
    "aligned structure": np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "scalars": [np.float32(1.5), np.int8(-3), np.bool_(True), np.str_("x"), np.complex64(2j), np.timedelta64(3, "h")],
    "key": {np.int64(3): 1, np.str_("x"): 2},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_and_scalars_come_back(name: str, protocol: int) -> None:
    """Values, dtype with its byte order, shape and memory layout equal those of pickle."""
    data = pickle.dumps(ARRAYS[name], protocol)
    found, expected = loads(data), pickle.loads(data)
    assert repr(found) == repr(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        assert str(found.flags) == str(expected.flags)


def test_shared_and_circular_references_are_kept() -> None:
    """An object that occurs twice is one object again."""
    shared: list[Any] = [torch.zeros(1)]
    shared.append(shared)
    found = loads(pickle.dumps({"a": shared, "b": shared}))
    assert found["a"] is found["b"] is found["a"][1]


# ---- what is refused ----


def text(value: str) -> bytes:
    """A short string in protocol 4."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def blob(value: bytes) -> bytes:
    """Bytes in protocol 3."""
    return b"B" + struct.pack("<I", len(value)) + value


def name(module: str, attribute: str) -> bytes:
    """A global in protocol 4."""
    return text(module) + text(attribute) + b"\x93"


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    """A call with pickled arguments."""
    return name(module, attribute) + b"(" + b"".join(arguments) + b"tR"


def whole(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


def storage(content: bytes, kind: bytes = b"torch\nFloatStorage", count: int | None = None) -> bytes:
    """A storage as torch.save writes it, with the given count."""
    good = io.BytesIO()
    torch.save(torch.zeros(2).untyped_storage(), good, _use_new_zipfile_serialization=False)
    head = good.getvalue()[: -8 - 8].replace(b"torch.storage\nUntypedStorage", kind)
    return head + struct.pack("<q", len(content) // 4 if count is None else count) + content


def tensor(content: bytes, offset: int = 0, size: bytes = b"K\x02\x85", stride: bytes = b"K\x01\x85") -> bytes:
    """A tensor of two floats over `content`, with the given offset, size and stride."""
    held = call("torch.storage", "_load_from_bytes", blob(content))
    hooks = call("collections", "OrderedDict")
    return call(
        "torch._utils", "_rebuild_tensor_v2", held, b"J" + struct.pack("<i", offset), size, stride, b"\x89", hooks
    )


def test_a_storage_as_metadata_is_refused_without_asking_torch() -> None:
    """Torch warns about the truth value of a storage, and the warning opens files."""
    good = io.BytesIO()
    torch.save(torch.zeros(2).untyped_storage(), good, _use_new_zipfile_serialization=False)
    held = call("torch.storage", "_load_from_bytes", blob(good.getvalue()))
    extras = b"\x89", call("collections", "OrderedDict"), held
    with pytest.raises(RefusedError, match="conj and neg bits"):
        loads(whole(call("torch._utils", "_rebuild_tensor_v2", held, b"K\x00", b"K\x02\x85", b"K\x01\x85", *extras)))


def saved(value: Any, *, new: bool) -> bytes:
    """The bytes of torch.save, in the new (zip) or the old format."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=new)
    return stream.getvalue()


class Evil:
    """Pickles as a call of os.system."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch /tmp/owned",)


def array(dtype: bytes, shape: bytes, content: bytes) -> bytes:
    """An array with the given dtype, shape and content."""
    made = call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), b"K\x00\x85", blob(b"b"))
    return made + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb"


FLOAT = call("numpy", "dtype", text("f4"), b"\x89\x88")
LONG_TEXT = b"X" + struct.pack("<I", 1 << 16) + b"x" * (1 << 16) + b"\x94"
NESTED_TUPLES = b")" + b"2\x86" * 60  # each level contains the one below twice: 2**60 leaves to hash

HOSTILE = {
    "reduce": pickle.dumps(Evil()),
    "reduce in protocol 0": pickle.dumps(Evil(), 0),
    "reduce under its Python 2 name": b"cposix\nsystem\n(S'true'\ntR.",
    "inst": b"(S'true'\nios\nsystem\n.",
    "inst of a safe name": b"(ibuiltins\nset\n.",
    "obj": b"(cos\nsystem\nS'true'\no.",
    "obj of a safe name": b"(cbuiltins\nset\no.",
    "extension code": whole(b"\x82\x01"),
    "extension code of 4 bytes": whole(b"\x84\x01\x00\x00\x00"),
    "persistent id": b"Px\n.",
    "binary persistent id": whole(text("x") + b"Q"),
    "persistent id of nested tuples": whole(NESTED_TUPLES + b"Q"),
    "out-of-band buffer": b"\x80\x05\x97.",
    "read-only buffer": b"\x80\x05" + blob(b"x") + b"\x98.",
    "newobj": whole(name("subprocess", "Popen") + text("true") + b"\x85\x81"),
    "newobj of a safe name": whole(name("builtins", "set") + b")\x81"),
    "newobj_ex": whole(name("subprocess", "Popen") + b")}\x92"),
    "newobj_ex of a safe name": whole(name("builtins", "set") + b")}\x92"),
    "dotted name": whole(call("builtins", "set.__init__.__globals__")),
    "dotted module": whole(call("torch", "storage.os.system", text("true"))),
    "module of torch": whole(call("torch.storage.os", "system", text("true"))),
    "getattr": whole(call("builtins", "getattr", name("os", "system"), text("__call__"))),
    "getattr on a safe name": whole(call("builtins", "getattr", name("builtins", "set"), text("__init__"))),
    "eval": whole(call("builtins", "eval", text("1"))),
    "import": whole(call("builtins", "__import__", text("os"))),
    "attrgetter": whole(call("operator", "attrgetter", text("system"))),
    "methodcaller": whole(call("operator", "methodcaller", text("system"), text("true"))),
    "partial": whole(call("functools", "partial", name("builtins", "set"))),
    "reduce of functools": whole(call("functools", "reduce", name("builtins", "set"))),
    "map": whole(call("builtins", "map", name("builtins", "set"), b"]")),
    "itemgetter": whole(call("operator", "itemgetter", text("system"))),
    "methodcaller in an old protocol": b"coperator\nmethodcaller\n(S'system'\ntR.",
    "accumulate": whole(call("itertools", "accumulate", b"]", name("os", "system"))),
    "filter": whole(call("builtins", "filter", name("os", "system"), b"]")),
    "cached property": whole(call("functools", "cached_property", name("os", "system"))),
    "getattr chain": whole(call("builtins", "getattr", call("builtins", "getattr", b"N", text("x")), text("y"))),
    "globals of a function": whole(name("torch._utils", "_rebuild_tensor_v2.__globals__")),
    "subclasses of object": whole(call("builtins", "object.__subclasses__")),
    "type": whole(call("builtins", "type", text("X"), b")", b"}")),
    "compile": whole(call("builtins", "compile", text("1"), text("x"), text("eval"))),
    "open": whole(call("builtins", "open", text("/etc/hostname"))),
    "io.open": whole(call("io", "open", text("/etc/hostname"))),
    "pickle.loads": whole(call("pickle", "loads", blob(pickle.dumps(Evil())))),
    "Unpickler": whole(call("_pickle", "loads", blob(pickle.dumps(Evil())))),
    "marshal": whole(call("marshal", "loads", blob(b"N"))),
    "code": whole(call("types", "CodeType")),
    "function": whole(call("types", "FunctionType")),
    "popen": whole(call("os", "popen", text("true"))),
    "socket": whole(call("socket", "create_connection", text("127.0.0.1"))),
    "urlopen": whole(call("urllib.request", "urlopen", text("file:///etc/hostname"))),
    "importlib": whole(call("importlib", "import_module", text("this"))),
    "pkgutil": whole(call("pkgutil", "resolve_name", text("os:system"))),
    "ctypes": whole(call("ctypes", "CDLL", text("libc.so.6"))),
    "copyreg": whole(call("copyreg", "add_extension", text("os"), text("system"), b"K\x01")),
    "reconstructor of a program": b"ccopy_reg\n_reconstructor\n(cos\nsystem\nc__builtin__\nobject\nNtR.",
    "cpp extension": whole(call("torch.utils.cpp_extension", "load_inline", text("x"), text("y"))),
    "jit": whole(call("torch.jit", "load", text("/etc/hostname"))),
    "genfromtxt": whole(call("numpy", "genfromtxt", text("/etc/hostname"))),
    "ndarray called": whole(call("numpy", "ndarray", b"K\x09\x85")),
    "zip archive around": saved(Evil(), new=True),
    "old format around": saved(Evil(), new=False),
    "torch's storage by a rebuild of a rebuild": whole(
        call("torch._utils", "_rebuild_device_tensor_from_numpy", b"N", text("f4"), text("cpu"), b"\x89")
    ),
    "storage of a zip archive": whole(
        call("torch.storage", "_load_from_bytes", blob(saved(torch.ones(2).untyped_storage(), new=True)))
    ),
    "storage of a tensor's file": whole(
        call("torch.storage", "_load_from_bytes", blob(saved(torch.ones(2), new=False)))
    ),
    "polyglot of two protocols": b"\x80\x04N.\x80\x02cos\nsystem\n.",
    "pickle behind a zip archive": saved(torch.ones(2), new=True) + pickle.dumps(Evil()),
    "run_string": whole(call("numpy.testing._private.utils", "runstring", text("1"), b"}")),
    "torch.load": whole(call("torch", "load", text("/etc/hostname"))),
    "torch.hub": whole(call("torch.hub", "load", text("a"), text("b"))),
    "numpy.load": whole(call("numpy", "load", text("/etc/hostname"))),
    "numpy.memmap": whole(call("numpy", "memmap", text("/etc/hostname"))),
    "call of a value": whole(text("x") + b")R"),
    "call of a call's result": whole(call("collections", "OrderedDict") + b")R"),
    "build on a stand-in": whole(name("builtins", "set") + b"}" + text("call") + text("x") + b"sb"),
    "build on a tensor": whole(tensor(storage(bytes(8))) + b"}" + text("__class__") + b"Nsb"),
    "build on a list": whole(b"]}b"),
    "build of dunders": whole(call("collections", "OrderedDict") + b"}" + text("__class__") + b"Nsb"),
    "append to a bytearray": b"\x80\x05\x96" + struct.pack("<Q", 0) + b"K\x01a.",
    "items of a tensor": whole(tensor(storage(bytes(8))) + b"K\x00K\x01s"),
    "class as a value": whole(name("collections", "OrderedDict")),
    "class in a list": whole(b"]" + name("collections", "OrderedDict") + b"a"),
    "class in a tuple in a dict": whole(b"}K\x01" + name("builtins", "set") + b"\x85\x85s"),
    "class as a key": whole(b"}" + name("builtins", "set") + b"K\x01s"),
    "class as state": whole(call("collections", "OrderedDict") + b"}" + text("a") + name("builtins", "set") + b"sb"),
    "tensor as a key": whole(b"}" + tensor(storage(bytes(8))) + b"K\x01s"),
    "evil storage": whole(call("torch.storage", "_load_from_bytes", blob(pickle.dumps(Evil())))),
    "evil storage in the old format": whole(call("torch.storage", "_load_from_bytes", blob(saved(Evil(), new=False)))),
    "evil storage in the zip format": whole(call("torch.storage", "_load_from_bytes", blob(saved(Evil(), new=True)))),
    "evil after a storage's magic": whole(tensor(storage(bytes(8))[:15] + pickle.dumps(Evil()))),
    "evil kind of storage": whole(tensor(storage(bytes(8), kind=b"os\nsystem"))),
    "storage of text": whole(call("torch.storage", "_load_from_bytes", text("x"))),
    "storage that announces more": whole(tensor(storage(bytes(8), count=3))),
    "storage that announces the moon": whole(tensor(storage(bytes(8), count=1 << 61))),
    "storage that announces less than nothing": whole(tensor(storage(bytes(8), count=-2))),
    "storage cut short": whole(tensor(storage(bytes(8))[:-3])),
    "tensor larger than its storage": whole(tensor(storage(bytes(8)), size=b"K\x03\x85")),
    "tensor behind its storage": whole(tensor(storage(bytes(8)), offset=1)),
    "tensor before its storage": whole(tensor(storage(bytes(8)), offset=-1)),
    "stride out of its storage": whole(tensor(storage(bytes(8)), stride=b"K\x02\x85")),
    "negative stride": whole(tensor(storage(bytes(8)), offset=1, stride=b"J\xff\xff\xff\xff\x85")),
    "negative size": whole(tensor(storage(bytes(8)), size=b"J\xff\xff\xff\xff\x85")),
    "size of floats": whole(tensor(storage(bytes(8)), size=b"G" + struct.pack(">d", 2) + b"\x85")),
    "more sizes than strides": whole(tensor(storage(bytes(8)), size=b"K\x01K\x02\x86")),
    "expanded to the moon": whole(tensor(storage(bytes(8)), size=b"J\xff\xff\xff\x7f\x85", stride=b"K\x00\x85")),
    "tensor at a fraction": whole(tensor(storage(bytes(8))).replace(b"J\0\0\0\0", b"G" + bytes(8))),
    "tensor of more strides than dimensions": whole(tensor(storage(bytes(8)), stride=b"K\x01K\x01\x86")),
    "tensor of fewer strides than dimensions": whole(tensor(storage(bytes(8)), size=b"K\x02K\x01\x86")),
    "array made with a shape": whole(
        call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), b"K\x05\x85", blob(b"b"))
    ),
    "array made with a dtype": whole(
        call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), b"K\x00\x85", blob(b"d"))
    ),
    "array of another type": whole(
        call("numpy.core.multiarray", "_reconstruct", name("builtins", "set"), b"K\x00\x85", blob(b"b"))
    ),
    "tensor of no dtype": whole(
        call(
            "torch._utils",
            "_rebuild_tensor_v3",
            call("torch.storage", "_load_from_bytes", blob(storage(bytes(8)))),
            *(b"K\x00", b"K\x02\x85", b"K\x01\x85", b"\x89", call("collections", "OrderedDict"), text("float32")),
        )
    ),
    "tensor over text": whole(tensor(b"").replace(b"_load_from_bytes", b"_load_from_bytez")),
    "array larger than its bytes": whole(array(FLOAT, b"K\x03\x85", blob(bytes(8)))),
    "array smaller than its bytes": whole(array(FLOAT, b"K\x01\x85", blob(bytes(8)))),
    "array of negative shape": whole(array(FLOAT, b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86", blob(bytes(8)))),
    "array of pointers": whole(array(call("numpy", "dtype", text("O8"), b"\x89\x88"), b"K\x01\x85", blob(bytes(8)))),
    "array with a lying dtype": whole(array(text("f4"), b"K\x02\x85", blob(bytes(8)))),
    "buffer of pointers": whole(
        call(
            "numpy.core.numeric",
            "_frombuffer",
            blob(bytes(8)),
            call("numpy", "dtype", text("O8")),
            b"K\x01\x85",
            text("C"),
        )
    ),
    "scalar of pointers": whole(
        call("numpy.core.multiarray", "scalar", call("numpy", "dtype", text("O8")), blob(bytes(8)))
    ),
    "dtype by a class": whole(call("numpy", "dtype", name("builtins", "set"))),
    "dtype of fields by text": whole(call("numpy", "dtype", text("f4,O"))),
    "dtype that grows": whole(call("numpy", "dtype", text("V4")) + b"(K\x03" + text("|") + b"NNNM\x00\x10K\x01K\x00tb"),
    "dtype whose fields need more": whole(
        call("numpy", "dtype", text("V4"))
        + b"(K\x03"
        + text("|")
        + b"N"
        + text("a")
        + b"\x85}"
        + text("a")
        + FLOAT
        + b"K\x00\x86sM\x00\x10K\x01K\x10tb"
    ),
    "nothing": b"",
    "no end": b"\x80\x04N",
    "cut short": pickle.dumps(torch.zeros(4))[:-40],
    "trailing byte": pickle.dumps(1) + b"x",
    "trailing byte in a frame": b"\x80\x04\x95" + struct.pack("<Q", 3) + b"N.N",
    "second pickle": pickle.dumps(1) + pickle.dumps(2),
    "unknown opcode": whole(b"\xff"),
    "protocol 9": b"\x80\x09N.",
    "empty stack": whole(b""),
    "too few items": whole(b"K\x01\x87"),
    "key without value": whole(b"}(K\x01u"),
    "unknown memo": whole(b"h\x05"),
    "huge text": whole(b"\x8d" + struct.pack("<Q", 1 << 60)),
    "huge bytes": whole(b"\x8e" + struct.pack("<Q", 1 << 60)),
    "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b".",
    "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N",
    "many copies": whole(
        LONG_TEXT
        + text("latin1")
        + b"\x86\x940"
        + name("_codecs", "encode")
        + b"\x940"
        + b"("
        + b"h\x02h\x01R" * 3000
        + b"t"
    ),
    "nested key": whole(b"}" + NESTED_TUPLES + b"K\x01s"),
    "wide nested key": whole(b"}" + b")" + b"2\x86" * 28 + b"K\x01s"),
    "nested item of a set": whole(call("builtins", "set", b"]" + NESTED_TUPLES + b"a")),
    "colliding keys": whole(
        b"}(" + b"".join(pickle.dumps(n * (2**61 - 1) << 64, 2)[2:-1] + b"N" for n in range(1, 9000)) + b"u"
    ),
}


def test_the_builders_of_hostile_pickles_build_good_ones_too() -> None:
    """The pickles above are refused for their one fault, as these have none."""
    assert torch.equal(loads(whole(tensor(storage(bytes(8))))), torch.zeros(2))
    assert loads(whole(array(FLOAT, b"K\x02\x85", blob(bytes(8))))).tolist() == [0, 0]
    assert loads(whole(call("_codecs", "encode", text("x"), text("latin1")))) == b"x"
    assert loads(whole(b"}" + b")2\x862\x86" + b"K\x01s")) == {(((), ()), ((), ())): 1}


@pytest.fixture(scope="module")
def events() -> Iterator[list[str]]:
    """The audit events since the list was last cleared: imports, code, processes, files."""
    seen: list[str] = []
    watched = ("import", "exec", "compile", "os.", "open", "subprocess.", "socket.", "shutil.", "pickle.", "ctypes.")
    state = {"on": True}

    def hook(event: str, _: tuple[Any, ...]) -> None:
        if state["on"] and event.startswith(watched):
            seen.append(event)

    sys.addaudithook(hook)
    loads(pickle.dumps([torch.zeros(1), np.zeros(1)]))
    yield seen
    state["on"] = False


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_pickle_is_refused_and_does_nothing(case: str, events: list[str]) -> None:
    """RefusedError within seconds, without an import, code, a file or a process."""
    events.clear()
    with contextlib.suppress(RefusedError):
        loads(HOSTILE[case])
    assert events == []
    with pytest.raises(RefusedError):
        loads(HOSTILE[case])


def test_a_sound_pickle_with_large_keys_is_read() -> None:
    """The guard against chosen hashes accepts large numbers, repeated tuples and long text."""
    value = [{2**100 + i: (i, str(i)), (i % 3, "x" * 5000): 2**100 + i} for i in range(3000)]
    assert loads(pickle.dumps(value)) == value


@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(data: bytes) -> None:
    """Law: no other exception is ever raised."""
    with contextlib.suppress(RefusedError):
        loads(data)


@given(data=st.data())
def test_damaged_pickles_are_read_or_refused(data: st.DataObject) -> None:
    """Law: a good pickle with some bytes changed gives a value or RefusedError."""
    good = bytearray(
        pickle.dumps([ARRAYS["structure"], TENSORS["slice"], {"a": {1}}], data.draw(st.sampled_from(PROTOCOLS)))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RefusedError):
        loads(bytes(good))


# ---- what a caller can allow ----


def test_a_refusal_names_the_global_and_the_way_out() -> None:
    """The message gives the name and both keywords."""
    with pytest.raises(RefusedError, match=r'os\.system.*allow=\["os\.system"\].*allow_pickle=True'):
        loads(b"cos\nsystem\n(S'true'\ntR.")


class Point:
    """A class of a user."""

    def __init__(self, x: int = 0) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]


class Sealed(Point):
    """A class with __setstate__."""

    def __getstate__(self) -> tuple[int]:
        return (self.x,)

    def __setstate__(self, state: tuple[int]) -> None:
        (self.x,) = state


class Row(list[int]):
    """A container of a user."""


class Named:
    """A class whose constructor takes keywords."""

    def __new__(cls, *, x: int) -> "Named":
        made = super().__new__(cls)
        made.x = x
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"x": self.x}

    x: int


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", [Point(3), Sealed(4), Fraction(1, 3), Row([1, 2])], ids=lambda v: type(v).__name__)
def test_an_allowed_class_is_made_as_pickle_makes_it(value: Any, protocol: int) -> None:
    """Constructor, __reduce__, __setstate__, __dict__ and appended items all work."""
    found = loads(pickle.dumps([value], protocol), allow=[f"{type(value).__module__}.{type(value).__qualname__}"])
    assert found == [value]
    assert type(found[0]) is type(value)


def test_an_allowed_class_can_take_keywords() -> None:
    """NEWOBJ_EX works for an allowed class."""
    assert loads(pickle.dumps(Named(x=5), 4), allow=[f"{__name__}.Named"]).x == 5


def test_an_allowed_type_is_also_a_value() -> None:
    """A defaultdict of sets needs two names, and the message gives both."""
    value = collections.defaultdict(set, a={1})
    found = loads(pickle.dumps(value), allow=["collections.defaultdict", "builtins.set"])
    assert found == value
    assert found.default_factory is set


def test_only_what_is_allowed_is_allowed() -> None:
    """One allowed name opens no other, not even next to it."""
    with pytest.raises(RefusedError, match=r"fractions\.Fraction"):
        loads(pickle.dumps([Point(1), Fraction(1, 2)]), allow=[f"{__name__}.Point"])
    with pytest.raises(RefusedError, match=r"set\.__init__"):
        loads(whole(call("builtins", "set.__init__")), allow=["builtins.set"])


def test_an_allowed_storage_loader_still_runs_nothing() -> None:
    """The names of torch and numpy keep their stand-ins, whatever is allowed."""
    with pytest.raises(RefusedError):
        loads(HOSTILE["evil storage"], allow=["torch.storage._load_from_bytes"])
    with pytest.raises(RefusedError):
        loads(HOSTILE["array of pointers"], allow=["numpy.ndarray", "numpy.dtype"])


@pytest.mark.parametrize("name_", sorted(FUNCTIONS))
def test_to_allow_a_name_that_is_ours_changes_nothing(name_: str, events: list[str]) -> None:
    """A function with a stand-in is never the real one: not in a call, as a value or by NEWOBJ."""
    module, _, function = name_.rpartition(".")
    arguments = (b"N", text("x"), blob(pickle.dumps(Evil())))
    cases = [call(module, function, *arguments[:number]) for number in range(4)]
    cases += [name(module, function), name(module, function) + b")\x81", call(module, function, storage(bytes(8)))]
    for case in map(whole, cases):
        outcomes = []
        for allow in ((), (name_,)):
            events.clear()
            try:
                outcomes.append(repr(loads(case, allow=allow)))
            except RefusedError as exc:
                outcomes.append(str(exc))
            assert events == []
        assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "opcodes",
    [
        call("builtins", "bytearray", b"h\x00"),
        call("builtins", "set", b"h\x01"),
        call("_codecs", "encode", b"h\x02", text("latin1")),
        call("collections", "OrderedDict") + b"h\x03b",
    ],
    ids=["bytes", "set", "text", "attributes"],
)
def test_a_small_pickle_cannot_ask_for_much_memory(opcodes: bytes) -> None:
    """Each call is charged for what it copies: 50 kB of pickle cannot become 200 MB."""
    numbers = b"](" + b"".join(b"M" + struct.pack("<H", number) for number in range(4000)) + b"e\x94"
    long_text = b"X" + struct.pack("<I", 6000) + b"x" * 6000 + b"\x94"
    names = b"}(" + b"".join(text(f"{number}") + b"N" for number in range(2000)) + b"u\x94"
    sources = b"0".join((blob(b"x" * 6000) + b"\x94", numbers, long_text, names)) + b"0"
    pickled = whole(sources + b"(" + opcodes * 900 + b"t")
    assert len(pickled) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError, match="copy its own pieces"):
            loads(pickled)
        assert tracemalloc.get_traced_memory()[1] < 64 * len(pickled) + (3 << 20)
    finally:
        tracemalloc.stop()


def test_what_an_allowed_class_raises_is_a_refusal() -> None:
    """An error of foreign code keeps its cause."""
    with pytest.raises(RefusedError) as found:
        loads(whole(call("fractions", "Fraction", b"K\x01", b"K\x00")), allow=["fractions.Fraction"])
    assert isinstance(found.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("allow", ["os.system", ["system"], [3]])
def test_allow_takes_a_collection_of_full_names(allow: Any) -> None:
    """A string would mean each of its letters."""
    with pytest.raises(CallError, match="full names"):
        loads(pickle.dumps(1), allow=allow)


def test_allow_pickle_is_plain_pickle() -> None:
    """Any value is read."""
    assert loads(pickle.dumps(Point(3)), allow_pickle=True) == Point(3)


def test_the_unpickler_does_not_import_what_a_pickle_names() -> None:
    """In a new process, the module of a refused name is not imported."""
    program = """
        import sys
        from dray.shards.codecs.pickles.machine import FUNCTIONS
        from dray.shards.codecs.pickles.unpickle import loads
        try:
            loads(b"cthis\\ns\\n.")
        except Exception as exc:
            print(type(exc).__name__, "this" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["RefusedError", "False"]
